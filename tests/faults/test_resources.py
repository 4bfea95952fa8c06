"""Daemons short of descriptors or memory, stopped, or with a clock that jumps; readers in great
number, killed, or short of memory (F15, F32, F70, F72, F81 to F84)."""

import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.caches import PAGES_AND_NAMES, drop_caches
from support.machine import DIGEST, MIB, SMALL, resident, running_machine
from support.programs import require, wait_until

pytestmark = pytest.mark.fuse

OPENS = 10_000


@pytest.fixture
def machine(short_path):
    with running_machine(short_path) as running:
        yield running


# --- descriptors ----------------------------------------------------------------------------------


@pytest.mark.alone("drops the kernel's caches")
@pytest.mark.fault("F83")
def test_without_descriptors_what_needs_some_fails_and_nothing_else(machine, agent):
    imgvol = machine.imgvol
    imgvol.expected_log.append("Too many open files")
    assert agent.ask_bytes("content", path=f"{machine.target}/d/7") == SMALL["d/7"]
    used = len(os.listdir(f"/proc/{machine.pid}/fd"))
    limits = resource.prlimit(machine.pid, resource.RLIMIT_NOFILE)
    # One for the connection, one for what is being done.
    resource.prlimit(machine.pid, resource.RLIMIT_NOFILE, (used + 2, limits[1]))
    try:
        failed = imgvol.run("pull", machine.other, check=False, timeout=60)
        assert failed.returncode == 1
        assert "too many open files" in failed.stderr.lower()
        drop_caches(PAGES_AND_NAMES)
        assert agent.ask_bytes("content", path=f"{machine.target}/d/7") == SMALL["d/7"]
        assert len(imgvol.json("ps")) == 1
    finally:
        resource.prlimit(machine.pid, resource.RLIMIT_NOFILE, limits)
    machine.check(agent)


