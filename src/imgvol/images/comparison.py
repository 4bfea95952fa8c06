"""Whether what a table of contents told of a layer is what its tar holds."""

import threading
from collections.abc import Iterator
from typing import Final

from imgvol.content.layer_store import LayerStore
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.layers.index import LayerIndex, NodeType

_STEP: Final = 1 << 20
# Nobody is shown less than a page, or the end of a file.
_PAGE: Final = 4096


def first_entry_difference(one: LayerIndex, other: LayerIndex) -> bytes | None:
    """The path of the first entry that differs, in anything but content; None when none does.

    The same files are numbered alike, so that nodes can be compared one by one.
    """
    for name in ("node_count", "entry_count", "whiteout_count"):
        if getattr(one, name) != getattr(other, name):
            return b"/"
    if list(_edges(one)) != list(_edges(other)) or list(one.foreign_links()) != list(
        other.foreign_links()
    ):
        return b"/"
    for node in range(one.node_count):
        is_alike = one.is_foreign_link(node) or _attributes(one, node) == _attributes(other, node)
        if not is_alike:
            return path_of(one, node)
    return None


def first_difference(
    lazy: LazyLayerStore, complete: LayerStore, stopped: threading.Event
) -> bytes | None:
    """The path of the first file that differs, in anything that users see; None when none does.

    Content that is not present in the lazy form has been shown to nobody, and is not compared.
    Blocks, for as long as reading the layer twice takes, or until it is stopped; what it returns
    then means nothing.
    """
    difference = first_entry_difference(lazy.index, complete.index)
    if difference is not None:
        return difference
    for node in file_nodes(lazy.index):
        if not _same_content(lazy, complete, node, stopped):
            return path_of(lazy.index, node)
    return None


def file_nodes(index: LayerIndex) -> Iterator[int]:
    """The nodes that have content."""
    for node in range(index.node_count):
        if index.is_directory(node) or index.is_foreign_link(node):
            continue
        if index.record(node).type is NodeType.FILE:
            yield node


def _edges(index: LayerIndex) -> list[tuple[bytes, int]]:
    return [
        edge
        for node in range(index.node_count)
        if index.is_directory(node)
        for edge in index.iter_children(node)
    ]


def _attributes(index: LayerIndex, node: int) -> tuple[object, ...]:
    record = index.record(node)
    target = index.symlink_target(node) if record.type is NodeType.SYMLINK else b""
    return (record, target, index.xattrs(node))


def _same_content(
    lazy: LazyLayerStore, complete: LayerStore, node: int, stopped: threading.Event
) -> bool:
    size = lazy.index.record(node).size
    return all(
        stopped.is_set() or _same_range(lazy, complete, node, offset, min(_STEP, size - offset))
        for offset in range(0, size, _STEP)
    )


def _same_range(
    lazy: LazyLayerStore, complete: LayerStore, node: int, offset: int, size: int
) -> bool:
    if lazy.has(node, offset, size):
        return lazy.read_blocking(node, offset, size) == complete.read_blocking(node, offset, size)
    return size <= _PAGE or all(
        _same_range(lazy, complete, node, page, min(_PAGE, offset + size - page))
        for page in range(offset, offset + size, _PAGE)
    )


def path_of(index: LayerIndex, node: int) -> bytes:
    """A path of a node."""
    if index.is_directory(node):
        return index.path_of(node)
    for directory in range(index.node_count):
        if not index.is_directory(directory):
            break
        for name, child in index.iter_children(directory):
            if child == node:
                return index.path_of(directory).rstrip(b"/") + b"/" + name
    return b"/"
