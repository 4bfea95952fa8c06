"""Chains of layers as users see them, case by case.

Names of cases are those of containerd's, umoci's and containers/storage's own suites where the case
is theirs. Where unpackers disagree the outcome is that of an overlay mount.
"""

import os
import stat

import pytest

from imgvol import limits
from imgvol.errors import InvalidLayer, LimitExceeded, NotFound
from imgvol.layers.index import LayerIndex, NodeType
from imgvol.layers.tar import MemberType, TarMember
from imgvol.view import chain, merge
from imgvol.view.chain import ChainView
from imgvol.view.inodes import ChainInode, LayerInode, decode
from support.members import (
    build,
    device,
    directory,
    file,
    hardlink,
    kind_at,
    names_of,
    node_at,
    symlink,
    view_of,
)


def entries(text: str) -> list[TarMember]:
    """Members from names: a slash at the end makes a directory."""
    names = text.encode().split()
    return [directory(name) if name.endswith(b"/") else file(name) for name in names]


def shown(*layers: str) -> str:
    return b" ".join(names_of(view_of(*(entries(layer) for layer in layers)))).decode()


# --- what is there -----------------------------------------------------------------------------


def test_an_image_without_layers_is_an_empty_directory():
    view = ChainView([])
    assert list(view.list(view.root)) == []
    assert view.attributes(view.root).mode == stat.S_IFDIR | 0o755


BASE = ".baz bar/ bar/bax bar/bay/ baz foo/ foo/.abc foo/.bcd/ foo/.bcd/a foo/cde/ foo/cde/def "
BASE += "foo/cde/efg foo/fgh foobar"
LAYERS = [
    BASE,
    ".bay .wh.baz foo/ foo/.bce foo/.wh..wh..opq foo/cde/ foo/cde/efg",
    ".bay .wh..baz .wh.foobar foo/ foo/.abc foo/.wh.cde bar/",
    ".abc .wh..wh..opq foobar",
]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, BASE),
        (2, ".bay .baz bar/ bar/bax bar/bay/ foo/ foo/.bce foo/cde/ foo/cde/efg foobar"),
        (3, ".bay bar/ bar/bax bar/bay/ foo/ foo/.abc foo/.bce"),
        (4, ".abc foobar"),
    ],
)
def test_apply_layer_whiteouts(count, expected):
    assert shown(*LAYERS[:count]) == expected


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        # Collisions
        (["a/b", "a"], "a"),
        (["a", "a/b"], "a/ a/b"),
        (["a/x", "a", "a/y"], "a/ a/y"),
        (["a/x", "a/y"], "a/ a/x a/y"),
        # Whiteouts
        (["a b", ".wh.a"], "b"),
        (["a/b/c a/b/d", "a/b/.wh.c"], "a/ a/b/ a/b/d"),
        (["a/b/c", "a/.wh.b"], "a/"),
        (["a/b", ".wh.a", "a/c"], "a/ a/c"),
        (["a/b", ".wh.a a/c"], "a/ a/c"),
        (["a/b", "a/c .wh.a"], "a/ a/c"),
        (["a/b", ".wh.a a/c", "a/d"], "a/ a/c a/d"),
        (["a", ".wh.a", "a"], "a"),
        (["", ".wh.a"], ""),
        (["x", ".wh.a a"], "a x"),
        (["a/b", "a .wh.a"], "a"),
        (["etc/passwd etc/foo", "dne/../.wh.etc"], ""),
        (["etc/passwd", ".wh.etc/somefile"], ".wh.etc/ .wh.etc/somefile etc/ etc/passwd"),
        (["a/.b/.c", "a/.wh..b"], "a/"),
        # A whiteout hides its name alone
        (["a ab a.b", ".wh.a"], "a.b ab"),
        # Opaque marks
        (["a/b a/c/d", "a/.wh..wh..opq"], "a/"),
        (["a/b a/c/d", "a/c/x a/.wh..wh..opq"], "a/ a/c/ a/c/x"),
        (["a/b a/c/d", "a/.wh..wh..opq", "a/b"], "a/ a/b"),
        (["a/b/c/1 a/2", "a/b/.wh..wh..opq a/b/3", "a/b/4"], "a/ a/2 a/b/ a/b/3 a/b/4"),
        (["a/b", "a/.wh..wh..opq a/.wh.b a/c"], "a/ a/c"),
        (
            ["", "opaque-noparent/a/b/c/.wh..wh..opq"],
            "opaque-noparent/ opaque-noparent/a/ opaque-noparent/a/b/ opaque-noparent/a/b/c/",
        ),
        (
            ["", "whiteout-noparent/a/b/.wh.c"],
            "whiteout-noparent/ whiteout-noparent/a/ whiteout-noparent/a/b/",
        ),
        (["a", "a/.wh..wh..opq"], "a/"),
        (["a/b c", ".wh..wh..opq"], ""),
        (["a/b c", ".wh..wh..opq", "d"], "d"),
        (["a", ".wh..wh..opq b", ".wh..wh..opq c", "d"], "c d"),
        # umoci TestUnpackOpaqueWhiteout
        (["d/", "d/.wh..wh..opq"], "d/"),
        (["d/l d/u", "d/u d/.wh..wh..opq"], "d/ d/u"),
        (["d/l d/s/l d/s/u d/e/", "d/s/u d/.wh..wh..opq"], "d/ d/s/ d/s/u"),
        (["d/a/b/c/l", "d/a/b/u d/.wh..wh..opq"], "d/ d/a/ d/a/b/ d/a/b/u"),
        (["d/l d/w", "d/.wh.w d/.wh..wh..opq"], "d/"),
        (["d/s/l", "d/.wh.s d/s/u d/.wh..wh..opq"], "d/ d/s/ d/s/u"),
    ],
)
def test_layers_lie_over_each_other(layers, expected):
    assert shown(*layers) == expected


