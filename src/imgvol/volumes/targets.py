"""What stands at targets: mounted there, taken away, looked at. It knows no table of volumes.

Where the daemon may bind, a target gets a bind mount of what the view's directory shows; where it
may not, a filesystem of its own (`target_sessions`). A target in a sandbox's home is a directory
that comes and goes with the mount; any other is a user's, and only ever mounted at.

Everything that may touch a mount runs in threads: a system call on our own filesystem waits for an
answer that only the event loop can give.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

import trio

from imgvol.errors import Conflict, ImgvolError, InvalidArgument
from imgvol.images.open_view import OpenView
from imgvol.volumes import mounts, syscalls, target_sessions, unmounting
from imgvol.volumes.homes import Homes
from imgvol.volumes.mountinfo import MountInfo, by_target, is_ours, read_mountinfo
from imgvol.volumes.options import BindOptions
from imgvol.volumes.subpaths import SubPath
from imgvol.volumes.target_sessions import TargetSessions
from imgvol.volumes.volume import HeldVolume

log = logging.getLogger(__name__)

MOUNT_THREADS: Final = 8

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What is to be at a target.

    Attributes:
        target: Where.
        view: Is shown in the filesystem.
        part: What of it.
        options: What else is asked for.
        leftovers: Mounts of ours at the target, which go first.
        alive: The only one of them, if it is of the filesystem as it is mounted now: it stays, if
            it is what is wanted.
    """

    target: str
    view: OpenView
    part: SubPath
    options: BindOptions
    leftovers: Sequence[MountInfo] = ()
    alive: MountInfo | None = None


