"""What an index holds after members that are hostile, doubled, out of order or merely odd.

Names of cases are those of containerd's, umoci's and containers/storage's own suites where the case
is theirs.
"""

import pytest

from imgvol import limits
from imgvol.errors import InvalidLayer, LimitExceeded
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.index import ROOT, LayerIndex
from imgvol.layers.tar import MemberType, TarMember
from support.members import build, device, directory, file, hardlink, symlink, view_of
from support.members import names_of as view_names

MIB = 1 << 20


def names_of(*members: TarMember) -> list[bytes]:
    return view_names(view_of(list(members)))


def tree_of(index: LayerIndex, directory_node: int = ROOT, prefix: bytes = b"") -> dict[bytes, int]:
    """Every name of a layer itself, whiteouts included."""
    found = {}
    for name, node in index.iter_children(directory_node):
        found[prefix + name] = node
        if node and index.is_directory(node):
            found |= tree_of(index, node, prefix + name + b"/")
    return found


# --- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        b"a/f",
        b"/a/f",
        b"./a/f",
        b"a//f",
        b"a/./f",
        b"../a/f",
        b"/../../a/f",
        b"x/../a/f",
        b"a/b/../f",
        b"a/f/",
        b"a/f/.",
        b"a/f/x/..",
        b"//a/././f//",
    ],
)
def test_names_are_cleaned_and_cannot_leave(name):
    assert names_of(file(name)) == [b"a/", b"a/f"]


def test_missing_parents_are_implicit():
    index = build(file(b"a/b/c/file"))
    tree = tree_of(index)
    assert sorted(tree) == [b"a", b"a/b", b"a/b/c", b"a/b/c/file"]
    record = index.record(tree[b"a/b"])
    assert record.is_implicit
    assert (record.mode, record.uid, record.gid, record.mtime_ns) == (0o755, 0, 0, 0)


def test_a_member_makes_an_implicit_directory_explicit_whenever_it_comes():
    index = build(file(b"a/f"), directory(b"a", 0o700, uid=3))
    record = index.record(tree_of(index)[b"a"])
    assert (record.mode, record.uid, record.is_implicit) == (0o700, 3, False)


@pytest.mark.parametrize("target", [b"/", b"/../", b"/../" * 16, b"/./.././../", b"..", b"../.."])
def test_a_symlink_to_the_root_stays_inside(target):
    assert names_of(symlink(b"link", target), file(b"link/f")) == [b"f", b"link"]


@pytest.mark.parametrize(
    ("before", "path"),
    [
        ([symlink(b"localetc", b"/etc")], b"/localetc/unbroken"),
        ([directory(b"dummy"), symlink(b"localetc", b"/dummy/../etc")], b"/localetc/unbroken"),
        (
            [symlink(b"dummy/etc", b"/etc"), symlink(b"localetc", b"/dummy/etc")],
            b"localetc/unbroken",
        ),
        (
            [symlink(b"dummy/etc", b"/etc"), symlink(b"localetc", b"./dummy/etc")],
            b"localetc/unbroken",
        ),
        ([symlink(b"dummy/etc", b"/etc")], b"/dummy/etc/unbroken"),
        ([symlink(b"localetc", b"/missing/../etc")], b"localetc/unbroken"),
    ],
)
def test_parents_are_followed_through_symlinks_of_the_layer(before, path):
    tree = tree_of(build(directory(b"etc"), *before, file(path)))
    assert b"etc/unbroken" in tree
    assert b"missing" not in tree


def test_symlink_empty_file():
    index = build(
        file(b"etc/emptied", 8), symlink(b"localetc", b"/etc"), file(b"/localetc/emptied", 0)
    )
    assert index.record(tree_of(index)[b"etc/emptied"]).size == 0


def test_a_dangling_symlink_leads_to_an_implicit_directory():
    assert names_of(symlink(b"a/link", b"../x/y"), file(b"a/link/f")) == [
        b"a/",
        b"a/link",
        b"x/",
        b"x/y/",
        b"x/y/f",
    ]


@pytest.mark.parametrize("links", [{b"a": b"a"}, {b"a": b"b", b"b": b"/a"}, {b"a": b"a/x"}])
def test_a_loop_of_symlinks_is_refused_as_a_parent(links):
    members = [symlink(name, target) for name, target in links.items()]
    with pytest.raises(InvalidLayer, match="too many symbolic links"):
        build(*members, file(b"a/f"))


