"""Daemons and readers with little memory (F11, F82).

Not among the filesystem tests that must run: not every machine lets one bound a process's memory.
"""

import os
import signal
from pathlib import Path

import pytest

from support.agent import Agent
from support.caches import PAGES_AND_NAMES, drop_caches
from support.machine import DIGEST, MIB, resident, running_machine
from support.programs import wait_until

pytestmark = pytest.mark.root

CGROUPS = Path("/sys/fs/cgroup")


@pytest.fixture
def machine(short_path):
    with running_machine(short_path, supervisor=False) as running:
        yield running


class Group:
    """A group of processes with bounded memory, of either version of cgroups."""

    def __init__(self):
        self._is_first = (CGROUPS / "memory").is_dir()
        home = CGROUPS / "memory" if self._is_first else CGROUPS
        self.path = home / f"imgvol-test-{os.getpid()}"
        self.path.mkdir()

    def bound(self, pid, size):
        limit = "memory.limit_in_bytes" if self._is_first else "memory.max"
        (self.path / limit).write_text(str(size))
        (self.path / "cgroup.procs").write_text(str(pid))

    @property
    def kills(self):
        """How many processes the kernel has killed."""
        return self._events("memory.oom_control" if self._is_first else "memory.events")["oom_kill"]

    @property
    def refusals(self):
        """How often the bound was met."""
        if self._is_first:
            return int((self.path / "memory.failcnt").read_text())
        return self._events("memory.events")["max"]

    def _events(self, name):
        lines = (self.path / name).read_text().splitlines()
        return {key: int(value) for key, value in map(str.split, lines)}


@pytest.fixture
def group():
    try:
        made = Group()
    except OSError as exc:
        pytest.skip(f"no group of processes with bounded memory can be made: {exc.strerror}")
    yield made
    wait_until(lambda: not (made.path / "cgroup.procs").read_text(), what="the group to be empty")
    made.path.rmdir()


@pytest.mark.fault("F11")
def test_the_kernel_kills_the_daemon_for_its_memory_and_the_next_one_goes_on(machine, agent, group):
    """The killer acts as at any other moment; so this is the killed daemon, by another hand."""
    imgvol = machine.imgvol
    group.bound(machine.pid, resident(machine.pid) + 96 * MIB)
    machine.failing.turn(eat=400 * MIB)
    assert imgvol.process.wait(60) == -signal.SIGKILL
    assert group.kills == 1
    assert agent.errno_of("list", path=machine.target) == "ENOTCONN"
    machine.failing.turn()
    imgvol.start()
    machine.check(agent)


@pytest.mark.alone("drops the kernel's caches")
@pytest.mark.fault("F82")
def test_readers_short_of_memory_read_the_same(machine, group):
    with Agent() as reader:
        group.bound(reader.pid, 24 * MIB)
        for _ in range(2):
            drop_caches(PAGES_AND_NAMES)
            assert reader.ask("digest", path=f"{machine.target}/large") == DIGEST
        assert group.refusals > 0, "the bound was never met"
