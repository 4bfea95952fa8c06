"""The MergedTree: which node of which layer each path of a chain means, as an overlay has it.

Layers are numbered by *position*, the bottom one 0. A NodeID is a position and a node of the layer
there. A directory of the merged tree is a *stack*: the directories of the layers that make it up,
topmost first; the first lends it its NodeID. Everything follows from how a name is looked up in a
stack, from the top down:

Rule 1: The topmost layer that mentions the name decides: a whiteout means that there is nothing,
any other node is what the name means.

Rule 2: A directory goes on downwards to further directories of the name. It ends where a layer says
that it is opaque, or hides the name by a whiteout, or has something else than a directory there.

The tree is never built. A NodeID is enough to find a directory's stack again: its layer knows its
path, and the path is followed from the root. Stacks are remembered, but only to save time.

All methods may be called from several threads at once.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from imgvol.errors import NotFound
from imgvol.layers.index import ROOT, WHITEOUT, LayerIndex

NodeID = int
"""position << 32 | node; of a directory, those of the topmost layer that contributes to it."""

Stack = tuple[NodeID, ...]
"""The contributions to one directory, topmost first; none is empty."""

POSITION_SHIFT: Final = 32
NODE_MASK: Final = (1 << POSITION_SHIFT) - 1

# By contribution: about 150 bytes each. Finding one again costs a lookup per directory on the way.
_REMEMBERED_STACKS: Final = 65_536


class MergedTree:
    """The names of a chain of layers.

    Args:
        layers: The bottom one first.
        foreign: What foreign links mean, see `links`.

    Attributes:
        layers: As given, or what has replaced them since.
        root: The root directory.
    """

    def __init__(self, layers: Sequence[LayerIndex], foreign: Mapping[NodeID, NodeID]) -> None:
        self.layers = tuple(layers)
        self._foreign = foreign
        self._root_stack = self._stack_of_roots()
        self.root: NodeID = self._root_stack[0]
        # By each of its contributions.
        self._stacks: dict[NodeID, Stack] = {}

    def replace_layer(self, position: int, layer: LayerIndex) -> None:
        """Takes another index for a layer: of the same files, names and all, numbered alike."""
        self.layers = (*self.layers[:position], layer, *self.layers[position + 1 :])

    def lookup(self, directory: NodeID, name: bytes) -> NodeID | None:
        """Find a name in a directory; "." and ".." are no names.

        Raises:
            NotFound: This is no directory of the tree.
        """
        for contribution in self.stack(directory):
            position = contribution >> POSITION_SHIFT
            node = self.layers[position].child(contribution & NODE_MASK, name)
            if node is not None:
                return self.resolve(position, node)
        return None

    def list(self, directory: NodeID) -> "Listing":
        """All names of a directory.

        Raises:
            NotFound: This is no directory of the tree.
        """
        stack = self.stack(directory)
        position, node = stack[0] >> POSITION_SHIFT, stack[0] & NODE_MASK
        layer = self.layers[position]
        if len(stack) == 1 and not layer.has_whiteouts(node):
            edges = layer.edges(node)
            base = position << POSITION_SHIFT
            return Listing(self, range(base | edges.start, base + edges.stop))
        return Listing(self, self._merge_edges(stack))

    def parent(self, directory: NodeID) -> NodeID:
        """The directory that holds a directory; the root holds itself."""
        layer = self.layers[directory >> POSITION_SHIFT]
        parent = layer.parent(directory & NODE_MASK)
        return self.stack(directory & ~NODE_MASK | parent)[0]

    def is_directory(self, node: NodeID) -> bool:
        """Whether a node is a directory."""
        return self.layers[node >> POSITION_SHIFT].is_directory(node & NODE_MASK)

    def is_symlink(self, node: NodeID) -> bool:
        """Whether a node is a symbolic link."""
        return self.layers[node >> POSITION_SHIFT].is_symlink(node & NODE_MASK)

    def symlink_target(self, node: NodeID) -> bytes:
        """Where a symbolic link points to."""
        return self.layers[node >> POSITION_SHIFT].symlink_target(node & NODE_MASK)

    def stack(self, directory: NodeID) -> Stack:
        """The contributions to a directory, of which any is given.

        Raises:
            NotFound: It is hidden, or no directory.
        """
        stack = self._stacks.get(directory) or self.find_stack(directory)
        if stack is None:
            raise NotFound("no such directory in this view", node=directory)
        return stack

    def find_stack(self, contribution: NodeID) -> Stack | None:
        """The stack that a layer's directory is part of; None when other layers hide it."""
        base, node = contribution & ~NODE_MASK, contribution & NODE_MASK
        layer = self._layer_of_directory(contribution)
        steps = []
        stack: Stack | None = None
        while node != ROOT and (stack := self._stacks.get(base | node)) is None:
            steps.append(node)
            node = layer.parent(node)
        stack = stack or self._root_stack
        if base | node not in stack:
            return None
        for step in reversed(steps):
            stack = self._descend(stack, layer.name_of(step))
            if base | step not in stack:
                return None
            self._remember(stack)
        return stack

    def resolve(self, position: int, node: int) -> NodeID | None:
        """What a child that a layer mentions means to the tree."""
        if node == WHITEOUT:
            return None
        found = position << POSITION_SHIFT | node
        return self._foreign.get(found, found) if self._foreign else found

    def below(self, directory: NodeID) -> Iterator[NodeID]:
        """The directories of the same name that opaque marks hide from a directory's stack.

        An opaque mark is about what a directory holds, not about the directory: when no member
        described it, its attributes are still those of the one that it empties.
        """
        last = self.stack(directory)[-1]
        if not self.layers[last >> POSITION_SHIFT].is_opaque(last & NODE_MASK):
            return
        if last & NODE_MASK == ROOT:
            yield from (p << POSITION_SHIFT for p in reversed(range(last >> POSITION_SHIFT)))
            return
        layer = self.layers[last >> POSITION_SHIFT]
        name = layer.name_of(last & NODE_MASK)
        holders = self.stack(last & ~NODE_MASK | layer.parent(last & NODE_MASK))
        lower = [holder for holder in holders if holder >> POSITION_SHIFT < last >> POSITION_SHIFT]
        yield from self._iter_directories(lower, name)

    # --- stacks -----------------------------------------------------------------------------

    def _stack_of_roots(self) -> Stack:
        stack = []
        for position in reversed(range(len(self.layers))):
            stack.append(position << POSITION_SHIFT | ROOT)
            if self.layers[position].is_opaque(ROOT):
                break
        return tuple(stack)

    def _layer_of_directory(self, contribution: NodeID) -> LayerIndex:
        position, node = contribution >> POSITION_SHIFT, contribution & NODE_MASK
        if position < len(self.layers) and self.layers[position].is_directory(node):
            return self.layers[position]
        raise NotFound("not a directory of this view", node=contribution)

    def _descend(self, holders: Sequence[NodeID], name: bytes) -> Stack:
        """The stack of a directory in a stack."""
        stack = []
        for contribution in self._iter_directories(holders, name):
            stack.append(contribution)
            if self.layers[contribution >> POSITION_SHIFT].is_opaque(contribution & NODE_MASK):
                break
        return tuple(stack)

    def _iter_directories(self, holders: Sequence[NodeID], name: bytes) -> Iterator[NodeID]:
        """The directories of a name, topmost first, as far as nothing else has it in between."""
        for holder in holders:
            layer = self.layers[holder >> POSITION_SHIFT]
            node = layer.child(holder & NODE_MASK, name)
            if node is None:
                continue
            if node == WHITEOUT or not layer.is_directory(node):
                return
            yield holder & ~NODE_MASK | node

    def _remember(self, stack: Stack) -> None:
        # Emptied when full, not trimmed: it is cheap to fill, and this needs no order of use.
        if len(self._stacks) >= _REMEMBERED_STACKS:
            self._stacks.clear()
        for contribution in stack:
            self._stacks[contribution] = stack

    def _merge_edges(self, stack: Stack) -> "array[int]":
        """The edges of a directory that are visible, each with its position, sorted by name."""
        merged: dict[bytes, int] = {}
        for contribution in reversed(stack):
            layer = self.layers[contribution >> POSITION_SHIFT]
            node, base = contribution & NODE_MASK, contribution & ~NODE_MASK
            edges = layer.edges(node)
            references = range(base | edges.start, base + edges.stop)
            merged.update(zip(layer.iter_names(node), references, strict=True))
        targets = [layer.edge_target for layer in self.layers]
        return array(
            "Q",
            (
                reference
                for reference in map(merged.__getitem__, sorted(merged))
                if targets[reference >> POSITION_SHIFT](reference & NODE_MASK) != WHITEOUT
            ),
        )


class Listing:
    """The names of one directory, sorted, complete, each with its node.

    Names are read when they are asked for: a listing takes at most 8 bytes per name, and the one of
    a directory that comes from a single layer takes none. The order never changes, so a place in a
    listing can be kept as a number.
    """

    __slots__ = ("_references", "_tree")

    def __init__(self, tree: MergedTree, references: Sequence[int]) -> None:
        self._tree = tree
        self._references = references  # position << 32 | edge

    def __len__(self) -> int:
        return len(self._references)

    def __getitem__(self, place: int) -> tuple[bytes, NodeID]:
        return self._entry(self._references[place])

    def __iter__(self) -> Iterator[tuple[bytes, NodeID]]:
        return map(self._entry, self._references)

    @property
    def is_stored(self) -> bool:
        """Whether it takes memory, and time to make again."""
        return isinstance(self._references, array)

    def _entry(self, reference: int) -> tuple[bytes, NodeID]:
        position, edge = reference >> POSITION_SHIFT, reference & NODE_MASK
        layer = self._tree.layers[position]
        node = self._tree.resolve(position, layer.edge_target(edge))
        assert node is not None, "whiteouts are not listed"
        return layer.edge_name(edge), node