def test_forty_symlinks_are_followed_and_no_more():
    links = [symlink(b"%d" % i, b"%d" % (i + 1)) for i in range(41)]
    assert b"41/" in names_of(*links, file(b"1/f"))
    with pytest.raises(InvalidLayer):
        build(*links, file(b"0/f"))


def test_unpack_entry_non_dir_parent():
    members = [file(b"nondir"), file(b"nondir/foo/bar/baz")]
    assert names_of(*members) == [
        b"nondir/",
        b"nondir/foo/",
        b"nondir/foo/bar/",
        b"nondir/foo/bar/baz",
    ]


def test_a_remembered_parent_is_forgotten_with_its_directory():
    members = [file(b"a/b/f"), file(b"a"), file(b"a/b/g")]
    assert names_of(*members) == [b"a/", b"a/b/", b"a/b/g"]


def test_a_remembered_parent_is_forgotten_with_its_symlink():
    members = [symlink(b"a", b"b"), file(b"a/f"), symlink(b"a", b"c"), file(b"a/f")]
    assert names_of(*members) == [b"a", b"b/", b"b/f", b"c/", b"c/f"]


# --- duplicates --------------------------------------------------------------------------------


def test_the_last_entry_of_a_name_wins():
    index = build(file(b"a", 1), file(b"a", 2, uid=5))
    record = index.record(tree_of(index)[b"a"])
    assert (record.size, record.uid, record.nlink) == (2, 5, 1)
    assert index.node_count == 2


def test_a_directory_over_a_directory_keeps_the_children():
    index = build(directory(b"a", 0o700), file(b"a/f"), directory(b"a", 0o711))
    tree = tree_of(index)
    assert index.record(tree[b"a"]).mode == 0o711
    assert b"a/f" in tree


@pytest.mark.parametrize("over", [file(b"a"), symlink(b"a", b"x"), device(b"a", 1, 3)])
def test_anything_else_over_a_directory_drops_the_children(over):
    assert names_of(file(b"a/b/c"), over) == [b"a"]
    assert names_of(file(b"a/b/c"), over, directory(b"a")) == [b"a/"]


def test_a_directory_replaces_a_symlink_and_does_not_follow_it():
    assert names_of(symlink(b"a", b"b"), directory(b"b"), directory(b"a"), file(b"a/f")) == [
        b"a/",
        b"a/f",
        b"b/",
    ]


def test_symlink_override_path():
    members = [
        directory(b"foo"),
        directory(b"foo/tmp"),
        file(b"foo/tmp/x"),
        symlink(b"foo", b"/"),
        file(b"foo/tmp/x"),
        directory(b"foo"),
        directory(b"foo/tmp"),
    ]
    assert names_of(*members) == [b"foo/", b"foo/tmp/", b"tmp/", b"tmp/x"]


# --- the root ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"", b".", b"./", b"/", b"/..", b"..", b"a/.."])
def test_a_directory_that_is_the_root_sets_its_attributes(name):
    record = build(directory(name, 0o700, uid=4, mtime_ns=9)).record(ROOT)
    assert (record.mode, record.uid, record.mtime_ns, record.is_implicit) == (0o700, 4, 9, False)


@pytest.mark.parametrize("kind", [k for k in MemberType if k is not MemberType.DIRECTORY])
@pytest.mark.parametrize("name", [b".", b"..", b"", b"/", b"x/.."])
def test_nothing_else_takes_the_place_of_the_root(kind, name):
    index = build(TarMember(name, kind, linkname=b"/etc"), file(b"f"))
    assert index.record(ROOT).is_implicit
    assert list(tree_of(index)) == [b"f"]


def test_symlink_parent_directory():
    members = [file(b"etc/passwd"), symlink(b"..", b"/etc/"), hardlink(b"local", b"/etc/passwd")]
    assert names_of(*members) == [b"etc/", b"etc/passwd", b"local"]


# --- whiteouts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [b".wh.", b".wh..", b".wh...", b"etc/.wh.", b"etc/.wh..", b"etc/.wh..."]
)
@pytest.mark.parametrize("kind", [MemberType.FILE, MemberType.DIRECTORY, MemberType.HARDLINK])
def test_a_whiteout_of_no_name_is_refused(name, kind):
    with pytest.raises(InvalidLayer, match="whiteout of no name") as caught:
        build(TarMember(name, kind, payload_offset=7))
    assert caught.value.fields == {"path": name, "offset": 7}


