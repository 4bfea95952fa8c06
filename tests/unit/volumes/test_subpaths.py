"""Sub paths say what kubelets and people know from containerd."""

import pytest

from imgvol.errors import ImgvolError, InvalidArgument, NotFound, PathEscapes
from imgvol.volumes.options import BindOptions, Escapes
from imgvol.volumes.subpaths import SubPath, resolve_sub_path
from support.members import device, directory, fifo, file, symlink, view_of

VIEW = view_of(
    [
        directory(b"etc"),
        file(b"etc/passwd"),
        directory(b"usr/bin"),
        file(b"usr/bin/busybox"),
        symlink(b"bin", b"usr/bin"),
        symlink(b"usr/bin/sh", b"/usr/bin/busybox"),
        symlink(b"usr/bin/ash", b"busybox"),
        symlink(b"out", b"../../etc"),
        symlink(b"loop", b"loop"),
        symlink(b"dangling", b"nothing"),
        fifo(b"pipe"),
        device(b"null", 1, 3),
    ]
)


def resolve(path, **options):
    return resolve_sub_path(VIEW, BindOptions(sub_path=path, **options))


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b"", SubPath()),
        (b".", SubPath()),
        (b"etc", SubPath(path=b"etc")),
        (b"etc/", SubPath(path=b"etc")),
        (b"etc/passwd", SubPath(path=b"etc/passwd", is_directory=False)),
        (b"bin", SubPath(path=b"usr/bin")),
        (b"bin/ash", SubPath(path=b"usr/bin/busybox", is_directory=False)),
        (b"bin/../../etc", SubPath(path=b"etc")),
    ],
)
@pytest.mark.parametrize("escapes", Escapes)
def test_what_stays_inside_is_found(path, shown, escapes):
    assert resolve(path, escapes=escapes) == shown


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b"/etc", SubPath(path=b"etc")),
        (b"etc/../../..", SubPath()),
        (b"bin/sh", SubPath(path=b"usr/bin/busybox", is_directory=False)),
        (b"out", SubPath(path=b"etc")),
    ],
)
def test_what_would_leave_the_view_is_held_in_it_or_refused(path, shown):
    assert resolve(path, escapes=Escapes.CONFINE) == shown
    with pytest.raises(PathEscapes, match="path escapes from parent"):
        resolve(path, escapes=Escapes.REFUSE)


@pytest.mark.parametrize(
    ("path", "options", "error", "text"),
    [
        (b"not-existing", {}, NotFound, "no such file or directory"),
        (b"dangling", {}, NotFound, "no such file or directory"),
        (b"etc/passwd/x", {}, NotFound, "not a directory"),
        (b"loop", {}, NotFound, "too many levels of symbolic links"),
        (b"etc/passwd", {"dirs_only": True}, InvalidArgument, "only directory subpath is"),
        (b"bin/ash", {"dirs_only": True}, InvalidArgument, "only directory subpath is supported"),
        (b"pipe", {}, InvalidArgument, "neither a directory nor a file"),
        (b"null", {}, InvalidArgument, "neither a directory nor a file"),
    ],
)
def test_what_cannot_be_shown_is_told_with_the_reason(path, options, error, text):
    with pytest.raises(ImgvolError) as caught:
        resolve(path, **options)
    assert type(caught.value) is error
    assert text in str(caught.value)
    assert caught.value.fields == {"sub_path": path}


def test_directories_are_good_enough_for_who_wants_only_these():
    assert resolve(b"bin", dirs_only=True) == SubPath(path=b"usr/bin")


@pytest.mark.parametrize("path", [b"a\0b", b"a" * 4097])
def test_what_is_no_path_is_refused_before_anything_is_looked_up(path):
    with pytest.raises(InvalidArgument):
        BindOptions(sub_path=path)
