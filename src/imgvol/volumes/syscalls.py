"""The mount system calls, by file descriptor, through ctypes.

A bind mount is made in steps that leave no window: clone the source as a detached mount
(`clone_tree`), restrict it (`restrict`, `map_ids`), and only then attach it (`attach`) at a target
that was opened beforehand without following a symbolic link (`open_place`). Nobody ever sees it
writable, and nobody can swap the target in between (CVE-2021-30465, CVE-2017-1002101).

Numbers and structures: include/uapi/linux/{mount,openat2,fcntl,stat}.h; the call numbers are the
same on every architecture since Linux 5.2. All of these block, and may go through our own
filesystem: call them from threads only.
"""

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from imgvol import limits

_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_OPENAT2: Final = 437
_SYS_MOUNT_SETATTR: Final = 442
_SYS_STATMOUNT: Final = 457

_AT_FDCWD: Final = -100
_AT_NO_AUTOMOUNT: Final = 0x800
_AT_EMPTY_PATH: Final = 0x1000
_AT_STATX_DONT_SYNC: Final = 0x4000
_OPEN_TREE_CLONE: Final = 1
_OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x04
_MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
_RESOLVE_NO_XDEV: Final = 0x01
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_RESOLVE_IN_ROOT: Final = 0x10
_MOUNT_ATTR_RDONLY: Final = 0x01
_MOUNT_ATTR_NOSUID: Final = 0x02
_MOUNT_ATTR_NODEV: Final = 0x04
_MOUNT_ATTR_NOEXEC: Final = 0x08
_MOUNT_ATTR_IDMAP: Final = 0x00100000
_MOUNT_ATTR_NOSYMFOLLOW: Final = 0x00200000
_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_NOATIME: Final = 1024
_MS_PRIVATE: Final = 1 << 18
_MS_SHARED: Final = 1 << 20
_MNT_FORCE: Final = 1
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_O_PATH: Final = 0o10000000
_CLONE_FS: Final = 0x00000200
_CLONE_NEWNS: Final = 0x00020000

_STATX_TYPE: Final = 0x0001
_STATX_MNT_ID: Final = 0x1000
_STATX_MNT_ID_UNIQUE: Final = 0x4000
_STATX_ATTR_MOUNT_ROOT: Final = 0x2000
# struct statx: stx_mask, stx_attributes, stx_mode, stx_dev_major, stx_dev_minor, stx_mnt_id.
_STATX: Final = struct.Struct("=I4xQ12xH106xIIQ104x")

_STATMOUNT_MNT_ROOT: Final = 0x08
_STATMOUNT_MNT_POINT: Final = 0x10
_STATMOUNT_FS_TYPE: Final = 0x20
_STATMOUNT_SB_SOURCE: Final = 0x200
# struct mnt_id_req: size, mnt_id, param.
_MNT_ID_REQ: Final = struct.Struct("=I4xQQ")
# struct statmount: mask, then fs_type, mnt_root, mnt_point and sb_source, each of them an offset
# into the strings that follow the structure.
_STATMOUNT: Final = struct.Struct("=8xQ20xI64xII12xI384x")
# A root and a source, or a mount point; a name of a type is short.
_STATMOUNT_STRINGS: Final = 3 * limits.PATH_LENGTH

_libc = ctypes.CDLL(None, use_errno=True)
# Each argument of syscall(2) is one register wide.
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What stands at an open place.

    Attributes:
        mode: Type of the file, as in st_mode; permission bits may be missing.
        is_mount_root: Whether a mount begins here.
        mount_id: The mount that it is in.
        is_lasting: Whether no other mount has that number until the next boot. Before Linux 6.8
            numbers of mounts that are gone are used again.
    """

    mode: int
    is_mount_root: bool
    mount_id: int
    is_lasting: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """The mount that an open place is in, by what mountinfo says of it.

    Attributes:
        mount_id: Its number there. That of a mount that is gone is used again, but not as long as
            a place in it is open.
        device: Its filesystem's number. For that the same is true.
        is_mount_root: Whether it begins here.
    """

    mount_id: int
    device: tuple[int, int]
    is_mount_root: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a mount is of.

    Attributes:
        fstype: The filesystem's type, without a subtype.
        root: The directory of the filesystem that is mounted.
        source: As in mountinfo; None before Linux 6.14, which does not say.
    """

    fstype: str
    root: bytes
    source: bytes | None


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _syscall(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char]) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *wide))


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _open_path(directory: int, path: bytes, resolve: int, flags: int = 0) -> int:
    how = struct.pack("<QQQ", _O_PATH | os.O_CLOEXEC | flags, 0, resolve)
    return _syscall(_SYS_OPENAT2, directory, path + b"\0", how, len(how))


