"""What users of views meet when no worker can go on as the last one did: each of them dies, the
kernel cannot send again what it was asked, the disk is full. docs/design/supervision.md."""

import contextlib
import os
import signal
import subprocess

import pytest

from support import images, transports
from support.agent import Agent
from support.callers import running_callers
from support.calling import LOOKUP
from support.daemon import Imgvol
from support.programs import require_root, stop, wait_until
from support.supervised import kept_devices, kill_worker, told, wait_restarted

pytestmark = pytest.mark.fuse

MB = 1_000_000
FILES = {"motd": b"hello\n", "etc/os": b"x" * 200_000, "usr/lib": bytes(range(256)) * 2000}
IMAGE = images.Image([images.Layer([images.file(*each) for each in FILES.items()], "gzip")])
ENDED = {"ENOTCONN", "ECONNABORTED", "EIO"}
OPTIONS = ("--supervisor", "--transport", "kernel")
# What workers do as long as a file is there; the file says what. They look at it when it matters:
# one that stands by was started before.
SWITCHED = """
import os, pathlib, signal
switch = pathlib.Path({switch!r})
def is_said(what):
    try:  # in one step: it may go at any time
        return switch.read_text() == what
    except FileNotFoundError:
        return False
from imgvol.fs.kernel import replies
from imgvol.volumes import reopening
used_views, resend = reopening._used_views, replies.resend
def used_views_or_end(*arguments):
    if is_said("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    return used_views(*arguments)
def resend_or_nonsense():
    if is_said("no resend"):
        return replies.OUT_HEADER.pack(replies.OUT_HEADER.size, 99, 0)
    return resend()
reopening._used_views = used_views_or_end
replies.resend = resend_or_nonsense
# The supervisor is a program of its own, in the place of this one.
from imgvol.supervisor import launch
execv = os.execv
def become(path, program):
    source = "import runpy; from imgvol import limits; limits.WORKER_PAUSE_MOST = 0.3; "
    source += "runpy.run_module('imgvol.supervisor', run_name='__main__', alter_sys=True)"
    execv(path, [program[0], "-P", "-c", source, *program[4:]])
launch.os.execv = become
"""


@pytest.fixture
def reference(short_path):
    return f"oci:{images.write_layout(short_path / 'layout', {'x': IMAGE})}:x"


@pytest.fixture
def switch(short_path):
    return short_path / "switch"


@pytest.fixture
def imgvol(short_path, switch):
    prelude = f"exec({SWITCHED.format(switch=str(switch))!r})"
    with serving(Imgvol(short_path, options=OPTIONS, prelude=prelude)) as imgvol:
        yield imgvol


@contextlib.contextmanager
def serving(imgvol):
    imgvol.expected_log.append("imgvol.supervisor")
    imgvol.start()
    try:
        yield imgvol
        imgvol.terminate()
    finally:
        stop(imgvol.process)
    assert not imgvol.unexpected_log()


def mount(imgvol, reference, name="mnt"):
    target = imgvol.target(name)
    imgvol.run("pull", reference)
    imgvol.run("mount", reference, target)
    return target


def check(agent, target):
    for path, data in FILES.items():
        assert agent.ask_bytes("content", path=f"{target}/{path}") == data


# --- each of them dies --------------------------------------------------------------------------


@pytest.mark.fault("F19")
def test_when_no_worker_can_live_whoever_waits_is_told_and_nobody_waits_any_more(
    imgvol, reference, agent, switch
):
    """Before the filesystem is served again, where callers wait longest."""
    target = mount(imgvol, reference)
    held = agent.ask("open", path=f"{target}/usr/lib")
    switch.write_text("die")
    kill_worker(imgvol.run_dir)
    with (
        running_callers(f"{target}/absent-{{}}", 0, 20, how=LOOKUP) as lookers,
        running_callers(f"{target}/absent-again-{{}}", 0, 20, how=LOOKUP) as killed,
    ):
        lookers.wait_blocked()
        killed.wait_blocked()
        ends, seconds = killed.end(signal.SIGKILL)
        assert ends == ["killed"] * 20
        assert seconds < 1.0
        wait_until(lambda: told(imgvol.run_dir)["unready"] >= 3, seconds=30, what="three tries")
        done = imgvol.run("ps", check=False)
        assert done.returncode == 1
        assert "the daemon crashes again and again" in done.stderr
        assert "last_end signal 9 (SIGKILL)" in done.stderr
        assert imgvol.process.wait(90) == 128 + signal.SIGKILL
        ends, seconds = lookers.end()
        assert ends == ["failed"] * 20
        assert seconds < 1.0
    assert "there is no next one" in imgvol.log.read_text()
    assert agent.errno_of("pread", fd=held, size=10, offset=100_000) in ENDED
    assert agent.errno_of("list", path=target) in ENDED
    agent.ask("close", fd=held)
    switch.unlink()
    imgvol.start()
    check(agent, target)