def test_whiteout_symlink():
    view = view_of([file(b"etc/passwd"), symlink(b"localetc", b"/etc")], [file(b".wh.localetc")])
    assert names_of(view) == [b"etc/", b"etc/passwd"]


def test_a_parent_that_is_a_symlink_below_is_replaced_by_a_directory():
    view = view_of([file(b"etc/x"), symlink(b"localetc", b"/etc")], [file(b"localetc/y")])
    assert names_of(view) == [b"etc/", b"etc/x", b"localetc/", b"localetc/y"]
    assert view.attributes(node_at(view, b"localetc")).mode == stat.S_IFDIR | 0o755


def test_whiteout_dead_symlink_parent():
    view = view_of([file(b"etc/x"), symlink(b"localetc", b"/dne")], [file(b"localetc/.wh.etc")])
    assert names_of(view) == [b"etc/", b"etc/x", b"localetc/"]


def test_directory_override_symlink():
    view = view_of(
        [file(b"etc/passwd"), symlink(b"localetc", b"/etc")],
        [directory(b"localetc"), hardlink(b"localetc/my", b"/etc/passwd")],
    )
    assert view.is_directory(node_at(view, b"localetc"))
    assert node_at(view, b"localetc/my") == node_at(view, b"etc/passwd")


def test_symlink_override_directory():
    view = view_of(
        [file(b"etc/passwd"), directory(b"localetc")],
        [symlink(b"localetc", b"/etc"), hardlink(b"/localetc/my", b"/etc/passwd")],
    )
    assert kind_at(view, b"localetc") is NodeType.SYMLINK
    assert node_at(view, b"etc/my") == node_at(view, b"etc/passwd")


def test_directory_override_symlink_and_hardlink():
    view = view_of(
        [
            file(b"etc/passwd"),
            symlink(b"localetc", b"etc"),
            hardlink(b"localetc/my", b"etc/passwd"),
        ],
        [directory(b"localetc"), file(b"localetc/my", 9)],
    )
    assert node_at(view, b"localetc/my") != node_at(view, b"etc/passwd")
    assert node_at(view, b"etc/my") == node_at(view, b"etc/passwd")


# --- directories' attributes -------------------------------------------------------------------


def mode_of(view: ChainView, path: bytes) -> int:
    return view.attributes(node_at(view, path)).mode & 0o7777


def test_the_topmost_description_of_a_directory_counts():
    user = ((b"user.a", b"1"),)
    view = view_of(
        [directory(b"a", 0o700, uid=1, mtime_ns=5)],
        [directory(b"a", 0o711, uid=2, mtime_ns=6, xattrs=user)],
        [file(b"a/x")],
        [file(b"a/.wh.x")],
    )
    node = node_at(view, b"a")
    attributes = view.attributes(node)
    assert (attributes.mode, attributes.uid, attributes.mtime_ns) == (stat.S_IFDIR | 0o711, 2, 6)
    assert (attributes.nlink, attributes.size, attributes.rdev) == (1, 0, 0)
    assert view.xattrs(node) == user
    assert node >> 32 == 3


