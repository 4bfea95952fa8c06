"""The volumes after a restart: records, store and mounts brought together again, without network.

It is idempotent: nothing is recorded on the way but what is gone for good, so a daemon that dies in
here leaves what the next one does once more.

The mounts of a filesystem that was taken over from a dead daemon are alive, and stay
(docs/design/supervision.md). Otherwise the mounts of its volumes stay, dead, until each is
replaced: whoever looks there gets an error, and never an empty directory. A sandbox's volume that
cannot be mounted again is *lost*: `ps` says why, its lease keeps what there is of its image, its
directory is gone, and the next start tries again, as does the next request for it. A volume at a
user's own target is forgotten then, and its target is the plain directory that it was.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from imgvol import limits
from imgvol.content.records import ImageRecord, Records, VolumeRecord
from imgvol.errors import ImgvolError, NotFound
from imgvol.oci.digest import Digest
from imgvol.volumes import mounts, unmounting
from imgvol.volumes.homes import Homes
from imgvol.volumes.manager import Restoration, VolumeManager
from imgvol.volumes.mountinfo import (
    MountInfo,
    by_target,
    find_filesystem,
    is_ours,
    read_mountinfo,
)

log = logging.getLogger(__name__)


async def detach_dead(
    records: Records, views_directory: Path, *, alive: tuple[int, int] | None = None
) -> None:
    """Detaches what a dead daemon left mounted, but for its volumes, which `recover` replaces.

    Call it before the filesystem is mounted.

    Args:
        records: Name the volumes.
        views_directory: Of our filesystem.
        alive: The device of the filesystem, if it was taken over: it is not dead.
    """
    kept = {os.fsencode(v.target) for v in await records.volumes() if v.target is not None}
    detach = partial(
        unmounting.detach_dead_mounts, views_directory, kept=kept, alive=alive, abort=True
    )
    await trio.to_thread.run_sync(detach)


async def recover(
    volumes: VolumeManager, *, records: Records, homes: Homes, views_directory: Path
) -> None:
    """Makes the records of volumes true again. Call once, before anything else is asked."""
    recorded = await records.volumes()
    table = await volumes.in_thread(read_mountinfo)
    filesystem = find_filesystem(table, views_directory)
    recovery = _Recovery(
        volumes=volumes,
        records=records,
        homes=homes,
        views_directory=views_directory,
        images={image.manifest: image for image in await records.images()},
        mounts=by_target(table),
        device=None if filesystem is None else filesystem.device,
    )
    for begin in range(0, len(recorded), limits.RECOVERED_AT_ONCE):
        await recovery.recover_some(recorded[begin : begin + limits.RECOVERED_AT_ONCE])
    kept = {held.record.target for held in volumes.table if held.record.target is not None}
    await volumes.in_thread(homes.sweep, kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recovery:
    """What is known when recovery begins.

    Attributes:
        images: By manifest; those of which a layer is missing are not among them.
        mounts: By mount point, the topmost last.
        device: Of the filesystem as it is mounted now. A mount that has it is alive.
    """

    volumes: VolumeManager
    records: Records
    homes: Homes
    views_directory: Path
    images: Mapping[Digest, ImageRecord]
    mounts: Mapping[bytes, Sequence[MountInfo]]
    device: tuple[int, int] | None

    async def recover_some(self, records: Sequence[VolumeRecord]) -> None:
        """Makes records true, or says that they are not."""
        wanted = []
        for record in records:
            image = self.images.get(record.manifest)
            if record.boot_id != self.volumes.boot_id:
                # Mounts and sandboxes' processes have not outlived the boot.
                await self.records.remove_volume(record.id)
            elif image is None:
                missing = NotFound("image is not in the store", image=record.image)
                await self._give_up(record, None, missing)
            else:
                wanted.append(self._restoration(record, image))
        try:
            self.volumes.require_filesystem()
        except ImgvolError as exc:
            failures: Sequence[Exception | None] = [exc] * len(wanted)
        else:
            failures = await self.volumes.restore_all(wanted)
        for one, failure in zip(wanted, failures, strict=True):
            if failure is not None:
                await self._give_up(one.volume, one.image, failure)

    def _restoration(self, record: VolumeRecord, image: ImageRecord) -> Restoration:
        there = self.mounts.get(os.fsencode(record.target), ()) if record.target else ()
        return Restoration(volume=record, image=image, leftovers=there, alive=self._alive(there))

    def _alive(self, there: Sequence[MountInfo]) -> MountInfo | None:
        """The only mount at a target, if its filesystem was taken over with it."""
        if len(there) != 1 or there[0].device != self.device:
            return None
        return there[0] if is_ours(there[0], self.views_directory) else None

    async def _give_up(
        self, record: VolumeRecord, image: ImageRecord | None, failure: Exception
    ) -> None:
        log.error("cannot mount %s again at %s: %s", record.image, record.target, failure)
        has_home = record.target is not None and self.homes.owns(record.target)
        try:
            if record.target is not None:
                await self.volumes.in_thread(self._clear, record.target, has_home)
        except (ImgvolError, OSError) as exc:
            log.error("cannot take away what is left at %s: %s", record.target, exc)
        if has_home:
            await self.volumes.lose(record, image, str(failure))
        else:
            await self.records.remove_volume(record.id)

    def _clear(self, target: str, has_home: bool) -> None:
        """Takes a dead mount away, if the attempt to replace it has not. Blocks."""
        path = os.fsencode(target)
        left = mounts.mounts_at(path)
        if all(is_ours(mount, self.views_directory) for mount in left):
            unmounting.detach(path, self.views_directory, left)
            if has_home:
                self.homes.remove(target)