@pytest.mark.parametrize(
    "member",
    [
        file(b"d/.wh.x"),
        file(b"d/.wh.x", 5 * MIB),
        directory(b"d/.wh.x/"),
        symlink(b"d/.wh.x", b"y"),
        hardlink(b"d/.wh.x", b"nothing"),
        file(b"d/y/../.wh.x"),
        device(b"d/.wh.x", 0, 0),
    ],
)
def test_anything_of_that_name_is_a_whiteout(member):
    index = build(member)
    assert tree_of(index) == {b"d": 1, b"d/x": 0}
    assert index.has_whiteouts(1)
    assert not index.has_whiteouts(ROOT)


@pytest.mark.parametrize("swap", [False, True])
def test_a_whiteout_beside_a_file_says_nothing(swap):
    members = [file(b".wh.a"), file(b"a")]
    index = build(*(members[::-1] if swap else members))
    assert index.whiteout_count == 0
    assert tree_of(index)[b"a"]


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2], [2, 1, 0], [1, 2, 0]])
def test_a_whiteout_beside_a_directory_makes_it_opaque(order):
    members = [file(b".wh.a"), directory(b"a"), file(b"a/f")]
    index = build(*(members[i] for i in order))
    tree = tree_of(index)
    assert sorted(tree) == [b"a", b"a/f"]
    assert index.is_opaque(tree[b"a"])
    assert index.whiteout_count == 0


def test_a_directory_that_a_whiteout_replaces_has_nothing_to_inherit():
    index = build(file(b".wh.a"), file(b"a/f"))
    assert not index.is_implicit(tree_of(index)[b"a"])


def test_an_opaque_mark_makes_its_directory():
    index = build(file(b"a/b/.wh..wh..opq"))
    tree = tree_of(index)
    assert sorted(tree) == [b"a", b"a/b"]
    assert index.is_opaque(tree[b"a/b"])
    assert index.is_implicit(tree[b"a/b"])
    assert not index.is_opaque(tree[b"a"])
    assert build(file(b".wh..wh..opq")).is_opaque(ROOT)


def test_a_dropped_directory_takes_its_marks_along():
    index = build(file(b"a/.wh..wh..opq"), file(b"a/.wh.x"), file(b"a"), directory(b"a"))
    assert tree_of(index) == {b"a": 1}
    assert not index.is_opaque(1)


def test_whiteout_symlink_path():
    tree = tree_of(build(symlink(b"localetc", b"/etc"), file(b"localetc/.wh.gone")))
    assert tree[b"etc/gone"] == 0


def test_whiteout_relative_path():
    assert tree_of(build(file(b"dne/../.wh.etc"))) == {b"etc": 0}


def test_whiteout_directory_name():
    assert names_of(file(b".wh.etc/somefile", 3)) == [b".wh.etc/", b".wh.etc/somefile"]


def test_what_aufs_left_behind_is_not_shown():
    members = [
        directory(b".wh..wh.plnk"),
        file(b".wh..wh.plnk/12.34", 3),
        file(b".wh..wh.aufs"),
        file(b"a/.wh..wh.orph", 2 * MIB),
        hardlink(b"a/linked", b".wh..wh.plnk/12.34"),
    ]
    index = build(*members)
    tree = tree_of(index)
    assert sorted(tree) == [b"a", b"a/linked"]
    assert index.record(tree[b"a/linked"])[:3] == (1, 0o644, 1)
    assert index.whiteout_count == 0


# --- hard links --------------------------------------------------------------------------------


def linked(index: LayerIndex, one: bytes, other: bytes) -> bool:
    tree = tree_of(index)
    return tree[one] == tree[other] and index.nlink(tree[one]) == 2


