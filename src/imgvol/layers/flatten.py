"""From a layer's tree to its tables: the numbering that `wire` describes.

One pass over the tree, breadth first and by name, gives every directory its number and every name
its edge. Only then is it known how many directories there are, and the leaves get their numbers.
The records are copied in that order and completed with what was not known before: names, parents
and flags.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from imgvol.layers import wire
from imgvol.layers.records import Records
from imgvol.layers.wire import FOREIGN_LINK, NODE, WHITEOUT, Flag, NodeType

AUFS_PREFIX: Final = b".wh..wh."
"""Starts names that AUFS kept for itself: they are no part of an image (image-spec, layer.md)."""

_NAMES: Final = struct.Struct("<II")  # the fields names and name of a NODE
_VALUE: Final = struct.Struct("<Q")
_FLAGS: Final = 1
_SIZE: Final = wire.VALUE_OFFSET - _VALUE.size


@dataclass(slots=True, eq=False)
class TreeDirectory:
    """A directory of a tree that is being built.

    Attributes:
        record: Its NODE, without names, parent and the flags OPAQUE and WHITEOUTS.
        path_length: Of its path from the root, in bytes.
        children: By name: directories, and leaves as places in Records.leaves.
        whiteouts: Names to hide in lower layers.
        is_opaque: Whether an opaque mark was seen.
    """

    record: bytes
    path_length: int
    children: "dict[bytes, TreeDirectory | int]" = field(default_factory=dict)
    whiteouts: set[bytes] = field(default_factory=set)
    is_opaque: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Flattened:
    """A tree as tables.

    Attributes:
        data: The file of the index.
        directories: All of the tree's, by their numbers.
        leaves: The numbers of the leaves that are in it: others were replaced by later members.
    """

    data: bytes
    directories: Sequence[TreeDirectory]
    leaves: Mapping[int, int]


def flatten(root: TreeDirectory, records: Records) -> Flattened:
    """Make the file of an index."""
    walk = _Walk(root)
    leaves = _Leaves(walk.refs, records.leaves)
    directory_count = len(walk.directories)
    numbers = {leaf: number for number, leaf in enumerate(leaves.names, directory_count)}
    nodes = bytearray().join(directory.record for directory in walk.directories)
    for number, (parent, name) in enumerate(zip(walk.parents, walk.own_edges, strict=True)):
        _NAMES.pack_into(nodes, number * NODE.size + wire.NAMES_OFFSET, 1, name)
        _VALUE.pack_into(nodes, number * NODE.size + wire.VALUE_OFFSET, parent)
    more_names: list[int] = []
    for leaf, name in leaves.names.items():
        nodes += records.leaves[leaf * NODE.size : (leaf + 1) * NODE.size]
        at = len(nodes) - NODE.size + wire.NAMES_OFFSET
        several = leaves.several_names.get(leaf)
        if several is None:
            _NAMES.pack_into(nodes, at, 1, name)
        else:
            _NAMES.pack_into(nodes, at, len(several), len(more_names))
            more_names += several
    data = wire.assemble(
        file_bytes=leaves.file_bytes,
        directory_count=directory_count,
        first_foreign_link=directory_count + len(leaves.names) - leaves.foreign_count,
        nodes=nodes,
        extents=records.extents,
        targets=[ref if ref >= 0 else numbers[~ref] for ref in walk.refs],
        runs=walk.runs,
        more_names=more_names,
        names=walk.names,
        strings=records.strings,
        xattrs=records.xattrs,
    )
    return Flattened(data=data, directories=walk.directories, leaves=numbers)


class _Walk:
    """The directories and the edges of a tree, in order.

    Attributes:
        directories: All, by number.
        parents: The number of the parent of each.
        own_edges: The edge that leads to each.
        runs: The first edge of each, and the end.
        names: The names, by edge.
        refs: What each edge leads to: a directory's number, WHITEOUT, or ~leaf.
    """

    def __init__(self, root: TreeDirectory) -> None:
        self.directories = [root]
        self.parents = [0]
        self.own_edges = [0]
        self.runs = [0]
        self.names: list[bytes] = []
        self.refs: list[int] = []
        # The list grows while it is walked: breadth first.
        for number, directory in enumerate(self.directories):
            self._visit(number, directory)
            self.runs.append(len(self.names))

    def _visit(self, number: int, directory: TreeDirectory) -> None:
        children, whiteouts = directory.children, directory.whiteouts
        has_whiteouts = False
        for name in sorted(children.keys() | whiteouts) if whiteouts else sorted(children):
            if name.startswith(AUFS_PREFIX):
                continue
            child = children.get(name)
            if child is None:
                ref = WHITEOUT
                has_whiteouts = True
            elif isinstance(child, int):
                ref = ~child
            else:
                if name in whiteouts:
                    _replace(child)
                ref = len(self.directories)
                self.directories.append(child)
                self.parents.append(number)
                self.own_edges.append(len(self.names))
            self.names.append(name)
            self.refs.append(ref)
        if has_whiteouts or directory.is_opaque:
            flags = Flag.WHITEOUTS * has_whiteouts | Flag.OPAQUE * directory.is_opaque
            directory.record = _with_flags(directory.record, directory.record[_FLAGS] | flags)


def _replace(directory: TreeDirectory) -> None:
    """Make a directory the successor of one that a whiteout removes.

    It hides what that held and, unlike one that is merely opaque, inherits no attributes from it.
    """
    directory.is_opaque = True
    flags = directory.record[_FLAGS] & ~Flag.IMPLICIT
    directory.record = _with_flags(directory.record, flags)


def _with_flags(record: bytes, flags: int) -> bytes:
    return record[:_FLAGS] + bytes((flags,)) + record[_FLAGS + 1 :]


class _Leaves:
    """The leaves that have names.

    Attributes:
        names: The first edge to each; in the order of their nodes, foreign links last.
        several_names: All edges to those that have more than one.
        foreign_count: How many are foreign links.
        file_bytes: The sizes of all files.
    """

    def __init__(self, refs: list[int], records: bytearray) -> None:
        self.several_names: dict[int, list[int]] = {}
        self.file_bytes = 0
        leaves: dict[int, int] = {}
        foreign: dict[int, int] = {}
        for edge, ref in enumerate(refs):
            if ref >= 0:
                continue
            leaf = ~ref
            kind = records[leaf * NODE.size]
            first = (foreign if kind == FOREIGN_LINK else leaves).setdefault(leaf, edge)
            if first != edge:
                self.several_names.setdefault(leaf, [first]).append(edge)
            elif kind == NodeType.FILE:
                self.file_bytes += _VALUE.unpack_from(records, leaf * NODE.size + _SIZE)[0]
        self.foreign_count = len(foreign)
        self.names = leaves | foreign