def test_the_roots_attributes_are_the_topmost_that_are_given():
    assert mode_of(view_of([file(b"a")], [file(b"b")]), b"/") == 0o755
    assert mode_of(view_of([directory(b".", 0o700)], [file(b"b")]), b"/") == 0o700
    assert mode_of(view_of([directory(b".", 0o700)], [directory(b"/", 0o711)]), b"/") == 0o711


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        # An opaque mark empties a directory and does not describe it.
        ([[directory(b"a", 0o700)], [file(b"a/.wh..wh..opq")]], 0o700),
        ([[directory(b"a", 0o700)], [file(b"a/.wh..wh..opq")], [file(b"a/x")]], 0o700),
        ([[directory(b"a", 0o700)], [file(b"a/.wh..wh..opq")], [file(b"a/.wh..wh..opq")]], 0o700),
        ([[directory(b"a", 0o700)], [], [file(b"a/.wh..wh..opq"), directory(b"a", 0o1)]], 0o1),
        ([[directory(b"a", 0o700)], [file(b".wh.a")], [file(b"a/.wh..wh..opq")]], 0o755),
        ([[directory(b"a", 0o700)], [file(b"a")], [file(b"a/.wh..wh..opq")]], 0o755),
        # A whiteout removes it, description and all.
        ([[directory(b"a", 0o700)], [file(b".wh.a"), file(b"a/x")]], 0o755),
        ([[directory(b"a", 0o700)], [file(b".wh.a"), directory(b"a", 0o1)]], 0o1),
        ([[directory(b"a", 0o700)], [file(b".wh.a"), file(b"a/x")], [file(b"a/y")]], 0o755),
        # So does whatever hides it.
        ([[directory(b"a", 0o700)], [file(b"a")], [file(b"a/x")]], 0o755),
        ([[directory(b"a", 0o700)], [file(b".wh..wh..opq")], [file(b"a/x")]], 0o755),
    ],
)
def test_a_directory_without_description_looks_through(layers, expected):
    assert mode_of(view_of(*layers), b"a") == expected


def test_an_opaque_root_without_description_looks_through():
    view = view_of([directory(b".", 0o700), file(b"a")], [file(b".wh..wh..opq")], [file(b"b")])
    assert mode_of(view, b"/") == 0o700
    assert names_of(view) == [b"b"]


# --- identity ----------------------------------------------------------------------------------


def attributes_at(view: ChainView, path: bytes) -> chain.Attributes:
    return view.attributes(node_at(view, path))


def test_a_file_has_its_layers_inode_in_every_chain():
    base, other = build(file(b"a/f"), file(b"g")), build(file(b"a/h"))
    one = ChainView([base], chain_slot=1, layer_slots=[5])
    two = ChainView([base, other], chain_slot=2, layer_slots=[5, 6])
    assert attributes_at(one, b"a/f") == attributes_at(two, b"a/f")
    assert isinstance(decode(attributes_at(one, b"a/f").ino), LayerInode)
    assert decode(attributes_at(two, b"a/h").ino).layer_slot == 6
    for path in (b"a", b"/"):
        assert decode(attributes_at(one, path).ino).chain_slot == 1
        assert decode(attributes_at(two, path).ino) == ChainInode(2, node_at(two, path))


def test_no_inode_is_the_one_of_fuse_or_the_root():
    view = view_of([file(b"a"), directory(b"b")])
    assert min(view.inode(node_at(view, path)) for path in (b"/", b"a", b"b")) > 1


def test_a_hard_link_counts_its_visible_names():
    links = [
        file(b"a/1"),
        hardlink(b"a/2", b"a/1"),
        hardlink(b"b/3", b"a/1"),
        hardlink(b"4", b"a/1"),
    ]
    cases = {
        "": 4,
        ".wh.4": 3,
        "a/.wh.1": 3,
        "a/.wh..wh..opq": 2,
        ".wh.a": 2,
        "a": 2,
        "a b": 1,
        "a/2": 3,
        ".wh.nothing b/new": 4,
    }
    for upper, expected in cases.items():
        view = view_of(links, entries(upper), [], chain_slot=3)
        for path in (b"a/1", b"b/3", b"4"):
            try:
                attributes = attributes_at(view, path)
            except NotFound:
                continue
            if node_at(view, path) >> 32 == 0:
                assert attributes.nlink == expected, upper
                is_own = isinstance(decode(attributes.ino), ChainInode)
                assert is_own == (expected != 4), upper


