"""Sub paths against the kernel: random trees with links, in memory and on a disk."""

import errno
import os
import shutil

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imgvol.errors import NotFound, PathEscapes
from imgvol.view.paths import locate
from support import openat2
from support.members import directory, file, symlink, view_of

NAMES = [b"a", b"b", b"c"]
COMPONENTS = st.sampled_from([*NAMES, *NAMES, b"..", b"..", b".", b"", b"x"])
PATHS = st.lists(COMPONENTS, min_size=1, max_size=6).map(b"/".join).filter(bool)
# A name is a directory (a dictionary), a file (None) or a symbolic link (its target).
TREES = st.recursive(
    st.none() | PATHS,
    lambda below: st.dictionaries(st.sampled_from(NAMES), below, max_size=3),
    max_leaves=12,
).filter(lambda tree: isinstance(tree, dict))

REASONS = {
    errno.ENOENT: "no such file or directory",
    errno.ENOTDIR: "not a directory",
    errno.ELOOP: "too many levels of symbolic links",
    errno.EXDEV: "escapes",
}


def members(tree, prefix=b""):
    for name, below in tree.items():
        path = prefix + name
        if isinstance(below, dict):
            yield directory(path)
            yield from members(below, path + b"/")
        else:
            yield file(path) if below is None else symlink(path, below)


def make(tree, top):
    os.mkdir(top)
    for name, below in tree.items():
        path = os.path.join(top, name)
        if isinstance(below, dict):
            make(below, path)
        elif below is None:
            os.close(os.open(path, os.O_CREAT, 0o644))
        else:
            os.symlink(below, path)


def kernel_says(root, path, resolve):
    try:
        return openat2.where(root, path, resolve)
    except OSError as error:
        return REASONS[error.errno]


def we_say(view, path, *, beneath):
    try:
        return locate(view, path, beneath=beneath).path
    except PathEscapes:
        return "escapes"
    except NotFound as error:
        return error.fields["reason"]


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    return os.fsencode(tmp_path_factory.mktemp("trees"))


@pytest.mark.parametrize("beneath", [False, True], ids=["in root", "beneath"])
@given(tree=TREES, paths=st.lists(PATHS, min_size=1, max_size=8))
@example(tree={b"a": {b"b": b"/c"}, b"c": {b"a": None}}, paths=[b"a/b/a", b"a/../../c", b"/c/"])
@example(tree={b"a": b"a"}, paths=[b"a", b"a/..", b"/a/b"])
@example(tree={b"a": b"../../b", b"b": {b"c": b".."}}, paths=[b"a/c/b", b"a", b"b/c/../a/"])
def test_a_path_means_what_it_means_to_the_kernel(disk, beneath, tree, paths):
    top = os.path.join(disk, b"tree")
    make(tree, top)
    root = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        view = view_of([directory(b"./"), *members(tree)])
        resolve = openat2.RESOLVE_BENEATH if beneath else openat2.RESOLVE_IN_ROOT
        for path in paths:
            assert we_say(view, path, beneath=beneath) == kernel_says(root, path, resolve), path
    finally:
        os.close(root)
        shutil.rmtree(top)
