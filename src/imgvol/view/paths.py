"""Path resolution in a view, as openat2(2) does it with RESOLVE_IN_ROOT.

The view's root is the root: an absolute symbolic link restarts there, and ".." in it stays. Nothing
outside the view can be reached, and nothing is resolved by the kernel.
"""

from typing import Final

from imgvol import limits
from imgvol.errors import InvalidArgument, NotFound
from imgvol.view.merge import MergedTree, NodeID

# What an empty component, or a slash at the end, says: the thing so far is a directory.
_HERE: Final = (b"", b".")


def resolve(tree: MergedTree, path: bytes, *, follow_last: bool = True) -> NodeID:
    """Find what a path means.

    Args:
        tree: The view.
        path: From the root, with or without a leading slash; an empty one is the root.
        follow_last: Whether a symbolic link at the end is followed. One with a slash after it is.

    Raises:
        NotFound: Nothing is there (ENOENT), something on the way is no directory (ENOTDIR), or
            there are more than limits.SYMLINKS_FOLLOWED links on the way (ELOOP). Fields `path`,
            `reason`.
        InvalidArgument: The path is too long or has a NUL byte.
    """
    if len(path) > limits.PATH_LENGTH or b"\0" in path:
        raise InvalidArgument("not a path", path=path[:64], size=len(path))
    here = tree.root
    pending = path.split(b"/")[::-1]
    followed = 0
    while pending:
        name = pending.pop()
        if not tree.is_directory(here):
            raise _not_found(path, "not a directory")
        if name in _HERE:
            continue
        if name == b"..":
            here = tree.parent(here)
            continue
        found = tree.lookup(here, name)
        if found is None:
            raise _not_found(path, "no such file or directory")
        if not tree.is_symlink(found) or not (pending or follow_last):
            here = found
            continue
        followed += 1
        if followed > limits.SYMLINKS_FOLLOWED:
            raise _not_found(path, "too many levels of symbolic links")
        target = tree.symlink_target(found)
        if target.startswith(b"/"):
            here = tree.root
        pending += target.split(b"/")[::-1]
    return here


def _not_found(path: bytes, reason: str) -> NotFound:
    return NotFound("no such path in the image", path=path, reason=reason)
