"""Another program goes on with what is there, or the old one does: real supervisors and workers."""

import contextlib
import os
import signal
import sys
import threading

import pytest

from imgvol.supervisor.upgrade import ask_for_upgrade
from support.programs import wait_until
from support.supervised import supervising

# What is "on the disk" is a file, which each process reads when it loads.
PROGRAM = """
import os, signal, sys, time
from imgvol.service_manager import ServiceManager
disk = open({disk!r}).read()
manager = ServiceManager.from_environment(os.environ)
if (turn := manager.own_turn()) is not None:
    if disk == "breaks":
        sys.exit(1)
    if disk == "hangs":
        time.sleep(600)
    if disk == "refuses":
        turn.refuse("the store is of another version")
        sys.exit(1)
    manager = manager.after(turn, disk) or sys.exit(0)
if disk == "fails":
    sys.exit(1)
if disk == "ends":
    sys.exit(0)
if disk == "stalls":
    time.sleep(600)
kept = manager.take("memory") or [os.memfd_create("memory")]
if not manager.inherited and os.pread(kept[0], 9, 0) == b"":
    manager.keep("memory", kept[0])
os.pwrite(kept[0], disk.encode() + b" ", os.fstat(kept[0]).st_size)
with open({seen!r}, "wb") as seen:
    seen.write(os.pread(kept[0], 1000, 0))
manager.ready("serving")
signal.sigwait([signal.SIGTERM])
"""


class Service:
    """A supervisor, and the file that its workers' program is."""

    def __init__(self, supervised):
        self.supervised = supervised
        self.disk = supervised.run.parent / "disk"
        self.seen = supervised.run.parent / "seen"
        self.disk.write_text("one")
        source = PROGRAM.format(disk=str(self.disk), seen=str(self.seen))
        supervised.stands_by = True
        supervised.start("", command=[sys.executable, "-P", "-c", source])
        self.wait_standby()

    @property
    def status(self):
        return self.supervised.status() or {"standby": None, "worker": None}

    def wait_standby(self):
        wait_until(lambda: self.status["standby"], seconds=20, what="a worker that stands by")

    def upgrade(self, seconds=10.0):
        pid = self.supervised.process.pid
        return ask_for_upgrade(str(self.supervised.run), pid, seconds)


@pytest.fixture
def service(short_path):
    with supervising(short_path) as supervised:
        service = Service(supervised)
        yield service
        service.supervised.process.terminate()
        assert service.supervised.process.wait(20) == 0
        assert os.listdir(service.supervised.run) == []


def test_the_new_program_goes_on_with_what_was_kept(service):
    old = service.status["worker"]
    before = service.supervised.open_descriptors()
    for version in ("two", "three"):
        service.disk.write_text(version)
        assert service.upgrade() == (version, None)
    assert service.seen.read_text() == "one two three "
    assert service.status["worker"] != old
    assert service.status["restarts"] == 0, "nothing has crashed"
    wait_until(lambda: service.supervised.open_descriptors() == before, what="none is leaked")
    # What stands by is of the new program, too.
    os.kill(service.status["worker"], signal.SIGKILL)
    wait_until(lambda: service.seen.read_text() == "one two three three ", what="it is started")


@pytest.mark.parametrize(
    ("disk", "reason"),
    [
        ("breaks", "it ended"),
        ("hangs", "the new daemon was not loaded in time"),
        ("refuses", "the store is of another version"),
    ],
)
def test_a_program_that_cannot_go_on_changes_nothing(service, disk, reason):
    status, before = service.status, service.supervised.open_descriptors()
    service.disk.write_text(disk)
    assert service.upgrade(1.0) == (None, reason)
    assert service.status == status
    wait_until(lambda: service.supervised.open_descriptors() == before, what="none is leaked")
    assert service.seen.read_text() == "one "


@pytest.mark.parametrize(
    ("disk", "reason"),
    [
        ("fails", "the new daemon ended with exit code 1"),
        ("ends", "the new daemon ended with exit code 0"),
        ("stalls", "the new daemon was not ready within 1 s"),
    ],
)
def test_one_that_fails_later_is_followed_by_the_old_program(service, disk, reason):
    """What is on the disk is of no use then: the one that stood by has all that it needs."""
    way_back = service.status["standby"]
    service.disk.write_text(disk)
    assert service.upgrade(1.0) == (None, reason)
    wait_until(lambda: service.seen.read_text() == "one one ", what="the old program goes on")
    wait_until(lambda: service.status["worker"] == way_back, what="it is the one that stood by")
    service.wait_standby()
    service.disk.write_text("two")
    # That one was loaded from what was on the disk before.
    loaded = service.status["standby"]
    os.kill(loaded, signal.SIGKILL)
    wait_until(lambda: service.status["standby"] != loaded, what="it is missed")
    os.kill(way_back, signal.SIGKILL)
    wait_until(lambda: service.seen.read_text() == "one one two ", seconds=20, what="the next one")


def test_a_daemon_that_crashes_meanwhile_is_started_again_from_the_old_program(service):
    service.disk.write_text("hangs")
    results = []
    asking = threading.Thread(target=lambda: results.append(service.upgrade()))
    asking.start()
    wait_until(lambda: len(children(service)) == 3, what="the new one loads")
    assert service.upgrade() == (None, "another upgrade is under way")
    os.kill(service.status["worker"], signal.SIGKILL)
    asking.join(20)
    assert results == [(None, "the daemon ended with signal 9 (SIGKILL)")]
    wait_until(lambda: service.seen.read_text() == "one one ", what="the old program goes on")


def children(service):
    pid = service.supervised.process.pid
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as listed:
        return listed.read().split()
    return []


def test_without_a_worker_that_stands_by_there_is_none(short_path):
    with supervising(short_path) as supervised:
        supervised.start("manager.ready('x'); signal.sigwait([15])")
        pid = supervised.wait_for(state="ready")["pid"]
        found = ask_for_upgrade(str(supervised.run), pid, 1.0)
        assert found == (None, "there is no worker that stands by")
        assert supervised.process.poll() is None
