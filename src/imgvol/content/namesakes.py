"""Which files of two layers may be the same: by path and size, or by name and size."""

from collections.abc import Iterator

from imgvol.content.chunk_catalogue import is_file
from imgvol.layers.index import ROOT, WHITEOUT, LayerIndex


def same_files(index: LayerIndex, other: LayerIndex, nodes: set[int]) -> Iterator[tuple[int, int]]:
    """Files of two layers with the same path and size, of those of the first that are named."""
    # Directories are numbered breadth first: a parent comes before its children.
    twins = {ROOT: ROOT}
    for directory in _directories(index):
        twin = twins.get(directory)
        if twin is None:
            continue
        for name, node in index.iter_children(directory):
            is_directory = node != WHITEOUT and index.is_directory(node)
            if not is_directory and node not in nodes:
                continue
            found = other.child(twin, name)
            if found is None or found == WHITEOUT:
                continue
            if is_directory:
                if other.is_directory(found):
                    twins[node] = found
            elif is_file(other, found) and index.record(node).size == other.record(found).size:
                yield node, found


def namesakes(index: LayerIndex, other: LayerIndex, nodes: set[int]) -> Iterator[tuple[int, int]]:
    """Files of two layers with the same name and size, wherever, of those of the first."""
    wanted: dict[bytes, list[int]] = {}
    for directory in _directories(index):
        for name, node in index.iter_children(directory):
            if node in nodes:
                wanted.setdefault(name, []).append(node)
    for directory in _directories(other):
        for name, found in other.iter_children(directory):
            if name in wanted and found != WHITEOUT and is_file(other, found):
                size = other.record(found).size
                for node in wanted[name]:
                    if index.record(node).size == size:
                        yield node, found


def _directories(index: LayerIndex) -> Iterator[int]:
    directory = ROOT
    while directory < index.node_count and index.is_directory(directory):
        yield directory
        directory += 1
