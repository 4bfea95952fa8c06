"""Where the content behind each digest of a layer's table of contents is: a file beside the layer.

A place is a node of the layer's index and an offset in that file, so it stays right when the layer
is completed: the two forms number the same files alike. The catalogue is a hint. Whoever copies by
it hashes what was copied; a place that is wrong costs time, and a catalogue that is missing or
damaged is made again or done without.

Sorted by the first eight bytes of the digests, and searched as it lies: a million chunks are 20 MB,
with no object for any of them.
"""

import os
import secrets
import struct
import sys
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from imgvol.content.durable import write_file
from imgvol.content.open_file import read_whole
from imgvol.errors import StoreDamaged
from imgvol.layers.index import LayerIndex, NodeType
from imgvol.layers.lazy.chunks import ChunkTable

NO_NODE: Final = 0xFFFFFFFF

_MAGIC: Final = b"imgvolCC"
# magic, byte order of this machine, number of chunks, CRC-32 of the rest
_HEADER: Final = struct.Struct("<8sB3xII")
_ORDER: Final = 1 if sys.byteorder == "little" else 2
_KEY: Final = struct.Struct(">Q")


class ChunkOwners:
    """Which file each chunk of a table belongs to, and where in it. 12 bytes per chunk.

    Attributes:
        nodes: By chunk; NO_NODE for what no file has, as the landmarks of eStargz.
        offsets: By chunk: of its first byte in the file.
    """

    def __init__(self, table: ChunkTable, index: LayerIndex) -> None:
        self.nodes = array("I", [NO_NODE]) * table.chunk_count
        self.offsets = array("Q", [0]) * table.chunk_count
        for node in range(index.node_count):
            if not is_file(index, node):
                continue
            for extent in index.extents(node):
                for chunk in table.chunks_at(extent.position, extent.size):
                    self.nodes[chunk] = node
                    place = table.position(chunk) - extent.position
                    self.offsets[chunk] = extent.offset + place


def is_file(index: LayerIndex, node: int) -> bool:
    """Whether a node is a regular file of this layer."""
    if index.is_directory(node) or index.is_foreign_link(node):
        return False
    return index.record(node).type is NodeType.FILE


class ChunkCatalogue:
    """One layer's catalogue, from the bytes of its file.

    Raises:
        StoreDamaged: They are not what was written.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) < _HEADER.size:
            raise _damaged()
        magic, order, count, checksum = _HEADER.unpack_from(data)
        view = memoryview(data)[_HEADER.size :]
        is_whole = len(view) == count * 20 and zlib.crc32(view) == checksum
        if (magic, order) != (_MAGIC, _ORDER) or not is_whole:
            raise _damaged()
        self._keys: Sequence[int] = view[: 8 * count].cast("Q")
        self._offsets: Sequence[int] = view[8 * count : 16 * count].cast("Q")
        self._nodes: Sequence[int] = view[16 * count :].cast("I")

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, digest: bytes) -> Iterator[tuple[int, int]]:
        """Node and offset of chunks that may have a digest: mostly one, or none."""
        key = _key(digest)
        place = bisect_left(self._keys, key)
        while place < len(self._keys) and self._keys[place] == key:
            yield self._nodes[place], self._offsets[place]
            place += 1


def catalogue_bytes(table: ChunkTable, owners: ChunkOwners) -> bytes:
    """The file of a layer's catalogue: all chunks that a digest pins and a file has."""
    keys = array("Q", (_key(table.digest(chunk)) for chunk in range(table.chunk_count)))
    wanted = [
        chunk
        for chunk in range(table.chunk_count)
        if owners.nodes[chunk] != NO_NODE and table.is_chunk_pinned(chunk)
    ]
    wanted.sort(key=keys.__getitem__)
    body = b"".join(
        (
            array("Q", map(keys.__getitem__, wanted)).tobytes(),
            array("Q", map(owners.offsets.__getitem__, wanted)).tobytes(),
            array("I", map(owners.nodes.__getitem__, wanted)).tobytes(),
        )
    )
    return _HEADER.pack(_MAGIC, _ORDER, len(wanted), zlib.crc32(body)) + body


def load_catalogue(path: Path) -> ChunkCatalogue | None:
    """A catalogue that was saved, if it is there and sound. Blocks."""
    try:
        return ChunkCatalogue(read_whole(path))
    except (OSError, StoreDamaged):
        return None


def save_catalogue(path: Path, data: bytes) -> None:
    """Puts a catalogue in its place; a crash leaves all of it, or none. Blocks.

    Raises:
        OSError: It cannot be written, or its layer has gone.
    """
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        write_file(new, data)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def _key(digest: bytes) -> int:
    key: int = _KEY.unpack_from(digest)[0]
    return key


def _damaged() -> StoreDamaged:
    return StoreDamaged("a catalogue of chunks is damaged")
