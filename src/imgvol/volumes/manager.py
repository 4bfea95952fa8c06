"""What is done with volumes: views are bound at paths, recorded, lost and restored.

A volume is acknowledged in this order: view open, view shown in the filesystem, bind mount made,
record written. It goes in this one: bind mount, which may be in use, then view and record. A daemon
that dies in between leaves at most mounts of a dead filesystem, which the next start recognises by
their source and replaces or detaches, and records, which it makes true again (`recovery`).

Volumes of sandboxes have homes: their directories come and go with them (`sandboxes` decides which
there are). A user's own target is only ever mounted at. What happens at either is in `targets`.
"""

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

import trio

from imgvol.content.records import ImageRecord, Records, VolumeRecord
from imgvol.content.turns import Turns
from imgvol.errors import ImgvolError, InvalidArgument, MachineLacks, NotFound
from imgvol.images.pull import PullProgress
from imgvol.images.readiness import Readiness
from imgvol.images.service import ImageService, PullOptions
from imgvol.images.streams import ImageStreams, Showing
from imgvol.images.views import Views
from imgvol.oci.digest import Digest
from imgvol.volumes import mounts
from imgvol.volumes.homes import Homes, check_lease_id
from imgvol.volumes.mountinfo import MountInfo, read_mountinfo
from imgvol.volumes.obtaining import PullPolicy, find_usable, obtain
from imgvol.volumes.options import WHOLE_VIEW, BindOptions
from imgvol.volumes.streamed import StreamedVolumes
from imgvol.volumes.subpaths import resolve_sub_path
from imgvol.volumes.table import VolumeTable
from imgvol.volumes.target_sessions import TargetSessions
from imgvol.volumes.targets import Placement, Targets
from imgvol.volumes.volume import HeldVolume, Volume

log = logging.getLogger(__name__)

CLI_SANDBOX: Final = "cli"
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Restoration:
    """A recorded volume that is to be mounted again after a restart.

    Attributes:
        image: What it shows.
        leftovers: Mounts of ours at its target, which go first.
        alive: The only one of them, if it is of the filesystem as it is mounted now: it stays, if
            it is what was recorded.
    """

    volume: VolumeRecord
    image: ImageRecord
    leftovers: Sequence[MountInfo]
    alive: MountInfo | None


