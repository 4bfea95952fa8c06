"""Exact reads of files by descriptor, from the page cache where they need not wait. They block."""

import os

from imgvol.errors import StoreDamaged
from imgvol.oci.digest import Digest


def pread_nowait(fd: int, position: int, size: int) -> bytearray | None:
    """Bytes of a file, if all of them are in the page cache. Never waits for the disk."""
    buffer = bytearray(size)
    try:
        count = os.preadv(fd, [buffer], position, os.RWF_NOWAIT)
    except OSError:
        # EAGAIN: not in the page cache. Anything else the blocking read finds, and reports.
        return None
    return buffer if count == size else None


def pread_exact(fd: int, position: int, size: int, digest: Digest) -> bytes:
    """Bytes of a file that holds a layer: all that were asked for.

    Raises:
        StoreDamaged: The file ends before, or the disk fails.
    """
    try:
        data = os.pread(fd, size, position)
        while len(data) < size:
            more = os.pread(fd, size - len(data), position + len(data))
            if not more:
                break
            data += more
    except OSError as exc:
        raise StoreDamaged(
            "a stored layer cannot be read", digest=digest, reason=exc.strerror
        ) from exc
    if len(data) < size:
        raise StoreDamaged(
            "a stored layer is shorter than its index says",
            digest=digest,
            offset=position,
            expected=size,
            actual=len(data),
        )
    return data
