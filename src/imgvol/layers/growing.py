"""The GrowingIndex: what is known of a layer while its tar is still being read.

It asks the tree of an IndexBuilder that another thread adds members to. Every answer is true of the
members so far; that a later one may say otherwise is for `view.settling` to deal with.

What has been asked for gets an *early number*: the numbers of a LayerIndex depend on the whole
layer. Early numbers have bit 31 set, which no number of a LayerIndex has. In the end `final_nodes`
tells what they have become.

Safe beside the thread that adds members: each question looks at one dictionary or one record, which
Python does without letting another thread in between.
"""

from typing import Final

from imgvol.layers import wire
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.flatten import AUFS_PREFIX, TreeDirectory
from imgvol.layers.index import ROOT, LayerIndex, decode_xattrs
from imgvol.layers.reserved import RESERVED_NAMES, whole_seconds
from imgvol.layers.wire import FOREIGN_LINK, NODE, Flag, NodeType

EARLY: Final = 1 << 31
"""Set in early numbers."""

# What only the finished layer can say: see `flatten`.
_FINAL_FLAGS: Final = int(Flag.OPAQUE | Flag.WHITEOUTS)


class GrowingIndex(LayerIndex):
    """A LayerIndex of what has come so far, without listings and without whiteouts.

        growing = GrowingIndex(builder)
        node = growing.child(ROOT, b"etc")       # None: there is no such name yet
        ...
        builder.finish()
        growing.final_nodes()[node]              # where the LayerIndex has it

    Nothing is said of names in lower layers: whiteouts and opaque marks count when all are known.
    Neither do names count that the finished layer will not show.

    Args:
        builder: Members are added to it elsewhere.
    """

    __slots__ = ("_builder", "_items", "_known", "_places")

    def __init__(self, builder: IndexBuilder) -> None:
        # Nothing of a LayerIndex's own: there is no data yet.
        self._builder = builder
        self._items: list[TreeDirectory | int] = []
        self._places: list[tuple[int, bytes]] = []
        self._known: dict[TreeDirectory | int, int] = {}
        self.node_count = self.entry_count = self.whiteout_count = self.file_bytes = 0

    def __repr__(self) -> str:
        return f"<GrowingIndex, asked for {len(self._items)} nodes>"

    def final_nodes(self) -> dict[int, int]:
        """What early numbers have become; those are left out that have been replaced.

        Call it when the builder has finished, and ask for no name after that.
        """
        flattened = self._builder.flattened
        directories = {item: node for node, item in enumerate(flattened.directories)}
        final: dict[int, int] = {}
        for number, item in enumerate(self._items):
            node = flattened.leaves.get(item) if isinstance(item, int) else directories.get(item)
            if node is not None:
                final[EARLY | number] = node
        return final

    # --- names ------------------------------------------------------------------------------

    def child(self, directory: int, name: bytes) -> int | None:
        """The node of a name that has come; None: none has, or none that will be shown."""
        holder = self._item(directory)
        if isinstance(holder, int) or name.startswith(AUFS_PREFIX):
            return None
        found = holder.children.get(name)
        if found is None or (directory == ROOT and name in RESERVED_NAMES):
            return None
        number = self._known.get(found)
        if number is None:
            number = self._known[found] = EARLY | len(self._items)
            self._items.append(found)
            self._places.append((directory, name))
        return number

    def parent(self, directory: int) -> int:
        """See LayerIndex."""
        return ROOT if directory == ROOT else self._places[directory ^ EARLY][0]

    def name_of(self, directory: int) -> bytes:
        """See LayerIndex."""
        return self._places[directory ^ EARLY][1]

    # --- nodes ------------------------------------------------------------------------------

    def is_directory(self, node: int) -> bool:
        """See LayerIndex."""
        return isinstance(self._item(node), TreeDirectory)

    def is_symlink(self, node: int) -> bool:
        """See LayerIndex."""
        return self._record(node)[0] == NodeType.SYMLINK

    def is_foreign_link(self, node: int) -> bool:
        """See LayerIndex."""
        return self._record(node)[0] == FOREIGN_LINK

    def xattrs(self, node: int) -> tuple[tuple[bytes, bytes], ...]:
        """See LayerIndex."""
        start = self._record(node)[7]
        return decode_xattrs(bytes(self._builder.records.xattrs), start - 1) if start else ()

    def _item(self, node: int) -> TreeDirectory | int:
        return self._builder.root if node == ROOT else self._items[node ^ EARLY]

    def _record(self, node: int) -> tuple[int, ...]:
        item = self._item(node)
        if isinstance(item, int):
            fields = NODE.unpack_from(self._builder.records.leaves, item * NODE.size)
        else:
            fields = NODE.unpack(item.record)
        if not self._has_reserved:
            return fields
        rounded = list(fields)
        rounded[wire.MTIME_FIELD] = whole_seconds(rounded[wire.MTIME_FIELD])
        return tuple(rounded)

    @property
    def _has_reserved(self) -> bool:
        """Whether times will be rounded."""
        children, records = self._builder.root.children, self._builder.records
        return any(
            isinstance(child := children.get(name), int) and records.is_file(child)
            for name in RESERVED_NAMES
        )

    def _flags(self, node: int) -> int:
        return self._record(node)[1] & ~_FINAL_FLAGS

    def _extent(self, number: int) -> tuple[int, int, int]:
        fields: tuple[int, int, int] = wire.EXTENT.unpack_from(
            self._builder.records.extents, number * wire.EXTENT.size
        )
        return fields

    def _string(self, node: int) -> bytes:
        *_, size, at = self._record(node)
        return bytes(self._builder.records.strings[at : at + size])
