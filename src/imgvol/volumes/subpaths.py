"""Sub paths: which part of a view a volume shows.

A sub path comes from whoever writes a pod's manifest, and the links on its way from whoever made
the image. So it is resolved in memory, on the view's own tree, and the kernel is given only what
came of that: a path of plain names, which is opened below the view without following a link
(`syscalls.open_beneath`). Nothing can change between the two: a view's tree never changes, the
name of the view's directory stands for this very tree for as long as the view is held, and no
other filesystem is let in between (RESOLVE_NO_XDEV).

The texts of the reasons are containerd's, which its users look for in a pod's events.
"""

from dataclasses import dataclass
from typing import Final

from imgvol.errors import InvalidArgument, NotFound, PathEscapes
from imgvol.layers.index import NodeType
from imgvol.view.chain import ChainView
from imgvol.view.paths import locate
from imgvol.volumes.options import BindOptions, Escapes

ESCAPES: Final = "path escapes from parent"
DIRECTORIES_ONLY: Final = "only directory subpath is supported"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubPath:
    """What of a view is shown.

    Attributes:
        path: Plain names from the view's root; b"" is the root itself.
        is_directory: Or else a regular file.
    """

    path: bytes = b""
    is_directory: bool = True


WHOLE: Final = SubPath()


def resolve_sub_path(tree: ChainView, options: BindOptions) -> SubPath:
    """Finds what a volume's sub path means in its view. From memory: never blocks.

    Raises:
        NotFound: Nothing is there, or there is no way there.
        PathEscapes: It leaves the view, and that is refused.
        InvalidArgument: It is of a kind that is not bound.
    """
    path = options.sub_path
    if not path:
        return WHOLE
    try:
        place = locate(tree, path, beneath=options.escapes is Escapes.REFUSE)
    except PathEscapes as exc:
        raise PathEscapes(f"sub path: {ESCAPES}", sub_path=path) from exc
    except NotFound as exc:
        raise NotFound(f"sub path: {exc.fields['reason']}", sub_path=path) from exc
    kind = tree.attributes(place.node).type
    if kind is not NodeType.DIRECTORY:
        if options.dirs_only:
            raise InvalidArgument(f"sub path: {DIRECTORIES_ONLY}", sub_path=path)
        if kind is not NodeType.FILE:
            raise InvalidArgument("sub path: neither a directory nor a file", sub_path=path)
    return SubPath(path=place.path, is_directory=kind is NodeType.DIRECTORY)
