"""The mount system calls, by file descriptor, through ctypes.

A bind mount is made in three steps that leave no window: clone the source as a detached mount
(`open_tree`), restrict it (`mount_setattr`), and only then attach it (`move_mount`) at a target
that was opened beforehand without following a symbolic link (`openat2`). Nobody ever sees it
writable, and nobody can swap the target in between (CVE-2021-30465, CVE-2017-1002101).

Numbers and structures: include/uapi/linux/{mount,openat2,fcntl}.h; the call numbers are the same on
every architecture since Linux 5.2. All of these block, and may go through our own filesystem: call
them from threads only.
"""

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from typing import Final

_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_OPENAT2: Final = 437
_SYS_MOUNT_SETATTR: Final = 442

_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TREE_CLONE: Final = 1
_OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x04
_MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_MOUNT_ATTR_RDONLY: Final = 0x01
_MOUNT_ATTR_NOSUID: Final = 0x02
_MOUNT_ATTR_NODEV: Final = 0x04
_MOUNT_ATTR_NOEXEC: Final = 0x08
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_O_PATH: Final = 0o10000000

_libc = ctypes.CDLL(None, use_errno=True)
# Each argument of syscall(2) is one register wide.
_libc.syscall.restype = ctypes.c_long


def _syscall(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char]) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


@contextlib.contextmanager
def open_directory(path: bytes) -> Iterator[int]:
    """Opens a directory as a place (O_PATH), refusing symbolic links anywhere on the way.

    Raises:
        OSError: ENOENT, ENOTDIR, or ELOOP when a component is a symbolic link.
    """
    how = struct.pack(
        "<QQQ",
        _O_PATH | os.O_DIRECTORY | os.O_CLOEXEC,
        0,
        _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS,
    )
    fd = _syscall(_SYS_OPENAT2, _AT_FDCWD, path + b"\0", how, len(how))
    try:
        yield fd
    finally:
        os.close(fd)


def bind_read_only(source: bytes, target_fd: int, *, noexec: bool = False) -> None:
    """Binds a directory at an open target: read-only, nosuid and nodev before anybody can see it.

    Args:
        source: Path of the directory to bind.
        target_fd: The target, from `open_directory`.
        noexec: Also refuse to execute programs from it.
    """
    attributes = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV
    if noexec:
        attributes |= _MOUNT_ATTR_NOEXEC
    tree = _syscall(
        _SYS_OPEN_TREE, _AT_FDCWD, source + b"\0", _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    )
    try:
        # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
        attr = struct.pack("<QQQQ", attributes, 0, 0, 0)
        _syscall(_SYS_MOUNT_SETATTR, tree, b"\0", _AT_EMPTY_PATH, attr, len(attr))
        flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
        _syscall(_SYS_MOVE_MOUNT, tree, b"\0", target_fd, b"\0", flags)
    finally:
        os.close(tree)


def unmount(target: bytes, *, detach: bool = False) -> bool:
    """Unmounts what is mounted at a path, without following a symbolic link.

    Args:
        target: The mount point.
        detach: Take it out of the tree at once, even when it is in use; users keep what they have
            open.

    Returns:
        False when nothing was mounted there.

    Raises:
        OSError: EBUSY when it is in use and `detach` is not asked for, or another error.
    """
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if detach else 0)
    if _libc.umount2(target, ctypes.c_int(flags)) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.EINVAL, errno.ENOENT}:
        return False
    raise OSError(code, os.strerror(code), target)