@pytest.mark.fault("F83")
def test_a_daemon_that_can_accept_nobody_lives_and_accepts_when_it_can(machine, agent):
    imgvol = machine.imgvol
    imgvol.expected_log.append("cannot accept a connection: Too many open files")
    used = len(os.listdir(f"/proc/{machine.pid}/fd"))
    limits = resource.prlimit(machine.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(machine.pid, resource.RLIMIT_NOFILE, (used, limits[1]))
    with ThreadPoolExecutor(1) as pool:
        try:
            asking = pool.submit(imgvol.run, "ps", check=False, timeout=30)
            wait_until(lambda: "cannot accept" in imgvol.log_end(), what="the fault to fire")
            assert agent.errno_of("list", path=f"{machine.target}/d") == "OK"
        finally:
            resource.prlimit(machine.pid, resource.RLIMIT_NOFILE, limits)
        # It may have been accepted in between, and then have met the same.
        asked = asking.result()
        assert asked.returncode == 0 or "too many open files" in asked.stderr.lower()
    assert len(imgvol.json("ps")) == 1
    machine.check(agent)


OPEN_ALL = """
import os, resource, sys
path, count = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 50, count + 50))
files = [os.open(f"{path}/{n % 100}", os.O_RDONLY) for n in range(count)]
print(len(files), flush=True)
sys.stdin.readline()
for n in range(0, count, 37):
    data = os.pread(files[n], 4000, 0)
    assert len(data) == 3000, n
"""


@pytest.mark.fault("F70")
@pytest.mark.parametrize("processes", [1, 50])
def test_ten_thousand_open_files(machine, processes):
    each = OPENS // processes
    before = resident(machine.pid)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_ALL, f"{machine.target}/d", str(each)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    try:
        assert [child.stdout.readline() for child in children] == [f"{each}\n"] * processes
        grown = resident(machine.pid) - before
        assert grown < 64 * MIB, "no state per open file"
        for child in children:
            child.communicate("\n", timeout=60)
        assert {child.returncode for child in children} == {0}
    finally:
        for child in children:
            child.kill()
            child.wait()
            child.stdout.close()
            child.stdin.close()


# --- what the kernel forgets ----------------------------------------------------------------------


@pytest.mark.alone("drops the kernel's caches")
@pytest.mark.fault("F82")
def test_what_the_kernel_has_forgotten_is_asked_for_again(machine, agent):
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(
            lambda: [agent.ask("digest", path=f"{machine.target}/large") for _ in range(6)]
        )
        while not reading.done():
            drop_caches(PAGES_AND_NAMES)
        assert set(reading.result()) == {DIGEST}
    machine.check(agent)


# --- time -----------------------------------------------------------------------------------------


@pytest.mark.fault("F84")
@pytest.mark.parametrize("jump", [10 * 365 * 86_400, -3600])
def test_a_clock_that_jumps_ends_no_lease_and_keeps_none(machine, agent, jump):
    imgvol = machine.imgvol
    imgvol.run("lease", "create", "long", "--expires", "1h")
    imgvol.run("lease", "create", "short", "--expires", "4s")
    machine.failing.turn(clock=jump)
    (probe,) = imgvol.run("lease", "create", "probe").stdout.split()
    created = {lease["id"]: lease["created_at"] for lease in imgvol.json("lease", "ls")}
    assert abs(created[probe] - time.time() - jump) < 60, "the clock has not jumped"
    wait_until(lambda: "short" not in lease_ids(imgvol), seconds=15, what="the short lease's end")
    assert "long" in lease_ids(imgvol)
    imgvol.terminate()
    imgvol.start()
    left = {lease["id"]: lease["remaining"] for lease in imgvol.json("lease", "ls")}
    assert 3400 < left["long"] <= 3600
    machine.check(agent)


def lease_ids(imgvol):
    return {lease["id"] for lease in imgvol.json("lease", "ls")}


@pytest.mark.fault("F15")
def test_a_daemon_that_is_stopped_for_a_while_answers_then(machine, agent):
    agent.ask("forget", path=f"{machine.target}/large")
    machine.imgvol.run("lease", "create", "pod", "--expires", "1h")
    os.kill(machine.pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(agent.ask, "digest", path=f"{machine.target}/large")
            time.sleep(3)
            assert not reading.done(), "nobody but the daemon can answer"
            os.kill(machine.pid, signal.SIGCONT)
            assert reading.result(30) == DIGEST
    finally:
        os.kill(machine.pid, signal.SIGCONT)
    assert "pod" in lease_ids(machine.imgvol)
    machine.check(agent)


# --- others in the way ----------------------------------------------------------------------------


@pytest.mark.fault("F32")
def test_somebody_locks_the_database_and_reads_go_on(machine, agent):
    """Nobody should; so whoever wants to write waits for a while, and is then told."""
    imgvol = machine.imgvol
    with sqlite3.connect(imgvol.root / "imgvol.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        failed = imgvol.run("lease", "create", "pod", check=False, timeout=60)
        assert failed.returncode == 1
        assert "locked" in failed.stderr
        assert 5 < time.monotonic() - started < 40
        agent.ask("forget", path=f"{machine.target}/large")
        assert agent.ask("digest", path=f"{machine.target}/large") == DIGEST
        other.execute("ROLLBACK")
    other.close()
    machine.check(agent)


@pytest.mark.alone("drops the kernel's caches")
@pytest.mark.fault("F81")
def test_killed_readers_go_at_once_and_disturb_nobody(machine, agent):
    choice = random.Random(3)
    code = "import sys\nwhile True: open(sys.argv[1], 'rb').read()"
    for _ in range(6):
        readers = [
            subprocess.Popen([sys.executable, "-c", code, f"{machine.target}/large"])
            for _ in range(8)
        ]
        drop_caches(PAGES_AND_NAMES)
        time.sleep(choice.uniform(0.05, 0.4))
        for reader in readers:
            reader.send_signal(signal.SIGKILL)
        for reader in readers:
            assert reader.wait(10) == -signal.SIGKILL
    machine.check(agent)


BUSY = {
    "working directory": "import os, sys; os.chdir(sys.argv[1])",
    "open file": "import sys; f = open(sys.argv[1] + '/large')",
    "mapping": (
        "import mmap, os, sys; f = os.open(sys.argv[1] + '/large', os.O_RDONLY);"
        "m = mmap.mmap(f, 0, prot=mmap.PROT_READ); os.close(f)"
    ),
}
STAY = "; print('here', flush=True); sys.stdin.readline()"


@pytest.mark.fault("F72")
@pytest.mark.parametrize("way", BUSY)
def test_a_volume_in_use_is_told_and_detached_when_asked(machine, agent, way):
    imgvol = machine.imgvol
    user = subprocess.Popen(
        [sys.executable, "-c", BUSY[way] + STAY, machine.target],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert user.stdout.readline() == "here\n"
        busy = imgvol.run("unmount", machine.target, check=False)
        assert busy.returncode == 1
        assert "in use" in busy.stderr
        assert agent.ask_bytes("content", path=f"{machine.target}/d/1") == SMALL["d/1"]
        imgvol.run("unmount", "--detach", machine.target)
        assert agent.ask("list", path=machine.target) == []
        assert imgvol.json("ps") == []
    finally:
        user.communicate("\n", timeout=20)


@pytest.mark.fault("F72")
def test_a_copy_in_another_namespace_keeps_nothing_from_going(machine, agent):
    require("unshare")
    other = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo here; read -r end"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "here\n"
        inside = f"/proc/{other.pid}/root{machine.target}/d/1"
        assert agent.ask_bytes("content", path=inside) == SMALL["d/1"]
        machine.imgvol.run("unmount", machine.target)
        assert agent.ask("list", path=machine.target) == []
        assert agent.ask_bytes("content", path=inside) == SMALL["d/1"], "they have what they had"
    finally:
        other.communicate("\n", timeout=20)
