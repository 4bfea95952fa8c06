"""Which files of which layer a trace wants first. Pure.

A trace names files as the whole image shows them. Each comes from one layer, and only there it is
to be moved; an older one below, which nobody sees, stays where it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from imgvol.errors import CallerError
from imgvol.layers.index import LayerIndex, NodeType
from imgvol.view.chain import ChainView
from imgvol.view.paths import locate
from imgvol.view.trace import Trace


@dataclass(frozen=True, slots=True)
class Priorities:
    """What a trace means for an image.

    Attributes:
        by_layer: Paths from the root without a slash at their start, in the trace's order, by the
            layer's position, the bottom one 0.
        found: Files of the trace that the image has.
        missing: Those that it does not have, or with another size.
    """

    by_layer: Mapping[int, tuple[bytes, ...]]
    found: int
    missing: int


def assign(tree: ChainView, trace: Trace) -> Priorities:
    """Find the files of a trace in an image."""
    by_layer: dict[int, dict[bytes, None]] = {}
    missing = 0
    for file in trace.files:
        try:
            place = locate(tree, file.path)
        except CallerError:  # not there, or no path
            missing += 1
            continue
        if tree.is_directory(place.node):
            missing += 1
            continue
        attributes = tree.attributes(place.node)
        if attributes.type is not NodeType.FILE or attributes.size != file.size:
            missing += 1
            continue
        position, node = tree.content(place.node)
        path = _path_in(tree.layers[position], node, place.path)
        by_layer.setdefault(position, {})[path] = None
    return Priorities(
        by_layer={position: tuple(paths) for position, paths in by_layer.items()},
        found=len(trace.files) - missing,
        missing=missing,
    )


def _path_in(layer: LayerIndex, node: int, path: bytes) -> bytes:
    """What the layer itself calls a file: a hard link from above may be its name in the image."""
    names = [
        (layer.path_of(parent).strip(b"/") + b"/" + name).lstrip(b"/")
        for parent, name in layer.hardlink_names(node)
    ]
    return path if not names or path in names else names[0]