# --- a kernel that cannot send again ------------------------------------------------------------


@pytest.mark.fault("F05")
def test_a_kernel_that_cannot_send_again_has_nothing_kept(short_path, reference, agent):
    prelude = transports.prelude("kernel without HAS_RESEND")
    with serving(Imgvol(short_path, options=OPTIONS, prelude=prelude)) as imgvol:
        target = mount(imgvol, reference)
        held = agent.ask("open", path=f"{target}/usr/lib")
        assert kept_devices(imgvol.process.pid) == 0
        kill_worker(imgvol.run_dir)
        wait_restarted(imgvol.run_dir, 1)
        assert agent.errno_of("pread", fd=held, size=9, offset=9) in ENDED
        with Agent() as other:
            check(other, target)
        assert "took the filesystem over" not in imgvol.log.read_text()
        agent.ask("close", fd=held)


@pytest.mark.fault("F05")
def test_a_kernel_that_refuses_to_send_again_ends_the_connection(imgvol, reference, agent, switch):
    imgvol.expected_log.append("cannot be taken over: .*Invalid argument")
    target = mount(imgvol, reference)
    assert kept_devices(imgvol.process.pid) == 1
    held = agent.ask("open", path=f"{target}/usr/lib")
    switch.write_text("no resend")
    kill_worker(imgvol.run_dir)
    wait_restarted(imgvol.run_dir, 1)
    assert "Invalid argument" in imgvol.log.read_text()
    assert agent.errno_of("pread", fd=held, size=9, offset=9) in ENDED
    with Agent() as other:
        check(other, target)
    assert kept_devices(imgvol.process.pid) == 1, "the new one"
    agent.ask("close", fd=held)


# --- no room ------------------------------------------------------------------------------------


def fill(directory):
    """Takes all the room of a filesystem, to the last byte."""
    with open(directory / "filler", "wb", buffering=0) as filler:
        for size in (1 << 16, 1):
            try:
                while filler.write(b"x" * size):
                    pass
            except OSError:
                continue
    return directory / "filler"


@pytest.fixture
def on_small_disks(short_path):
    """A daemon whose store and run directory are filesystems of their own."""
    require_root()
    imgvol = Imgvol(short_path, options=OPTIONS)
    disks = {imgvol.root: 20 * MB, imgvol.run_dir: 1 * MB}
    for path, size in disks.items():
        path.mkdir(mode=0o700)
        options = f"size={size},mode=0700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
    try:
        with serving(imgvol):
            yield imgvol
    finally:
        for path in disks:
            subprocess.run(["umount", path], check=True)


@pytest.mark.fault("F05")
@pytest.mark.fault("F20")
@pytest.mark.parametrize("full", [["store"], ["run"], ["store", "run"]], ids=" and ".join)
def test_a_filesystem_is_taken_over_while_a_disk_is_full(on_small_disks, reference, agent, full):
    imgvol = on_small_disks
    target = mount(imgvol, reference)
    held = agent.ask("open", path=f"{target}/usr/lib")
    worker = told(imgvol.run_dir)["worker"]
    fillers = [fill(imgvol.base / name) for name in full]
    for name in full:
        disk = os.statvfs(imgvol.base / name)
        assert disk.f_bavail == 0
    os.kill(worker, signal.SIGKILL)
    check(agent, target)
    wanted = FILES["usr/lib"][100_000:100_010]
    assert agent.ask_bytes("pread", fd=held, size=10, offset=100_000) == wanted
    (volume,) = imgvol.json("ps")
    assert volume["state"] == "mounted"
    assert imgvol.log.read_text().count("took the filesystem over") == 1
    for filler in fillers:
        filler.unlink()
    agent.ask("close", fd=held)
    imgvol.run("unmount", target)
    other = mount(imgvol, reference, "other")
    check(agent, other)
