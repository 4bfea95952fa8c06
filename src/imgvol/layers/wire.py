"""The file of one layer's index: where its tables lie, and how damage to it is told.

This module knows bytes, sizes and offsets. What the numbers mean is `builder`'s to write and
`index`'s to read.

A layer is a tree whose nodes are numbered and whose *edges*, the names, lead from a directory to a
node. Node 0 is the root. The other directories follow, breadth first; then everything else by first
name; then the foreign links, which are names of files that only a lower layer has. So a node's
number alone says which of the three it is, and the edges of one directory are a contiguous run,
sorted by name, the runs being in the order of the directories:

    header        magic, version, CRC-32 of all that follows it, sizes of the tables
    nodes         one NODE record each
    extents       EXTENT records: the pieces of sparse files
    targets       u32 per edge: the node it leads to; 0, the root, is nobody's child: a whiteout
    runs          u32 per directory: its first edge; one more for the end of the last run
    more names    u32: for nodes of several names, all of them, as edges
    name offsets  u32 per edge: where its name starts in the file; one more for the end of the last
    names         end to end, in the order of the edges
    strings       targets of symbolic and of foreign links
    xattrs        sets of extended attributes

Everything is little-endian, has one possible place, and depends on the layer only: the same members
give the same file. A file that is cut, extended or changed anywhere fails its sizes or its
checksum and is never looked into, so readers need no checks of their own.
"""

import enum
import struct
import sys
import zlib
from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from imgvol.errors import StoreDamaged

MAGIC: Final = b"imgvolLI"
VERSION: Final = 1

WHITEOUT: Final = 0
"""The target of an edge that hides its name in lower layers."""


