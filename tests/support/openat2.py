"""The kernel's own openat2(2), to compare with."""

import ctypes
import errno
import os
import struct

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
O_PATH = 0o10000000
SYS_OPENAT2 = 437

_libc = ctypes.CDLL(None, use_errno=True)


def where(root: int, path: bytes, resolve: int) -> bytes:
    """The plain path below an open directory that a path leads to; b"" is the directory itself.

    Raises:
        OSError: As the kernel says.
    """
    how = struct.pack("<QQQ", O_PATH | os.O_CLOEXEC, 0, resolve | RESOLVE_NO_MAGICLINKS)
    while True:
        fd = _libc.syscall(SYS_OPENAT2, root, path, how, len(how))
        code = ctypes.get_errno()
        # Somebody on this machine has renamed something while a ".." was followed.
        if fd >= 0 or code != errno.EAGAIN:
            break
    if fd < 0:
        raise OSError(code, os.strerror(code))
    try:
        found = os.readlink(b"/proc/self/fd/%d" % fd)
    finally:
        os.close(fd)
    return os.path.relpath(found, os.readlink(b"/proc/self/fd/%d" % root)).removeprefix(b".")
