"""What a LayerIndex answers about the entries of one layer."""

import pytest

from imgvol.layers.index import ROOT, WHITEOUT, Extent, LayerIndex, NodeRecord, NodeType
from imgvol.layers.tar import MemberType
from support.members import build, device, directory, fifo, file, hardlink, symlink

MIB = 1 << 20


def at(index: LayerIndex, path: bytes) -> int:
    node = ROOT
    for name in path.split(b"/"):
        node = index.child(node, name)
        assert node, path
    return node


def test_the_index_of_nothing_is_a_root():
    index = build()
    assert (index.node_count, index.entry_count, index.whiteout_count) == (1, 0, 0)
    assert index.record(ROOT) == NodeRecord(
        NodeType.DIRECTORY, 0o755, 1, 0, 0, 0, 0, 0, 0, is_implicit=True, is_opaque=False
    )
    assert index.parent(ROOT) == ROOT
    assert index.path_of(ROOT) == b"/"
    assert list(index.iter_children(ROOT)) == []


def test_records_hold_what_the_member_says():
    fields = {"uid": 2**32 - 2, "gid": 7, "mtime_ns": 2**63 - 1}
    index = build(
        file(b"file", 12, mode=0o4755, **fields),
        symlink(b"symlink", b"\xff target", **fields),
        device(b"char", 4095, 2**20 - 1, **fields),
        device(b"block", 8, 1, MemberType.BLOCK, **fields),
        fifo(b"fifo", mode=0o600, **fields),
        directory(b"dir", 0o1777, **fields),
    )
    expected = {
        b"file": (NodeType.FILE, 0o4755, 12, 0, 0),
        b"symlink": (NodeType.SYMLINK, 0o777, 8, 0, 0),
        b"char": (NodeType.CHAR, 0o644, 0, 4095, 2**20 - 1),
        b"block": (NodeType.BLOCK, 0o644, 0, 8, 1),
        b"fifo": (NodeType.FIFO, 0o600, 0, 0, 0),
        b"dir": (NodeType.DIRECTORY, 0o1777, 0, 0, 0),
    }
    for name, (kind, mode, size, major, minor) in expected.items():
        assert index.record(at(index, name)) == NodeRecord(
            kind, mode, 1, 2**32 - 2, 7, size, 2**63 - 1, major, minor, False, False
        )
    assert index.symlink_target(at(index, b"symlink")) == b"\xff target"
    assert index.is_symlink(at(index, b"symlink"))
    assert not index.is_symlink(at(index, b"dir"))
    assert index.file_bytes == 12


def test_children_are_sorted_by_bytes_and_found_by_name():
    names = [b"", b"\xff", b"a", b"a b", b"a.b", b"ab", b"Z", b"\xc3\xa4", b"\n", b"b"][1:]
    index = build(*(file(name) for name in names), file(b".wh.c"))
    assert [name for name, _ in index.iter_children(ROOT)] == sorted([*names, b"c"])
    for name, node in index.iter_children(ROOT):
        assert index.child(ROOT, name) == node
    assert index.child(ROOT, b"c") == WHITEOUT
    assert [index.child(ROOT, name) for name in (b"", b"A", b"a a", b"\xff\xff")] == [None] * 4
    assert (index.entry_count, index.whiteout_count) == (len(names), 1)


def test_directories_know_their_place():
    index = build(file(b"a/b/c/x"), directory(b"a/z"), directory(b"b"))
    node = at(index, b"a/b/c")
    assert index.path_of(node) == b"/a/b/c"
    assert index.name_of(node) == b"c"
    assert index.parent(node) == at(index, b"a/b")
    assert index.is_directory(node)
    assert not index.is_directory(at(index, b"a/b/c/x"))


def test_names_of_a_file_are_told_with_their_directories():
    index = build(
        directory(b"0-empty"),
        directory(b"a"),
        directory(b"a/empty"),
        file(b"a/one"),
        directory(b"b"),
        hardlink(b"b/two", b"a/one"),
        hardlink(b"three", b"b/two"),
        file(b"b/single"),
        directory(b"c-empty"),
    )
    node = at(index, b"a/one")
    assert node == at(index, b"b/two") == at(index, b"three")
    assert index.record(node).nlink == 3
    names = {index.path_of(parent) + b"|" + name for parent, name in index.hardlink_names(node)}
    assert names == {b"/a|one", b"/b|two", b"/|three"}
    assert index.hardlink_names(at(index, b"b/single")) == ((at(index, b"b"), b"single"),)


def test_xattrs_come_back_exactly_and_sorted():
    values = ((b"user.z", b""), (b"security.capability", b"\0=\n\xff" * 5), (b"user.a", b"x"))
    index = build(file(b"a", xattrs=values), directory(b"b", xattrs=values[:1]), file(b"c"))
    assert index.xattrs(at(index, b"a")) == tuple(sorted(values))
    assert index.xattrs(at(index, b"b")) == values[:1]
    assert index.xattrs(at(index, b"c")) == ()
    assert index.xattrs(ROOT) == ()


def test_small_content_is_in_the_data_file():
    index = build(file(b"a", 5, payload_offset=512), file(b"empty", 0, payload_offset=1536))
    assert index.extents(at(index, b"a")) == (Extent(0, 5, 512),)
    assert index.own_file(at(index, b"a")) is None
    assert index.extents(at(index, b"empty")) == ()


def test_large_content_is_in_an_own_file():
    index = build(file(b"a", MIB, payload_offset=512), file(b"b", MIB + 1, payload_offset=1024))
    assert index.own_file(at(index, b"a")) == 0
    assert index.extents(at(index, b"b")) == (Extent(0, MIB + 1, 0),)
    assert index.own_file(at(index, b"b")) == 1


@pytest.mark.parametrize(("size", "own_file", "base"), [(5000, None, 512), (MIB, 0, 0)])
def test_pieces_of_a_sparse_file_lie_one_after_another(size, own_file, base):
    pieces = ((100, 10), (200, 5), (4000, 1), (size, 0))
    index = build(file(b"a", size, payload_offset=512, sparse=pieces), file(b"b", size, sparse=()))
    node = at(index, b"a")
    assert index.extents(node) == (
        Extent(100, 10, base),
        Extent(200, 5, base + 10),
        Extent(4000, 1, base + 15),
    )
    assert index.own_file(node) == own_file
    assert index.record(node).size == size
    assert index.extents(at(index, b"b")) == ()


def test_files_of_several_names_are_summed_once():
    index = build(file(b"a", 10), hardlink(b"b", b"a"), file(b"c", 5), file(b"c", 7))
    assert index.file_bytes == 17