def test_a_name_that_an_opaque_root_hides_is_not_counted():
    view = view_of(
        [file(b"a"), hardlink(b"b", b"a")],
        [file(b".wh..wh..opq"), hardlink(b"c", b"b")],
    )
    assert names_of(view) == [b"c"]
    assert attributes_at(view, b"c").nlink == 1


# --- foreign links -----------------------------------------------------------------------------


def test_a_foreign_link_is_the_lower_file():
    view = view_of(
        [file(b"a", 7, uid=3)],
        [file(b".wh.a"), hardlink(b"b", b"a"), hardlink(b"c", b"b")],
        [file(b"x")],
    )
    assert node_at(view, b"b") == node_at(view, b"c")
    attributes = attributes_at(view, b"b")
    assert (attributes.size, attributes.uid, attributes.nlink) == (7, 3, 2)
    assert view.content(node_at(view, b"b")) == (0, 1)
    assert isinstance(decode(attributes.ino), ChainInode)


def test_foreign_links_of_foreign_links_are_one_file():
    view = view_of([file(b"a")], [hardlink(b"b", b"a")], [hardlink(b"c", b"b")], [file(b".wh.b")])
    assert attributes_at(view, b"a") == attributes_at(view, b"c")
    assert attributes_at(view, b"c").nlink == 2


def test_a_foreign_link_is_followed_through_lower_symlinks():
    view = view_of(
        [file(b"etc/passwd"), symlink(b"localetc", b"/etc"), symlink(b"s", b"etc/passwd")],
        [hardlink(b"my", b"/localetc/passwd"), hardlink(b"t", b"s")],
    )
    assert node_at(view, b"my") == node_at(view, b"etc/passwd")
    assert kind_at(view, b"t") is NodeType.SYMLINK


def test_a_foreign_link_means_what_was_below_its_layer():
    view = view_of([file(b"a", 1)], [hardlink(b"b", b"a")], [file(b"a", 2)])
    attributes = attributes_at(view, b"b")
    assert (attributes.size, attributes.nlink) == (1, 1)
    # As many names as in its layer, but not the same ones.
    assert isinstance(decode(attributes.ino), ChainInode)


@pytest.mark.parametrize(
    "layers",
    [
        [[hardlink(b"b", b"a")]],
        [[file(b"a")], [file(b".wh.a")], [hardlink(b"b", b"a")]],
        [[directory(b"a")], [hardlink(b"b", b"a")]],
        [[file(b"a")], [hardlink(b"b", b"a/c")]],
        [[symlink(b"a", b"a")], [hardlink(b"b", b"a/c")]],
        [[file(b"x")], [hardlink(b"b", b"../../victim/hello")]],
        [[file(b"a")], [hardlink(b"b", b".wh.a"), file(b".wh.a")]],
        [[], [hardlink(b"b", b"a")], [file(b"a")]],
    ],
)
def test_a_foreign_link_to_nothing_is_refused_when_the_chain_is_opened(layers):
    with pytest.raises(InvalidLayer, match="hard link") as caught:
        view_of(*layers)
    assert caught.value.fields.keys() == {"target", "position"}


def test_foreign_links_in_every_layer_are_resolved_in_a_row():
    layers = [[file(b"0")]] + [[hardlink(b"%d" % (i + 1), b"%d" % i)] for i in range(60)]
    view = view_of(*layers)
    assert attributes_at(view, b"60").nlink == 61


# --- listings and lookups ----------------------------------------------------------------------


def test_listings_are_sorted_by_bytes_and_can_be_read_from_any_place():
    names = [b"\xff", b"b", b"a b", b"a.b", b"ab", b"a"]
    for layers in ([names], [names[:3], names[3:]], [names, [b".wh.zz"]]):
        view = view_of(*([file(name) for name in layer] for layer in layers))
        listing = view.list(view.root)
        assert [name for name, _ in listing] == sorted(names)
        assert [listing[place] for place in range(len(listing))] == list(listing)
        assert list(view.list(view.root)) == list(listing)
        with pytest.raises(IndexError):
            listing[len(names)]


