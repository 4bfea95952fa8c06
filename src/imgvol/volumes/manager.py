"""Volumes: views bound at paths, recorded, and found again after a restart.

A volume is acknowledged in this order: view open, view shown in the filesystem, bind mount made,
record written. It goes in this one: bind mount, which may be in use, then view and record. A daemon
that dies in between leaves at most mounts of a dead filesystem, which the next start recognises by
their source and detaches, and records, which it makes true again.

Everything that may touch a mount runs in threads: a system call on our own filesystem waits for an
answer that only the event loop can give.
"""

import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeVar, TypeVarTuple

import trio

from imgvol.content.records import ImageRecord, Records, VolumeRecord
from imgvol.errors import Conflict, ImgvolError, InvalidArgument, MachineLacks, NotFound
from imgvol.images.pull import PullProgress
from imgvol.images.readiness import Readiness
from imgvol.images.service import SHORT_ID, ImageService, PullOptions
from imgvol.images.views import LayerStatus, OpenView, Views
from imgvol.oci.digest import ChainID, Digest
from imgvol.volumes import mounts
from imgvol.volumes.mountinfo import MountInfo, is_ours, read_mountinfo
from imgvol.volumes.options import WHOLE_VIEW, BindOptions
from imgvol.volumes.subpaths import SubPath, resolve_sub_path

log = logging.getLogger(__name__)

