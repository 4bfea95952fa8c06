"""Looking into an image without mounting it: list, sum up, read."""

from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Final

import trio

from imgvol.errors import InvalidArgument
from imgvol.images.open_view import OpenView
from imgvol.layers.index import NodeType
from imgvol.oci.digest import Digest
from imgvol.view.chain import Attributes, NodeID
from imgvol.view.merge import POSITION_SHIFT
from imgvol.view.paths import resolve

READ_SIZE: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryInfo:
    """One path of an image.

    Attributes:
        path: Absolute, in the image.
        mode: Permission bits with setuid, setgid and sticky.
        target: Of a symbolic link; else empty.
        layer: Digest of the layer that the entry comes from; the topmost, for a directory;
            None in an image without layers.
    """

    path: bytes
    type: NodeType
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    rdev: int
    ino: int
    nlink: int
    target: bytes
    layer: Digest | None


@dataclass(slots=True, kw_only=True)
class LayerUsage:
    """What one layer contributes to a tree; bytes are file sizes, hard links counted once."""

    layer: Digest | None
    entries: int = 0
    bytes: int = 0


@dataclass(slots=True, kw_only=True)
class TreeUsage:
    """What is below a path, the path itself included; bytes are file sizes, hard links once."""

    entries: int = 0
    files: int = 0
    directories: int = 0
    symlinks: int = 0
    others: int = 0
    bytes: int = 0
    layers: list[LayerUsage] = field(default_factory=list)


def list_entries(view: OpenView, path: bytes, recursive: bool) -> Iterator[EntryInfo]:
    """A directory's children, or the one entry that is no directory; all below with `recursive`.

    Directories come before what is in them; names are sorted by their bytes.

    Raises:
        NotFound: No such path: a name is missing, no directory, or a loop of symbolic links.
    """
    top = resolve(view.tree, path, follow_last=not recursive)
    shown = path if path.startswith(b"/") else b"/" + path
    if recursive or _attributes(view, top).type is not NodeType.DIRECTORY:
        yield _entry(view, shown, top)
    yield from _below(view, shown, top, recursive=recursive)


async def usage(view: OpenView, path: bytes) -> TreeUsage:
    """Sums up everything below a path, in a thread: views are immutable.

    Raises:
        NotFound: No such path.
    """
    return await trio.to_thread.run_sync(_sum_up, view, path)


def _sum_up(view: OpenView, path: bytes) -> TreeUsage:
    total = TreeUsage()
    per_layer = {store.digest: LayerUsage(layer=store.digest) for store in view.layers}
    counted: set[int] = set()
    for entry in list_entries(view, path, recursive=True):
        total.entries += 1
        layer = per_layer[entry.layer] if entry.layer else LayerUsage(layer=None)
        layer.entries += 1
        match entry.type:
            case NodeType.FILE:
                total.files += 1
            case NodeType.DIRECTORY:
                total.directories += 1
            case NodeType.SYMLINK:
                total.symlinks += 1
            case _:
                total.others += 1
        if entry.type is NodeType.FILE and entry.ino not in counted:
            if entry.nlink > 1:
                counted.add(entry.ino)
            total.bytes += entry.size
            layer.bytes += entry.size
    total.layers = list(per_layer.values())
    return total


async def iter_content(view: OpenView, path: bytes) -> AsyncIterator[bytes]:
    """A file's bytes, symbolic links followed inside the image.

    Raises:
        NotFound: No such path.
        InvalidArgument: Not a regular file.
    """
    node = resolve(view.tree, path)
    attributes = _attributes(view, node)
    if attributes.type is not NodeType.FILE:
        raise InvalidArgument(
            "not a regular file",
            hint="List a directory with: imgvol ls IMAGE PATH",
            path=path,
            type=attributes.type.name.lower(),
        )
    offset = 0
    while offset < attributes.size:
        data = await view.read(node, offset, READ_SIZE)
        yield bytes(data)
        offset += len(data)


def _below(view: OpenView, path: bytes, top: NodeID, *, recursive: bool) -> Iterator[EntryInfo]:
    """Everything below a directory, depth first, without recursion: images are deep at will."""
    if _attributes(view, top).type is not NodeType.DIRECTORY:
        return
    pending = deque([(path.rstrip(b"/"), iter(view.tree.list(top)))])
    while pending:
        prefix, children = pending[-1]
        for name, node in children:
            entry = _entry(view, prefix + b"/" + name, node)
            yield entry
            if recursive and entry.type is NodeType.DIRECTORY:
                pending.append((entry.path, iter(view.tree.list(node))))
                break
        else:
            pending.pop()


def _attributes(view: OpenView, node: NodeID) -> Attributes:
    return view.tree.attributes(node)


def _entry(view: OpenView, path: bytes, node: NodeID) -> EntryInfo:
    attributes = _attributes(view, node)
    is_link = attributes.type is NodeType.SYMLINK
    return EntryInfo(
        path=path,
        type=attributes.type,
        mode=attributes.mode & 0o7777,
        uid=attributes.uid,
        gid=attributes.gid,
        size=attributes.size,
        mtime_ns=attributes.mtime_ns,
        rdev=attributes.rdev,
        ino=attributes.ino,
        nlink=attributes.nlink,
        target=view.tree.symlink_target(node) if is_link else b"",
        layer=view.layers[node >> POSITION_SHIFT].digest if view.layers else None,
    )
