"""Tar members without a tar, and short forms for what tests do with indexes and views."""

from imgvol.layers.builder import IndexBuilder
from imgvol.layers.index import LayerIndex, NodeType
from imgvol.layers.tar import MemberType, TarMember
from imgvol.view.chain import ChainView, NodeID
from imgvol.view.paths import resolve


def file(name: bytes, size: int = 1, **fields) -> TarMember:
    return TarMember(name, MemberType.FILE, size=size, payload_size=size, **fields)


def directory(name: bytes, mode: int = 0o755, **fields) -> TarMember:
    return TarMember(name, MemberType.DIRECTORY, mode, **fields)


def symlink(name: bytes, target: bytes, **fields) -> TarMember:
    return TarMember(name, MemberType.SYMLINK, 0o777, linkname=target, **fields)


def hardlink(name: bytes, target: bytes, **fields) -> TarMember:
    return TarMember(name, MemberType.HARDLINK, linkname=target, **fields)


def fifo(name: bytes, **fields) -> TarMember:
    return TarMember(name, MemberType.FIFO, **fields)


def device(name: bytes, major: int, minor: int, kind=MemberType.CHAR, **fields) -> TarMember:
    return TarMember(name, kind, devmajor=major, devminor=minor, **fields)


def build(*members: TarMember) -> LayerIndex:
    builder = IndexBuilder()
    for member in members:
        builder.add(member)
    return LayerIndex(builder.finish())


def view_of(*layers: list[TarMember], **slots) -> ChainView:
    """The view of layers of members, the bottom one first."""
    return ChainView([build(*members) for members in layers], **slots)


def paths_of(view: ChainView) -> dict[bytes, NodeID]:
    """Every path of a view but the root's, directories with a slash at the end."""
    found: dict[bytes, NodeID] = {}
    pending = [(b"", view.root)]
    while pending:
        prefix, directory_node = pending.pop()
        for name, node in view.list(directory_node):
            path = prefix + name
            if view.is_directory(node):
                path += b"/"
                pending.append((path, node))
            found[path] = node
    return found


def names_of(view: ChainView) -> list[bytes]:
    """Every path of a view, sorted."""
    return sorted(paths_of(view))


def node_at(view: ChainView, path: bytes) -> NodeID:
    """The node at a path, a symbolic link at its end not followed."""
    return resolve(view, path, follow_last=False)


def kind_at(view: ChainView, path: bytes) -> NodeType:
    return view.attributes(node_at(view, path)).type
