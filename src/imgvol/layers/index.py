"""The LayerIndex: the file table of one layer, read in place from one immutable piece of bytes.

It answers questions about this layer only, by node number; what a chain of layers looks like is
`imgvol.view`'s affair. How the bytes are laid out is told in `wire`.

Nothing is unpacked before it is asked for and nothing is kept after: opening costs a checksum,
memory is the bytes themselves, and the garbage collector has nothing to visit. A name is found by
bisection in its directory's run of edges; each answer is built from one fixed record. An index may
be used from any number of threads.
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, NamedTuple

from imgvol.layers import wire
from imgvol.layers.wire import WHITEOUT, Flag, NodeType

__all__ = ["ROOT", "WHITEOUT", "Extent", "LayerIndex", "NodeRecord", "NodeType"]

ROOT: Final = 0
_TYPES: Final = (NodeType.FILE, *NodeType)  # by number; nothing has the number 0
_IMPLICIT: Final = int(Flag.IMPLICIT)
_OPAQUE: Final = int(Flag.OPAQUE)
_WHITEOUTS: Final = int(Flag.WHITEOUTS)
_OWN_FILE: Final = int(Flag.OWN_FILE)
_SPARSE: Final = int(Flag.SPARSE)
_DEVICES: Final = (int(NodeType.CHAR), int(NodeType.BLOCK))


class NodeRecord(NamedTuple):
    """The attributes of one node.

    Attributes:
        type: What it is.
        mode: Permission, set-id and sticky bits.
        nlink: Names in this layer; 1 for directories.
        uid: Owner.
        gid: Group.
        size: Of a file's content, holes included; of a symbolic link's target; otherwise 0.
        mtime_ns: Nanoseconds since 1970, never negative, below 2^63.
        major: Of a device, otherwise 0.
        minor: Likewise.
        is_implicit: A directory that no member described: its attributes are a lower layer's.
        is_opaque: A directory that hides what lower layers have below it.
    """

    type: NodeType
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    major: int
    minor: int
    is_implicit: bool
    is_opaque: bool


class Extent(NamedTuple):
    """A piece of a file's content.

    Attributes:
        offset: Where it belongs in the file.
        size: Bytes, at least 1.
        position: Where it is stored: an offset in the uncompressed tar, which is the address space
            of the layer's data file. For a file with an own file, an offset in the payload; the
            own file itself has each byte at its place in the file, and holes where there are holes.
    """

    offset: int
    size: int
    position: int


def decode_xattrs(data: bytes, at: int) -> tuple[tuple[bytes, bytes], ...]:
    """The set of extended attributes that lies at a place."""
    (count,) = wire.XATTR_COUNT.unpack_from(data, at)
    at += wire.XATTR_COUNT.size
    pairs = []
    for _ in range(count):
        name_size, value_size = wire.XATTR.unpack_from(data, at)
        name = at + wire.XATTR.size
        value = name + name_size
        at = value + value_size
        pairs.append((data[name:value], data[value:at]))
    return tuple(pairs)


class LayerIndex:
    """One layer's files.

        index = LayerIndex(data)
        etc = index.child(ROOT, b"etc")
        if etc not in (None, WHITEOUT) and index.is_directory(etc): ...

    Nodes are numbers below `node_count`, and must be: they are not checked.

    Attributes:
        node_count: Nodes, the root and foreign links included.
        entry_count: Names, the root not counted, whiteouts not counted.
        whiteout_count: Whiteouts; opaque marks not counted.
        file_bytes: Sum of the sizes of all files, each counted once.

    Raises:
        StoreDamaged: The data is not a whole, unchanged index of a version that we know.
    """

    __slots__ = (
        "_data",
        "_directories",
        "_foreign",
        "_name_offsets",
        "_nodes",
        "_runs",
        "_tables",
        "_targets",
        "entry_count",
        "file_bytes",
        "node_count",
        "whiteout_count",
    )

    def __init__(self, data: bytes) -> None:
        tables = wire.open_tables(data)
        self._tables = tables
        # Again by themselves: lookups are the hot path.
        self._data = data
        self._nodes = tables.nodes
        self._targets = tables.targets
        self._runs = tables.runs
        self._name_offsets = tables.name_offsets
        self._directories = tables.directory_count
        self._foreign = tables.first_foreign_link
        self.node_count = tables.node_count
        self.whiteout_count = tables.whiteout_count
        self.entry_count = len(tables.targets) - tables.whiteout_count
        self.file_bytes = tables.file_bytes

    def __repr__(self) -> str:
        return f"<LayerIndex of {self.entry_count} entries>"

    @property
    def data(self) -> bytes:
        """All of it, as it is stored."""
        return self._data

    # --- names ------------------------------------------------------------------------------

    def child(self, directory: int, name: bytes) -> int | None:
        """Find a name in a directory.

        Returns:
            The node, WHITEOUT when the name is hidden in lower layers, None when this layer does
            not mention it.
        """
        data, offsets, runs = self._data, self._name_offsets, self._runs
        low = runs[directory]
        end = high = runs[directory + 1]
        while low < high:
            middle = (low + high) >> 1
            if data[offsets[middle] : offsets[middle + 1]] < name:
                low = middle + 1
            else:
                high = middle
        if low < end and data[offsets[low] : offsets[low + 1]] == name:
            return self._targets[low]
        return None

    def edges(self, directory: int) -> range:
        """The edges of a directory, sorted by name."""
        return range(self._runs[directory], self._runs[directory + 1])

    def edge_name(self, edge: int) -> bytes:
        """The name that an edge is."""
        return self._data[self._name_offsets[edge] : self._name_offsets[edge + 1]]

    def edge_target(self, edge: int) -> int:
        """The node that an edge leads to, or WHITEOUT."""
        return self._targets[edge]

    def iter_names(self, directory: int) -> Iterator[bytes]:
        """The names of a directory, sorted, whiteouts included."""
        data, edges = self._data, self.edges(directory)
        offsets = iter(self._name_offsets[edges.start : edges.stop + 1])
        start = next(offsets)
        for end in offsets:
            yield data[start:end]
            start = end

    def iter_children(self, directory: int) -> Iterator[tuple[bytes, int]]:
        """The names of a directory, sorted, and the node of each, or WHITEOUT."""
        edges = self.edges(directory)
        targets = self._targets[edges.start : edges.stop]
        return zip(self.iter_names(directory), targets, strict=True)

    def parent(self, directory: int) -> int:
        """The directory that holds a directory; the root holds itself."""
        value: int = self._record(directory)[10]
        return value

    def name_of(self, directory: int) -> bytes:
        """The name of a directory that is not the root."""
        return self.edge_name(self._record(directory)[6])

    def path_of(self, directory: int) -> bytes:
        """The path of a directory from the root, starting with a slash."""
        names = []
        while directory != ROOT:
            names.append(self.name_of(directory))
            directory = self.parent(directory)
        return b"/" + b"/".join(reversed(names))

    def hardlink_names(self, node: int) -> tuple[tuple[int, bytes], ...]:
        """All names of a node that is no directory: the directory of each, and the name."""
        fields = self._record(node)
        count, name = fields[5], fields[6]
        edges = (name,) if count == 1 else self._tables.more_names[name : name + count]
        return tuple((self._holder(edge), self.edge_name(edge)) for edge in edges)

    def _holder(self, edge: int) -> int:
        # Of directories whose runs start here the last is meant: the others' runs are empty.
        return bisect_right(self._runs, edge, 0, self._directories) - 1

    # --- nodes ------------------------------------------------------------------------------

    def is_directory(self, node: int) -> bool:
        """Whether a node is a directory."""
        return node < self._directories

    def is_symlink(self, node: int) -> bool:
        """Whether a node is a symbolic link."""
        return self._data[self._nodes + node * wire.NODE.size] == NodeType.SYMLINK

    def is_foreign_link(self, node: int) -> bool:
        """Whether a node stands for one of a lower layer."""
        return node >= self._foreign

    def foreign_links(self) -> Iterator[tuple[int, bytes]]:
        """The nodes that stand for one of a lower layer, and the path of that from the root.

        The path has no ".." and ends in a name; its parents may be symbolic links of lower layers.
        """
        for node in range(self._foreign, self.node_count):
            yield node, self._string(node)

    def record(self, node: int) -> NodeRecord:
        """The attributes of a node that is no foreign link."""
        kind, flags, mode, uid, gid, names, _, _, mtime, size, value = self._record(node)
        major, minor = (value >> 32, value & 0xFFFFFFFF) if kind in _DEVICES else (0, 0)
        return NodeRecord(
            _TYPES[kind],
            mode,
            names,
            uid,
            gid,
            size,
            mtime,
            major,
            minor,
            flags & _IMPLICIT != 0,
            flags & _OPAQUE != 0,
        )

    def nlink(self, node: int) -> int:
        """How many names a node has in this layer; 1 for directories."""
        count: int = self._record(node)[5]
        return count

    def is_opaque(self, directory: int) -> bool:
        """Whether a directory hides what lower layers have below it."""
        return self._flags(directory) & _OPAQUE != 0

    def is_implicit(self, directory: int) -> bool:
        """Whether no member described a directory."""
        return self._flags(directory) & _IMPLICIT != 0

    def has_whiteouts(self, directory: int) -> bool:
        """Whether any name of a directory is a whiteout."""
        return self._flags(directory) & _WHITEOUTS != 0

    def symlink_target(self, node: int) -> bytes:
        """Where a symbolic link points to: 1 to 4095 bytes without NUL, as the layer has them."""
        return self._string(node)

    def xattrs(self, node: int) -> tuple[tuple[bytes, bytes], ...]:
        """The extended attributes of a node, sorted by name."""
        start = self._record(node)[7]
        if not start:
            return ()
        data = self._data
        return decode_xattrs(data, self._tables.xattrs + start - 1)

    # --- content ----------------------------------------------------------------------------

    def extents(self, node: int) -> tuple[Extent, ...]:
        """The stored pieces of a file's content, by ascending offset; zeros are between them."""
        _, flags, *_, size, value = self._record(node)
        if flags & _SPARSE:
            count, _, _ = self._extent(value)
            return tuple(Extent(*self._extent(value + 1 + i)) for i in range(count))
        if not size:
            return ()
        return (Extent(0, size, 0 if flags & _OWN_FILE else value),)

    def own_file(self, node: int) -> int | None:
        """The number of the file that holds a large file's content, None for the data file."""
        _, flags, *_, value = self._record(node)
        if flags & _SPARSE:
            _, number, _ = self._extent(value)
            return number - 1 if number else None
        return value if flags & _OWN_FILE else None

    # --- records ----------------------------------------------------------------------------

    def _record(self, node: int) -> tuple[int, ...]:
        return wire.NODE.unpack_from(self._data, self._nodes + node * wire.NODE.size)

    def _flags(self, node: int) -> int:
        return self._data[self._nodes + node * wire.NODE.size + 1]

    def _extent(self, number: int) -> tuple[int, int, int]:
        at = self._tables.extents + number * wire.EXTENT.size
        fields: tuple[int, int, int] = wire.EXTENT.unpack_from(self._data, at)
        return fields

    def _string(self, node: int) -> bytes:
        *_, size, value = self._record(node)
        start = self._tables.strings + value
        return self._data[start : start + size]
