"""containerd takes what imgvol pushes: images that were converted, and images with an index."""

import random

import pytest

from support.comparison import assert_same_tree
from support.containerd import running_containerd
from support.images import (
    Image,
    Layer,
    directory,
    fifo,
    file,
    hardlink,
    push,
    symlink,
    whiteout,
    write_layout,
)
from support.programs import require, require_fuse, require_root, run

pytestmark = [pytest.mark.servers, pytest.mark.fuse]

SECOND = 1_700_000_000 * 10**9
NOISE = random.Random(29)
# containerd gives a file what the header of a hard link to it says: here both say the same.
TOOL = {"mode": 0o4755, "uid": 1000, "gid": 50, "mtime_ns": SECOND}
LOWER = [
    directory("", mode=0o755, mtime_ns=SECOND),
    directory("etc", mode=0o750, mtime_ns=SECOND),
    file("etc/old", b"old", mtime_ns=SECOND),
    file("etc/empty", mode=0o600, uid=70_000, mtime_ns=SECOND),
    directory("usr", mode=0o1777, gid=5, mtime_ns=SECOND),
    file("usr/large", NOISE.randbytes(3_000_000), mtime_ns=SECOND),
    file("usr/tool", b"tool" * 1000, **TOOL),
    hardlink("usr/again", "usr/tool", **TOOL),
    symlink("usr/link", "../etc/empty", mtime_ns=SECOND),
    fifo("usr/fifo", mtime_ns=SECOND),
    directory("gone", mtime_ns=SECOND),
    file("gone/file", b"x", mtime_ns=SECOND),
]
UPPER = [
    directory("etc", mode=0o755, mtime_ns=SECOND),
    whiteout("etc/old"),
    whiteout("gone"),
    file("etc/new", b"new", mtime_ns=SECOND, xattrs={"user.note": b"kept"}),
]
LANDMARKS = (".no.prefetch.landmark", "stargz.index.json")


@pytest.fixture(scope="module")
def reference(registry, tmp_path_factory):
    image = Image([Layer(LOWER, "gzip"), Layer(UPPER, "gzip")])
    layout = write_layout(tmp_path_factory.mktemp("containerd"), {"1": image})
    push(layout, "1", registry.reference("containerd/source:1"))
    return registry.reference("containerd/source:1")


@pytest.mark.parametrize("kind", ["estargz", "zstd:chunked", "index"])
def test_containerd_unpacks_what_the_original_is(daemon, reference, registry, short_path, kind):
    require("containerd", "ctr")
    require_root()
    require_fuse()
    target = registry.reference(f"containerd/{kind.partition(':')[0]}:1")
    if kind == "index":
        daemon.run("index", "create", reference, "--min-layer-size", "0", "--span-size", "64K")
        daemon.run("index", "push", reference, target)
    else:
        daemon.run("convert", reference, target, "--format", kind)
    original, tree = daemon.target("original"), short_path / "tree"
    daemon.run("mount", reference, original)
    tree.mkdir()
    with running_containerd(short_path / "containerd") as ctr:
        images = (*ctr, "images")
        run(*images, "pull", "--plain-http", "--snapshotter", "native", target, timeout=120)
        run(*images, "mount", "--snapshotter", "native", target, tree)
        try:
            if kind == "estargz":
                for name in LANDMARKS:
                    assert (tree / name).is_file()
            run("cp", "-a", tree, short_path / "copy")
            for name in LANDMARKS:
                (short_path / "copy" / name).unlink(missing_ok=True)
            assert_same_tree(short_path / "copy", original, untimed=["."])
        finally:
            run(*images, "unmount", tree)
