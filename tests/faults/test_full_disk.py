"""A disk that is really full while lazy images are read: the truth or an error, and it goes on by
itself once there is room (F20, F21, F22)."""

import contextlib
import os
import subprocess

import pytest

from imgvol.content.span_map import SpanMap
from imgvol.layers.lazy.open import open_span_table
from support import images
from support.agent import Agent
from support.caches import drop_caches
from support.daemon import Imgvol
from support.failing import Failing
from support.programs import require_fuse, stop, wait_until

pytestmark = [pytest.mark.servers, pytest.mark.fuse]

MB = 1_000_000
# Less than the image needs, compressed or not.
SMALL = 9 * MB
LARGE = 80 * MB
LIMITS = {"FETCH_RETRY": 0.3, "FETCH_QUIET": 0.05, "FETCH_FAILURE_REST": 0.05}
TOLD = "no room|No space left|is not copied|not written down"


@pytest.fixture
def small_disk(short_path):
    """A daemon whose store is a filesystem of its own."""
    require_fuse()
    imgvol = Imgvol(short_path, limits=dict(LIMITS), expected_log=[TOLD])
    imgvol.root.mkdir(mode=0o700)
    options = f"size={SMALL},mode=0700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(imgvol.root)]
    subprocess.run(mount, check=True)
    try:
        imgvol.start()
        yield imgvol
        if imgvol.process.poll() is None:
            imgvol.terminate()
        assert imgvol.unexpected_log() == []
    finally:
        stop(imgvol.process)
        subprocess.run(["umount", str(imgvol.root)], check=True)


def resize(imgvol, size):
    command = ["mount", "-o", f"remount,size={size}", str(imgvol.root)]
    subprocess.run(command, check=True)


def is_full(imgvol):
    """Not one more block."""
    disk = os.statvfs(imgvol.root)
    return disk.f_bavail * disk.f_frsize < 300_000


def check_store(imgvol, image):
    """Whatever the map names is on the disk, as it is in the registry."""
    lazy = imgvol.root / "lazy" / image.hex
    with contextlib.suppress(FileNotFoundError):
        table = open_span_table((lazy / "table").read_bytes())
        present = SpanMap(lazy / "spans", table.span_count)
        data, blob = (lazy / "data").read_bytes(), (lazy / "blob").read_bytes()
        for span in present:
            start, end = table.compressed_range(span)
            assert blob[start:end] == image.layer.blob[start:end]
            for at, piece in table.decode(span, blob[start:end]):
                assert data[at : at + len(piece)] == piece


def read_all(agent, image, target, seed):
    reads, wanted = zip(*image.random_reads(target, seed, 120), strict=True)
    found = agent.ask("read_together", reads=reads, readers=8, deadline=90)
    return list(found), list(wanted)


@pytest.mark.alone("drops the kernel's caches")
@pytest.mark.fault("F20")
@pytest.mark.fault("F21")
@pytest.mark.parametrize("lazy_image", ["estargz", "soci-1MiB"], indirect=True)
def test_a_full_disk_serves_readers_from_memory_and_goes_on_when_there_is_room(
    small_disk, agent, registry, lazy_image
):
    target = small_disk.target("mnt")
    small_disk.run("mount", registry.reference(lazy_image.name), target)
    wait_until(lambda: is_full(small_disk), seconds=20, what="the disk to be full")
    for seed in (1, 2):
        found, wanted = read_all(agent, lazy_image, target, seed)
        assert found == wanted
        drop_caches()
    assert is_full(small_disk)
    assert not lazy_image.is_complete(small_disk)
    check_store(small_disk, lazy_image)

    # What needs room is refused, with the reason, and harms nothing.
    plain = images.Image([images.Layer([images.file("x", os.urandom(200_000))], "none")])
    layout = images.write_layout(small_disk.base / "layout", {"x": plain})
    done = small_disk.run("pull", f"oci:{layout}:x", check=False)
    assert done.returncode == 1
    assert "no room" in done.stderr

    resize(small_disk, LARGE)
    wait_until(lambda: lazy_image.is_complete(small_disk), seconds=30, what="the layer's end")
    found, wanted = read_all(agent, lazy_image, target, 3)
    assert found == wanted
    small_disk.run("pull", f"oci:{layout}:x")
    assert small_disk.json("fsck")["wrong"] == []


@pytest.mark.alone("drops the kernel's caches")
@pytest.mark.fault("F21")
@pytest.mark.fault("F22")
@pytest.mark.parametrize("lazy_image", ["zstd:chunked"], indirect=True)
@pytest.mark.parametrize("error", ["EDQUOT", "EFBIG"])
def test_over_quota_and_too_large_are_no_room_either(short_path, registry, lazy_image, error):
    require_fuse()
    slow = ("--background-rate", "1k")
    imgvol = Imgvol(short_path, limits=dict(LIMITS), expected_log=[TOLD], options=slow)
    failing = Failing(short_path, imgvol.root)
    imgvol.prelude = failing.prelude
    imgvol.start()
    try:
        target = imgvol.target("mnt")
        imgvol.run("mount", registry.reference(lazy_image.name), target)
        with Agent() as agent:
            with failing.of("pwrite", error=error):
                found, wanted = read_all(agent, lazy_image, target, 1)
                assert failing.fired
                assert found == wanted
            fired = len(failing.fired)
            drop_caches()
            found, wanted = read_all(agent, lazy_image, target, 1)
            assert found == wanted
            assert len(failing.fired) == fired
        imgvol.terminate()
        check_store(imgvol, lazy_image)
        assert imgvol.unexpected_log() == []
    finally:
        stop(imgvol.process)
