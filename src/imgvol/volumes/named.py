"""Named volumes: an image under a name of the user's choice, mounted while somebody uses it.

This is what container engines (Docker, podman) mean by a volume. Creating one records what it
stands for, and fetches nothing. The first user mounts it, the last one's leaving unmounts it; users
are told apart by an ID that the engine chooses, so that saying the same twice changes nothing.

Names and users are in the database. The mount itself is an ordinary volume, whose sandbox is made
from the name: after a restart the volume manager has mounted it again, or has not, and `recover`
believes that: users of what is not mounted are forgotten, and so is a mount without users.
"""

import contextlib
import logging
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast
from weakref import WeakValueDictionary

import trio

from imgvol import limits
from imgvol.content.records import NamedVolumeRecord, Records
from imgvol.errors import Conflict, ImgvolError, InvalidArgument, NotFound
from imgvol.images.catalog import ID
from imgvol.images.pull import PullProgress
from imgvol.images.service import PullOptions
from imgvol.sources.parse import RegistryImage, parse_image_argument
from imgvol.volumes.manager import VolumeManager
from imgvol.volumes.options import BindOptions
from imgvol.volumes.volume import Volume

log = logging.getLogger(__name__)

# What Docker allows; and safe as the name of a directory.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SANDBOX_PREFIX: Final = "docker-"