@pytest.mark.parametrize(
    ("links", "name", "target"),
    [
        ([symlink(b"breakouts/d1", b"../../etc")], b"breakouts/my", b"/breakouts/d1/passwd"),
        ([symlink(b"d1", b"/downandout/../../etc")], b"my", b"/d1/passwd"),
        ([symlink(b"localetc", b"/etc")], b"my", b"/localetc/passwd"),
        ([symlink(b"localetc", b"../../../../../../../etc")], b"my", b"/localetc/passwd"),
        ([symlink(b"localetc", b"upandout/../../../etc")], b"my", b"/localetc/passwd"),
        ([], b"my", b"../../../../../etc/passwd"),
        ([], b"my", b"/etc/passwd"),
        ([symlink(b"localetc/sub/..", b"/etc/")], b"/localetc/my", b"etc/passwd"),
        ([directory(b"localetc/")], b"/localetc/my", b"etc/passwd"),
        (
            [directory(b"localetc"), symlink(b"localetc", b"../../etc")],
            b"localetc/my",
            b"etc/passwd",
        ),
        ([symlink(b"localetc", b"/etc"), directory(b"localetc")], b"localetc/my", b"etc/passwd"),
    ],
)
def test_a_hard_link_is_a_second_name(links, name, target):
    index = build(file(b"etc/passwd"), *links, hardlink(name, target))
    tree = tree_of(index)
    (other,) = (path for path in tree if path.endswith(b"my"))
    assert linked(index, b"etc/passwd", other)


def test_a_hard_link_to_a_symlink_shares_the_symlink():
    index = build(file(b"etc/passwd"), symlink(b"s", b"/etc/passwd"), hardlink(b"dup", b"/s"))
    assert linked(index, b"s", b"dup")
    assert index.symlink_target(tree_of(index)[b"dup"]) == b"/etc/passwd"
    assert index.nlink(tree_of(index)[b"etc/passwd"]) == 1


def test_a_hard_link_keeps_what_it_meant():
    index = build(file(b"a", 1), hardlink(b"b", b"a"), file(b"a", 2))
    tree = tree_of(index)
    assert index.record(tree[b"b"]).size == 1
    assert index.nlink(tree[b"a"]) == index.nlink(tree[b"b"]) == 1


def test_a_hard_links_own_attributes_are_not_looked_at():
    index = build(file(b"a", 1, mode=0o600), hardlink(b"b", b"a", mode=0o4777, uid=-1))
    assert index.record(tree_of(index)[b"a"]).mode == 0o600


@pytest.mark.parametrize("target", [b"", b"/", b"..", b"d", b"d/", b"link/../d"])
def test_a_hard_link_to_a_directory_is_refused(target):
    with pytest.raises(InvalidLayer, match="hard link to a directory"):
        build(directory(b"d"), hardlink(b"a", target))


def test_a_hard_link_to_itself_is_ignored():
    assert names_of(file(b"d/a"), symlink(b"l", b"d"), hardlink(b"l/a", b"/d/./a")) == [
        b"d/",
        b"d/a",
        b"l",
    ]
    assert names_of(hardlink(b"a", b"a")) == []


def test_a_second_link_of_the_same_name_changes_nothing():
    index = build(file(b"a"), hardlink(b"b", b"a"), hardlink(b"b", b"a"), hardlink(b"a", b"b"))
    assert linked(index, b"a", b"b")


def test_links_to_what_is_not_there_are_foreign():
    index = build(
        symlink(b"l", b"x/y"),
        hardlink(b"one", b"l/../../etc/z"),
        hardlink(b"two", b"l/f"),
        hardlink(b"three", b"one"),
        file(b"f"),
    )
    links = {path: index.hardlink_names(node) for node, path in index.foreign_links()}
    assert links == {b"/etc/z": ((0, b"one"), (0, b"three")), b"/x/y/f": ((0, b"two"),)}
    tree = tree_of(index)
    assert index.is_foreign_link(tree[b"one"])
    assert not index.is_foreign_link(tree[b"f"])


def test_a_later_target_does_not_count():
    index = build(hardlink(b"a", b"b"), file(b"b"))
    assert [path for _, path in index.foreign_links()] == [b"/b"]


# --- own files ---------------------------------------------------------------------------------


def test_large_files_are_numbered_and_those_replaced_are_not_referenced():
    builder = IndexBuilder()
    members = [
        file(b"a", MIB),
        file(b"small", MIB - 1),
        file(b"b", MIB),
        file(b"c/d", MIB),
        file(b"b", 1),
        file(b"c"),
        file(b"e", MIB),
        hardlink(b"f", b"e"),
        file(b"e"),
        file(b".wh..wh.x", MIB),
        file(b".", MIB),
        file(b".wh.gone", MIB),
    ]
    numbers = [builder.add(member) for member in members]
    assert numbers == [0, None, 1, 2, None, None, 3, None, None, 4, None, None]
    builder.finish()
    assert builder.referenced_files == {0, 3}