class VolumeManager:
    """Makes, lists and removes volumes. One per daemon.

    Args:
        views_directory: Where the filesystem is mounted.
        homes: Where volumes of sandboxes are.
        obstacle: Why nothing can be mounted here; None when all is well.
        may_bind: Whether the daemon may make mounts itself (it runs as root).
        sessions: How targets of users are mounted where it may not; None: they are not.
        streams: Shows images while they are pulled; None: whoever would have to wait in a lookup
            could not be killed there.

    Attributes:
        table: The volumes that there are.
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
        sessions: TargetSessions | None = None,
        streams: ImageStreams | None = None,
    ) -> None:
        self._images = images
        self._views = views
        self._records = records
        self._homes = homes
        self._obstacle = obstacle
        self._may_bind = may_bind
        self._has_sessions = sessions is not None
        self.table = VolumeTable(views_directory)
        self._targets = Targets(views_directory=views_directory, homes=homes, sessions=sessions)
        self._streamed = (
            None
            if streams is None
            else StreamedVolumes(streams, views, records, self.table, self._mount)
        )
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
        showing: Showing | None = None,
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
            showing: If the image has to be pulled, return when its manifest is here, and show so
                much of it meanwhile. None: return when all of it can be shown.

        Raises:
            MachineLacks: This machine or this user cannot mount, or not with these options.
            NotFound: No such image, no such target, or no such sub path.
            InvalidArgument: The target is not an absolute path of a directory, an ID is to be
                pulled, the sandbox's ID cannot be one, the sub path escapes, or an option needs a
                target.
            Conflict: The target is not empty, or has something mounted.
            PermissionDenied: The user may not mount there.
        """
        check_lease_id(sandbox)
        self.require_filesystem()
        if showing is not None:
            self._require_streams()
        mounts.refuse_impossible(bind)
        if target is None and bind.needs_target:
            raise InvalidArgument("these options need a directory to mount at")
        with self._targets.reserve(target):
            if target is not None:
                self._require_target()
                await self._targets.check(target, bind)
            if showing is not None:
                wanted = await find_usable(self._images, image, platform, pull, readiness)
                if isinstance(wanted, str):
                    streamed = self._require_streams()
                    stream = await streamed.streams.open(
                        wanted,
                        showing=showing,
                        platform=platform,
                        options=options,
                        progress=progress,
                    )
                    record = self._record(
                        image=wanted,
                        manifest=stream.manifest,
                        view_id=stream.view.id,
                        sandbox=sandbox,
                        target=target,
                        bind=bind,
                        patience=patience,
                    )
                    return self.table.show(await streamed.add(stream, record, bind))
            found = await obtain(self._images, image, platform, pull, options, progress, readiness)
            volume = self.new_record(found, image, sandbox, target, bind=bind, patience=patience)
            return self.table.show(await self._add(volume, found, follows_trace=follows_trace))

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
        known = name if not image.names or name in image.names else image.names[0]
        return self._record(
            image=known,
            manifest=image.manifest,
            view_id=image.view_id,
            sandbox=sandbox,
            target=target,
            bind=bind,
            patience=patience,
        )

    def _record(
        self,
        *,
        image: str,
        manifest: Digest,
        view_id: Digest,
        sandbox: str,
        target: str | None,
        bind: BindOptions,
        patience: float,
    ) -> VolumeRecord:
        """The same, of an image that need not be here yet."""
        return VolumeRecord(
            id=secrets.token_hex(6),
            sandbox=sandbox,
            image=image,
            manifest=manifest,
            target=target,
            options=bind.to_json(),
            patience=patience,
            view_id=view_id,
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

    def require_bind(self) -> None:
        """Refuses what needs bind mounts where there can be none.

        Raises:
            MachineLacks: This machine or this user cannot make them.
        """
        self.require_filesystem()
        if not self._may_bind:
            raise MachineLacks("bind mounts take root", hint="Run imgvol as root.")

    def _require_target(self) -> None:
        """Refuses mounts at a user's target where there can be none.

        Raises:
            MachineLacks: This machine or this user cannot make them.
        """
        self.require_filesystem()
        if not self._may_bind and not self._has_sessions:
            raise MachineLacks(
                "mounting at a directory of your choice takes root, or the kernel's own transport:"
                " libfuse has one session in a process",
                hint="Leave --transport out, from Linux 6.9 on; or leave the directory out: imgvol"
                " then prints the view's path.",
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
        held = self.table.find(target_or_id)
        if held.record.target is not None and self._homes.owns(held.record.target):
            async with self.turns.turn(held.record.sandbox):
                await self.remove(held, lazily=detach)
        else:
            await self.remove(held, lazily=detach)
        return self.table.show(held)

    async def list(self) -> list[Volume]:
        """Every volume, the oldest first, with whether it is still mounted."""
        table = {mount.mount_point: mount for mount in await self.in_thread(read_mountinfo)}
        held = sorted(self.table, key=lambda volume: volume.record.created_at)
        return [self.table.show(each, self._targets.absence(each, table)) for each in held]

    def find(self, target_or_id: str) -> HeldVolume:
        """See `VolumeTable.find`."""
        return self.table.find(target_or_id)

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
        with self._targets.reserve(volume.target):
            return await self._add(volume, image, leftovers)

    async def remove(self, held: HeldVolume, *, lazily: bool) -> None:
        """Unmounts and forgets a volume.

        Raises:
            NotFound: It has gone meanwhile.
            Conflict: It is in use, and `lazily` is false; or something is mounted over it.
        """
        with self._targets.reserve(held.record.target):
            current = self.table.get(held.record.id)
            if current is None:
                raise NotFound("no such volume", volume=held.record.id)
            # A caller who goes away in between would leave a record of what is not mounted.
            with trio.CancelScope(shield=True):
                await self._detach(current, lazily=lazily)
                await self._records.remove_volume(held.record.id)

    async def bind_again(self, held: HeldVolume, leftovers: Sequence[MountInfo]) -> None:
        """Binds an open volume at its target, where it is not mounted any more."""
        assert held.view is not None
        with self._targets.reserve(held.record.target):
            await self._mount(held, leftovers)

    async def unbind(self, held: HeldVolume) -> None:
        """Undoes `bind_again`: the volume stays, without its mount."""
        with self._targets.reserve(held.record.target):
            current = self.table.get(held.record.id)
            assert current is not None, "it stays, and the caller has its sandbox's turn"
            await self._targets.clear(current, lazily=True)
            self.table.put(replace(current, bound=None))

    async def restore(
        self, volume: VolumeRecord, image: ImageRecord, leftovers: Sequence[MountInfo]
    ) -> None:
        """Mounts a volume that is recorded, and was lost.

        Args:
            volume: Which.
            image: What it shows.
            leftovers: Mounts of ours at its target, which go first.
        """
        with self._targets.reserve(volume.target):
            await self._attach(volume, image, leftovers)

    async def restore_all(
        self, wanted: Sequence[Restoration]
    ) -> Sequence[ImgvolError | OSError | None]:
        """Mounts volumes that are recorded, after a restart and before anybody else asks.

        Returns:
            For each, why it cannot be mounted; None: it is.
        """
        with ExitStack() as stack:
            opened = [await self._try_open(one, stack) for one in wanted]
            placements = {
                number: _placement(held, one.leftovers, one.alive)
                for number, (one, held) in enumerate(zip(wanted, opened, strict=True))
                if isinstance(held, HeldVolume) and held.record.target is not None
            }
            done = await self._targets.mount_all(list(placements.values()))
            stack.pop_all()
        bounds = dict(zip(placements, done, strict=True))
        return [self._end_restoring(held, bounds.get(n)) for n, held in enumerate(opened)]

    async def _try_open(
        self, wanted: Restoration, stack: ExitStack
    ) -> HeldVolume | ImgvolError | OSError:
        try:
            held = await self._open(wanted.volume, wanted.image)
        except (ImgvolError, OSError) as exc:
            return exc
        stack.callback(self._let_go, held)
        return held

    def _end_restoring(
        self,
        held: HeldVolume | ImgvolError | OSError,
        bound: mounts.Bound | ImgvolError | OSError | None,
    ) -> ImgvolError | OSError | None:
        if not isinstance(held, HeldVolume):
            return held
        if isinstance(bound, (ImgvolError, OSError)):
            self._let_go(held)
            return bound
        self.table.put(replace(held, bound=bound))
        return None

    async def lose(self, volume: VolumeRecord, image: ImageRecord | None, reason: str) -> None:
        """Keeps a recorded volume that cannot be mounted, and says why.

        Its directory goes: whoever wants to use it must get an error, not an empty directory.
        """
        current = self.table.get(volume.id)
        if current is not None:
            await self._detach(current, lazily=True)
        try:
            options = BindOptions.from_json(volume.options)
        except InvalidArgument:  # then this is why it cannot be mounted
            options = WHOLE_VIEW
        self.table.put(
            HeldVolume(record=volume, image=image, view=None, options=options, loss=reason)
        )

    async def detach_all(self, *, forget: bool) -> None:
        """Unmounts every volume, in use or not; for the daemon's end.

        Args:
            forget: Also drop the records, so that the next start does not mount them again.
        """
        volumes = list(self.table)
        await self._targets.clear_all(volumes)
        for held in volumes:
            self._close(held)
            try:
                if forget:
                    await self._records.remove_volume(held.record.id)
            except ImgvolError as exc:
                log.error("cannot forget the volume at %s: %s", held.record.target, exc)

    async def in_thread(self, work: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Does something that may touch a mount."""
        return await self._targets.in_thread(work, *arguments)

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

    def _require_streams(self) -> StreamedVolumes:
        if self._streamed is None:
            raise MachineLacks(
                "images can be mounted while they are pulled with the kernel transport only",
                hint="With the other, whoever waits for a name could not be killed. imgvol doctor"
                " says what this machine lacks.",
            )
        return self._streamed

    async def _attach(
        self, volume: VolumeRecord, image: ImageRecord, leftovers: Sequence[MountInfo]
    ) -> HeldVolume:
        """Opens the view, shows it, binds what of it is asked for."""
        held = await self._open(volume, image)
        try:
            return await self._mount(held, leftovers)
        except BaseException:
            self._let_go(held)
            raise

    async def _open(self, volume: VolumeRecord, image: ImageRecord) -> HeldVolume:
        """Opens the view, and shows it."""
        options = BindOptions.from_json(volume.options)
        view = await self._views.acquire(image, volume.view_id)
        self._views.publish(view, volume.patience)
        try:
            part = resolve_sub_path(view.tree, options)
        except BaseException:
            self._views.withdraw(view, volume.patience)
            self._views.release(view)
            raise
        return HeldVolume(record=volume, image=image, view=view, options=options, part=part)

    async def _mount(self, held: HeldVolume, leftovers: Sequence[MountInfo] = ()) -> HeldVolume:
        """Binds what of an open volume's view is asked for, if it has a target, and keeps it."""
        if held.record.target is not None:
            bound = await self._targets.mount(_placement(held, leftovers))
            held = replace(held, bound=bound)
        self.table.put(held)
        return held

    async def _detach(self, held: HeldVolume, *, lazily: bool) -> None:
        await self._targets.clear(held, lazily=lazily)
        self._close(held)

    def _close(self, held: HeldVolume) -> None:
        self.table.drop(held)
        self._let_go(held)

    def _let_go(self, held: HeldVolume) -> None:
        if held.view is not None:
            self._views.withdraw(held.view, held.record.patience)
            self._views.release(held.view)


def _placement(
    held: HeldVolume, leftovers: Sequence[MountInfo], alive: MountInfo | None = None
) -> Placement:
    assert held.record.target is not None
    assert held.view is not None
    return Placement(
        target=held.record.target,
        view=held.view,
        part=held.part,
        options=held.options,
        leftovers=leftovers,
        alive=alive,
    )
