"""The table of volumes: those that there are, in memory, and what there is to say of them."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from imgvol.errors import NotFound
from imgvol.volumes.volume import HeldVolume, Volume, describe


class VolumeTable:
    """The volumes of one daemon.

    Args:
        views_directory: Where the filesystem is mounted.
    """

    def __init__(self, views_directory: Path) -> None:
        self._views_directory = views_directory
        self._volumes: dict[str, HeldVolume] = {}

    def __len__(self) -> int:
        """How many volumes there are."""
        return len(self._volumes)

    def __iter__(self) -> Iterator[HeldVolume]:
        """All volumes as they are now."""
        return iter(list(self._volumes.values()))

    def put(self, held: HeldVolume) -> None:
        """Adds a volume, or what it has become."""
        self._volumes[held.record.id] = held

    def drop(self, held: HeldVolume) -> None:
        """Forgets a volume that is there."""
        del self._volumes[held.record.id]

    def get(self, volume_id: str) -> HeldVolume | None:
        """A volume as it is now, if there still is one of this ID."""
        return self._volumes.get(volume_id)

    def find(self, target_or_id: str) -> HeldVolume:
        """A volume, by its ID, the path that it is bound at, or, without one, the view's.

        Raises:
            NotFound: No such volume.
        """
        if target_or_id in self._volumes:
            return self._volumes[target_or_id]
        for held in self:
            if target_or_id == self._path_of(held):
                return held
        raise NotFound("no such volume", hint="imgvol ps lists the volumes.", volume=target_or_id)

    def of_sandbox(self, sandbox: str) -> Sequence[HeldVolume]:
        """A sandbox's volumes."""
        return [held for held in self if held.record.sandbox == sandbox]

    def show(self, held: HeldVolume, absence: str = "") -> Volume:
        """A volume as it is told of.

        Args:
            held: Which.
            absence: Why its target does not show the view, if it does not.
        """
        return describe(held, self._view_of(held), self._path_of(held), absence)

    def _path_of(self, held: HeldVolume) -> str:
        """Where the files are; empty when they are nowhere."""
        if held.record.target is not None or held.view is None:
            return held.record.target or ""
        view = self._view_of(held)
        return os.path.join(view, os.fsdecode(held.part.path)) if held.part.path else view

    def _view_of(self, held: HeldVolume) -> str:
        """The path of the view; empty when there is none."""
        if held.view is None:
            return ""
        return os.path.join(self._views_directory, os.fsdecode(held.view.name))