@contextlib.contextmanager
def open_place(path: bytes, *, below: int | None = None) -> Iterator[int]:
    """Opens a file or directory as a place (O_PATH), refusing symbolic links anywhere on the way.

    Args:
        path: Where.
        below: An open directory, from which a relative path leads.

    Raises:
        OSError: ENOENT, ENOTDIR, or ELOOP when a component is a symbolic link.
    """
    directory = _AT_FDCWD if below is None else below
    resolve = _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
    with _closing(_open_path(directory, path, resolve)) as fd:
        yield fd


@contextlib.contextmanager
def open_beneath(directory: int, path: bytes) -> Iterator[int]:
    """Opens a place below an open directory, in the same mount, without following any link.

    Args:
        directory: Where to begin.
        path: Plain names with slashes in between; b"" is the directory itself.

    Raises:
        OSError: ENOENT, ENOTDIR; EXDEV or ELOOP if the path were not plain.
    """
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_XDEV | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
    with _closing(_open_path(directory, path or b".", resolve)) as fd:
        yield fd


@contextlib.contextmanager
def open_in_root(root: int, path: bytes) -> Iterator[int]:
    """Opens a place as a process would whose root directory is an open one, links and all.

    Raises:
        OSError: ENOENT, ENOTDIR, ELOOP.
    """
    resolve = _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS
    with _closing(_open_path(root, path, resolve)) as fd:
        yield fd


def enter_mount_namespace(namespace: int) -> None:
    """Takes the calling thread, and no other, into a mount namespace for the rest of its life.

    Its root and working directory become the namespace's.
    """
    _checked(_libc.unshare(ctypes.c_int(_CLONE_FS)))  # setns(2) wants a thread that shares none
    _checked(_libc.setns(ctypes.c_int(namespace), ctypes.c_int(_CLONE_NEWNS)))


def standing_at(place: int) -> Standing:
    """Says what stands at an open place, from what the kernel has in memory.

    It asks no filesystem, so not even a hanging one holds it up.
    """
    mask = _STATX_TYPE | _STATX_MNT_ID | _STATX_MNT_ID_UNIQUE
    known, attributes, mode, _, _, mount_id = _statx(place, mask)
    return Standing(
        mode=mode,
        is_mount_root=bool(attributes & _STATX_ATTR_MOUNT_ROOT),
        mount_id=mount_id,
        is_lasting=bool(known & _STATX_MNT_ID_UNIQUE),
    )


def listed_at(place: int) -> Listed:
    """Says which mount an open place is in, as `standing_at` does, but by what mountinfo has.

    Without a word on the file: that, FUSE refuses to those who may not use a user's filesystem.
    """
    _, attributes, _, major, minor, mount_id = _statx(place, 0)
    return Listed(
        mount_id=mount_id,
        device=(major, minor),
        is_mount_root=bool(attributes & _STATX_ATTR_MOUNT_ROOT),
    )


def _statx(place: int, mask: int) -> tuple[int, ...]:
    buffer = ctypes.create_string_buffer(_STATX.size)
    flags = _AT_EMPTY_PATH | _AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC
    _checked(_libc.statx(ctypes.c_int(place), b"", flags, ctypes.c_uint(mask), buffer))
    return _STATX.unpack(buffer)


def mount_point(mount_id: int) -> bytes | None:
    """Where a mount is now, by its lasting number; None when it is attached nowhere."""
    said = _statmount(mount_id, _STATMOUNT_MNT_POINT)
    return None if said is None else said.point


def origin(mount_id: int) -> Origin | None:
    """What a mount is of, by its lasting number; None when it is attached nowhere.

    It asks no filesystem.
    """
    mask = _STATMOUNT_FS_TYPE | _STATMOUNT_MNT_ROOT | _STATMOUNT_SB_SOURCE
    said = _statmount(mount_id, mask)
    if said is None:
        return None
    source = said.source if said.mask & _STATMOUNT_SB_SOURCE else None
    return Origin(fstype=said.fstype.decode(), root=said.root, source=source)


class _Statmount(NamedTuple):
    """What statmount(2) says; a string that was not asked for is some other."""

    mask: int
    fstype: bytes
    root: bytes
    point: bytes
    source: bytes


def _statmount(mount_id: int, mask: int) -> _Statmount | None:
    request = _MNT_ID_REQ.pack(_MNT_ID_REQ.size, mount_id, mask)
    buffer = ctypes.create_string_buffer(_STATMOUNT.size + _STATMOUNT_STRINGS)
    try:
        _syscall(_SYS_STATMOUNT, request, buffer, len(buffer), 0)
    except FileNotFoundError:
        return None
    said, *offsets = _STATMOUNT.unpack_from(buffer)
    strings = ctypes.addressof(buffer) + _STATMOUNT.size
    return _Statmount(said, *(ctypes.string_at(strings + offset) for offset in offsets))


