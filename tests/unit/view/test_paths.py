"""Paths mean in a view what they mean to openat2(2) with RESOLVE_IN_ROOT."""

import stat

import pytest

from imgvol.errors import InvalidArgument, NotFound, PathEscapes
from imgvol.view.paths import Place, locate, resolve
from support.members import directory, file, node_at, symlink, view_of

VIEW = view_of(
    [
        directory(b"etc"),
        file(b"etc/passwd"),
        directory(b"usr/bin"),
        file(b"usr/bin/sh"),
        symlink(b"bin", b"usr/bin"),
        symlink(b"usr/lib", b"/etc/"),
        symlink(b"up", b"../../../etc"),
        symlink(b"tosh", b"/bin/../bin/./sh"),
        symlink(b"dangling", b"nowhere/x"),
        symlink(b"loop", b"loop"),
        symlink(b"ping", b"usr/../pong"),
        symlink(b"pong", b"ping"),
        symlink(b"slashed", b"etc/passwd/"),
        symlink(b"root", b"/"),
        *(symlink(b"n%d" % i, b"n%d" % (i + 1)) for i in range(1, 41)),
        symlink(b"n0", b"n1"),
        file(b"n41"),
    ],
    [file(b"etc/.wh.group"), symlink(b"etc/up", b"..")],
)


@pytest.mark.parametrize(
    ("path", "same"),
    [
        (b"", b"/"),
        (b"/", b"/"),
        (b"..", b"/"),
        (b"../../etc", b"etc"),
        (b"/etc/../etc/./passwd", b"etc/passwd"),
        (b"//etc///passwd", b"etc/passwd"),
        (b"etc/", b"etc"),
        (b"bin/sh", b"usr/bin/sh"),
        (b"bin/../bin/sh", b"usr/bin/sh"),
        (b"usr/lib/passwd", b"etc/passwd"),
        (b"up/passwd", b"etc/passwd"),
        (b"tosh", b"usr/bin/sh"),
        (b"bin/", b"usr/bin"),
        (b"root/root/root", b"/"),
        (b"etc/up/etc/up", b"/"),
        (b"n1", b"n41"),
    ],
)
def test_a_path_means_what_a_path_without_links_means(path, same):
    assert resolve(VIEW, path) == node_at(VIEW, same)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (b"nothing", "no such file or directory"),
        (b"nothing/../etc", "no such file or directory"),
        (b"dangling", "no such file or directory"),
        (b"etc/group", "no such file or directory"),
        (b"etc/.wh.group", "no such file or directory"),
        (b"a" * 300, "no such file or directory"),
        (b"etc/passwd/", "not a directory"),
        (b"etc/passwd/.", "not a directory"),
        (b"etc/passwd/..", "not a directory"),
        (b"etc/passwd/x", "not a directory"),
        (b"slashed", "not a directory"),
        (b"loop", "too many levels of symbolic links"),
        (b"ping/x", "too many levels of symbolic links"),
        (b"n0", "too many levels of symbolic links"),
    ],
)
def test_what_is_not_there_is_told_with_the_reason(path, reason):
    with pytest.raises(NotFound) as caught:
        resolve(VIEW, path)
    assert caught.value.fields == {"path": path, "reason": reason}


@pytest.mark.parametrize("path", [b"a\0b", b"a/" * 2049])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(InvalidArgument):
        resolve(VIEW, path)


def test_a_link_at_the_end_is_followed_only_if_asked_or_with_a_slash():
    attributes = VIEW.attributes(resolve(VIEW, b"up", follow_last=False))
    assert stat.S_ISLNK(attributes.mode)
    assert resolve(VIEW, b"loop", follow_last=False) != resolve(VIEW, b"up", follow_last=False)
    assert resolve(VIEW, b"up/", follow_last=False) == resolve(VIEW, b"etc")
    assert resolve(VIEW, b"bin/sh", follow_last=False) == resolve(VIEW, b"usr/bin/sh")


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        (b"/", b""),
        (b"bin/sh", b"usr/bin/sh"),
        (b"up/passwd", b"etc/passwd"),
        (b"usr/lib/./", b"etc"),
        (b"etc/up/etc/up", b""),
    ],
)
def test_a_place_is_told_with_its_plain_path(path, plain):
    assert locate(VIEW, path) == Place(node=node_at(VIEW, plain or b"/"), path=plain)


@pytest.mark.parametrize(
    "path", [b"/etc", b"..", b"etc/../..", b"usr/lib", b"up", b"root", b"tosh"]
)
def test_beneath_is_what_never_leaves_the_root(path):
    with pytest.raises(PathEscapes):
        locate(VIEW, path, beneath=True)
    assert locate(VIEW, b"bin/../bin/sh", beneath=True).path == b"usr/bin/sh"
