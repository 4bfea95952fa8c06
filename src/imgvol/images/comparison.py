"""Whether what a table of contents told of a layer is what its tar holds."""

import threading
from typing import Final

from imgvol.content.layer_store import LayerStore
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.layers.index import LayerIndex, NodeType

_STEP: Final = 1 << 20
# Nobody is shown less than a page, or the end of a file.
_PAGE: Final = 4096


def first_difference(
    lazy: LazyLayerStore, complete: LayerStore, stopped: threading.Event
) -> bytes | None:
    """The path of the first file that differs, in anything that users see; None when none does.

    The same files are numbered alike, so that nodes can be compared one by one. Content that is not
    present in the lazy form has been shown to nobody, and is not compared. Blocks, for as long as
    reading the layer twice takes, or
    until it is stopped; what it returns then means nothing.
    """
    one, other = lazy.index, complete.index
    for name in ("node_count", "entry_count", "whiteout_count"):
        if getattr(one, name) != getattr(other, name):
            return b"/"
    if list(_edges(one)) != list(_edges(other)) or list(one.foreign_links()) != list(
        other.foreign_links()
    ):
        return b"/"
    for node in range(one.node_count):
        if one.is_foreign_link(node):
            continue
        if _attributes(one, node) != _attributes(other, node) or not _same_content(
            lazy, complete, node, stopped
        ):
            return _path(one, node)
    return None


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
    if lazy.index.is_directory(node):
        return True
    record = lazy.index.record(node)
    if record.type is not NodeType.FILE:
        return True
    return all(
        stopped.is_set()
        or _same_range(lazy, complete, node, offset, min(_STEP, record.size - offset))
        for offset in range(0, record.size, _STEP)
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


def _path(index: LayerIndex, node: int) -> bytes:
    if index.is_directory(node):
        return index.path_of(node)
    for directory in range(index.node_count):
        if not index.is_directory(directory):
            break
        for name, child in index.iter_children(directory):
            if child == node:
                return index.path_of(directory).rstrip(b"/") + b"/" + name
    return b"/"