class Targets:
    """The targets of one daemon's volumes.

    Args:
        views_directory: Where the filesystem is mounted.
        homes: Where volumes of sandboxes are.
        sessions: How targets are mounted where the daemon may not bind; None: it may, or they are
            not mounted at all.
    """

    def __init__(
        self, *, views_directory: Path, homes: Homes, sessions: TargetSessions | None
    ) -> None:
        self._views_directory = views_directory
        self._homes = homes
        self._sessions = sessions
        self._busy: set[str] = set()
        self._limiter = trio.CapacityLimiter(MOUNT_THREADS)

    async def in_thread(self, work: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Does something that may touch a mount."""
        return await trio.to_thread.run_sync(work, *arguments, limiter=self._limiter)

    @contextmanager
    def reserve(self, target: str | None) -> Iterator[None]:
        """One operation at a time for one target.

        Raises:
            Conflict: There is another one.
        """
        if target is None:
            yield
            return
        if target in self._busy:
            raise Conflict("another mount or unmount is under way there", target=target)
        self._busy.add(target)
        try:
            yield
        finally:
            self._busy.remove(target)

    async def check(self, target: str, options: BindOptions) -> None:
        """Refuses a user's target early, before an image is fetched for it.

        Raises:
            InvalidArgument: It is in a place of ours, or as in `mounts.check_target`.
            ImgvolError: As in `mounts.check_target` and `target_sessions.refuse_impossible`.
        """
        if self._homes.owns(target):
            raise InvalidArgument("the target is imgvol's own place", target=target)
        await self.in_thread(mounts.check_target, os.fsencode(target), bool(options.sub_path))
        if self._sessions is not None:
            await self.in_thread(target_sessions.refuse_impossible, target, options)

    async def mount(self, placement: Placement) -> mounts.Bound:
        """Has a part of a view at a target, with nothing of ours below.

        Returns:
            By what it is known again.

        Raises:
            ImgvolError: It cannot be mounted; nothing of it is left.
        """
        if self._sessions is None:
            return await self.in_thread(self._place, placement, syscalls.open_place)
        await self.in_thread(self._prepare, placement)
        return await self._sessions.open(
            placement.view, placement.part, os.fsencode(placement.target), placement.options
        )

    async def mount_all(
        self, placements: Sequence[Placement]
    ) -> Sequence[mounts.Bound | ImgvolError | OSError]:
        """Mounts many, while none is unmounted; goes on over failures.

        One thread does it all: several would wait for each other, and going to one and back takes
        longer than a bind.

        Returns:
            For each, what `mount` returns or raises.
        """
        if self._sessions is None:
            return await self.in_thread(self._place_all, placements)
        return [await self._try_mount(placement) for placement in placements]

    async def _try_mount(self, placement: Placement) -> mounts.Bound | ImgvolError | OSError:
        try:
            return await self.mount(placement)
        except (ImgvolError, OSError) as exc:
            return exc

    async def clear(self, held: HeldVolume, *, lazily: bool) -> None:
        """Unmounts a volume's target, and removes its directory if it is ours.

        Raises:
            Conflict: It is in use, and `lazily` is false; or something is mounted over it.
        """
        if held.record.target is not None:
            await self.in_thread(self._displace, held, held.record.target, lazily)

    async def clear_all(self, volumes: Sequence[HeldVolume]) -> None:
        """Unmounts targets at the daemon's end, in use or not; goes on over failures."""
        await self.in_thread(self._displace_all, volumes)

    def absence(self, held: HeldVolume, table: Mapping[bytes, MountInfo]) -> str:
        """Why a volume does not show at its target, if the kernel's table says so.

        Args:
            held: Which.
            table: The topmost mounts, by mount point.
        """
        if held.record.target is None:
            return ""
        mount = table.get(os.fsencode(held.record.target))
        if mount is None:
            return "somebody has unmounted it"
        if not is_ours(mount, self._views_directory):
            return "something else is mounted over it"
        if self._sessions is not None and held.bound is not None:
            return "" if self._sessions.is_alive(held.bound) else "its connection was aborted"
        return ""

    # --- in threads -----------------------------------------------------------------------------

    def _prepare(self, placement: Placement) -> None:
        """Takes what is left of ours away from a target, and looks at it once more."""
        target = os.fsencode(placement.target)
        unmounting.detach(target, self._views_directory, placement.leftovers)
        mounts.check_target(target, bool(placement.options.sub_path))
        mounts.check_kind(target, placement.part)

    def _place_all(
        self, placements: Sequence[Placement]
    ) -> Sequence[mounts.Bound | ImgvolError | OSError]:
        """Binds many; each view is looked up once."""
        done: list[mounts.Bound | ImgvolError | OSError] = []
        with closing(mounts.KeptPlaces()) as kept:
            for placement in placements:
                try:
                    done.append(self._place(placement, kept.open))
                except (ImgvolError, OSError) as exc:
                    done.append(exc)
        return done

    def _place(self, placement: Placement, open_view: mounts.ViewOpener) -> mounts.Bound:
        """Binds a part of a view at a target."""
        name, part, options = placement.view.name, placement.part, placement.options
        if placement.alive is not None:
            bound = mounts.take_over(placement.alive, name, part, options)
            if bound is not None:
                return bound
        target = os.fsencode(placement.target)
        unmounting.detach(target, self._views_directory, placement.leftovers)
        has_home = self._homes.owns(placement.target)
        if has_home:
            self._homes.make(placement.target)
        try:
            # A user may have used the directory meanwhile.
            mounts.check_target(target, bool(options.sub_path))
            # Below the run directory nothing is a link; the way there is the administrator's.
            run = os.path.realpath(bytes(self._views_directory.parent))
            view = os.path.join(run, os.fsencode(self._views_directory.name), name)
            return mounts.bind(view, part, target, options, open_view)
        except BaseException:
            if has_home:
                # What is in its way is in the error's way no less.
                with contextlib.suppress(ImgvolError):
                    self._homes.remove(placement.target)
            raise

    def _displace(self, held: HeldVolume, target: str, lazily: bool) -> None:
        if held.bound is not None:
            unmounting.unbind(held.bound, self._views_directory, lazily)
        elif held.view is None:
            # A dead mount may have been left below somebody else's.
            path = os.fsencode(target)
            unmounting.detach(path, self._views_directory, mounts.mounts_at(path))
        if self._homes.owns(target):
            self._homes.remove(target)

    def _displace_all(self, volumes: Sequence[HeldVolume]) -> None:
        table = by_target(read_mountinfo())
        for target in (held.record.target for held in volumes if held.record.target is not None):
            path = os.fsencode(target)
            try:
                unmounting.detach(path, self._views_directory, table.get(path, ()))
                if self._homes.owns(target):
                    self._homes.remove(target)
            except (ImgvolError, OSError) as exc:
                log.error("cannot unmount %s: %s", target, exc)
