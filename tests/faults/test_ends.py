"""A component that fails, or does not stop: the daemon ends, says which, and the next goes on."""

import signal
import subprocess
from dataclasses import replace

import pytest

from support import images
from support.daemon import Imgvol
from support.guards import mounts_below
from support.programs import require_fuse, stop, wait_until

pytestmark = pytest.mark.fuse

IMAGE = images.Image([images.Layer([images.file("motd", b"hello")], "gzip")])
# The component fails once the test says so.
FAILING = """
import os, trio
from imgvol.images.collection import Collector

async def run(self):
    while not os.path.exists({switch!r}):
        await trio.sleep(0.05)
    raise RuntimeError("it broke")

Collector.run = run
"""
# A thread that nobody can cancel.
STUCK = """
import time, trio
from imgvol.volumes.manager import VolumeManager

async def detach_all(self, *, forget):
    await trio.to_thread.run_sync(time.sleep, 600)

VolumeManager.detach_all = detach_all
"""


@pytest.fixture
def broken(short_path):
    """A daemon to be spoilt, with an image to mount."""
    require_fuse()
    imgvol = Imgvol(short_path, supervisor=False)
    layout = images.write_layout(short_path / "layout", {"v1": IMAGE})
    yield imgvol, f"oci:{layout}:v1"
    if imgvol.process is not None and imgvol.process.poll() is None:
        stop(imgvol.process)


def test_a_component_that_fails_ends_the_daemon_in_order_and_is_named(broken, agent):
    imgvol, name = broken
    switch = imgvol.base / "switch"
    imgvol.prelude = f"exec({FAILING.format(switch=str(switch))!r})"
    imgvol.start()
    target = imgvol.target("mnt")
    imgvol.run("mount", name, target)
    switch.touch()
    assert imgvol.process.wait(20) == 1
    log = imgvol.log_end()
    assert "collection failed, so everything stops: RuntimeError: it broke" in log
    assert "kind RuntimeError, component collection" in log
    assert "RuntimeError: it broke" in log, "the traceback has the cause"
    assert agent.ask("list", path=target) == [], "unmounted in good order"
    imgvol.prelude = "pass"
    imgvol.start()
    assert agent.ask_bytes("content", path=f"{target}/motd") == b"hello", "the volume is back"


def test_a_component_that_does_not_stop_is_left_behind(broken, agent):
    imgvol, name = broken
    imgvol.prelude = f"exec({STUCK!r})"
    imgvol.limits = {"STOP_VOLUMES": 0.3, "STOP_CANCELLED": 0.2, "STOP_DEADLINE": 2.0}
    imgvol.start()
    target = imgvol.target("mnt")
    imgvol.run("mount", name, target)
    imgvol.process.send_signal(signal.SIGTERM)
    assert imgvol.process.wait(20) == 3
    log = imgvol.log.read_text()
    assert "volumes: not stopped within 0.3 s" in log
    assert "volumes: does not stop" in log
    assert "not stopped within 2 s: leaving as a crash would" in log
    imgvol.prelude, imgvol.limits = "pass", {}
    imgvol.start()
    assert agent.ask_bytes("content", path=f"{target}/motd") == b"hello"
    assert [volume["state"] for volume in imgvol.json("ps")] == ["mounted"]


# Recovery that does not come to its end, and one that fails.
ENDLESS = """
import trio
from imgvol.volumes import recovery

async def recover(*_, **__):
    with open({seen!r}, "w"):
        await trio.sleep_forever()

recovery.recover = recover
"""
FAILED = """
from imgvol.errors import StoreDamaged
from imgvol.volumes import recovery

async def recover(*_, **__):
    raise StoreDamaged("no record can be read")

recovery.recover = recover
"""


def test_a_daemon_that_is_told_to_stop_while_it_recovers_stops(broken, agent):
    imgvol, name = broken
    imgvol.start()
    target = imgvol.target("mnt")
    imgvol.run("mount", name, target)
    imgvol.terminate()
    seen = imgvol.base / "seen"
    source = f"exec({ENDLESS.format(seen=str(seen))!r})"
    slow = subprocess.Popen(replace(imgvol, prelude=source)._serve_command)
    wait_until(seen.exists, seconds=20, what="the recovery to begin")
    assert not (imgvol.run_dir / "imgvol.sock").exists(), "nobody is let in before"
    assert stop(slow, seconds=20) == 0
    imgvol.start()
    assert agent.ask_bytes("content", path=f"{target}/motd") == b"hello", "nothing is forgotten"


def test_a_recovery_that_fails_is_the_end_of_the_start_and_named(broken):
    imgvol, _ = broken
    imgvol.prelude = f"exec({FAILED!r})"
    done = subprocess.run(
        imgvol._serve_command, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 1
    assert "no record can be read (stage volumes)" in done.stderr
    assert not mounts_below([str(imgvol.base)])
