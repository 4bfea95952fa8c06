"""Where a layer lies outside the store: in somebody else's file, which may change at any time.

Whether a file is still what it was is told by its size, its time of modification and its inode.
These can be made the same, by tools that restore times or that date everything alike; but then the
time of the last change of the inode is another, which nobody can set. It also moves when nothing
has happened to the bytes (a new mode, a new hard link), and so do the numbers of devices from boot
to boot: a difference in these alone means no more than that the bytes have to be hashed again.

The times of a file come from a clock with ticks of up to 10 ms. Two changes in one tick look like
one; so a file is looked at only when its latest change is older than that (`settle`).
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

from imgvol import limits
from imgvol.content.open_file import OpenFile
from imgvol.content.reading import pread_exact
from imgvol.oci.digest import Digest

# Longer than a tick of any kernel's coarse clock.
_SETTLED: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class FileIdentity:
    """What tells whether a file is the one that was read, unchanged."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """What `fstat` says."""
        return cls(
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
            inode=status.st_ino,
            device=status.st_dev,
        )

    def may_be(self, other: "FileIdentity") -> bool:
        """Whether the file can hold what it held: False is certain, True is not."""
        return (self.size, self.mtime_ns, self.inode) == (other.size, other.mtime_ns, other.inode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a layer's uncompressed tar lies.

    Attributes:
        path: The file, absolute and without symbolic links.
        offset: Of the tar's first byte in it.
        size: Bytes of the tar.
        file: What the file was when the layer was verified.
    """

    path: bytes
    offset: int
    size: int
    file: FileIdentity

    def is_intact(self) -> bool:
        """Whether the file is beyond doubt what it was. Blocks."""
        try:
            return FileIdentity.of(os.lstat(self.path)) == self.file
        except OSError:
            return False


class PlacedFile:
    """A file that holds a layer, open. All of this blocks.

    Args:
        path: Absolute and without symbolic links.
        digest: The layer's, for messages.

    Raises:
        OSError: It cannot be opened, or is no regular file.
    """

    def __init__(self, path: bytes, digest: Digest) -> None:
        self._descriptor = OpenFile(path, os.O_RDONLY)
        self._digest = digest

    @property
    def fd(self) -> int:
        """Its descriptor, which stays open as long as this object lives."""
        return self._descriptor.fd

    def identity(self) -> FileIdentity:
        """What the file is now."""
        return FileIdentity.of(os.fstat(self.fd))

    def settle(self) -> FileIdentity:
        """What the file is now, so that any later change makes a difference."""
        found = self.identity()
        age = time.time() - found.ctime_ns / 1e9
        if age < _SETTLED:
            time.sleep(_SETTLED)
            found = self.identity()
        return found

    def iter_pieces(self, offset: int, size: int) -> Iterator[bytes]:
        """A range of the file, in order.

        Raises:
            StoreDamaged: The file ends before, or the disk fails.
        """
        for position in range(0, size, limits.BODY_PIECE):
            piece = min(limits.BODY_PIECE, size - position)
            yield pread_exact(self.fd, offset + position, piece, self._digest)
