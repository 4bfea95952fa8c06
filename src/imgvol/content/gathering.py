"""Finds the stored bytes of a file in its layer's data file, and puts them together."""

from collections.abc import Iterable
from typing import NamedTuple

from imgvol.content.open_file import OpenFile
from imgvol.content.reading import pread_exact
from imgvol.layers.index import LayerIndex
from imgvol.oci.digest import Digest


class Piece(NamedTuple):
    """Bytes of a range of a file that lie together. What no piece has is a hole: zeros.

    Attributes:
        place: Where in the range they begin.
        position: Where in the data file.
        size: How many there are.
    """

    place: int
    position: int
    size: int


def pieces_of(index: LayerIndex, node: int, offset: int, size: int) -> list[Piece]:
    """What a range of a file is made of, in order."""
    pieces = []
    for extent in index.extents(node):
        begin = max(extent.offset, offset)
        end = min(extent.offset + extent.size, offset + size)
        if begin < end:
            position = extent.position + begin - extent.offset
            pieces.append(Piece(begin - offset, position, end - begin))
    return pieces


def gather(file: OpenFile, pieces: Iterable[Piece], size: int, digest: Digest) -> bytearray:
    """A range of a file, out of its pieces. Blocks.

    Args:
        file: The data file; held as long, so that nobody closes it under the reads.
        pieces: Those of the range.
        size: Of the range.
        digest: Of the layer, for errors.

    Raises:
        StoreDamaged: The data file ends before, or the disk fails.
    """
    out = bytearray(size)
    for place, position, length in pieces:
        out[place : place + length] = pread_exact(file.fd, position, length, digest)
    return out
