"""Somebody who takes a mount away behind a daemon's back."""

import os

from imgvol.volumes.syscalls import detach_tree, open_place


def detach(path: str | bytes | os.PathLike[str]) -> None:
    """Takes what is mounted at a path out of the tree, asking no filesystem: it may hang."""
    with open_place(os.fsencode(path)) as place:
        detach_tree(place)
