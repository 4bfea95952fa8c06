"""The table of volumes: views bound at paths, recorded, lost and restored.

A volume is acknowledged in this order: view open, view shown in the filesystem, bind mount made,
record written. It goes in this one: bind mount, which may be in use, then view and record. A daemon
that dies in between leaves at most mounts of a dead filesystem, which the next start recognises by
their source and replaces or detaches, and records, which it makes true again (`recovery`).

Volumes of sandboxes have homes: their directories come and go with them (`sandboxes` decides which
there are). A user's own target is only ever mounted at.

Everything that may touch a mount runs in threads: a system call on our own filesystem waits for an
answer that only the event loop can give.
"""

import contextlib
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

import trio

from imgvol.content.records import ImageRecord, Records, VolumeRecord
from imgvol.content.turns import Turns
from imgvol.errors import Conflict, ImgvolError, InvalidArgument, MachineLacks, NotFound
from imgvol.images.pull import PullProgress
from imgvol.images.readiness import Readiness
from imgvol.images.service import ImageService, PullOptions
from imgvol.images.views import OpenView, Views
from imgvol.volumes import mounts, syscalls
from imgvol.volumes.homes import Homes, check_lease_id
from imgvol.volumes.mountinfo import MountInfo, by_target, is_ours, read_mountinfo
from imgvol.volumes.obtaining import PullPolicy, obtain
from imgvol.volumes.options import WHOLE_VIEW, BindOptions
from imgvol.volumes.subpaths import SubPath, resolve_sub_path
from imgvol.volumes.volume import HeldVolume, Volume, describe

log = logging.getLogger(__name__)

