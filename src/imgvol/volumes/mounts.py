"""Bind mounts of views at targets: checked before, restricted from the first moment, ours alone.

A mount is known again by the number that the kernel gives it, which needs no look at the list of
all mounts: that list takes a millisecond to read where there are a thousand volumes, and each of
them is mounted and unmounted. Kernels before 6.8 have no numbers that last; there the list is read.

Everything here blocks and may go through our own filesystem: call it from threads only.
"""

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from imgvol import limits
from imgvol.errors import Conflict, InvalidArgument, LocalError, MachineLacks, NotFound
from imgvol.volumes import mountinfo, syscalls
from imgvol.volumes.mountinfo import MountInfo, is_ours, read_mountinfo
from imgvol.volumes.options import BindOptions, Propagation
from imgvol.volumes.subpaths import SubPath
from imgvol.volumes.userns import open_user_namespace

SELINUX: Final = Path("/sys/fs/selinux/enforce")
# What the kernel says of a path that does not lead to where it led once.
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
# How often a mount is looked for whose directory somebody moves while we look.
_ATTEMPTS: Final = 100

# Opens a view's directory as a place, by its path, for as long as a block lasts.
ViewOpener = Callable[[bytes], AbstractContextManager[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A bind mount that we made.

    Attributes:
        target: Where it was attached.
        root: What it shows, as mountinfo has it: from the filesystem's root.
        mount_id: Its number; None when the kernel has none that last.
    """

    target: bytes
    root: bytes
    mount_id: int | None


def check_target(target: bytes, may_be_file: bool = False) -> None:
    """Refuses a target early, with a better reason than the kernel's.

    Args:
        target: Where something is to be mounted.
        may_be_file: An empty file will do, too: it is not known yet what is to be mounted.

    Raises:
        NotFound: It does not exist.
        InvalidArgument: It is not an absolute, clean path of a directory, or goes through a
            symbolic link.
        Conflict: It is not empty, or something is mounted there.
    """
    shown = os.fsdecode(target)
    if not os.path.isabs(target) or os.path.normpath(target) != target:
        raise InvalidArgument("target is not an absolute, clean path", target=shown)
    with _opened(target) as place:
        standing = syscalls.standing_at(place)
        if standing.is_mount_root:
            raise Conflict(
                "something is mounted there already",
                hint=f"Unmount it first: imgvol unmount {shown}",
                target=shown,
            )
        is_directory = stat.S_ISDIR(standing.mode)
        if not is_directory and not (may_be_file and stat.S_ISREG(standing.mode)):
            raise InvalidArgument("target is not a directory", target=shown)
        if not _is_empty(place, is_directory):
            what = "directory" if is_directory else "file"
            raise Conflict(
                "target is not empty",
                hint=f"Choose an empty {what}: a mount would hide what is in this one.",
                target=shown,
            )


def refuse_impossible(options: BindOptions) -> None:
    """Refuses what no bind mount of a view can be on this machine.

    Labels belong to a filesystem or to its files. A bind mount has none of its own, and views are
    read-only. Where SELinux is off, nobody looks at labels, and the wish is met.

    Raises:
        MachineLacks: Labels are asked for, and matter here.
    """
    if options.selinux_relabel and SELINUX.exists():
        raise MachineLacks(
            "the files of a view cannot be given SELinux labels",
            hint="Leave relabelling out, and allow containers to use FUSE filesystems.",
        )


class KeptPlaces:
    """Directories of views that stay open, for many binds one after the other.

    Looking a view up asks our own filesystem, which is most of the time that a bind takes. A view
    that is withdrawn meanwhile is let go of only by `close`. One thread at a time may use it.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._places: dict[bytes, int] = {}

    def close(self) -> None:
        """Lets go of all of them; more may follow."""
        self._places.clear()
        self._stack.close()

    @contextmanager
    def open(self, view: bytes) -> Iterator[int]:
        """A `ViewOpener`."""
        if view not in self._places:
            if len(self._places) >= limits.KEPT_VIEWS:
                self.close()
            self._places[view] = self._stack.enter_context(syscalls.open_place(view))
        try:
            yield self._places[view]
        except FileNotFoundError:
            # The kernel has forgotten it meanwhile: the next attempt is to look it up anew.
            self._places.pop(view, None)
            raise


def bind(
    view: bytes,
    part: SubPath,
    target: bytes,
    options: BindOptions,
    open_view: ViewOpener = syscalls.open_place,
) -> Bound:
    """Binds a view, or a part of it, at a target: read-only, and as the options say.

    Args:
        view: Path of the view's directory.
        part: What of it.
        target: An empty directory, or a file for a part that is one.
        options: What else is asked for.
        open_view: How to come to the view.

    Raises:
        InvalidArgument: The target is of another kind than the part.
        Conflict: The target was replaced meanwhile; nothing is mounted.
        MachineLacks: The kernel does not do for a view what an option asks for.
        NotFound: The target does not exist.
        LocalError: The kernel refuses.
    """
    with _opened(target) as place:
        _check_kind(syscalls.standing_at(place).mode, part, target)
        try:
            standing = _bind_found(partial(open_view, view), part, place, target, options)
        except OSError as exc:
            hint = "imgvol needs Linux 5.12 or later." if exc.errno == errno.ENOSYS else ""
            raise LocalError(
                f"cannot bind the view: {exc.strerror}", hint=hint, target=os.fsdecode(target)
            ) from exc
    root = b"/" + os.path.join(os.path.basename(view), part.path).rstrip(b"/")
    return Bound(
        target=target, root=root, mount_id=standing.mount_id if standing.is_lasting else None
    )


def _bind_found(
    open_view: Callable[[], AbstractContextManager[int]],
    part: SubPath,
    place: int,
    target: bytes,
    options: BindOptions,
) -> syscalls.Standing:
    """Looks the view up until it stays where it was found for long enough to be mounted.

    The kernel is told to forget a name after each withdrawal of its view, which may be shown again
    by then: a directory that is forgotten between the two calls cannot be attached (ENOENT).
    """
    for _ in range(limits.BIND_ATTEMPTS - 1):
        with suppress(FileNotFoundError):
            return _bind_once(open_view, part, place, target, options)
    return _bind_once(open_view, part, place, target, options)


def _bind_once(
    open_view: Callable[[], AbstractContextManager[int]],
    part: SubPath,
    place: int,
    target: bytes,
    options: BindOptions,
) -> syscalls.Standing:
    with (
        open_view() as directory,
        syscalls.open_beneath(directory, part.path) as source,
        syscalls.clone_tree(source) as tree,
    ):
        _restrict(tree, options)
        syscalls.attach(tree, place)
        standing = syscalls.standing_at(tree)
        try:
            _propagate(tree, options.propagation)
            _check_arrival(standing.mount_id, target)
        except BaseException:
            syscalls.detach_tree(tree)
            raise
        return standing


def unbind(bound: Bound, views_directory: Path, lazily: bool) -> None:
    """Unmounts a bind mount that we made, and nothing else; gone already is fine.

    Raises:
        Conflict: It is in use (and `lazily` is false), or something is mounted over it.
        LocalError: The kernel refuses.
    """
    if bound.mount_id is None:
        _unbind_listed(bound, views_directory, lazily)
        return
    target: bytes | None = bound.target
    for _ in range(_ATTEMPTS):
        if target is None or _unmount_at(target, bound.mount_id, lazily):
            return
        # Gone, or moved with a directory on the way to it, or covered.
        target = syscalls.mount_point(bound.mount_id)
    raise _covered(bound.target)


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
            raise _covered(target)
        try:
            syscalls.unmount(target, detach=True)
        except OSError as exc:
            raise LocalError(f"cannot unmount: {exc.strerror}", target=shown) from exc


def detach_dead_mounts(views_directory: Path, *, kept: Collection[bytes] = ()) -> int:
    """Detaches every mount that a dead daemon left: its filesystem and the binds from it.

    They are known by their source, which holds the path of `views_directory`: no other mount is
    ever touched. Blocks.

    Args:
        views_directory: Of our filesystem.
        kept: Targets of binds that stay, dead as they are, until they are replaced: whoever looks
            there meanwhile gets an error, and not an empty directory.

    Returns:
        How many were detached.
    """
    ours = [mount for mount in read_mountinfo() if is_ours(mount, views_directory)]
    dead = [mount for mount in ours if mount.root == b"/" or mount.mount_point not in kept]
    for mount in reversed(dead):
        syscalls.unmount(mount.mount_point, detach=True)
    return len(dead)


def _unmount_at(target: bytes, mount_id: int, lazily: bool) -> bool:
    """Unmounts a mount if it is what one comes to by a path; False if it is not."""
    parent, name = os.path.split(target)
    try:
        # Below its parent: no link that is put in the way in this moment leads to another mount.
        with syscalls.open_place(parent) as directory:
            if not _is_at(mount_id, name, below=directory):
                return False
            _unmount(target, name, directory, lazily)
    except OSError as exc:
        if exc.errno in _NOT_THERE:
            return False
        raise LocalError(f"cannot unmount: {exc.strerror}", target=os.fsdecode(target)) from exc
    return True


def _unmount(target: bytes, name: bytes, directory: int, lazily: bool) -> None:
    shown = os.fsdecode(target)
    try:
        syscalls.unmount(name, below=directory, detach=lazily)
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            raise
        raise Conflict(
            "volume is in use",
            hint=f"fuser -vm {shown} shows by whom. Or: imgvol unmount --detach {shown}",
            target=shown,
        ) from exc


def _unbind_listed(bound: Bound, views_directory: Path, lazily: bool) -> None:
    """Unmounts a mount that is known by what it shows and where: before Linux 6.8."""
    there = mounts_at(bound.target)
    if not any(_shows(mount, bound, views_directory) for mount in there):
        return
    if not _shows(there[-1], bound, views_directory):
        raise _covered(bound.target)
    parent, name = os.path.split(bound.target)
    try:
        with syscalls.open_place(parent) as directory:
            _unmount(bound.target, name, directory, lazily)
    except OSError as exc:
        raise LocalError(
            f"cannot unmount: {exc.strerror}", target=os.fsdecode(bound.target)
        ) from exc


def _covered(target: bytes) -> Conflict:
    shown = os.fsdecode(target)
    return Conflict(
        "something else is mounted over the volume",
        hint=f"Unmount that first: umount {shown}",
        target=shown,
    )


def _shows(mount: MountInfo, bound: Bound, views_directory: Path) -> bool:
    return is_ours(mount, views_directory) and mount.root == bound.root


def _is_at(mount_id: int, path: bytes, *, below: int | None = None) -> bool:
    """Whether a mount is what one comes to by a path.

    Raises:
        OSError: Neither this nor that.
    """
    try:
        with syscalls.open_place(path, below=below) as place:
            standing = syscalls.standing_at(place)
    except OSError as exc:
        if exc.errno in _NOT_THERE:
            return False
        raise
    return standing.is_mount_root and standing.mount_id == mount_id


def _check_arrival(mount_id: int, target: bytes) -> None:
    # Else it went to where the directory is now, which is whatever somebody has made of it.
    if not _is_at(mount_id, target):
        raise Conflict("target was replaced while it was being mounted", target=os.fsdecode(target))


@contextmanager
def _opened(target: bytes) -> Iterator[int]:
    """The target as an open place, with better words for what is wrong with it."""
    shown = os.fsdecode(target)
    with ExitStack() as stack:
        try:
            place = stack.enter_context(syscalls.open_place(target))
        except FileNotFoundError as exc:
            raise NotFound(
                "target does not exist", hint=f"Make it first: mkdir -p {shown}", target=shown
            ) from exc
        except NotADirectoryError as exc:
            raise InvalidArgument("target is not a directory", target=shown) from exc
        except OSError as exc:
            if exc.errno == errno.ELOOP:
                raise InvalidArgument(
                    "a symbolic link is on the way to the target",
                    hint=f"Name the real path: realpath {shown}",
                    target=shown,
                ) from exc
            raise LocalError(f"target cannot be used: {exc.strerror}", target=shown) from exc
        yield place


def _is_empty(place: int, is_directory: bool) -> bool:
    path = f"/proc/self/fd/{place}"
    if not is_directory:
        return os.stat(path).st_size == 0
    with os.scandir(path) as entries:
        return next(entries, None) is None


def _check_kind(mode: int, part: SubPath, target: bytes) -> None:
    if stat.S_ISDIR(mode) != part.is_directory:
        wanted = "directory" if part.is_directory else "file"
        raise InvalidArgument(
            f"target is not a {wanted}, which is what is to be mounted", target=os.fsdecode(target)
        )


def _restrict(tree: int, options: BindOptions) -> None:
    """Sets everything that must hold before anybody can come in."""
    try:
        syscalls.restrict(tree, noexec=options.noexec, nosymfollow=options.nosymfollow)
    except OSError as exc:
        if exc.errno == errno.EINVAL and options.nosymfollow:
            raise MachineLacks("this kernel has no nosymfollow", hint="Linux 5.14 has.") from exc
        raise
    if not options.uid_mappings:
        return
    with open_user_namespace(options.uid_mappings, options.gid_mappings) as namespace:
        try:
            syscalls.map_ids(tree, namespace)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            raise MachineLacks(
                "the kernel does not map owners in a view",
                hint="Mount it without mappings: files show the image's owners, and what"
                " everybody may read can be read in a user namespace, too.",
            ) from exc


def _propagate(tree: int, propagation: Propagation) -> None:
    # Now, as attaching to a shared mount has made it shared.
    if propagation is Propagation.PRIVATE:
        syscalls.make_private(tree)
    else:
        syscalls.make_shared(tree)