CLI_SANDBOX: Final = "cli"
MOUNT_THREADS: Final = 8
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
PullPolicy = Literal["missing", "never", "always"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One volume.

    Attributes:
        image: As the caller named it, canonical.
        image_id: Digest of the image's config.
        target: Where it is bound; None when only the view itself is used.
        view: Path of the view.
        path: Where the files are: the target, or what of the view is asked for.
        state: "mounted", or "lost" when somebody else has unmounted the target.
        layers: How each layer is read, the bottom one first.
        created_at: Seconds since the epoch.
        patience: Seconds that readers wait for a registry that fails, before they are told.
    """

    id: str
    sandbox: str
    image: str
    image_id: Digest
    chain_id: ChainID
    target: str | None
    view: str
    path: str
    state: str
    created_at: float
    options: BindOptions
    patience: float
    layers: tuple[LayerStatus, ...]


@dataclass(frozen=True, slots=True)
class _Mounted:
    """A volume's record with what it keeps open.

    Attributes:
        part: What of the view it shows.
        bound: Its bind mount, if it has a target.
    """

    record: VolumeRecord
    options: BindOptions
    image: ImageRecord
    view: OpenView
    part: SubPath
    bound: mounts.Bound | None


class VolumeManager:
    """Makes, lists and removes volumes. One per daemon.

    Args:
        views_directory: Where the filesystem is mounted.
        obstacle: Why nothing can be mounted here; None when all is well.
        may_bind: Whether the daemon may make mounts itself (it runs as root).
    """

    def __init__(
        self,
        *,
        images: ImageService,
        views: Views,
        records: Records,
        views_directory: Path,
        obstacle: MachineLacks | None,
        may_bind: bool,
    ) -> None:
        self._images = images
        self._views = views
        self._records = records
        self._views_directory = views_directory
        self._obstacle = obstacle
        self._may_bind = may_bind
        self._volumes: dict[str, _Mounted] = {}
        self._busy_targets: set[str] = set()
        self._limiter = trio.CapacityLimiter(MOUNT_THREADS)
        self._boot_id = BOOT_ID.read_text().strip()

    async def mount(
        self,
        image: str,
        target: str | None,
        *,
        sandbox: str = CLI_SANDBOX,
        platform: str | None = None,
        pull: PullPolicy = "missing",
        options: PullOptions,
        bind: BindOptions = WHOLE_VIEW,
        patience: float = 0.0,
        readiness: Readiness = Readiness.LAZY,
        progress: PullProgress,
    ) -> Volume:
        """Mounts an image; nothing is left behind when it fails.

        Args:
            image: A reference, an image ID, or a local source.
            target: An empty directory, absolute and without symbolic links; None: the view only.
            sandbox: Whatever owns the volume.
            pull: When to fetch: if not here, never, or to look for a newer image every time.
            bind: What of the image is mounted, and how.
            patience: Seconds that readers wait for a registry that fails: until then they are
                blocked, and cannot be killed. 0: they get EIO after a few tries.
            readiness: How much of the image has to be here, and checked, before it is mounted.

        Raises:
            MachineLacks: This machine or this user cannot mount, or not with these options.
            NotFound: No such image, no such target, or no such sub path.
            InvalidArgument: The target is not an absolute path of a directory, an ID is to be
                pulled, the sub path escapes, or an option needs a target.
            Conflict: The target is not empty, or has something mounted.
        """
        if self._obstacle is not None:
            raise self._obstacle
        mounts.refuse_impossible(bind)
        async with self._reserve(target):
            if target is not None:
                self._refuse_without_root()
                await self._check_target(target, bind)
            elif bind.needs_target:
                raise InvalidArgument("these options need a directory to mount at")
            record = await self._obtain(image, platform, pull, options, progress, readiness)
            volume = VolumeRecord(
                id=secrets.token_hex(6),
                sandbox=sandbox,
                image=image if not record.names or image in record.names else record.names[0],
                manifest=record.manifest,
                target=target,
                options=bind.to_json(),
                patience=patience,
                view_id=record.view_id,
                created_at=time.time(),
                boot_id=self._boot_id,
            )
            await self._attach(volume, record)
            try:
                await self._records.add_volume(volume)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._detach(self._volumes[volume.id], lazily=True)
                raise
            return self._shown(self._volumes[volume.id])

    async def _obtain(
        self,
        image: str,
        platform: str | None,
        pull: PullPolicy,
        options: PullOptions,
        progress: PullProgress,
        readiness: Readiness,
    ) -> ImageRecord:
        if pull == "always":
            await self._refuse_id(image)
        else:
            try:
                record = await self._images.find(image, platform=platform)
            except NotFound:
                if pull == "never":
                    raise
            else:
                # A layout or an archive that has changed since cannot show the old image any more.
                is_usable = pull == "never" or await self._images.is_current(image, record)
                if record.is_stored or (is_usable and readiness.is_met_by(record)):
                    progress.stage = "done"
                    return record
                image = _name_to_pull(image, record, pull)
        return await self._images.pull(
            image, platform=platform, options=options, progress=progress, readiness=readiness
        )

    async def _refuse_id(self, image: str) -> None:
        """To a registry, an ID is the name of some other image."""
        known = await self._images.find_by_id(image)
        if known is not None:
            name = known.names[0] if known.names else "IMAGE"
            raise InvalidArgument(
                "an image ID cannot be looked for in a registry",
                hint=f"To look for a newer image, name it: --pull=always {name}."
                " For this very image, leave --pull=always out.",
                image=image,
            )

    async def unmount(self, target_or_id: str, *, detach: bool = False) -> Volume:
        """Unmounts a volume.

        Args:
            target_or_id: Its ID, the path that it is bound at, or, without one, the view's.
            detach: Do not wait for users of the mount: they keep what they have open, and nobody
                else sees it any more.

        Raises:
            NotFound: No such volume.
            Conflict: It is in use.
        """
        mounted = self._find(target_or_id)
        async with self._reserve(mounted.record.target):
            if mounted.record.id not in self._volumes:
                raise NotFound("no such volume", volume=target_or_id)
            # A caller who goes away in between would leave a record of what is not mounted.
            with trio.CancelScope(shield=True):
                await self._detach(mounted, lazily=detach)
                await self._records.remove_volume(mounted.record.id)
        return self._shown(mounted)

    async def list(self) -> list[Volume]:
        """Every volume, the oldest first, with whether it is still mounted."""
        table = {mount.mount_point: mount for mount in await self._in_thread(read_mountinfo)}
        return [self._shown(mounted, table) for mounted in self._volumes.values()]

    @property
    def count(self) -> int:
        """How many volumes there are."""
        return len(self._volumes)

    async def recover(self) -> None:
        """Makes the records true again after a restart. Call once, before anything else.

        Volumes of this boot are mounted again at their targets. What cannot be is reported in the
        log and forgotten: its target then is a plain directory, as before it was mounted.
        """
        for record in await self._records.volumes():
            if record.boot_id == self._boot_id:
                try:
                    await self._attach_again(record)
                    continue
                except (ImgvolError, OSError) as exc:
                    log.error("cannot mount %s again at %s: %s", record.image, record.target, exc)
            await self._records.remove_volume(record.id)

    async def _attach_again(self, record: VolumeRecord) -> None:
        if self._obstacle is not None:
            raise self._obstacle
        image = await self._records.image(record.manifest)
        if image is None:
            raise NotFound("image is not in the store", image=record.image)
        if record.target is not None:
            # Somebody may have used the directory meanwhile.
            await self._check_target(record.target, BindOptions.from_json(record.options))
        await self._attach(record, image)

    async def _check_target(self, target: str, bind: BindOptions) -> None:
        check = partial(mounts.check_target, may_be_file=bool(bind.sub_path))
        await self._in_thread(check, os.fsencode(target))

    async def detach_all(self, *, forget: bool) -> None:
        """Unmounts every volume, in use or not; for the daemon's end.

        Args:
            forget: Also drop the records, so that the next start does not mount them again.
        """
        for mounted in list(self._volumes.values()):
            try:
                await self._detach(mounted, lazily=True)
            except (ImgvolError, OSError) as exc:
                log.error("cannot unmount %s: %s", mounted.record.target, exc)
            try:
                if forget:
                    await self._records.remove_volume(mounted.record.id)
            except ImgvolError as exc:
                log.error("cannot forget the volume at %s: %s", mounted.record.target, exc)

    async def _attach(self, volume: VolumeRecord, image: ImageRecord) -> None:
        """Opens the view, shows it, binds it. All or nothing."""
        options = BindOptions.from_json(volume.options)
        view = await self._views.acquire(image, volume.view_id)
        self._views.publish(view, volume.patience)
        try:
            part = resolve_sub_path(view.tree, options)
            bound = None
            if volume.target is not None:
                source = os.path.join(bytes(self._views_directory), view.name)
                bound = await self._in_thread(
                    mounts.bind, source, part, os.fsencode(volume.target), options
                )
        except BaseException:
            self._views.withdraw(view, volume.patience)
            self._views.release(view)
            raise
        self._volumes[volume.id] = _Mounted(volume, options, image, view, part, bound)

    async def _detach(self, mounted: _Mounted, *, lazily: bool) -> None:
        if mounted.bound is not None:
            await self._in_thread(mounts.unbind, mounted.bound, self._views_directory, lazily)
        del self._volumes[mounted.record.id]
        self._views.withdraw(mounted.view, mounted.record.patience)
        self._views.release(mounted.view)

    def _refuse_without_root(self) -> None:
        if not self._may_bind:
            raise MachineLacks(
                "mounting at a directory of your choice needs root",
                hint="Leave the directory out: imgvol then prints the view's own path.",
            )

    def _find(self, target_or_id: str) -> _Mounted:
        if target_or_id in self._volumes:
            return self._volumes[target_or_id]
        for mounted in self._volumes.values():
            if target_or_id == self._path_of(mounted):
                return mounted
        raise NotFound("no such volume", hint="imgvol ps lists the volumes.", volume=target_or_id)

    @asynccontextmanager
    async def _reserve(self, target: str | None) -> AsyncIterator[None]:
        """One operation at a time for one target."""
        if target is None:
            yield
            return
        if target in self._busy_targets:
            raise Conflict("another mount or unmount is under way there", target=target)
        self._busy_targets.add(target)
        try:
            yield
        finally:
            self._busy_targets.remove(target)

    def _path_of(self, mounted: _Mounted) -> str:
        if mounted.record.target is not None:
            return mounted.record.target
        view = self._view_path_of(mounted.view)
        return os.path.join(view, os.fsdecode(mounted.part.path)) if mounted.part.path else view

    def _view_path_of(self, view: OpenView) -> str:
        return os.path.join(self._views_directory, os.fsdecode(view.name))

    def _shown(self, mounted: _Mounted, table: dict[bytes, MountInfo] | None = None) -> Volume:
        record = mounted.record
        is_lost = False
        if table is not None and record.target is not None:
            mount = table.get(os.fsencode(record.target))
            is_lost = mount is None or not is_ours(mount, self._views_directory)
        return Volume(
            id=record.id,
            sandbox=record.sandbox,
            image=record.image,
            image_id=mounted.image.id,
            chain_id=mounted.image.chain_id,
            target=record.target,
            view=self._view_path_of(mounted.view),
            path=self._path_of(mounted),
            state="lost" if is_lost else "mounted",
            created_at=record.created_at,
            options=mounted.options,
            patience=record.patience,
            layers=mounted.view.layer_statuses(),
        )

    async def _in_thread(self, work: Callable[[*Ts], T], *arguments: *Ts) -> T:
        return await trio.to_thread.run_sync(work, *arguments, limiter=self._limiter)


def _name_to_pull(image: str, record: ImageRecord, pull: PullPolicy) -> str:
    """What to pull to complete an image: the name that was given, or, for an ID, one of its names.

    Raises:
        NotFound: It may not be pulled, or has no name.
    """
    if pull == "never" or not record.names:
        raise NotFound(
            "image is not in the store as a whole",
            hint="Pull it first: imgvol pull IMAGE. Or mount it with --lazy=auto --verify=lazy.",
            image=image,
        )
    if SHORT_ID.fullmatch(image):
        return record.names[0]
    return image
