"""Whether what a table of contents told of a layer is what its tar holds."""

from typing import Final

from imgvol.content.layer_store import LayerStore
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.layers.index import LayerIndex, NodeType

_STEP: Final = 1 << 20


def first_difference(lazy: LazyLayerStore, complete: LayerStore) -> bytes | None:
    """The path of the first file that differs, in anything that users see; None when none does.

    The same files are numbered alike, so that nodes can be compared one by one. All spans of the
    lazy form must be present. Blocks, for as long as reading the layer twice takes.
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
            lazy, complete, node
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


def _same_content(lazy: LazyLayerStore, complete: LayerStore, node: int) -> bool:
    if lazy.index.is_directory(node):
        return True
    record = lazy.index.record(node)
    if record.type is not NodeType.FILE:
        return True
    return all(
        lazy.read_blocking(node, offset, _STEP) == complete.read_blocking(node, offset, _STEP)
        for offset in range(0, record.size, _STEP)
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
