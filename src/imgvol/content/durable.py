"""Small blocking helpers for files that must survive a crash. Call them from threads only.

The order is always: data, fsync, rename, fsync of the directory. A failed fsync means the data is
lost: the caller discards the file and never assumes that a second fsync would repair it.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from imgvol.errors import LocalError, StoreFull

# What a system call says that finds no space, no quota, or too small a limit.
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextlib.contextmanager
def translate_os_errors(what: str) -> Iterator[None]:
    """Turns an OSError of the store's filesystem into our tree: full, or otherwise failing.

    Raises:
        StoreFull: No space, quota or inodes left.
        LocalError: Anything else.
    """
    try:
        yield
    except OSError as exc:
        reason = exc.strerror or str(exc)
        if exc.errno in NO_ROOM:
            raise StoreFull(
                f"no room to {what}: {reason}",
                hint="Free space where the store lives, or remove images: imgvol rmi IMAGE.",
            ) from exc
        raise LocalError(f"cannot {what}: {reason}") from exc


def write_all(fd: int, data: bytes | memoryview, position: int) -> None:
    """Writes every byte at a position; a short write is gone on with, not an error."""
    written = os.pwrite(fd, data, position)
    if written == len(data):
        return
    view = memoryview(data)
    while written < len(view):
        written += os.pwrite(fd, view[written:], position + written)


def start_writeback(fd: int, start: int, length: int) -> None:
    """Makes the kernel begin to write a range of dirty pages, without waiting.

    It does so when told that the pages will not be needed; dirty ones stay in its cache all the
    same. The fsync at the end then finds little left to do: 6 ms instead of 55 for 170 MB here.
    """
    os.posix_fadvise(fd, start, length, os.POSIX_FADV_DONTNEED)


def sync_directory(path: Path) -> None:
    """Makes renames and links in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, data: bytes) -> None:
    """Writes a new file and makes its content durable (not yet its name)."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, data, 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def overwrite_file(path: Path, data: bytes) -> None:
    """Writes new content over that of a file of the same size, durably, without needing room.

    Cut off in the middle, it leaves something of both: only for content that tells.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        write_all(fd, data, 0)
        os.fsync(fd)
    finally:
        os.close(fd)
