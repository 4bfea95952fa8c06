"""Bind mounts of views at targets: checked before, restricted from the first moment, ours alone.

A mount is known again by the number that the kernel gives it, which needs no look at the list of
all mounts: that list takes a millisecond to read where there are a thousand volumes, and each of
them is mounted and unmounted. Kernels before 6.8 have no numbers that last; there the list is read.
How they are taken away again is told in `unmounting`.

Everything here blocks and may go through our own filesystem: call it from threads only.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from imgvol import limits
from imgvol.errors import Conflict, InvalidArgument, LocalError, MachineLacks, NotFound
from imgvol.volumes import mountinfo, syscalls
from imgvol.volumes.mountinfo import MountInfo, is_target_session
from imgvol.volumes.options import BindOptions, Propagation
from imgvol.volumes.subpaths import SubPath
from imgvol.volumes.userns import open_user_namespace

SELINUX: Final = Path("/sys/fs/selinux/enforce")
# What the kernel says of a path that does not lead to where it led once.
NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
# Of every bind, as mountinfo has it.
_RESTRICTED: Final = frozenset({"ro", "nosuid", "nodev"})

# Opens a view's directory as a place, by its path, for as long as a block lasts.
ViewOpener = Callable[[bytes], AbstractContextManager[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A mount that we made for a volume: a bind mount, or a filesystem for its target alone.

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


def check_kind(target: bytes, part: SubPath) -> None:
    """Refuses a target of another kind than what is to be mounted there.

    Raises:
        InvalidArgument: It is.
        NotFound: The target does not exist.
    """
    with _opened(target) as place:
        _check_kind(syscalls.standing_at(place).mode, part, target)


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
    return _bound(target, _root_of(os.path.basename(view), part), standing)


def take_over(
    mount: MountInfo, view_name: bytes, part: SubPath, options: BindOptions
) -> Bound | None:
    """Makes a bind mount ours that the process before us made, of a filesystem that lives.

    Args:
        mount: The only one at its target.
        view_name: What it is to show.
        part: What of that.
        options: What else was asked for.

    Returns:
        None when it is not what is wanted: then it has to be made anew.

    Raises:
        LocalError: The kernel refuses.
    """
    if mount.root != _root_of(view_name, part) or not mount.options >= _RESTRICTED:
        return None
    try:
        with syscalls.open_place(mount.mount_point) as place:
            standing = _standing_of(mount, place)
            if standing is None:
                return None
            # The last step of a bind, and after it was attached: it may not have come so far.
            _propagate(place, options.propagation)
    except OSError as exc:
        raise LocalError(
            f"cannot take the mount over: {exc.strerror}", target=os.fsdecode(mount.mount_point)
        ) from exc
    return _bound(mount.mount_point, mount.root, standing)


def find_target_session(target: bytes, views_directory: Path) -> Bound | None:
    """The filesystem that was mounted for a target just now, if it is what one comes to there.

    Raises:
        LocalError: The target cannot be looked at.
    """
    there = mounts_at(target)
    if not there or not is_target_session(there[-1], views_directory):
        return None
    try:
        with syscalls.open_place(target) as place:
            standing = _standing_of(there[-1], place)
    except OSError as exc:
        raise LocalError(
            f"target cannot be used: {exc.strerror}", target=os.fsdecode(target)
        ) from exc
    return None if standing is None else _bound(target, there[-1].root, standing)


def is_listed(mount: MountInfo, place: int) -> bool:
    """Whether an open place is where a mount begins that was listed.

    Somebody may have moved a directory on the way there: then it is another one. And numbers of
    mounts and of filesystems that are gone are given again, so what it is of has to be the same,
    too. While the place is open, its numbers are no other's.
    """
    listed = syscalls.listed_at(place)
    numbers = (listed.mount_id, listed.device)
    if numbers != (mount.mount_id, mount.device) or not listed.is_mount_root:
        return False
    origin = _origin(place)
    if origin is None:
        return mountinfo.find_again(mount) is not None
    kind, _, _ = mount.fstype.partition(".")
    is_same = (origin.fstype, origin.root) == (kind, mount.root)
    return is_same and origin.source in {None, mount.source}


def _origin(place: int) -> syscalls.Origin | None:
    """What is mounted at an open place; None when only the list of all mounts can tell."""
    try:
        standing = syscalls.standing_at(place)
    except PermissionError:
        # It is a user's own FUSE filesystem, which nobody else may ask.
        return None
    origin = syscalls.origin(standing.mount_id) if standing.is_lasting else None
    if origin is not None and origin.source is None and origin.root == b"/":
        # Of a bind the view's name says enough. This may be anybody's.
        return None
    return origin


def _standing_of(mount: MountInfo, place: int) -> syscalls.Standing | None:
    """What stands at an open place, if it is a mount as it was listed."""
    return syscalls.standing_at(place) if is_listed(mount, place) else None


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


def mounts_at(target: bytes) -> list[MountInfo]:
    """What is mounted at a path, the topmost last."""
    return [mount for mount in mountinfo.mounts_at({target}) if mount.mount_point == target]


def _root_of(view_name: bytes, part: SubPath) -> bytes:
    """What a bind of a part shows, as mountinfo has it."""
    return b"/" + os.path.join(view_name, part.path).rstrip(b"/")


def _bound(target: bytes, root: bytes, standing: syscalls.Standing) -> Bound:
    mount_id = standing.mount_id if standing.is_lasting else None
    return Bound(target=target, root=root, mount_id=mount_id)


def is_mount(mount_id: int, place: int) -> bool:
    """Whether an open place is where a mount begins, by that one's lasting number."""
    standing = syscalls.standing_at(place)
    return standing.is_mount_root and standing.mount_id == mount_id


def _check_arrival(mount_id: int, target: bytes) -> None:
    # Else it went to where the directory is now, which is whatever somebody has made of it.
    try:
        with syscalls.open_place(target) as place:
            has_arrived = is_mount(mount_id, place)
    except OSError as exc:
        if exc.errno not in NOT_THERE:
            raise
        has_arrived = False
    if not has_arrived:
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
