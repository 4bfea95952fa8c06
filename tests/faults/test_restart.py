"""Daemons that die, and what the next one makes of it (F01 to F04, F07 to F09, F33)."""

import contextlib
import os
import re
import shutil
import signal
import subprocess

import pytest

from support import images
from support.daemon import Imgvol
from support.programs import require, wait_until

pytestmark = pytest.mark.fuse

CONTENT = bytes(range(256)) * 40_000
IMAGE = images.Image(
    [
        images.Layer(
            [
                images.directory("etc"),
                images.file("etc/motd", b"hello"),
                images.file("large", CONTENT),
                images.hardlink("link", "etc/motd"),
            ],
            "gzip",
        ),
        images.Layer([images.file("etc/more", b"more"), images.whiteout("link")], "zstd"),
    ]
)


@pytest.fixture
def layout(short_path):
    return images.write_layout(short_path / "layout", {"v1": IMAGE})


@pytest.fixture
def killed(short_path):
    """A daemon that a test may kill; whatever is left is stopped at the end."""
    imgvol = Imgvol(short_path, supervisor=False)
    imgvol.start()
    yield imgvol
    if imgvol.process.poll() is None:
        imgvol.terminate()
    assert not imgvol.unexpected_log()


def kill(imgvol):
    imgvol.process.send_signal(signal.SIGKILL)
    assert imgvol.process.wait(10) == -signal.SIGKILL


def look(agent, target):
    """Everything that must be the same before and after."""
    paths = [f"{target}{path}" for path in ("", "/etc", "/etc/motd", "/etc/more", "/large")]
    stats = {path: agent.ask("stat", path=path) for path in paths}
    for status in stats.values():
        status.pop("st_dev")
    listing = [name for name, _ in agent.ask("list", path=target)]
    return stats, listing, agent.ask("digest", path=f"{target}/large")


@pytest.mark.fault("F04")
def test_a_killed_daemon_leaves_dead_mounts_and_the_next_one_makes_them_live(killed, layout, agent):
    target = killed.target("mnt")
    killed.run("mount", f"oci:{layout}:v1", target)
    before = look(agent, target)
    handle = agent.ask("open", path=f"{target}/large")
    kill(killed)
    # An error, not an empty directory: whoever uses the volume must not take it for empty.
    assert agent.errno_of("list", path=f"{target}/etc") == "ENOTCONN"
    # What the kernel has of listings and pages stays readable, and right.
    with contextlib.suppress(OSError):
        assert [name for name, _ in agent.ask("list", path=target)] == before[1]
    assert agent.ask_bytes("pread", fd=handle, size=10, offset=512) == CONTENT[512:522]
    agent.ask("close", fd=handle)

    shutil.rmtree(layout)  # nothing but the store is needed
    killed.start()
    assert look(agent, target) == before
    (volume,) = killed.json("ps")
    assert (volume["target"], volume["state"]) == (target, "mounted")
    killed.run("unmount", target)
    assert agent.ask("list", path=target) == []


@pytest.mark.fault("F07")
def test_a_restart_by_signal_keeps_volumes_and_stop_ends_them(killed, layout, agent):
    target = killed.target("mnt")
    killed.run("mount", f"oci:{layout}:v1", target)
    before = look(agent, target)
    killed.terminate()
    assert agent.ask("list", path=target) == [], "detached while nobody serves it"
    killed.start()
    assert look(agent, target) == before
    killed.run("stop", "--force")
    wait_until(lambda: killed.process.poll() is not None, what="the daemon has ended")
    killed.start()
    assert killed.json("ps") == []
    assert agent.ask("list", path=target) == []


@pytest.mark.fault("F33")
def test_a_second_daemon_on_the_same_store_is_told_who_has_it(killed, layout):
    target = killed.target("mnt")
    killed.run("mount", f"oci:{layout}:v1", target)
    second = killed.run("serve", check=False, timeout=20)
    assert second.returncode == 1
    assert "another imgvol daemon" in second.stderr
    assert f"pid {killed.process.pid}, stage store" in second.stderr
    assert killed.json("ps"), "the first one was left alone"
    elsewhere = subprocess.run(
        [*killed.command[:-4], "--root", str(killed.base / "other"), *killed.command[-2:], "serve"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert elsewhere.returncode == 1, "another store, the same run directory"
    assert "another imgvol daemon" in elsewhere.stderr
    assert f"pid {killed.process.pid}, stage run directory" in elsewhere.stderr
    assert os.path.exists(f"{target}/large")


def test_somebody_aborts_the_connection_and_the_daemon_goes_and_comes_back(killed, layout, agent):
    killed.expected_log.append("connection ended")
    target = killed.target("mnt")
    killed.run("mount", f"oci:{layout}:v1", target)
    killed.run("abort")
    wait_until(lambda: killed.process.poll() is not None, what="the daemon has ended")
    assert killed.process.returncode == 1
    killed.start()
    assert agent.ask_bytes("content", path=f"{target}/etc/motd") == b"hello"


# The calls that change a store, one kind at a time; -P would miss files that exist later.
CALLS = ["pwrite64", "fsync,fdatasync", "rename,renameat,renameat2", "link,linkat,unlink,unlinkat"]


@pytest.mark.fault("F01")
@pytest.mark.slow
@pytest.mark.parametrize("calls", CALLS, ids=lambda calls: calls.partition(",")[0])
def test_killed_at_any_call_while_pulling_the_store_opens_and_pulls_again(
    short_path, layout, calls
):
    """The n-th call of a kind kills the daemon, for n spread over all that a pull makes."""
    require("strace")
    imgvol = Imgvol(short_path, supervisor=False)
    reference = f"oci:{layout}:v1"
    fired = []
    for n in [1, 2, 4, 9, 20]:
        imgvol.start()
        tracer = _strace(imgvol.process.pid, f"inject={calls}:signal=KILL:when={n}")
        imgvol.run("pull", reference, check=False, timeout=60)
        try:
            was_killed = imgvol.process.wait(3) == -signal.SIGKILL
        except subprocess.TimeoutExpired:
            was_killed = False
        tracer.terminate()
        tracer.wait(10)
        fired.append(was_killed)
        if was_killed:
            imgvol.start()
        _assert_whole(imgvol, reference)
        imgvol.run("rmi", reference)
        imgvol.terminate()
        if not was_killed:
            break
    assert fired[0], "the fault was never injected"
    assert not imgvol.unexpected_log()


def _assert_whole(imgvol, reference):
    """Either the image is here, whole, or not at all; and it can be pulled."""
    for image in imgvol.json("images"):
        assert reference in image["names"]
    imgvol.run("pull", reference)
    done = subprocess.run(
        [*imgvol.command, "cat", reference, "/large"], capture_output=True, check=True, timeout=60
    )
    assert done.stdout == CONTENT
    assert os.listdir(imgvol.root / "ingest") == []


def _strace(pid, injection):
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", injection, "-p", str(pid)],
        stderr=subprocess.DEVNULL,
    )
    status = f"/proc/{pid}/status"

    def is_traced():
        with open(status) as lines:
            return not re.search(r"^TracerPid:\t0$", lines.read(), re.MULTILINE)

    wait_until(is_traced, what="strace is attached")
    return tracer