CLI_SANDBOX: Final = "cli"
MOUNT_THREADS: Final = 8
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class VolumeManager:
    """Makes, lists and removes volumes. One per daemon.

    Args:
        views_directory: Where the filesystem is mounted.
        homes: Where volumes of sandboxes are.
        obstacle: Why nothing can be mounted here; None when all is well.
        may_bind: Whether the daemon may make mounts itself (it runs as root).

    Attributes:
        turns: Of sandboxes: whoever has one decides what becomes of the volumes in its home.
        boot_id: Of this boot.
    """

    def __init__(
        self,
        *,
        images: ImageService,
        views: Views,
        records: Records,
        views_directory: Path,
        homes: Homes,
        obstacle: MachineLacks | None,
        may_bind: bool,
    ) -> None:
        self._images = images
        self._views = views
        self._records = records
        self._views_directory = views_directory
        self._homes = homes
        self._obstacle = obstacle
        self._may_bind = may_bind
        self._volumes: dict[str, HeldVolume] = {}
        self._busy_targets: set[str] = set()
        self._limiter = trio.CapacityLimiter(MOUNT_THREADS)
        self._open_view: mounts.ViewOpener = syscalls.open_place
        self.turns = Turns[str]()
        self.boot_id = BOOT_ID.read_text().strip()

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
        follows_trace: bool = True,
        progress: PullProgress,
    ) -> Volume:
        """Mounts an image at a user's target; nothing is left behind when it fails.

        Args:
            image: A reference, an image ID, or a local source.
            target: An empty directory, or a file for a sub path that is one; absolute and without
                symbolic links. None: the view only.
            sandbox: Whatever owns the volume.
            pull: When to fetch: if not here, never, or to look for a newer image every time.
            bind: What of the image is mounted, and how.
            patience: Seconds that readers wait for a registry that fails: until then they are
                blocked, and cannot be killed. 0: they get EIO after a few tries.
            readiness: How much of the image has to be here, and checked, before it is mounted.
            follows_trace: Whether what a trace of the image names is brought first.

        Raises:
            MachineLacks: This machine or this user cannot mount, or not with these options.
            NotFound: No such image, no such target, or no such sub path.
            InvalidArgument: The target is not an absolute path of a directory, an ID is to be
                pulled, the sandbox's ID cannot be one, the sub path escapes, or an option needs a
                target.
            Conflict: The target is not empty, or has something mounted.
        """
        check_lease_id(sandbox)
        self.require_filesystem()
        mounts.refuse_impossible(bind)
        if target is None and bind.needs_target:
            raise InvalidArgument("these options need a directory to mount at")
        async with self._reserve(target):
            if target is not None:
                self.require_bind("Leave the directory out: imgvol then prints the view's path.")
                if self._homes.owns(target):
                    raise InvalidArgument("the target is imgvol's own place", target=target)
                await self.in_thread(mounts.check_target, os.fsencode(target), bool(bind.sub_path))
            found = await obtain(self._images, image, platform, pull, options, progress, readiness)
            volume = self.new_record(found, image, sandbox, target, bind=bind, patience=patience)
            return self._shown(await self._add(volume, found, follows_trace=follows_trace))

    def new_record(
        self,
        image: ImageRecord,
        name: str,
        sandbox: str,
        target: str | None,
        *,
        bind: BindOptions = WHOLE_VIEW,
        patience: float = 0.0,
    ) -> VolumeRecord:
        """What will be recorded of a volume: here its options come together."""
        return VolumeRecord(
            id=secrets.token_hex(6),
            sandbox=sandbox,
            image=name if not image.names or name in image.names else image.names[0],
            manifest=image.manifest,
            target=target,
            options=bind.to_json(),
            patience=patience,
            view_id=image.view_id,
            created_at=time.time(),
            boot_id=self.boot_id,
        )

    def require_filesystem(self) -> None:
        """Refuses what needs views where there can be none.

        Raises:
            MachineLacks: There is no filesystem; it says why.
        """
        if self._obstacle is not None:
            raise self._obstacle

    def require_bind(self, hint: str = "Run imgvol as root.") -> None:
        """Refuses what needs bind mounts where there can be none.

        Raises:
            MachineLacks: This machine or this user cannot make them.
        """
        self.require_filesystem()
        if not self._may_bind:
            raise MachineLacks("mounting at a directory of your choice needs root", hint=hint)

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
        held = self._find(target_or_id)
        if held.record.target is not None and self._homes.owns(held.record.target):
            async with self.turns.turn(held.record.sandbox):
                await self.remove(held, lazily=detach)
        else:
            await self.remove(held, lazily=detach)
        return self._shown(held)

    async def list(self) -> list[Volume]:
        """Every volume, the oldest first, with whether it is still mounted."""
        table = {mount.mount_point: mount for mount in await self.in_thread(read_mountinfo)}
        held = sorted(self._volumes.values(), key=lambda volume: volume.record.created_at)
        return [self._shown(volume, table) for volume in held]

    def find(self, target_or_id: str) -> HeldVolume:
        """A volume, by its ID, the path that it is bound at, or, without one, the view's.

        Raises:
            NotFound: No such volume.
        """
        return self._find(target_or_id)

    @property
    def count(self) -> int:
        """How many volumes there are."""
        return len(self._volumes)

    def of_sandbox(self, sandbox: str) -> Sequence[HeldVolume]:
        """A sandbox's volumes."""
        return [held for held in self._volumes.values() if held.record.sandbox == sandbox]

    # --- steps: each is all or nothing. For a volume in a home, the caller has the sandbox's turn.

    async def add(
        self, volume: VolumeRecord, image: ImageRecord, leftovers: Sequence[MountInfo] = ()
    ) -> HeldVolume:
        """Mounts and records a new volume.

        Args:
            volume: What to record.
            image: What it shows.
            leftovers: Mounts of ours at its target, which go first.
        """
        async with self._reserve(volume.target):
            return await self._add(volume, image, leftovers)

    async def remove(self, held: HeldVolume, *, lazily: bool) -> None:
        """Unmounts and forgets a volume.

        Raises:
            NotFound: It has gone meanwhile.
            Conflict: It is in use, and `lazily` is false; or something is mounted over it.
        """
        async with self._reserve(held.record.target):
            current = self._volumes.get(held.record.id)
            if current is None:
                raise NotFound("no such volume", volume=held.record.id)
            # A caller who goes away in between would leave a record of what is not mounted.
            with trio.CancelScope(shield=True):
                await self._detach(current, lazily=lazily)
                await self._records.remove_volume(held.record.id)

    async def bind_again(self, held: HeldVolume, leftovers: Sequence[MountInfo]) -> None:
        """Binds an open volume at its target, where it is not mounted any more."""
        assert held.view is not None
        async with self._reserve(held.record.target):
            place = partial(self._place, held.record, held.view.name, held.part, held.options)
            bound = await self.in_thread(place, leftovers)
            self._volumes[held.record.id] = replace(held, bound=bound)

    async def unbind(self, held: HeldVolume) -> None:
        """Undoes `bind_again`: the volume stays, without its mount."""
        async with self._reserve(held.record.target):
            current = self._volumes[held.record.id]
            await self.in_thread(self._displace, current, True)
            self._volumes[held.record.id] = replace(current, bound=None)

    @contextmanager
    def one_after_the_other(self) -> Iterator[None]:
        """While many volumes are mounted, and none is unmounted, each view is looked up once."""
        kept = mounts.KeptPlaces()
        self._open_view = kept.open
        try:
            yield
        finally:
            self._open_view = syscalls.open_place
            kept.close()

    async def restore(
        self, volume: VolumeRecord, image: ImageRecord, leftovers: Sequence[MountInfo]
    ) -> HeldVolume:
        """Mounts a volume that is recorded: after a restart, or when it was lost."""
        async with self._reserve(volume.target):
            return await self._attach(volume, image, leftovers)

    async def lose(self, volume: VolumeRecord, image: ImageRecord | None, reason: str) -> None:
        """Keeps a recorded volume that cannot be mounted, and says why.

        Its directory goes: whoever wants to use it must get an error, not an empty directory.
        """
        current = self._volumes.get(volume.id)
        if current is not None:
            await self._detach(current, lazily=True)
        try:
            options = BindOptions.from_json(volume.options)
        except InvalidArgument:  # then this is why it cannot be mounted
            options = WHOLE_VIEW
        self._volumes[volume.id] = HeldVolume(
            record=volume, image=image, view=None, options=options, loss=reason
        )

    async def detach_all(self, *, forget: bool) -> None:
        """Unmounts every volume, in use or not; for the daemon's end.

        Args:
            forget: Also drop the records, so that the next start does not mount them again.
        """
        volumes = list(self._volumes.values())
        await self.in_thread(self._displace_all, volumes)
        for held in volumes:
            self._close(held)
            try:
                if forget:
                    await self._records.remove_volume(held.record.id)
            except ImgvolError as exc:
                log.error("cannot forget the volume at %s: %s", held.record.target, exc)

    async def in_thread(self, work: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Does something that may touch a mount."""
        return await trio.to_thread.run_sync(work, *arguments, limiter=self._limiter)

    async def _add(
        self,
        volume: VolumeRecord,
        image: ImageRecord,
        leftovers: Sequence[MountInfo] = (),
        *,
        follows_trace: bool = True,
    ) -> HeldVolume:
        held = await self._attach(volume, image, leftovers)
        if follows_trace and held.view is not None:
            self._views.on_mounted(held.view, image)
        try:
            await self._records.add_volume(volume)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._detach(held, lazily=True)
            raise
        return held

    async def _attach(
        self, volume: VolumeRecord, image: ImageRecord, leftovers: Sequence[MountInfo]
    ) -> HeldVolume:
        """Opens the view, shows it, binds what of it is asked for."""
        options = BindOptions.from_json(volume.options)
        view = await self._views.acquire(image, volume.view_id)
        self._views.publish(view, volume.patience)
        try:
            part = resolve_sub_path(view.tree, options)
            bound = None
            if volume.target is not None:
                place = partial(self._place, volume, view.name, part, options)
                bound = await self.in_thread(place, leftovers)
        except BaseException:
            self._views.withdraw(view, volume.patience)
            self._views.release(view)
            raise
        held = HeldVolume(
            record=volume, image=image, view=view, options=options, part=part, bound=bound
        )
        self._volumes[volume.id] = held
        return held

    async def _detach(self, held: HeldVolume, *, lazily: bool) -> None:
        if held.record.target is not None:
            await self.in_thread(self._displace, held, lazily)
        self._close(held)

    def _close(self, held: HeldVolume) -> None:
        del self._volumes[held.record.id]
        if held.view is not None:
            self._views.withdraw(held.view, held.record.patience)
            self._views.release(held.view)

    def _place(
        self,
        volume: VolumeRecord,
        view_name: bytes,
        part: SubPath,
        options: BindOptions,
        leftovers: Sequence[MountInfo],
    ) -> mounts.Bound:
        """Binds a part of a view at a target, with nothing of ours below. Blocks."""
        assert volume.target is not None
        target = os.fsencode(volume.target)
        mounts.detach(target, self._views_directory, leftovers)
        has_home = self._homes.owns(volume.target)
        if has_home:
            self._homes.make(volume.target)
        try:
            # A user may have used the directory meanwhile.
            mounts.check_target(target, bool(options.sub_path))
            # Below the run directory nothing is a link; the way there is the administrator's.
            run = os.path.realpath(bytes(self._views_directory.parent))
            view = os.path.join(run, os.fsencode(self._views_directory.name), view_name)
            return mounts.bind(view, part, target, options, self._open_view)
        except BaseException:
            if has_home:
                # What is in its way is in the error's way no less.
                with contextlib.suppress(ImgvolError):
                    self._homes.remove(volume.target)
            raise

    def _displace(self, held: HeldVolume, lazily: bool) -> None:
        """Unmounts a target, and removes its directory if it is ours. Blocks."""
        assert held.record.target is not None
        target = os.fsencode(held.record.target)
        if held.bound is not None:
            mounts.unbind(held.bound, self._views_directory, lazily)
        elif held.view is None:
            # A dead mount may have been left below somebody else's.
            mounts.detach(target, self._views_directory, mounts.mounts_at(target))
        if self._homes.owns(held.record.target):
            self._homes.remove(held.record.target)

    def _displace_all(self, volumes: Sequence[HeldVolume]) -> None:
        """Unmounts targets at the daemon's end, in use or not; goes on over failures. Blocks."""
        table = by_target(read_mountinfo())
        for target in (held.record.target for held in volumes if held.record.target is not None):
            path = os.fsencode(target)
            try:
                mounts.detach(path, self._views_directory, table.get(path, ()))
                if self._homes.owns(target):
                    self._homes.remove(target)
            except (ImgvolError, OSError) as exc:
                log.error("cannot unmount %s: %s", target, exc)

    def _find(self, target_or_id: str) -> HeldVolume:
        if target_or_id in self._volumes:
            return self._volumes[target_or_id]
        for held in self._volumes.values():
            if target_or_id == self._path_of(held):
                return held
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

    def _path_of(self, held: HeldVolume) -> str:
        """Where the files are; empty when they are nowhere."""
        if held.record.target is not None or held.view is None:
            return held.record.target or ""
        view = self._view_path_of(held.view)
        return os.path.join(view, os.fsdecode(held.part.path)) if held.part.path else view

    def _view_path_of(self, view: OpenView) -> str:
        return os.path.join(self._views_directory, os.fsdecode(view.name))

    def _shown(self, held: HeldVolume, table: Mapping[bytes, MountInfo] | None = None) -> Volume:
        view_path = self._view_path_of(held.view) if held.view else ""
        reason = "" if table is None else self._absence(held, table)
        return describe(held, view_path, self._path_of(held), reason)

    def _absence(self, held: HeldVolume, table: Mapping[bytes, MountInfo]) -> str:
        """Why a volume does not show at its target, if the kernel's table says so."""
        if held.record.target is None:
            return ""
        mount = table.get(os.fsencode(held.record.target))
        if mount is None:
            return "somebody has unmounted it"
        return "" if is_ours(mount, self._views_directory) else "something else is mounted over it"
