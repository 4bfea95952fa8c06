"""Path resolution in a view, as openat2(2) does it with RESOLVE_IN_ROOT, or RESOLVE_BENEATH.

The view's root is the root: an absolute symbolic link restarts there, and ".." in it stays; or,
beneath, both are refused. Nothing outside the view can be reached, and nothing is resolved by the
kernel. Magic links are a thing of procfs: views have none.
"""

from dataclasses import dataclass
from typing import Final

from imgvol import limits
from imgvol.errors import InvalidArgument, NotFound, PathEscapes
from imgvol.view.merge import MergedTree, NodeID

# What an empty component, or a slash at the end, says: the thing so far is a directory.
_HERE: Final = (b"", b".")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a path leads.

    Attributes:
        node: What is there.
        path: How it is reached without a symbolic link or "..", relative; b"" is the root.
    """

    node: NodeID
    path: bytes


def resolve(tree: MergedTree, path: bytes, *, follow_last: bool = True) -> NodeID:
    """Find what a path means: `locate` without the way."""
    return locate(tree, path, follow_last=follow_last).node


def locate(
    tree: MergedTree, path: bytes, *, follow_last: bool = True, beneath: bool = False
) -> Place:
    """Find what a path means, and the plain path of that.

    Args:
        tree: The view.
        path: From the root, with or without a leading slash; an empty one is the root.
        follow_last: Whether a symbolic link at the end is followed. One with a slash after it is.
        beneath: Refuse what leaves the root instead of holding it there: absolute paths, absolute
            symbolic links, ".." in the root.

    Raises:
        NotFound: Nothing is there (ENOENT), something on the way is no directory (ENOTDIR), or
            there are more than limits.SYMLINKS_FOLLOWED links on the way (ELOOP). Fields `path`,
            `reason`.
        PathEscapes: It leaves the root, and `beneath` is asked for.
        InvalidArgument: The path is too long or has a NUL byte.
    """
    if len(path) > limits.PATH_LENGTH or b"\0" in path:
        raise InvalidArgument("not a path", path=path[:64], size=len(path))
    walk = _Walk(tree, path, beneath=beneath)
    pending = walk.start(path)
    followed = 0
    while pending:
        name = pending.pop()
        found = walk.find(name)
        if found is None:
            continue
        if not tree.is_symlink(found) or not (pending or follow_last):
            walk.trail.append((found, name))
            continue
        followed += 1
        if followed > limits.SYMLINKS_FOLLOWED:
            raise _not_found(path, "too many levels of symbolic links")
        pending += walk.start(tree.symlink_target(found))
    return Place(node=walk.here, path=b"/".join(name for _, name in walk.trail))


class _Walk:
    """On the way through a tree.

    Attributes:
        trail: What leads here, the root left out: nodes and their names.
    """

    def __init__(self, tree: MergedTree, path: bytes, *, beneath: bool) -> None:
        self.trail: list[tuple[NodeID, bytes]] = []
        self._tree = tree
        self._path = path
        self._beneath = beneath

    @property
    def here(self) -> NodeID:
        return self.trail[-1][0] if self.trail else self._tree.root

    def start(self, path: bytes) -> list[bytes]:
        """Begins a path, the given one or a link's: its components, the next one last."""
        if path.startswith(b"/"):
            if self._beneath:
                raise self._escape()
            self.trail.clear()
        return path.split(b"/")[::-1]

    def find(self, name: bytes) -> NodeID | None:
        """What a component means; None when it leads to a directory that the trail ends in."""
        if not self._tree.is_directory(self.here):
            raise _not_found(self._path, "not a directory")
        if name in _HERE:
            return None
        if name == b"..":
            self._go_up()
            return None
        found = self._tree.lookup(self.here, name)
        if found is None:
            raise _not_found(self._path, "no such file or directory")
        return found

    def _go_up(self) -> None:
        if self.trail:
            self.trail.pop()
        elif self._beneath:
            raise self._escape()

    def _escape(self) -> PathEscapes:
        return PathEscapes("path escapes from the view", path=self._path)


def _not_found(path: bytes, reason: str) -> NotFound:
    return NotFound("no such path in the image", path=path, reason=reason)
