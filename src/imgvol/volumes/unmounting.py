"""How mounts are taken away: each as it is known, wherever it is by now, and never another one.

A path says where a mount was when somebody looked. Who owns a directory on the way may have put
another there meanwhile, with another mount in it, and root's daemon would unmount that. So a mount
is opened where it should be, which asks no filesystem and follows no link; what was opened is
compared with what is meant, and is detached by its descriptor. If it is another one, the kernel is
asked where the mount is now. What others have mounted over ours is never touched, and ours is left
below it.

fusermount3 knows paths alone. It takes away what its caller has mounted, and nothing else.

Everything here blocks: call it from threads only.
"""

import errno
import logging
import os
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from imgvol.errors import Conflict, ImgvolError, LocalError
from imgvol.volumes import fusermount, mountinfo, syscalls
from imgvol.volumes.mountinfo import MountInfo, is_filesystem, is_ours, read_mountinfo
from imgvol.volumes.mounts import NOT_THERE, Bound, is_listed, is_mount, mounts_at

log = logging.getLogger(__name__)

# How often a mount is looked for whose directory somebody moves while we look.
_ATTEMPTS: Final = 100

# Whether an open place is the mount that is meant.
_IsMeant = Callable[[int], bool]


def unbind(bound: Bound, views_directory: Path, lazily: bool) -> None:
    """Unmounts a bind mount that we made, and nothing else; gone already is fine.

    Raises:
        Conflict: It is in use (and `lazily` is false), or something is mounted over it.
        LocalError: The kernel refuses.
    """
    if bound.mount_id is None:
        _unbind_listed(bound, views_directory, lazily)
        return
    is_meant = partial(is_mount, bound.mount_id)
    target: bytes | None = bound.target
    for _ in range(_ATTEMPTS):
        if target is None or _take_away(target, is_meant, lazily):
            return
        # Gone, or moved with a directory on the way to it, or covered.
        target = syscalls.mount_point(bound.mount_id)
    raise _covered(bound.target)


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
    for mount in reversed(there):
        if not is_ours(mount, views_directory):
            raise _covered(target)
        detach_listed(mount)


def detach_listed(mount: MountInfo, *, abort: bool = False) -> None:
    """Takes a mount out of the tree, in use or not; gone already is fine.

    Args:
        mount: As it was listed. It may have been moved since.
        abort: As in `syscalls.detach_tree`. fusermount3 cannot: whoever holds the connection's
            descriptor has to close it.

    Raises:
        Conflict: Something else is mounted over it, or over a directory on the way to it.
        LocalError: One cannot come to it, or the kernel refuses.
    """
    is_meant = partial(is_listed, mount)
    now: MountInfo | None = mount
    for _ in range(_ATTEMPTS):
        if now is None or _detach_at(now.mount_point, is_meant, abort=abort):
            return
        now = mountinfo.find_again(mount)
    raise _covered(mount.mount_point)


def detach_dead_mounts(
    views_directory: Path,
    *,
    kept: Collection[bytes] = (),
    alive: tuple[int, int] | None = None,
    abort: bool = False,
) -> int:
    """Detaches every mount that a dead daemon left: its filesystem, its binds, its targets.

    They are known by their source, which holds the path of `views_directory`, and by their owner:
    no other mount is ever touched. One over which somebody has mounted something else stays below
    that, and is told of in the log. Blocks.

    Args:
        views_directory: Of our filesystem.
        kept: Targets of volumes that stay, dead as they are, until they are replaced: whoever
            looks there meanwhile gets an error, and not an empty directory.
        alive: The device of a filesystem that was taken over, and stays.
        abort: End connections, too, of which somebody may still hold the descriptor.

    Returns:
        How many were detached.
    """
    ours = [mount for mount in read_mountinfo() if is_ours(mount, views_directory)]
    dead = [
        mount
        for mount in ours
        if (
            mount.device != alive
            if is_filesystem(mount, views_directory)
            else mount.mount_point not in kept
        )
    ]
    left = list(reversed(dead))
    while left:
        failures: list[tuple[MountInfo, ImgvolError]] = []
        for mount in left:
            try:
                # By a bind of it, a filesystem that lives would be aborted as well.
                detach_listed(mount, abort=abort and mount.device != alive)
            except ImgvolError as exc:
                failures.append((mount, exc))
        if len(failures) == len(left):
            for _, failure in failures:
                log.warning("a dead mount stays: %s", failure)
            break
        # What was mounted in another of them can be come to, or has gone with it.
        left = [mount for mount, _ in failures]
    return len(dead) - len(left)


def _unbind_listed(bound: Bound, views_directory: Path, lazily: bool) -> None:
    """Unmounts a mount that is known by what it shows and where: before Linux 6.8."""
    for _ in range(_ATTEMPTS):
        there = mounts_at(bound.target)
        if not any(_shows(mount, bound, views_directory) for mount in there):
            return
        if not _shows(there[-1], bound, views_directory):
            break
        if _take_away(bound.target, partial(is_listed, there[-1]), lazily):
            return
    raise _covered(bound.target)


def _shows(mount: MountInfo, bound: Bound, views_directory: Path) -> bool:
    return is_ours(mount, views_directory) and mount.root == bound.root


def _take_away(target: bytes, is_meant: _IsMeant, lazily: bool) -> bool:
    return _detach_at(target, is_meant) if lazily else _unmount_at(target, is_meant)


def _detach_at(target: bytes, is_meant: _IsMeant, *, abort: bool = False) -> bool:
    """Detaches a mount if it is what one comes to by a path; False if it is not."""
    try:
        with syscalls.open_place(target) as place:
            if not is_meant(place):
                return False
            _detach(place, target, abort)
    except OSError as exc:
        if exc.errno in NOT_THERE:
            return False
        raise _refused(target, exc) from exc
    return True


def _detach(place: int, target: bytes, abort: bool) -> None:
    try:
        syscalls.detach_tree(place, abort=abort)
    except PermissionError:
        if os.geteuid() == 0:
            raise
        # By the path as it was looked at: it finds it in the list of mounts.
        fusermount.unmount(target, detach=True)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # EINVAL: somebody else has unmounted it in this moment
            raise


def _unmount_at(target: bytes, is_meant: _IsMeant) -> bool:
    """Unmounts a mount that is not in use, if it is what one comes to by a path; else False."""
    parent, name = os.path.split(target)
    try:
        # Below its parent: no link that is put in the way in this moment leads to another mount.
        with syscalls.open_place(parent) as directory:
            # By its name, as the mount is in use for as long as the place is open.
            with syscalls.open_place(name, below=directory) as place:
                is_it = is_meant(place)
            if is_it:
                _unmount(target, directory)
    except OSError as exc:
        if exc.errno in NOT_THERE:
            return False
        raise _refused(target, exc) from exc
    return is_it


def _unmount(target: bytes, directory: int) -> None:
    shown = os.fsdecode(target)
    try:
        try:
            syscalls.unmount(os.path.basename(target), below=directory)
        except PermissionError:
            if os.geteuid() == 0:
                raise
            fusermount.unmount(target, detach=False)
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            raise
        raise Conflict(
            "volume is in use",
            hint=f"fuser -vm {shown} shows by whom. Or: imgvol unmount --detach {shown}",
            target=shown,
        ) from exc


def _covered(target: bytes) -> Conflict:
    shown = os.fsdecode(target)
    return Conflict(
        "something else is mounted over the volume",
        hint=f"Unmount that first: umount {shown}",
        target=shown,
    )


def _refused(target: bytes, error: OSError) -> LocalError:
    return LocalError(f"cannot unmount: {error.strerror}", target=os.fsdecode(target))