NamedPull = Literal["missing", "never"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedVolume:
    """One named volume.

    Attributes:
        path: Where it is mounted; None while nobody uses it.
    """

    name: str
    image: str
    sub_path: str
    created_at: float
    path: str | None


class NamedVolumes:
    """Creates, mounts and removes named volumes. One per daemon.

    Args:
        volumes: Makes the mounts.
        records: Keeps the names.
        directory: Below it each mounted volume has a directory of its name; None: users get the
            path in the view, because this daemon cannot make mounts.
    """

    def __init__(self, *, volumes: VolumeManager, records: Records, directory: Path | None) -> None:
        self._volumes = volumes
        self._records = records
        self._directory = directory
        self._turns: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()

    async def recover(self) -> None:
        """Brings users and mounts together after a start. Call once, before anything else."""
        mounted = await self._mounted()
        for record in await self._records.named_volumes():
            if record.name not in mounted:
                await self._records.remove_named_mounts(record.name)
        for name, volume in mounted.items():
            if not await self._records.named_mounts(name):
                try:
                    await self._unmount(name, volume, detach=True)
                except ImgvolError as exc:
                    log.error("cannot unmount the volume %s, which nobody uses: %s", name, exc)

    async def create(self, name: str, *, image: str, sub_path: str, pull: str) -> None:
        """Gives an image a name; the same again is fine.

        Raises:
            InvalidArgument: A value is malformed.
            Conflict: The name stands for something else.
            LimitExceeded: There are too many names.
        """
        _check_name(name)
        if pull not in {"missing", "never"}:
            raise InvalidArgument("pull is neither missing nor never", pull=pull)
        BindOptions(sub_path=os.fsencode(sub_path))  # refuses what is no path
        record = NamedVolumeRecord(
            name=name,
            image=_canonical(image),
            sub_path=sub_path,
            pull=pull,
            created_at=time.time(),
        )
        async with self._turn(name):
            known = await self._records.named_volume(name)
            if known is None:
                await self._records.add_named_volume(record, most=limits.NAMED_VOLUMES)
            elif (known.image, known.sub_path, known.pull) != (record.image, sub_path, pull):
                raise Conflict("the name stands for another image already", name=name)

    async def remove(self, name: str) -> None:
        """Forgets a name.

        Raises:
            NotFound: There is no such name.
            Conflict: Somebody uses it.
        """
        async with self._turn(name):
            await self._known(name)
            users = await self._records.named_mounts(name)
            if users:
                raise Conflict("the volume is in use", name=name, users=len(users))
            await self._records.remove_named_volume(name)

    async def mount(self, name: str, user: str) -> str:
        """Mounts a volume for a user, or counts one more; returns where it is.

        Raises:
            NotFound: No such name, image or sub path.
            ImgvolError: Whatever keeps an image from being mounted.
        """
        _check_user(user)
        async with self._turn(name):
            record = await self._known(name)
            volume = (await self._mounted()).get(name)
            if volume is not None and volume.state == "lost":
                # An empty directory must not pass for an image.
                await self._unmount(name, volume)
                volume = None
            is_new = volume is None
            if volume is None:
                volume = await self._mount(record)
            try:
                await self._records.add_named_mount(name, user, most=limits.NAMED_VOLUME_USERS)
            except BaseException:
                if is_new:
                    with trio.CancelScope(shield=True):
                        await self._unmount(name, volume)
                raise
            return volume.path

    async def unmount(self, name: str, user: str) -> None:
        """Ends one use, the last one the mount; a user that is not known is fine.

        Raises:
            NotFound: There is no such name.
            Conflict: The mount is busy.
        """
        _check_user(user)
        async with self._turn(name):
            await self._known(name)
            users = await self._records.named_mounts(name)
            # A caller who goes away in between would leave a mount that nobody uses.
            with trio.CancelScope(shield=True):
                if users <= {user}:
                    volume = (await self._mounted()).get(name)
                    if volume is not None:
                        await self._unmount(name, volume)
                await self._records.remove_named_mount(name, user)

    async def get(self, name: str) -> NamedVolume:
        """One named volume.

        Raises:
            NotFound: There is no such name.
        """
        record = await self._known(name)
        return _shown(record, (await self._mounted()).get(name))

    async def list(self) -> list[NamedVolume]:
        """Every named volume, by name."""
        mounted = await self._mounted()
        records = await self._records.named_volumes()
        return [_shown(record, mounted.get(record.name)) for record in records]

    async def _known(self, name: str) -> NamedVolumeRecord:
        record = await self._records.named_volume(name)
        if record is None:
            raise NotFound("no such volume", name=name[: limits.NAME_LENGTH])
        return record

    async def _mounted(self) -> dict[str, Volume]:
        return {
            volume.sandbox.removeprefix(_SANDBOX_PREFIX): volume
            for volume in await self._volumes.list()
            if volume.sandbox.startswith(_SANDBOX_PREFIX)
        }

    async def _mount(self, record: NamedVolumeRecord) -> Volume:
        target = None
        if self._directory is not None:
            target = self._directory / record.name
            await trio.to_thread.run_sync(_make_directory, target)
        return await self._volumes.mount(
            record.image,
            None if target is None else str(target),
            sandbox=f"{_SANDBOX_PREFIX}{record.name}",
            pull=cast("NamedPull", record.pull),
            options=PullOptions(),
            bind=BindOptions(sub_path=os.fsencode(record.sub_path), dirs_only=True),
            progress=PullProgress(),
        )

    async def _unmount(self, name: str, volume: Volume, *, detach: bool = False) -> None:
        await self._volumes.unmount(volume.id, detach=detach)
        # It was made with the volume, and nobody knows its name.
        await self._records.remove_lease(volume.sandbox)
        if self._directory is not None:
            await trio.to_thread.run_sync(_remove_directory, self._directory / name)

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        """One task at a time decides what becomes of a name."""
        lock = self._turns.setdefault(name, trio.Lock())
        async with lock:
            yield


def _check_name(name: str) -> None:
    if len(name) > limits.NAMED_VOLUME_NAME or not _NAME.fullmatch(name):
        raise InvalidArgument(
            "not a name of a volume",
            hint="Letters, digits, and after the first also . - and _;"
            f" {limits.NAMED_VOLUME_NAME} at most.",
            name=name[: limits.NAME_LENGTH],
        )


def _check_user(user: str) -> None:
    if len(user) > limits.NAME_LENGTH:
        raise InvalidArgument("the ID of a mount is too long", allowed=limits.NAME_LENGTH)


def _canonical(image: str) -> str:
    if ID.fullmatch(image):
        return image
    argument = parse_image_argument(image)
    if not isinstance(argument, RegistryImage) and not os.path.isabs(argument.path):
        raise InvalidArgument(
            "the path of a local image is not absolute", hint="Write all of it.", image=image
        )
    return str(argument)


def _shown(record: NamedVolumeRecord, volume: Volume | None) -> NamedVolume:
    return NamedVolume(
        name=record.name,
        image=record.image,
        sub_path=record.sub_path,
        created_at=record.created_at,
        path=None if volume is None else volume.path,
    )


def _make_directory(path: Path) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)


def _remove_directory(path: Path) -> None:
    # In use by somebody else by now, or gone: nobody minds an empty directory.
    with contextlib.suppress(OSError):
        path.rmdir()
