"""The tree comparison sees each kind of difference: else a view that differs would pass."""

import os
import subprocess
import sys

import pytest

from support import treediff
from support.treediff import Options, differences


def make_tree(root):
    root.mkdir()
    (root / "file").write_bytes(b"content")
    (root / "other").write_bytes(b"content")
    os.link(root / "file", root / "link")
    (root / "sub").mkdir()
    (root / "sub/inner").write_bytes(b"x")
    os.symlink("file", root / "symlink")
    os.mkfifo(root / "fifo")
    os.setxattr(root / "file", "user.key", b"value")
    for path in ("file", "other", "sub/inner", "symlink", "fifo", "sub", "."):
        os.utime(root / path, ns=(10**18 + 1, 10**18 + 1), follow_symlinks=False)


@pytest.fixture
def trees(tmp_path):
    make_tree(tmp_path / "a")
    make_tree(tmp_path / "b")
    return tmp_path / "a", tmp_path / "b"


def replace_with_symlink(b):
    (b / "other").unlink()
    os.symlink("x", b / "other")


def rewrite(path, data):
    """New content, old times."""
    path.write_bytes(data)
    os.utime(path, ns=(10**18 + 1, 10**18 + 1))


def part_link(b):
    (b / "link").unlink()
    (b / "link").write_bytes(b"content")
    os.utime(b / "link", ns=(10**18 + 1, 10**18 + 1))
    os.setxattr(b / "link", "user.key", b"value")
    os.utime(b, ns=(10**18 + 1, 10**18 + 1))


CHANGES = {
    "added": (lambda b: (b / "sub/new").touch(), "sub/new: only in"),
    "removed": (lambda b: (b / "sub/inner").unlink(), "sub/inner: only in"),
    "type": (replace_with_symlink, "other: type"),
    "mode": (lambda b: (b / "other").chmod(0o600), "other: st_mode"),
    "setuid": (lambda b: (b / "other").chmod(0o4644), "other: st_mode"),
    "content": (lambda b: rewrite(b / "other", b"CONTENT"), "other: sha256"),
    "size": (lambda b: rewrite(b / "other", b"longer content"), "other: size"),
    "time": (lambda b: os.utime(b / "other", ns=(0, 10**18 + 2)), "other: mtime"),
    "time of a directory": (lambda b: os.utime(b / "sub", ns=(0, 10**18)), "sub: mtime"),
    "time of the root": (lambda b: os.utime(b, ns=(0, 10**18)), ".: mtime"),
    "xattr value": (lambda b: os.setxattr(b / "file", "user.key", b"VALUE"), "file: xattrs"),
    "xattr name": (lambda b: os.setxattr(b / "sub", "user.new", b""), "sub: xattrs"),
    "hard link": (part_link, "one file in only one of the trees"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_change_is_seen(trees, name):
    a, b = trees
    change, expected = CHANGES[name]
    assert list(differences(a, b)) == []
    change(b)
    for lines in (list(differences(a, b)), list(differences(b, a))):
        assert any(line.startswith(expected) for line in lines), lines


@pytest.mark.parametrize("follow", [False])
def test_symlink_target_is_seen(trees, follow):
    a, b = trees
    (b / "symlink").unlink()
    os.symlink("other", b / "symlink")
    os.utime(b / "symlink", ns=(10**18 + 1, 10**18 + 1), follow_symlinks=follow)
    os.utime(b, ns=(10**18 + 1, 10**18 + 1))
    assert [line.partition(" ")[0] for line in differences(a, b)] == ["symlink:"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_owner_and_device_are_seen(trees):
    a, b = trees
    for root, minor, uid in ((a, 3, 0), (b, 5, 7)):
        os.mknod(root / "device", 0o020600, os.makedev(1, minor))
        os.chown(root / "other", uid, uid + 1)
        for path in (root / "device", root):
            os.utime(path, ns=(10**18 + 1, 10**18 + 1))
    assert sorted(line.rpartition(" ")[0].rpartition(" ")[0] for line in differences(a, b)) == [
        "device: device",
        "other: st_gid",
        "other: st_uid",
    ]


def test_what_is_ignored_is_not_seen_and_nothing_else(trees):
    a, b = trees
    os.utime(b / "sub", ns=(0, 0))
    rewrite(b / "sub/inner", b"y")
    (b / "other").chmod(0o600)
    options = Options(ignore=frozenset([b"sub/inner"]), ignore_times_of=frozenset([b"sub"]))
    assert [line.split(":")[0] for line in differences(a, b, options)] == ["other"]
    assert list(differences(a, b, Options(ignore=frozenset([b"sub", b"other"])))) == []


def test_program_exits_with_one_when_there_are_differences(trees):
    a, b = trees

    def run():
        command = [sys.executable, treediff.__file__, a, b]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)

    assert (run().returncode, run().stdout) == (0, "0 differences\n")
    (b / "new\nname").touch()
    assert run().returncode == 1
    assert "only in" in run().stdout
