"""How a filesystem comes to be mounted: by ourselves as root, or for a user by fusermount3."""

import os
from pathlib import Path
from typing import Final, Protocol

from imgvol.errors import Conflict, ImgvolError, MachineLacks
from imgvol.fs.transport import check_mount, check_restricted
from imgvol.volumes import fusermount, mounts, syscalls, unmounting
from imgvol.volumes.mountinfo import FILESYSTEM_TYPE, source_of, target_source_of
from imgvol.volumes.mounts import Bound

DEVICE: Final = "/dev/fuse"
_OPTIONS: Final = "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other"


class Mounting(Protocol):
    """Where one filesystem is mounted, and how. All calls block.

    Lifecycle: `mount`, `check`, `detach`, each once; a connection that was taken over is mounted
    already, and is detached all the same.

    Attributes:
        mount_point: Where.
    """

    mount_point: Path

    def mount(self) -> int:
        """Mounts it; returns the connection's descriptor, which never blocks.

        Raises:
            MachineLacks: The kernel or fusermount3 refuses.
            ImgvolError: The same, and it is the caller's fault, or nobody knows whose.
        """

    def check(self) -> None:
        """Makes sure that it is mounted where it should be, and as it should be.

        Raises:
            LocalError: It is not, or set-user-ID programs and devices of images mean something.
        """

    def detach(self) -> None:
        """Takes it out of the tree, in use or not, and nothing else; gone already is fine."""


class _ViewsMounting:
    """What is common to those of the filesystem that shows all views."""

    def __init__(self, mount_point: Path) -> None:
        self.mount_point = mount_point

    def check(self) -> None:
        """See `Mounting.check`."""
        check_restricted(self.mount_point)

    def detach(self) -> None:
        """See `Mounting.detach`. Mounts of volumes have gone before, or are dead with this."""
        unmounting.detach_dead_mounts(self.mount_point)


class SystemMounting(_ViewsMounting):
    """A `Mounting` for every user of the machine. Needs root."""

    def mount(self) -> int:
        """See `Mounting.mount`."""
        fd = -1
        try:
            fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            syscalls.mount_filesystem(
                source_of(self.mount_point),
                os.fsencode(self.mount_point),
                FILESYSTEM_TYPE.encode(),
                _OPTIONS.format(fd).encode(),
            )
        except OSError as exc:
            if fd >= 0:
                os.close(fd)
            raise _refused(self.mount_point, exc.strerror) from exc
        return fd


class UserMounting(_ViewsMounting):
    """A `Mounting` of a user's daemon, for that user alone: by fusermount3."""

    def mount(self) -> int:
        """See `Mounting.mount`."""
        try:
            return fusermount.mount(os.fsencode(self.mount_point), source_of(self.mount_point))
        except MachineLacks:
            raise
        except ImgvolError as exc:
            # The directory is the daemon's own: whatever is wrong, it is the machine.
            raise _refused(self.mount_point, str(exc)) from exc


class TargetMounting:
    """A `Mounting` at the target of a user's volume.

    Args:
        target: An empty directory, or a file.
        views_directory: Of the daemon, by which its mounts are known.
        noexec: Programs in it cannot be run.

    Attributes:
        bound: By which the mount is known again, once there is one and until `hand_over`.
    """

    def __init__(self, target: bytes, views_directory: Path, *, noexec: bool) -> None:
        self.mount_point = Path(os.fsdecode(target))
        self.bound: Bound | None = None
        self._target = target
        self._views_directory = views_directory
        self._noexec = noexec

    def mount(self) -> int:
        """See `Mounting.mount`."""
        source = target_source_of(self._views_directory)
        fd = fusermount.mount(self._target, source, noexec=self._noexec)
        try:
            self.bound = mounts.find_target_session(self._target, self._views_directory)
            if self.bound is None:
                raise Conflict(
                    "target was replaced while it was being mounted", target=self.mount_point
                )
        except BaseException:
            os.close(fd)
            raise
        return fd

    def check(self) -> None:
        """See `Mounting.check`."""
        check_mount(mounts.mounts_at(self._target)[-1], self.mount_point)

    def detach(self) -> None:
        """See `Mounting.detach`."""
        if self.bound is not None:
            unmounting.unbind(self.bound, self._views_directory, lazily=True)

    def hand_over(self) -> None:
        """Somebody else unmounts it from now on.

        When its connection ends before that, the mount stays: whoever looks there is to get an
        error, and not an empty directory.
        """
        self.bound = None


def _refused(mount_point: Path, reason: str | None) -> MachineLacks:
    return MachineLacks(
        "the filesystem cannot be mounted here",
        hint="imgvol doctor says what this machine lacks.",
        mount_point=mount_point,
        reason=reason,
    )
