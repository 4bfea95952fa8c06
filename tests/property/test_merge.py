"""The merged view against a model that applies the changeset rules to dictionaries."""

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imgvol.errors import InvalidLayer
from imgvol.layers.index import LayerIndex, NodeType
from imgvol.layers.tar import MemberType
from imgvol.view.chain import ChainView, layer_attributes
from imgvol.view.inodes import LayerInode, decode
from imgvol.view.paths import resolve
from support import model
from support.members import build, file, hardlink, symlink


def shown(view: ChainView) -> dict[model.Path, tuple]:
    """Everything that a view says about each path but its inode number."""
    found = {}
    pending = [((), view.root)]
    while pending:
        path, node = pending.pop()
        found[path] = describe(view, node)
        if view.is_directory(node):
            listing = view.list(node)
            assert [name for name, _ in listing] == sorted({name for name, _ in listing})
            pending += [((*path, name), child) for name, child in listing]
    return found


def describe(view: ChainView, node: int) -> tuple:
    attributes = view.attributes(node)
    is_file = attributes.type is NodeType.FILE
    is_link = attributes.type is NodeType.SYMLINK
    position, number = view.content(node)
    return (
        attributes.type.name,
        attributes.mode & 0o7777,
        attributes.uid,
        attributes.gid,
        attributes.size,
        attributes.mtime_ns,
        attributes.rdev,
        attributes.nlink,
        view.symlink_target(node) if is_link else b"",
        view.layers[position].extents(number)[0].position if is_file else None,
        view.xattrs(node),
    )


def expected(merged: dict[model.Path, model.Thing]) -> dict[model.Path, tuple]:
    names = list(merged.values())
    return {path: describe_thing(thing, names) for path, thing in merged.items()}


def describe_thing(thing: model.Thing, names: list[model.Thing]) -> tuple:
    member = thing.member
    is_link = member.type is MemberType.SYMLINK
    return (
        member.type.name,
        0o777 if is_link else member.mode,
        member.uid,
        member.gid,
        len(member.linkname) if is_link else member.size,
        member.mtime_ns,
        member.devmajor << 8 | member.devminor,
        1 if thing.is_directory else sum(other is thing for other in names),
        member.linkname if is_link else b"",
        member.payload_offset if member.type is MemberType.FILE else None,
        member.xattrs,
    )


@pytest.mark.fault("F78")
@given(model.stacks())
def test_a_view_is_what_the_changeset_rules_say(stack):
    view = ChainView([build(*members) for members in stack])
    merged = model.merge([model.read_layer(members) for members in stack])
    assert shown(view) == expected(merged)


@given(model.stacks())
def test_names_share_an_inode_exactly_if_they_are_one_file(stack):
    view = ChainView([build(*members) for members in stack], chain_slot=9)
    merged = model.merge([model.read_layer(members) for members in stack])
    inodes = {path: view.attributes(node_at(view, path)).ino for path in merged}
    assert len(set(inodes.values())) == len({id(thing) for thing in merged.values()})
    for path, thing in merged.items():
        assert all(inodes[path] == inodes[p] for p, other in merged.items() if other is thing)


@given(model.stacks(), st.randoms(use_true_random=False))
def test_nodes_are_understood_by_a_view_that_has_never_seen_them(stack, rng: random.Random):
    layers = [build(*members) for members in stack]
    view = ChainView(layers)
    nodes = {path: node_at(view, path) for path in shown(view)}
    order = list(nodes.items())
    rng.shuffle(order)
    fresh = ChainView(layers)
    for path, node in order:
        assert fresh.attributes(node) == view.attributes(node)
        assert describe(fresh, node) == describe(view, node)
        if view.is_directory(node):
            assert fresh.parent(node) == nodes[path[:-1]]
            assert list(ChainView(layers).list(node)) == list(view.list(node))


@given(model.stacks())
def test_lookup_finds_what_is_listed_and_nothing_else(stack):
    view = ChainView([build(*members) for members in stack])
    for path in shown(view):
        node = node_at(view, path)
        if view.is_directory(node):
            listed = dict(view.list(node))
            for name in [*model.NAMES, b"", b"aa", b"z", b".wh.a", b".wh..wh..opq"]:
                assert view.lookup(node, name) == listed.get(name)


@given(model.stacks())
def test_an_inode_of_a_layer_has_its_attributes_without_the_chain(stack):
    view = ChainView([build(*members) for members in stack], layer_slots=range(7, 7 + len(stack)))
    for path in shown(view):
        attributes = view.attributes(node_at(view, path))
        assert attributes.ino == view.inode(node_at(view, path))
        inode = decode(attributes.ino)
        if isinstance(inode, LayerInode):
            layer = view.layers[inode.layer_slot - 7]
            assert layer_attributes(layer, inode.node, attributes.ino) == attributes
        else:
            assert inode.node == node_at(view, path)


@given(st.lists(st.lists(model.members(), max_size=6), max_size=3))
@example([[file(b"a")], [hardlink(b"b", b"c/../a")]])
@example([[symlink(b"a", b"a")], [hardlink(b"b", b"a/x")]])
def test_what_makes_no_sense_is_refused(stack):
    stack = [
        [m._replace(payload_offset=512 * (i * 10 + j)) for j, m in enumerate(members)]
        for i, members in enumerate(stack)
    ]
    try:
        merged = model.merge([model.read_layer(members) for members in stack])
    except model.Broken:
        merged = None
    try:
        view = ChainView([build(*members) for members in stack])
    except InvalidLayer:
        view = None
    assert (view and shown(view)) == (merged and expected(merged))


@given(model.stacks(max_layers=2))
def test_the_same_members_make_the_same_file(stack):
    for members in stack:
        first, second = build(*members), build(*members)
        assert first._data == second._data
        assert LayerIndex(first._data).entry_count == first.entry_count


def node_at(view: ChainView, path: model.Path) -> int:
    return resolve(view, b"/".join(path), follow_last=False)