@contextlib.contextmanager
def clone_tree(source: int) -> Iterator[int]:
    """A copy of the mount that an open place is in, from this place down, attached nowhere.

    It goes when the block ends, unless it has been attached.
    """
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_EMPTY_PATH
    with _closing(_syscall(_SYS_OPEN_TREE, source, b"\0", flags)) as fd:
        yield fd


def restrict(tree: int, *, noexec: bool = False, nosymfollow: bool = False) -> None:
    """Makes a detached mount read-only, nosuid, nodev and private.

    Private: a copy of a shared mount is its peer, and what is mounted beneath one volume of a view
    would appear in all of them.

    Raises:
        OSError: EINVAL before Linux 5.14 when `nosymfollow` is asked for.
    """
    attributes = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV
    if noexec:
        attributes |= _MOUNT_ATTR_NOEXEC
    if nosymfollow:
        attributes |= _MOUNT_ATTR_NOSYMFOLLOW
    _set_attributes(tree, attributes, propagation=_MS_PRIVATE)


def map_ids(tree: int, user_namespace: int) -> None:
    """Makes a detached mount show owners as a user namespace maps them.

    Args:
        tree: From `clone_tree`.
        user_namespace: An open /proc/PID/ns/user.

    Raises:
        OSError: EINVAL when the filesystem does not allow it.
    """
    _set_attributes(tree, _MOUNT_ATTR_IDMAP, user_namespace=user_namespace)


def attach(tree: int, target: int) -> None:
    """Attaches a detached mount at an open place."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    _syscall(_SYS_MOVE_MOUNT, tree, b"\0", target, b"\0", flags)


def make_private(tree: int) -> None:
    """What is mounted beneath from now on is seen nowhere else; attaching may have undone that."""
    _set_attributes(tree, 0, propagation=_MS_PRIVATE)


def make_shared(tree: int) -> None:
    """What is mounted beneath from now on is seen in copies of the mount, too."""
    _set_attributes(tree, 0, propagation=_MS_SHARED)


def _set_attributes(
    tree: int, attributes: int, *, propagation: int = 0, user_namespace: int = 0
) -> None:
    # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
    attr = struct.pack("<QQQQ", attributes, 0, propagation, user_namespace)
    _syscall(_SYS_MOUNT_SETATTR, tree, b"\0", _AT_EMPTY_PATH, attr, len(attr))


def detach_tree(tree: int, *, abort: bool = False) -> None:
    """Takes an attached mount, by a descriptor of its root, out of the tree, even when in use.

    Users keep what they have open. It is this mount, wherever its directory has been moved, and no
    other: but if something is mounted over it, the kernel takes that instead. A place that was
    found by a path had nothing over it, and only root can change that.

    Args:
        tree: From `clone_tree`, or the mount's root from `open_place`.
        abort: End its connection, too: whoever waits for an answer gets an error (FUSE alone). So
            do all mounts of the same filesystem.

    Raises:
        OSError: EINVAL when it is attached nowhere.
    """
    flags = _MNT_DETACH | (_MNT_FORCE if abort else 0)
    # A magic link that is to be followed: so without UMOUNT_NOFOLLOW.
    _checked(_libc.umount2(b"/proc/self/fd/%d" % tree, ctypes.c_int(flags)))


def unmount(name: bytes, *, below: int) -> None:
    """Unmounts what is mounted at a name in an open directory, which may be no symbolic link.

    Nothing mounted there is fine. By a path it could be something else by now: only `detach_tree`
    is sure of what it takes, but that takes it also when it is in use.

    Raises:
        OSError: EBUSY when it is in use, or another error.
    """
    path = b"/proc/self/fd/%d/%s" % (below, name)
    try:
        _checked(_libc.umount2(path, ctypes.c_int(_UMOUNT_NOFOLLOW)))
    except OSError as exc:
        if exc.errno not in {errno.EINVAL, errno.ENOENT}:
            raise


def mount_filesystem(source: bytes, target: bytes, kind: bytes, options: bytes) -> None:
    """Mounts a new filesystem read-only, nosuid, nodev and noatime.

    Args:
        source: How it is known in mountinfo.
        target: The mount point.
        kind: Its type, with a subtype: b"fuse.imgvol".
        options: The filesystem's own, with commas in between.
    """
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOATIME
    _checked(_libc.mount(source, target, kind, ctypes.c_ulong(flags), options))