# --- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["uid", "gid"])
@pytest.mark.parametrize("value", [-1, 2**32 - 1, 2**32, 2**31 + 2**33, -(2**70)])
@pytest.mark.parametrize("name", [b"a", b"."])
def test_an_owner_that_cannot_be_is_refused(field, value, name):
    with pytest.raises(InvalidLayer, match="owner"):
        build(directory(name, **{field: value}))


@pytest.mark.parametrize("time", [-1, -(10**12), 2**63, 2**80])
def test_times_out_of_range_are_the_epoch(time):
    assert build(directory(b".", mtime_ns=time)).record(ROOT).mtime_ns == 0


@pytest.mark.parametrize(("major", "minor"), [(4096, 0), (0, 2**20), (-1, 0), (0, 2**32)])
def test_devices_that_linux_cannot_have_are_refused(major, minor):
    with pytest.raises(InvalidLayer, match="device"):
        build(device(b"d", major, minor))


@pytest.mark.parametrize("target", [b"", b"a\0b"])
def test_symlink_targets_that_cannot_be_are_refused(target):
    with pytest.raises(InvalidLayer, match="symbolic link"):
        build(symlink(b"s", target))


def test_dangerous_xattrs_are_dropped_and_counted():
    kept = ((b"security.capability", b"\1"), (b"system.posix_acl_access", b"\2"), (b"user.a", b""))
    dropped = (
        (b"trusted.overlay.opaque", b"y"),
        (b"trusted.x", b""),
        (b"user.overlay.redirect", b"/"),
        (b"security.selinux", b"label"),
        (b"system.nfs4_acl", b""),
    )
    builder = IndexBuilder()
    builder.add(file(b"a", xattrs=kept + dropped))
    builder.add(directory(b".", xattrs=dropped))
    index = LayerIndex(builder.finish())
    assert index.xattrs(1) == kept
    assert index.xattrs(ROOT) == ()
    assert builder.dropped_xattrs == 2 * len(dropped)


@pytest.mark.parametrize(
    ("xattrs", "limit"),
    [
        (((b"user." + b"a" * 251, b""),), "XATTR_NAME_LENGTH"),
        (((b"user.a", bytes(2**16 + 1)),), "XATTR_VALUE_SIZE"),
        (tuple((b"user.%0200d" % i, b"") for i in range(320)), "XATTR_LIST_SIZE"),
    ],
)
def test_xattrs_beyond_the_kernels_limits_are_refused(xattrs, limit):
    with pytest.raises(LimitExceeded) as caught:
        build(file(b"a", xattrs=xattrs))
    assert caught.value.fields["limit"] == limit


@pytest.mark.parametrize("name", [b"", b"user.a\0b"])
def test_xattr_names_that_cannot_be_are_refused(name):
    with pytest.raises(InvalidLayer, match="extended attribute"):
        build(file(b"a", xattrs=((name, b""),)))


@pytest.mark.parametrize(
    ("member", "limit"),
    [
        (file(b"a" * 256), "NAME_LENGTH"),
        (file(b"a" * 256 + b"/b"), "NAME_LENGTH"),
        (file(b".wh." + b"a" * 256), "NAME_LENGTH"),
        (file(b"/".join([b"a" * 255] * 17)), "PATH_LENGTH"),
        (hardlink(b"a", b"b/" * 2048 + b"c"), "PATH_LENGTH"),
        (symlink(b"a", b"b" * 4096), "SYMLINK_LENGTH"),
        (file(b"a", limits.TAR_SIZE + 1), "TAR_SIZE"),
    ],
)
def test_what_is_too_long_is_refused_with_the_limits_name(member, limit):
    with pytest.raises(LimitExceeded) as caught:
        build(member)
    assert caught.value.fields["limit"] == limit
    assert caught.value.fields["path"] == member.name


def test_the_longest_names_and_the_deepest_paths_are_taken():
    assert names_of(file(b"/".join([b"a" * 255] * 16)))
    index = build(file(b"a/" * 2047 + b"f"))
    assert index.node_count == 2049
    with pytest.raises(LimitExceeded):
        build(file(b"a/" * 2048 + b"f"))


def test_a_path_that_symlinks_make_too_long_is_refused():
    deep = b"a/" * 1500
    with pytest.raises(LimitExceeded):
        build(directory(deep), symlink(b"l", deep), file(b"l/" + b"b/" * 1000 + b"f"))


@pytest.mark.parametrize("name", [b"a\0b", b"a\0b/c", b".wh.a\0"])
def test_names_with_nul_are_refused(name):
    with pytest.raises(InvalidLayer, match="NUL"):
        build(file(name))


