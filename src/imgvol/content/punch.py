"""Gives back disk space in the middle of a file: `FALLOC_FL_PUNCH_HOLE` of fallocate(2).

Filesystems free whole blocks only; what is left of the others reads as zeros, too. So whoever has
something worth keeping beside a hole cuts the hole to whole blocks first (`whole_blocks`).
"""

import ctypes
import errno
import os
from collections.abc import Callable
from typing import Final

# ext4, xfs, btrfs and tmpfs free by this much, or by parts of it.
BLOCK: Final = 4096

_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02

_libc = ctypes.CDLL(None, use_errno=True)
# glibc's `fallocate` has small offsets on 32-bit machines; musl has no other.
_fallocate = getattr(_libc, "fallocate64", None) or getattr(_libc, "fallocate", None)


def punch_hole(fd: int, start: int, end: int) -> None:
    """Gives back what a range of a file takes; it reads as zeros from then on. Blocks.

    Raises:
        OSError: EOPNOTSUPP where the filesystem cannot.
    """
    if start >= end:
        return
    if _fallocate is None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    arguments = (ctypes.c_int64(start), ctypes.c_int64(end - start))
    if _fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, *arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def whole_blocks(start: int, end: int, is_free: Callable[[int, int], bool]) -> tuple[int, int]:
    """The blocks that can be given back with a range: start and end, perhaps an empty range.

    Args:
        is_free: Whether nothing in a range beside it, within one block, is worth keeping.
    """
    first, last = start // BLOCK * BLOCK, -(-end // BLOCK) * BLOCK
    if first < start and not is_free(first, start):
        first += BLOCK
    if end < last and not is_free(end, last):
        last -= BLOCK
    return first, max(first, last)


def allocated(*fds: int) -> int:
    """Bytes that files take on disk."""
    return sum(os.fstat(fd).st_blocks * 512 for fd in fds)
