"""Hard links in a chain: what foreign links mean, and how many names a file has.

A layer counts the names that it gives to a file. In a chain, upper layers may hide some of them,
and may add names by foreign links. So a file's names in the chain are those of its own layer and of
the foreign links that mean it, as far as they are visible. For nearly every file there is nothing
to count: one name, by which it has just been found.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Final

from imgvol.errors import InvalidLayer, NotFound
from imgvol.layers.index import LayerIndex
from imgvol.view.merge import NODE_MASK, POSITION_SHIFT, MergedTree, NodeID
from imgvol.view.paths import resolve

_REMEMBERED_COUNTS: Final = 65_536


def resolve_foreign_links(layers: Sequence[LayerIndex]) -> dict[NodeID, NodeID]:
    """What each foreign link of a chain means: a node of a lower layer that is no directory.

    Raises:
        InvalidLayer: The layers below do not have the target of one, or it is a directory. Fields
            `target` and `position`.
    """
    foreign: dict[NodeID, NodeID] = {}
    for position, layer in enumerate(layers):
        below: MergedTree | None = None
        for node, path in layer.foreign_links():
            if not position:
                raise _broken(path, position)
            # Only now, for few layers have any.
            below = below or MergedTree(layers[:position], foreign)
            try:
                target = resolve(below, path, follow_last=False)
            except NotFound:
                raise _broken(path, position) from None
            if below.is_directory(target):
                raise _broken(path, position)
            foreign[position << POSITION_SHIFT | node] = target
    return foreign


def _broken(path: bytes, position: int) -> InvalidLayer:
    message = "a hard link to what is no file in this layer or below"
    return InvalidLayer(message, target=path, position=position)


class NameCounter:
    """Counts the names that files have in a chain."""

    def __init__(self, tree: MergedTree, foreign: Mapping[NodeID, NodeID]) -> None:
        self._tree = tree
        self._links: dict[NodeID, list[NodeID]] = {}
        for link, target in foreign.items():
            self._links.setdefault(target, []).append(link)
        self._counts: dict[NodeID, int] = {}

    def is_linked(self, node: NodeID) -> bool:
        """Whether upper layers have foreign links to a file."""
        return node in self._links

    def count(self, node: NodeID) -> int:
        """How many names a file has that is no directory."""
        count = self._counts.get(node)
        if count is None:
            links = self._links.get(node, [])
            count = self._count_visible(node) + sum(map(self._count_visible, links))
            if len(self._counts) >= _REMEMBERED_COUNTS:
                self._counts.clear()
            self._counts[node] = count
        return count

    def _count_visible(self, node: NodeID) -> int:
        """How many of the names that its layer gives to a node are visible."""
        layers, base = self._tree.layers, node & ~NODE_MASK
        layer = layers[node >> POSITION_SHIFT]
        count = 0
        names = layer.hardlink_names(node & NODE_MASK)
        for directory, group in groupby(names, key=lambda pair: pair[0]):
            stack = self._tree.find_stack(base | directory)
            if stack is None:
                continue
            above = [
                (layers[upper >> POSITION_SHIFT], upper & NODE_MASK)
                for upper in stack[: stack.index(base | directory)]
            ]
            count += sum(
                all(upper.child(place, name) is None for upper, place in above) for _, name in group
            )
        return count
