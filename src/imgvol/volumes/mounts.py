"""Bind mounts of views at targets: checked before, restricted from the first moment, ours alone.

Everything here blocks and may go through our own filesystem: call it from threads only.
"""

import errno
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from imgvol.errors import Conflict, InvalidArgument, LocalError, NotFound
from imgvol.volumes import mountinfo, syscalls
from imgvol.volumes.mountinfo import MountInfo, is_ours, read_mountinfo


def check_target(target: bytes) -> None:
    """Refuses a target early, with a better reason than the kernel's.

    Raises:
        NotFound: It does not exist.
        InvalidArgument: It is not an absolute, clean path of a directory.
        Conflict: It is not empty, or something is mounted there.
    """
    shown = os.fsdecode(target)
    if not os.path.isabs(target) or os.path.normpath(target) != target:
        raise InvalidArgument("target is not an absolute, clean path", target=shown)
    if mounts_at(target):
        raise Conflict(
            "something is mounted there already",
            hint=f"Unmount it first: imgvol unmount {shown}",
            target=shown,
        )
    check_directory(target)


def check_directory(target: bytes) -> None:
    """Refuses a target that is no empty directory.

    Raises:
        NotFound: It does not exist.
        InvalidArgument: It is no directory.
        Conflict: It is not empty.
        LocalError: It cannot be looked at.
    """
    shown = os.fsdecode(target)
    try:
        with os.scandir(target) as entries:
            is_empty = next(entries, None) is None
    except FileNotFoundError as exc:
        raise NotFound(
            "target does not exist", hint=f"Make it first: mkdir -p {shown}", target=shown
        ) from exc
    except NotADirectoryError as exc:
        raise InvalidArgument("target is not a directory", target=shown) from exc
    except OSError as exc:
        raise LocalError(f"target cannot be used: {exc.strerror}", target=shown) from exc
    if not is_empty:
        raise Conflict(
            "target is not empty",
            hint="Choose an empty directory: a mount would hide what is in this one.",
            target=shown,
        )


def bind(source: bytes, target: bytes, noexec: bool) -> None:
    """Binds a directory of a view at a target, read-only.

    Raises:
        LocalError: The kernel refuses.
    """
    try:
        with syscalls.open_directory(target) as target_fd:
            syscalls.bind_read_only(source, target_fd, noexec=noexec)
    except OSError as exc:
        hint = ""
        if exc.errno == errno.ENOSYS:
            hint = "imgvol needs Linux 5.12 or later."
        elif exc.errno == errno.ELOOP:
            hint = "A symbolic link is on the way to the target: name the real path."
        raise LocalError(
            f"cannot bind the view: {exc.strerror}", hint=hint, target=os.fsdecode(target)
        ) from exc


def unbind(target: bytes, views_directory: Path, view_name: bytes, lazily: bool) -> None:
    """Unmounts our bind mount of a view from a target, and nothing else; gone already is fine.

    Raises:
        Conflict: It is in use (and `lazily` is false), or something is mounted over it.
        LocalError: The kernel refuses.
    """
    shown = os.fsdecode(target)
    there = mounts_at(target)
    if not there:
        return
    top = there[-1]
    if not is_ours(top, views_directory) or top.root != b"/" + view_name:
        raise _covered(shown)
    try:
        syscalls.unmount(target, detach=lazily)
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            raise Conflict(
                "volume is in use",
                hint=f"fuser -vm {shown} shows by whom. Or: imgvol unmount --detach {shown}",
                target=shown,
            ) from exc
        raise LocalError(f"cannot unmount: {exc.strerror}", target=shown) from exc


def mounts_at(target: bytes) -> list[MountInfo]:
    """What is mounted at a path, the topmost last."""
    return [mount for mount in mountinfo.mounts_at({target}) if mount.mount_point == target]


def detach(target: bytes, views_directory: Path, there: Sequence[MountInfo]) -> None:
    """Takes our mounts away from a target, dead or alive, in use or not, and nothing else.

    Args:
        target: Where.
        views_directory: Of our filesystem.
        there: What is mounted there, the topmost last.

    Raises:
        Conflict: Something else is mounted over them.
        LocalError: The kernel refuses.
    """
    shown = os.fsdecode(target)
    for mount in reversed(there):
        if not is_ours(mount, views_directory):
            raise _covered(shown)
        try:
            syscalls.unmount(target, detach=True)
        except OSError as exc:
            raise LocalError(f"cannot unmount: {exc.strerror}", target=shown) from exc


def detach_dead_mounts(views_directory: Path, *, kept: Collection[bytes] = ()) -> int:
    """Detaches every mount that a dead daemon left: its filesystem and the binds from it.

    They are known by their source, which holds the path of `views_directory`: no other mount is
    ever touched, and none that has another one on top of it, which would go instead. Blocks.

    Args:
        views_directory: Of our filesystem.
        kept: Targets of binds that stay, dead as they are, until they are replaced: whoever looks
            there meanwhile gets an error, and not an empty directory.

    Returns:
        How many were detached.
    """
    staying: set[bytes] = set()
    count = 0
    for mount in reversed(read_mountinfo()):
        is_kept = mount.root != b"/" and mount.mount_point in kept
        if not is_ours(mount, views_directory) or is_kept:
            staying.add(mount.mount_point)
        elif mount.mount_point not in staying:
            syscalls.unmount(mount.mount_point, detach=True)
            count += 1
    return count


def _covered(shown: str) -> Conflict:
    return Conflict(
        "something else is mounted over the volume",
        hint=f"Unmount that first: umount {shown}",
        target=shown,
    )