def test_whiteouts_are_not_listed_even_where_nothing_is_below():
    view = view_of([file(b"a/.wh.x"), file(b"a/y")])
    assert names_of(view) == [b"a/", b"a/y"]


def test_names_that_are_no_names_are_not_found():
    view = view_of([file(b"a"), file(b".wh.b"), file(b".wh..wh.plnk/c")])
    for name in (b"", b".", b"..", b".wh.b", b"b", b".wh..wh.plnk", b"a" * 5000, b"a/"):
        assert view.lookup(view.root, name) is None


@pytest.mark.parametrize("node", [1 << 32, 255 << 32 | 5, 2, 99])
def test_what_is_no_directory_of_the_view_is_refused(node):
    view = view_of([file(b"a/f"), file(b"g")])
    for ask in (lambda: view.lookup(node, b"x"), lambda: view.list(node)):
        with pytest.raises(NotFound):
            ask()


def test_a_hidden_directory_is_refused():
    lower = [file(b"a/b/f")]
    node = node_at(view_of(lower), b"a/b")
    view = view_of(lower, [file(b"a")])
    with pytest.raises(NotFound):
        view.list(node)


def test_what_is_remembered_is_bounded_and_changes_nothing(monkeypatch):
    layers = [[file(b"d%d/e/f" % i), file(b"d%d/.wh.g" % i)] for i in range(20)]
    expected = names_of(view_of(*layers, *layers))
    monkeypatch.setattr(merge, "_REMEMBERED_STACKS", 3)
    monkeypatch.setattr(chain, "_KEPT_LISTINGS", 2)
    monkeypatch.setattr(chain, "_KEPT_NAMES", 5)
    view = view_of(*layers, *layers)
    assert names_of(view) == expected
    assert names_of(view) == expected
    assert len(view._stacks) <= 5
    assert len(view._listings) <= 2


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_the_root_is_known_without_the_layers(count):
    layers = [entries(f"a{number}") for number in range(count)]
    assert view_of(*layers).root == chain.root_of(count)


def test_parents_lead_back_to_the_root():
    view = view_of([file(b"a/b/c/f")], [file(b"a/g")], [directory(b"a/b/x")])
    for path, parent in ((b"a/b/c", b"a/b"), (b"a/b", b"a"), (b"a", b"/"), (b"/", b"/")):
        assert view.parent(node_at(view, path)) == node_at(view, parent)


def test_the_deepest_path_is_walked_without_recursion():
    view = view_of([file(b"a/" * 2047 + b"f")], [file(b"a/" * 2047 + b"g")])
    node = view.root
    for _ in range(2047):
        node = view.lookup(node, b"a")
    fresh = ChainView(view.layers)
    assert [name for name, _ in fresh.list(node)] == [b"f", b"g"]
    assert fresh.attributes(node).mode == stat.S_IFDIR | 0o755


# --- the rest ----------------------------------------------------------------------------------


def test_attributes_are_what_stat_says():
    view = view_of(
        [
            device(b"null", 1, 3, mode=0o666),
            symlink(b"s", b"target", uid=2),
            file(b"f", mode=0o4755),
        ],
        [device(b"sda", 8, 1, MemberType.BLOCK)],
    )
    assert attributes_at(view, b"null")[2:] == (
        stat.S_IFCHR | 0o666,
        1,
        0,
        0,
        0,
        0,
        os.makedev(1, 3),
    )
    assert attributes_at(view, b"s")[2:] == (stat.S_IFLNK | 0o777, 1, 2, 0, 6, 0, 0)
    assert attributes_at(view, b"f").mode == stat.S_IFREG | 0o4755
    assert attributes_at(view, b"sda").rdev == os.makedev(8, 1)
    assert view.symlink_target(node_at(view, b"s")) == b"target"


def test_there_may_be_as_many_layers_as_the_limit_says():
    layer = LayerIndex(build(file(b"a"))._data)
    assert names_of(ChainView([layer] * limits.LAYERS)) == [b"a"]
    with pytest.raises(LimitExceeded):
        ChainView([layer] * (limits.LAYERS + 1))


def test_128_layers_show_all_their_files():
    view = view_of(*([file(b"f%03d" % i), file(b"common/%03d" % i)] for i in range(128)))
    assert len(view.list(view.root)) == 129
    assert len(view.list(node_at(view, b"common"))) == 128
