"""The merged view against the kernel's overlayfs, over random layers that are really unpacked."""

import os
import shutil

import pytest
from hypothesis import given, settings

from imgvol.layers.index import NodeType
from imgvol.layers.tar import MemberType, TarMember
from imgvol.view.chain import ChainView
from support import model
from support.members import build, directory, file, hardlink, symlink
from support.overlay import Overlay

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting overlayfs needs root"),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare of util-linux"),
]


@pytest.fixture(scope="module")
def overlay(tmp_path_factory):
    program = Overlay(tmp_path_factory.mktemp("overlay"))
    yield program
    program.close()


@pytest.mark.fault("F78")
@settings(max_examples=50, deadline=None)
@given(stack=model.stacks())
def test_a_view_is_what_overlayfs_shows(overlay, stack):
    compare(overlay, stack)


STACKS = {
    "a directory over one that a whiteout hides": [
        [directory(b"a"), file(b"a/x", 8), file(b"a/y", 8)],
        [file(b"a/.wh.x"), file(b"a/z", 8)],
        [file(b".wh.a"), directory(b"a", 0o700), file(b"a/new", 8)],
        [directory(b"a", 0o711), file(b"a/top", 8)],
    ],
    "a file between two directories": [
        [file(b"a/b/low", 8)],
        [file(b"a", 8)],
        [file(b"a/b/high", 8)],
    ],
    "an opaque mark below one": [
        [file(b"a/b/c/1", 8), file(b"a/2", 8)],
        [file(b"a/b/.wh..wh..opq"), file(b"a/b/3", 8)],
        [file(b"a/.wh..wh..opq"), file(b"a/b/4", 8)],
    ],
    "an opaque root": [
        [file(b"a/1", 8), file(b"2", 8)],
        [file(b".wh..wh..opq"), file(b"a/3", 8)],
        [file(b".wh.nothing"), file(b"a/4", 8)],
    ],
    "a directory in the place of a symbolic link": [
        [directory(b"etc"), file(b"etc/x", 8), symlink(b"link", b"etc")],
        [file(b"link/y", 8)],
    ],
    "hard links within a layer and across": [
        [file(b"a", 8, uid=7), hardlink(b"b", b"a"), symlink(b"s", b"a"), hardlink(b"t", b"s")],
        [file(b".wh.a"), hardlink(b"c", b"b"), hardlink(b"d", b"c")],
    ],
    "whiteouts of nothing": [
        [file(b".wh.a"), directory(b"b"), file(b"b/.wh.c"), file(b"d/.wh..wh..opq")],
        [file(b"e/.wh.f"), file(b"b/.wh.g")],
    ],
}


@pytest.mark.parametrize("name", STACKS)
def test_known_difficulties_look_as_in_overlayfs(overlay, name):
    numbered = iter(range(512, 1 << 20, 512))
    compare(overlay, [[m._replace(payload_offset=next(numbered)) for m in s] for s in STACKS[name]])


def compare(overlay: Overlay, stack: list[list[TarMember]]) -> None:
    view = ChainView([build(*members) for members in stack])
    assert shown(view) == overlay.merge(unpacked(stack))


def shown(view: ChainView) -> dict[str, list]:
    found = {}
    pending = [(b"", view.root)]
    while pending:
        path, node = pending.pop()
        found[path.decode("latin-1")] = describe(view, node)
        if view.is_directory(node):
            prefix = path + b"/" if path else b""
            pending += [(prefix + name, child) for name, child in view.list(node)]
    return found


def describe(view: ChainView, node: int) -> list:
    attributes = view.attributes(node)
    content = ""
    if attributes.type is NodeType.FILE:
        position, number = view.content(node)
        (extent,) = view.layers[position].extents(number)
        content = content_of(extent.position, extent.size)
    is_link = attributes.type is NodeType.SYMLINK
    return [
        attributes.type.name,
        attributes.mode & 0o7777,
        attributes.uid,
        attributes.gid,
        attributes.size,
        attributes.mtime_ns,
        view.symlink_target(node).decode("latin-1") if is_link else "",
        [os.major(attributes.rdev), os.minor(attributes.rdev)],
        content,
    ]


def content_of(position: int, size: int) -> str:
    """What a file holds: where its content would be in the layer."""
    return f"{position:0{size}}"


def unpacked(stack: list[list[TarMember]]) -> list[list[dict]]:
    """What a snapshotter's directories hold after each layer has been unpacked into its own."""
    merged = model.merge([])
    layers = []
    for members in stack:
        layer = model.read_layer(members)
        merged = model.apply_layer(merged, layer)
        if () in layer.opaques:
            # Overlayfs takes no opaque root. Nothing below it is to be seen, so it is the bottom.
            layers.clear()
        layers.append(entries_of(layer, merged))
    return layers


def entries_of(layer: model.Layer, merged: dict[model.Path, model.Thing]) -> list[dict]:
    entries = []
    first_names: dict[int, str] = {}
    # A directory that no member describes is made with the attributes that it has below.
    things = {(): merged[()]} | {path: merged[path] for path in layer.things}
    for path, thing in sorted(things.items()):
        entry = entry_of("/".join(name.decode() for name in path), thing.member)
        if not thing.is_directory and layer.things[path].foreign is None:
            known = first_names.setdefault(id(thing), entry["path"])
            if known != entry["path"]:
                entry["link"] = known
        entry["opaque"] = path != () and (path in layer.opaques or path in layer.whiteouts)
        entries.append(entry)
    for path in layer.whiteouts - layer.things.keys():
        parent = path[:-1]
        assert parent in things
        entries.append({"path": "/".join(name.decode() for name in path), "type": "WHITEOUT"})
    return entries


def entry_of(path: str, member: TarMember) -> dict:
    return {
        "path": path,
        "type": member.type.name,
        "mode": 0o777 if member.type is MemberType.SYMLINK else member.mode,
        "uid": member.uid,
        "gid": member.gid,
        "mtime_ns": member.mtime_ns,
        "target": member.linkname.decode(),
        "major": member.devmajor,
        "minor": member.devminor,
        "content": content_of(member.payload_offset, member.size),
    }