class NodeType(enum.IntEnum):
    """What a node is, as users see it."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    CHAR = 4
    BLOCK = 5
    FIFO = 6


FOREIGN_LINK: Final = 7
"""Stands in the place of a NodeType for a hard link whose target is not in this layer."""


class Flag(enum.IntFlag):
    """Properties of a node."""

    IMPLICIT = 1  # a directory that no member described
    OPAQUE = 2  # a directory that hides what lower layers have below it
    WHITEOUTS = 4  # a directory that holds whiteouts
    OWN_FILE = 8  # a file whose content is not in the layer's data file
    SPARSE = 16  # a file with holes


# type, flags, mode, uid, gid, names, name, xattrs, mtime in ns, size, value
#   names   how many names the node has
#   name    the edge that is its only name; or, of several, where they start in "more names"
#   xattrs  0, or one more than where its set starts in "xattrs"
#   value   directory: its parent. Device: major << 32 | minor. Link: where its target starts in
#           "strings" (size is its length). File: where its content starts in the data file;
#           OWN_FILE: the number of that file; SPARSE: where its run of extents starts.
NODE: Final = struct.Struct("<BBHIIIIIQQQ")
NAMES_OFFSET: Final = 12  # of the fields names and name, which are known last
VALUE_OFFSET: Final = NODE.size - 8
MTIME_FIELD: Final = 8

# offset in the file, size, position. The first record of a run is no extent: it says how many
# follow, and 0 or one more than the number of the own file.
EXTENT: Final = struct.Struct("<QQQ")

XATTR_COUNT: Final = struct.Struct("<H")
XATTR: Final = struct.Struct("<HI")  # sizes of a name and a value, which follow

_PREFIX: Final = struct.Struct("<8sII")
# bytes of all files, nodes, directories, first foreign link, edges, whiteouts, more names, extents,
# bytes of names, of strings, of xattrs
_COUNTS: Final = struct.Struct("<QIIIIIIIIII")
_HEADER_SIZE: Final = _PREFIX.size + _COUNTS.size
_U32: Final = 4


class Tables(NamedTuple):
    """The tables of one file. Offsets are from the start of `data`."""

    data: bytes
    file_bytes: int
    node_count: int
    directory_count: int
    first_foreign_link: int
    whiteout_count: int
    nodes: int
    extents: int
    targets: Sequence[int]
    runs: Sequence[int]
    more_names: Sequence[int]
    name_offsets: Sequence[int]
    strings: int
    xattrs: int


def assemble(
    *,
    file_bytes: int,
    directory_count: int,
    first_foreign_link: int,
    nodes: bytes | bytearray,
    extents: bytes | bytearray,
    targets: Sequence[int],
    runs: Sequence[int],
    more_names: Sequence[int],
    names: Sequence[bytes],
    strings: bytes | bytearray,
    xattrs: bytes | bytearray,
) -> bytes:
    """Put the tables of one layer together to a file."""
    all_names = b"".join(names)
    counts = _COUNTS.pack(
        file_bytes,
        len(nodes) // NODE.size,
        directory_count,
        first_foreign_link,
        len(targets),
        targets.count(WHITEOUT),
        len(more_names),
        len(extents) // EXTENT.size,
        len(all_names),
        len(strings),
        len(xattrs),
    )
    tables = [nodes, extents, _u32(targets), _u32(runs), _u32(more_names)]
    names_start = _HEADER_SIZE + sum(map(len, tables)) + (len(names) + 1) * _U32
    tables.append(_u32(accumulate(map(len, names), initial=names_start)))
    body = b"".join([counts, *tables, all_names, strings, xattrs])
    return _PREFIX.pack(MAGIC, VERSION, zlib.crc32(body)) + body


def open_tables(data: bytes) -> Tables:
    """Check a file and find its tables.

    Raises:
        StoreDamaged: It is not a whole, unchanged index of a version that we know.
    """
    _check(data)
    (
        file_bytes,
        node_count,
        directory_count,
        first_foreign_link,
        edge_count,
        whiteout_count,
        more_names_count,
        extent_count,
        names_size,
        strings_size,
        xattrs_size,
    ) = _COUNTS.unpack_from(data, _PREFIX.size)
    sizes = (
        node_count * NODE.size,
        extent_count * EXTENT.size,
        edge_count * _U32,
        (directory_count + 1) * _U32,
        more_names_count * _U32,
        (edge_count + 1) * _U32,
        names_size,
        strings_size,
        xattrs_size,
    )
    starts = list(accumulate(sizes, initial=_HEADER_SIZE))
    if starts[-1] != len(data):
        raise _damaged("size", expected=starts[-1], actual=len(data))
    u32s = [_u32_view(data, starts[i], starts[i + 1]) for i in range(2, 6)]
    return Tables(
        data=data,
        file_bytes=file_bytes,
        node_count=node_count,
        directory_count=directory_count,
        first_foreign_link=first_foreign_link,
        whiteout_count=whiteout_count,
        nodes=starts[0],
        extents=starts[1],
        targets=u32s[0],
        runs=u32s[1],
        more_names=u32s[2],
        name_offsets=u32s[3],
        strings=starts[7],
        xattrs=starts[8],
    )


def _check(data: bytes) -> None:
    if len(data) < _HEADER_SIZE:
        raise _damaged("size", expected=_HEADER_SIZE, actual=len(data))
    magic, version, checksum = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise _damaged("magic")
    if version != VERSION:
        raise _damaged("version", expected=VERSION, actual=version)
    actual = zlib.crc32(memoryview(data)[_PREFIX.size :])
    if actual != checksum:
        raise _damaged("checksum", expected=f"{checksum:08x}", actual=f"{actual:08x}")


def _damaged(reason: str, *, expected: object = None, actual: object = None) -> StoreDamaged:
    message = f"not a usable layer index: wrong {reason}"
    hint = "Remove the image and pull it again."
    return StoreDamaged(message, hint=hint, reason=reason, expected=expected, actual=actual)


def _u32(values: Iterable[int]) -> bytes:
    numbers = array("I", values)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _u32_view(data: bytes, start: int, end: int) -> Sequence[int]:
    view = memoryview(data)[start:end]
    if sys.byteorder == "little":
        return view.cast("I")
    numbers = array("I")
    numbers.frombytes(view)
    numbers.byteswap()
    return numbers
