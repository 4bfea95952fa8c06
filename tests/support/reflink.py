"""A filesystem of one's own that shares blocks between files."""

import contextlib
import gc
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.programs import require_root, run, wait_until

# The smallest that mkfs.xfs makes is 300 MB; the file is sparse.
SIZE = 1 << 30


@contextlib.contextmanager
def xfs(directory: Path, *, reflink: bool = True) -> Iterator[Path]:
    """Mounts a new XFS and gives its root; unmounted and detached in any case.

    Args:
        directory: Where its image and its mount point are made.
        reflink: Whether it shares blocks.
    """
    require_root()
    if shutil.which("mkfs.xfs") is None:
        pytest.skip("no mkfs.xfs")
    image, root = directory / "xfs.img", directory / "xfs"
    with open(image, "wb") as stream:
        stream.truncate(SIZE)
    run("mkfs.xfs", "-q", "-m", f"reflink={reflink:d}", image)
    root.mkdir()
    done = run("mount", "-o", "loop", image, root, check=False)
    if done.returncode:
        pytest.skip(f"xfs cannot be mounted by a loop device: {done.stderr.strip()}")
    try:
        yield root
    finally:
        gc.collect()  # layers that are not used any more have files open
        if run("umount", root, check=False).returncode:
            time.sleep(1)
            run("umount", "--lazy", root)
        # The device was made for this mount and goes with its last copy: a mount namespace that
        # was made beside this test, by another one, has copies of all there was.
        wait_until(
            lambda: not run("losetup", "-j", image).stdout,
            seconds=60,
            what="the loop device is gone",
        )
        image.unlink()


def used(root: Path) -> int:
    """Bytes that a filesystem has given out."""
    run("sync", "-f", root)
    status = os.statvfs(root)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def shared_size(path: Path) -> int:
    """Bytes of a file whose blocks another file has, too, as the filesystem says (FIEMAP)."""
    run("sync", "-f", path)
    size = 0
    for line in run("filefrag", "-v", "-b4096", path).stdout.splitlines():
        fields = line.replace(":", " ").replace("..", " ").split()
        if fields and fields[0].isdigit() and "shared" in fields[-1]:
            size += int(fields[5]) * 4096
    return size