@pytest.mark.parametrize(
    ("limit", "value", "members"),
    [
        ("TAR_ENTRIES", 5, [file(b"a/b/c"), file(b"d/e/f")]),
        ("INDEX_STRINGS_SIZE", 10, [file(b"abcdef"), symlink(b"b", b"target")]),
        ("INDEX_STRINGS_SIZE", 80, [file(b"a", sparse=((0, 1), (2, 1), (4, 1)))]),
        (
            "INDEX_WALK",
            20,
            [symlink(b"a", b"b/" * 10), file(b"a/f"), symlink(b"a", b"c/" * 10), file(b"a/f")],
        ),
    ],
)
def test_sums_are_bounded(monkeypatch, limit, value, members):
    monkeypatch.setattr(limits, limit, value)
    with pytest.raises(LimitExceeded) as caught:
        build(*members)
    assert caught.value.fields["limit"] == limit


def test_errors_say_where():
    with pytest.raises(InvalidLayer) as caught:
        build(symlink(b"a/b", b"", payload_offset=1024))
    assert caught.value.fields == {"target": b"", "path": b"a/b", "offset": 1024}


def test_without_own_files_large_files_stay_in_the_data_file():
    builder = IndexBuilder(own_files=False)
    assert builder.add(file(b"large", limits.LARGE_FILE, payload_offset=700)) is None
    pieces = ((5, 10), (limits.LARGE_FILE, 20))
    sparse = file(b"sparse", limits.TAR_SIZE, payload_offset=9000, sparse=pieces)
    assert builder.add(sparse) is None
    index = LayerIndex(builder.finish())
    assert builder.referenced_files == frozenset()
    large, sparse_node = (index.child(ROOT, name) for name in (b"large", b"sparse"))
    assert (index.own_file(large), index.own_file(sparse_node)) == (None, None)
    assert index.extents(large) == ((0, limits.LARGE_FILE, 700),)
    assert index.extents(sparse_node) == ((5, 10, 9000), (limits.LARGE_FILE, 20, 9010))


# --- what eStargz keeps for itself (rule 5) -------------------------------------------------------

HALF = 1_700_000_000_500_000_000
RESERVED = [b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark"]


@pytest.mark.parametrize("name", [*RESERVED, b"./stargz.index.json", b"/x/../.prefetch.landmark"])
def test_reserved_files_of_the_root_are_left_out_and_times_are_whole_seconds(name):
    index = build(
        directory(b"d", mtime_ns=HALF),
        file(b"d/a", mtime_ns=HALF - 1),
        symlink(b"b", b"d", mtime_ns=HALF + 1),
        file(name, mtime_ns=HALF),
    )
    tree = tree_of(index)
    assert tree.keys() == {b"d", b"d/a", b"b"} | ({b"x"} & tree.keys())
    times = {path: index.record(node).mtime_ns - HALF for path, node in tree.items()}
    assert times[b"d"] == times[b"b"] == 500_000_000
    assert times[b"d/a"] == -500_000_000


def test_a_second_name_of_a_reserved_file_stays():
    index = build(file(b"stargz.index.json", 7), hardlink(b"kept", b"stargz.index.json"))
    assert tree_of(index).keys() == {b"kept"}
    assert index.record(tree_of(index)[b"kept"]).size == 7


def test_other_things_of_these_names_are_shown_and_change_nothing():
    index = build(
        file(b"sub/stargz.index.json", mtime_ns=HALF),
        directory(b".prefetch.landmark", mtime_ns=HALF),
        symlink(b".no.prefetch.landmark", b"x", mtime_ns=HALF),
    )
    tree = tree_of(index)
    assert tree.keys() >= {
        b"sub/stargz.index.json",
        b".prefetch.landmark",
        b".no.prefetch.landmark",
    }
    assert index.record(tree[b"sub/stargz.index.json"]).mtime_ns == HALF


def test_a_reserved_file_that_was_replaced_or_of_its_own_is_no_file_of_the_layer(monkeypatch):
    monkeypatch.setattr(limits, "LARGE_FILE", 5)
    builder = IndexBuilder()
    assert builder.add(file(b"stargz.index.json", 10)) == 0
    assert builder.add(file(b"large", 10)) == 1
    index = LayerIndex(builder.finish())
    assert builder.referenced_files == {1}
    assert index.file_bytes == 10
    assert index.entry_count == build(file(b"large", 10)).entry_count
