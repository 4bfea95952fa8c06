"""Shares blocks of one file with another instead of writing them: a *reflink*.

XFS and btrfs can, and filesystems stacked upon them; ext4 and tmpfs cannot. What is shared are
whole blocks at multiples of the block size in both files. Whoever writes into one of the files
later gets blocks of its own there, so neither ever sees what becomes of the other.
"""

import fcntl
import hashlib
import os
import struct
from typing import Final

from imgvol import limits
from imgvol.content.durable import write_all
from imgvol.content.open_file import OpenFile
from imgvol.content.punch import BLOCK
from imgvol.content.reading import pread_exact
from imgvol.layers.lazy.spans import Part
from imgvol.oci.digest import Digest

# linux/fs.h: _IOW(0x94, 13, struct file_clone_range); Python has it from 3.14 on. A few old
# processors encode _IOW in another way: there the kernel says ENOTTY, and everything is written.
_FICLONERANGE: Final = 0x4020940D
# struct file_clone_range: source, where in it, how much, where in the target
_RANGE: Final = struct.Struct("=qQQQ")


def shared_range(start: int, position: int, size: int) -> tuple[int, int]:
    """The range of whole blocks within [position, position + size) that may be shared.

    Empty if blocks lie otherwise in the source, where the bytes begin at `start`, or if it is too
    little for the effort.
    """
    first, last = -(-position // BLOCK) * BLOCK, (position + size) // BLOCK * BLOCK
    if (position - start) % BLOCK or last - first < limits.CLONE_LEAST:
        return position, position
    return first, last


def clone_part(source: OpenFile, start: int, digest: Digest, target: int, part: Part) -> bool:
    """Puts a part into a file: whole blocks are shared, the ends written. Blocks.

    Nothing that the source was before counts: it may change until the very moment. What is
    verified is what the target has then, and nobody else can write into that.

    Args:
        source: Where the same bytes may be.
        start: The first of them there.
        digest: The layer that the source belongs to.
        target: The file, open for writing.
        part: What belongs there, and where. `shared_range` of it is not empty.

    Returns:
        Whether the target has these bytes now.

    Raises:
        OSError: Blocks cannot be shared, or not now: EOPNOTSUPP, ENOTTY or EINVAL where the
            filesystem cannot, EXDEV between two of them.
        StoreDamaged: The source ends before.
    """
    first, last = shared_range(start, part.position, part.size)
    for begin, end in ((part.position, first), (last, part.position + part.size)):
        if begin < end:
            there = start + begin - part.position
            write_all(target, pread_exact(source.fd, there, end - begin, digest), begin)
    there = start + first - part.position
    # The kernel says EINVAL of what lies beyond the end, as if it could share nothing at all.
    pread_exact(source.fd, there + last - first - 1, 1, digest)
    fcntl.ioctl(target, _FICLONERANGE, _RANGE.pack(source.fd, there, last - first, first))
    return _digest_of(target, part) == part.digest


def _digest_of(file: int, part: Part) -> bytes:
    hashed = hashlib.sha256(usedforsecurity=False)
    position, end = part.position, part.position + part.size
    while position < end:
        data = os.pread(file, min(end - position, limits.CLONE_READ), position)
        if not data:
            break
        hashed.update(data)
        position += len(data)
    return hashed.digest()
