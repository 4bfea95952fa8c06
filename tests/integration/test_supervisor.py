"""A real supervisor with workers that live and die as a test says."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from imgvol import limits
from imgvol.supervisor import status
from imgvol.supervisor.status import Status
from support.programs import require, wait_until
from support.supervised import PRELUDE, supervising

# Ready, and then nothing until it is told to end.
LIVE = """
manager.ready("serving")
signal.sigwait([signal.SIGTERM])
"""
BLOCK = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])\n"


@pytest.fixture
def supervised(short_path):
    with supervising(short_path) as supervised:
        yield supervised


def is_gone(pid):
    """Dead; perhaps nobody has waited for it yet."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def worker_after(supervised, restarts):
    return supervised.wait_for(state="ready", restarts=restarts)["worker"]


# --- ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 2, 3, 77])
def test_a_worker_that_never_is_ready_is_not_started_again(supervised, code):
    supervised.start(f"sys.exit({code})")
    assert supervised.process.wait(20) == code
    assert os.listdir(supervised.run) == []


def test_nor_is_one_that_is_killed_while_it_starts(supervised):
    supervised.start("os.kill(os.getpid(), 9)")
    assert supervised.process.wait(20) == 128 + 9
    assert "signal 9 (SIGKILL); there is no next one" in supervised.said()


def test_a_command_that_cannot_be_run_is_the_end(supervised):
    supervised.start("", command=[str(supervised.run / "nothing")])
    assert supervised.process.wait(20) == 127
    assert "cannot run" in supervised.said()


@pytest.mark.parametrize("code", [0, 3])
def test_a_worker_that_ends_for_good_ends_the_supervisor(supervised, code):
    supervised.start(f"manager.ready('x'); sys.exit({code})")
    assert supervised.process.wait(20) == code
    assert os.listdir(supervised.run) == []


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os.abort()", "sys.exit(1)"])
def test_a_worker_that_crashes_is_followed_by_another(supervised, end):
    supervised.start(
        f"manager.ready('x')\nif manager.restarts < 2:\n    {end}\nsignal.sigwait([15])"
    )
    status = supervised.wait_for(restarts=2, state="ready")
    assert status["pid"] == supervised.process.pid
    assert status["unready"] == 0
    assert re.fullmatch(r"signal \d+ \(SIG\w+\)|exit code 1", status["last_end"])
    assert abs(status["last_end_at"] - time.time()) < 20


def test_the_starters_descriptor_is_the_first_workers_alone(supervised):
    reading, writing = os.pipe()
    supervised.start(
        f"""
if manager.restarts == 0:
    os.write({writing}, b"ready")
    os.close({writing})
manager.ready(str(os.path.exists("/proc/self/fd/{writing}")))
if manager.restarts == 0:
    os.kill(os.getpid(), 9)
signal.sigwait([15])
""",
        ready_fd=writing,
    )
    os.close(writing)
    with open(reading, "rb") as file:
        assert file.read() == b"ready", "and end-of-file: nobody has it any more"
    worker_after(supervised, 1)


# --- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on_and_the_worker_decides(supervised, number):
    supervised.start(BLOCK + "manager.ready('x'); sys.exit({15: 0, 2: 7}[signal.sigwait([15, 2])])")
    worker = worker_after(supervised, 0)
    supervised.process.send_signal(number)
    assert supervised.process.wait(20) == {signal.SIGTERM: 0, signal.SIGINT: 7}[number]
    assert is_gone(worker)
    assert os.listdir(supervised.run) == []


def test_a_worker_that_does_not_listen_yet_ends_as_told(supervised):
    supervised.start("time.sleep(600)")
    time.sleep(0.1)
    wait_until(lambda: os.listdir(supervised.run), what="the supervisor listens")
    supervised.process.terminate()
    assert supervised.process.wait(20) == 0


def test_a_worker_that_does_not_stop_is_killed(supervised):
    supervised.limits["WORKER_STOP"] = 0.3
    supervised.start("signal.signal(15, signal.SIG_IGN); manager.ready('x'); time.sleep(600)")
    worker = worker_after(supervised, 0)
    supervised.process.terminate()
    assert supervised.process.wait(20) == 3
    assert is_gone(worker)
    assert "not stopped in time" in supervised.said()


def test_it_stops_in_the_middle_of_a_pause(supervised):
    supervised.limits.update(WORKER_PAUSE_FIRST=30.0, WORKER_PAUSE_BRIEF=30.0)
    supervised.start("manager.ready('x'); os.kill(os.getpid(), 9)")
    status = supervised.wait_for(state="waiting", worker=None)
    assert 0 < status["next_try_at"] - time.time() <= 30
    began = time.monotonic()
    supervised.process.terminate()
    assert supervised.process.wait(20) == 0
    assert time.monotonic() - began < 5
    assert os.listdir(supervised.run) == []


@pytest.mark.fault("F18")
def test_a_worker_dies_with_its_supervisor(supervised):
    supervised.start(BLOCK + "manager.ready('x'); time.sleep(600)")
    worker = worker_after(supervised, 0)
    supervised.process.kill()
    assert supervised.process.wait(20) == -signal.SIGKILL
    wait_until(lambda: is_gone(worker), what="the worker dies")
    # What it has left does not disturb the next one.
    supervised.start(LIVE)
    pid = supervised.process.pid
    supervised.wait_for(pid=pid, state="ready")
    assert sorted(os.listdir(supervised.run)) == [f".supervisor.{pid}", "supervisor.json"]


def test_the_worker_of_a_killed_supervisor_is_waited_for(supervised):
    """It may still hold its locks. Here it is a process that takes its time to end."""
    seen = supervised.run.parent / "seen"
    ending = subprocess.Popen(["sh", "-c", f"sleep 1; echo ended >> {seen}"])
    dead = subprocess.Popen(["true"])
    dead.wait()
    status.write(str(supervised.run), Status(dead.pid, "ready", worker=ending.pid))
    supervised.start(f"print('started', file=open({str(seen)!r}, 'a')); manager.ready('x')")
    assert supervised.process.wait(20) == 0
    assert seen.read_text() == "ended\nstarted\n"
    ending.wait()


# --- workers that hang --------------------------------------------------------------------------


def test_a_worker_that_does_not_get_ready_is_ended_with_its_stacks(supervised):
    supervised.limits["WORKER_START"] = 5.0
    supervised.start(
        """
import faulthandler; faulthandler.enable()
if manager.restarts:
    time.sleep(600)
manager.ready("x")
os.kill(os.getpid(), 9)
"""
    )
    supervised.wait_for(restarts=2)
    assert "not ready in time" in supervised.said()
    assert "Fatal Python error: Aborted" in supervised.said()
    assert supervised.status()["last_end"] == "signal 6 (SIGABRT)"


def test_a_start_that_asks_for_more_time_gets_it(supervised):
    supervised.limits["WORKER_START"] = 2.0
    supervised.start(
        "manager.starting('much', 60)\ntime.sleep(4)\nmanager.ready('x')\nsignal.sigwait([15])"
    )
    supervised.wait_for(state="ready", restarts=0)


def test_a_worker_without_a_sign_of_life_is_ended_even_if_it_ignores_that(supervised):
    supervised.limits.update(WORKER_WATCHDOG=0.5, WORKER_ABORT=0.2)
    supervised.start(
        """
signal.signal(signal.SIGABRT, signal.SIG_IGN)
assert manager.watchdog == 0.5
manager.ready("x")
for _ in range(20 if manager.restarts == 0 else 10**9):
    manager.alive()
    time.sleep(0.1)
time.sleep(600)
"""
    )
    status = supervised.wait_for(restarts=1, state="ready")
    assert status["last_end"] == "signal 9 (SIGKILL)"
    assert "no sign of life" in supervised.said()
    assert supervised.said().count("no sign of life") == 2, "SIGABRT, then SIGKILL"


# --- what is kept -------------------------------------------------------------------------------

COUNT = """
(counter,) = manager.take("counter") or [os.memfd_create("counter")]
count = int(os.pread(counter, 20, 0) or b"0")
os.pwrite(counter, b"%d" % (count + 1), 0)
if manager.restarts == 0:
    assert manager.keep("counter", counter)
manager.ready(str(count))
if count < 20:
    os.kill(os.getpid(), 9)
signal.sigwait([15])
"""


def test_a_descriptor_goes_from_worker_to_worker_and_none_leaks(supervised):
    supervised.limits["WORKER_PAUSE_BRIEF"] = 0.01
    supervised.start(COUNT)
    status = supervised.wait_for(restarts=20, state="ready")
    # Its own: standard ones, the pipe, the directory, the socket, the pidfd; and what is kept.
    held = {os.readlink(f"/proc/{status['pid']}/fd/{n}") for n in range(3, 9)}
    assert "/memfd:counter (deleted)" in held
    supervised.process.terminate()
    assert supervised.process.wait(20) == 0


def test_as_many_descriptors_after_many_restarts_as_after_one(supervised):
    supervised.limits["WORKER_PAUSE_BRIEF"] = 0.01
    supervised.start(LIVE)
    os.kill(worker_after(supervised, 0), signal.SIGKILL)
    worker = worker_after(supervised, 1)
    before = open_when_at_rest(supervised, worker)
    for restarts in range(2, 22):
        os.kill(worker, signal.SIGKILL)
        worker = worker_after(supervised, restarts)
    assert open_when_at_rest(supervised, worker) == before


def open_when_at_rest(supervised, worker):
    """How much supervisor and worker have open, when neither is just telling of something."""
    both = (supervised.process.pid, worker)
    wait_until(lambda: all(map(is_asleep, both)), what="both are at rest")
    return supervised.open_descriptors(), len(os.listdir(f"/proc/{worker}/fd"))


def test_a_thousand_descriptors_are_refused_beyond_the_bound(supervised):
    supervised.start(
        """
if manager.restarts == 0:
    for number in range(1000):
        manager.keep("many", 0)
    manager.keep("other", 0)
    manager.drop("many")
    manager.keep("other", 0)
manager.ready("x")
signal.sigwait([15])
"""
    )
    worker_after(supervised, 0)
    said = supervised.said()
    assert f"more than {limits.DESCRIPTORS_KEPT} descriptors to keep" in said
    assert said.count("refused a notification") == limits.NOTIFY_COMPLAINTS
    before = supervised.open_descriptors()
    assert before < 15
    os.kill(worker_after(supervised, 0), signal.SIGKILL)
    worker_after(supervised, 1)
    assert supervised.open_descriptors() == before


def test_what_no_worker_takes_is_closed(supervised):
    supervised.start(
        """
if manager.restarts == 0:
    manager.keep("old", 0)
    manager.keep("old", 0)
    manager.ready("x")
    os.kill(os.getpid(), 9)
assert len(manager.inherited["old"]) == 2
manager.drop_rest()
manager.ready("x")
signal.sigwait([15])
"""
    )
    worker_after(supervised, 1)
    assert supervised.open_descriptors() == 8, supervised.said()


def test_words_of_others_and_nonsense_change_nothing(supervised):
    supervised.start(
        """
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
    for data in (b"\\xff", b"x" * 9000, b"FDSTORE=1\\nFDNAME=a b"):
        s.sendto(data, manager.address)
if os.fork() == 0:
    manager.ready("a child is not the worker")
    os._exit(0)
os.wait()
manager.alive()
signal.sigwait([15])
"""
    )
    for why in ("not UTF-8", "too large", "not a name", "not the worker"):
        wait_until(lambda why=why: why in supervised.said(), seconds=20, what=why)
    assert supervised.status() is None, "it is not ready"


# --- workers that stand by ----------------------------------------------------------------------


@pytest.fixture
def stands_by(supervised):
    supervised.stands_by = True
    return supervised


def standby_of(supervised):
    def pid():
        return (supervised.status() or {}).get("standby")

    wait_until(pid, seconds=20, what="a worker that stands by")
    return pid()


KEEPS = """
if manager.restarts == 0:
    manager.keep("memory", os.memfd_create("memory"))
else:
    (kept,) = manager.take("memory")
    assert os.readlink(f"/proc/self/fd/{kept}") == "/memfd:memory (deleted)"
"""


def test_the_worker_that_stood_by_is_the_next_one_and_has_what_was_kept(stands_by):
    stands_by.start(KEEPS + LIVE)
    worker = worker_after(stands_by, 0)
    for restarts in (1, 2, 3):
        standby = standby_of(stands_by)
        before = stands_by.open_descriptors()
        os.kill(worker, signal.SIGKILL)
        worker = worker_after(stands_by, restarts)
        assert worker == standby
        assert standby_of(stands_by) not in {worker, None}
        assert stands_by.open_descriptors() == before
    last = standby_of(stands_by)
    stands_by.process.terminate()
    assert stands_by.process.wait(20) == 0
    assert is_gone(last)


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_one_that_stands_by_ends_with_its_supervisor(stands_by, end):
    stands_by.start(LIVE)
    standby = standby_of(stands_by)
    getattr(stands_by.process, end)()
    stands_by.process.wait(20)
    wait_until(lambda: is_gone(standby), what="it ends")


def test_one_that_still_loads_has_its_turn_when_it_is_done(stands_by):
    stands_by.start(
        "manager.ready('x')\n"
        "if manager.restarts == 0:\n"
        "    time.sleep(0.05)\n"  # by then the next one was started, and is not ready
        "    os.kill(os.getpid(), 9)\n"
        "signal.sigwait([15])"
    )
    worker_after(stands_by, 1)
    assert "cannot go on" not in stands_by.said()


def test_one_that_dies_while_it_waits_is_replaced_later(stands_by):
    stands_by.limits["STANDBY_AGAIN"] = 0.5
    stands_by.start(LIVE)
    worker, first = worker_after(stands_by, 0), standby_of(stands_by)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: stands_by.status()["standby"] != first, what="it is missed")
    assert standby_of(stands_by) != first
    assert "the worker that stood by cannot go on: it ended" in stands_by.said()
    assert worker_after(stands_by, 0) == worker


def test_one_that_refuses_is_never_given_the_turn(stands_by):
    """As one does whose program was replaced by another version meanwhile."""
    switch = stands_by.run.parent / "switch"
    program = (
        PRELUDE.partition("if (turn")[0]
        + f"""
if (turn := manager.own_turn()) is not None:
    turn.refuse("written by another version")
    sys.exit(1)
open({str(switch)!r}, "a").write("started ")
"""
    )
    stands_by.start("", command=[sys.executable, "-P", "-c", program + LIVE])
    wait_until(lambda: "another version" in stands_by.said(), seconds=20, what="it refuses")
    assert stands_by.status()["standby"] is None
    os.kill(worker_after(stands_by, 0), signal.SIGKILL)
    worker_after(stands_by, 1)
    assert switch.read_text() == "started started ", "a new one, which did not stand by"


# --- crash loops --------------------------------------------------------------------------------


@pytest.mark.fault("F19")
def test_it_gives_up_after_some_tries_and_says_so(supervised):
    supervised.limits.update(WORKER_PAUSE_MOST=0.01, WORKER_TRIES=4)
    supervised.start("if manager.restarts:\n    sys.exit(1)\nmanager.ready('x')\nos.abort()")
    assert supervised.process.wait(20) == 1
    said = supervised.said()
    assert said.count("the next one starts") == 4
    assert "the worker ended with exit code 1; there is no next one" in said
    assert os.listdir(supervised.run) == []


# --- systemd above ------------------------------------------------------------------------------


@pytest.fixture
def systemd(short_path):
    """A socket that listens as systemd's does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(short_path / "systemd"))
        listening.settimeout(20)
        yield listening


def hear(systemd, wanted):
    """All words up to the one that is wanted, and the descriptors that came with it."""
    words = []
    while not words or wanted not in words[-1]:
        data, descriptors, _, _ = socket.recv_fds(systemd, 8192, 10)
        words.append(data.decode())
    return words, descriptors


def test_systemd_is_told_what_the_worker_says_and_keeps_what_it_keeps(supervised, systemd):
    supervised.environment = {
        "NOTIFY_SOCKET": systemd.getsockname(),
        "WATCHDOG_USEC": "300000",
    }
    supervised.start(
        """
manager.starting("store", 90)
if manager.restarts == 0:
    manager.keep("memory", os.memfd_create("memory"))
manager.drop("other")
manager.ready("serving")

os.kill(os.getpid(), 9) if manager.restarts == 0 else signal.sigwait([15])
"""
    )
    words, _ = hear(systemd, "EXTEND")
    assert "STATUS=store\nEXTEND_TIMEOUT_USEC=90000000" in words
    _, (descriptor,) = hear(systemd, "FDSTORE=1\nFDNAME=memory")
    assert os.readlink(f"/proc/self/fd/{descriptor}") == "/memfd:memory (deleted)"
    os.close(descriptor)
    hear(systemd, "FDSTOREREMOVE=1\nFDNAME=other")
    hear(systemd, "READY=1")
    worker_after(supervised, 1)
    words, _ = hear(systemd, "READY=1")
    assert not [word for word in words if "STOPPING" in word], "the service goes on"
    hear(systemd, "WATCHDOG=1")
    hear(systemd, "WATCHDOG=1")
    supervised.process.terminate()
    hear(systemd, "STOPPING=1")
    assert supervised.process.wait(20) == 0


def fill(systemd):
    """Until its queue has no room; one sender alone may not have so much under way."""
    sent = 1
    while sent:
        sent = 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            other.connect(systemd.getsockname())
            with contextlib.suppress(BlockingIOError):
                while True:
                    other.send(b"of another service")
                    sent += 1


def is_asleep(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"


def test_what_systemd_must_not_miss_waits_for_room(short_path, systemd):
    with supervising(short_path, NOTIFY_PATIENCE=20.0) as supervised:
        supervised.environment = {"NOTIFY_SOCKET": systemd.getsockname()}
        fill(systemd)
        supervised.start("manager.ready('x'); manager.keep('memory', 0); signal.sigwait([15])")
        supervised.wait_for(state="ready")
        pid = supervised.process.pid
        wait_until(lambda: is_asleep(pid), what="the supervisor waits")
        hear(systemd, "READY=1")
        _, (descriptor,) = hear(systemd, "FDSTORE=1\nFDNAME=memory")
        os.close(descriptor)


def test_a_manager_that_takes_nothing_is_told_of_and_not_waited_for(short_path, systemd):
    with supervising(short_path, NOTIFY_PATIENCE=0.05) as supervised:
        supervised.environment = {"NOTIFY_SOCKET": systemd.getsockname()}
        fill(systemd)
        supervised.start("manager.ready('x'); manager.keep('memory', 0); signal.sigwait([15])")
        supervised.wait_for(state="ready")
        said = ["did not take READY=1", "did not take FDSTORE=1 FDNAME=memory"]
        wait_until(lambda: all(each in supervised.said() for each in said), what="both are told")


@pytest.mark.fault("F19")
def test_when_it_gives_up_systemd_keeps_nothing(short_path, systemd):
    """A supervisor that systemd starts next would have readers wait for ever."""
    quick = {"WORKER_TRIES": 3, "WORKER_PAUSE_FIRST": 0.01}
    with supervising(short_path, **quick) as supervised:
        supervised.environment = {"NOTIFY_SOCKET": systemd.getsockname()}
        supervised.start(
            """
if manager.restarts == 0:
    manager.keep("memory", os.memfd_create("memory"), os.memfd_create("memory"))
    manager.ready("serving")
os.kill(os.getpid(), 9)
"""
        )
        assert supervised.process.wait(20) == 128 + 9
    _, descriptors = hear(systemd, "FDSTORE=1\nFDNAME=memory")
    assert [os.close(descriptor) for descriptor in descriptors] == [None, None]
    words, _ = hear(systemd, "FDSTOREREMOVE=1\nFDNAME=memory")
    assert not [word for word in words[:-1] if "REMOVE" in word], "once, of all with that name"


# The shell opens the file as 3, where systemd would put it; then each of these becomes the next.
BY_SYSTEMD = """
import os, sys
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="kept")
os.execv(sys.executable, [sys.executable, "-P", *sys.argv[1:]])
"""
SUPERVISOR = """
import os, sys
from imgvol.supervisor.loop import Supervisor
sys.exit(Supervisor("run", [sys.executable, "-P", *sys.argv[1:]], dict(os.environ)).run(None))
"""
TAKES = """
(kept,) = manager.take("kept")
with open("seen", "a") as seen:
    print(os.readlink(f"/proc/self/fd/{kept}"), file=seen)
manager.ready("x")
if manager.restarts == 0:
    os.kill(os.getpid(), 9)
"""


def test_a_new_supervisor_gets_what_systemd_has_kept_and_passes_it_on(short_path):
    (short_path / "run").mkdir(mode=0o700)
    (short_path / "kept").touch()
    programs = ["-c", BY_SYSTEMD, "-c", SUPERVISOR, "-c", PRELUDE + TAKES]
    command = ["sh", "-c", 'exec "$@" 3<kept', "sh", sys.executable, *programs]
    assert subprocess.run(command, cwd=short_path, timeout=30, check=False).returncode == 0
    assert (short_path / "seen").read_text() == f"{short_path}/kept\n" * 2


STARTS = """
open("started", "w").close()
signal.sigwait([signal.SIGTERM])
open("told", "w").close()
"""


def test_one_that_is_stopped_while_it_takes_over_leaves_everything_as_it_is(short_path):
    """Its service may be told to start again, which nobody tells it."""
    (short_path / "run").mkdir(mode=0o700)
    (short_path / "kept").touch()
    programs = ["-c", BY_SYSTEMD, "-c", SUPERVISOR, "-c", PRELUDE + BLOCK + STARTS]
    command = ["sh", "-c", 'exec "$@" 3<kept', "sh", sys.executable, *programs]
    supervisor = subprocess.Popen(command, cwd=short_path)
    try:
        wait_until((short_path / "started").exists, what="the worker starts")
    finally:
        supervisor.terminate()
        assert supervisor.wait(20) == 0
    assert not (short_path / "told").exists()
    assert os.listdir(short_path / "run") == []


def test_systemds_own_program_can_be_the_worker(supervised):
    """systemd-notify: a client of the protocol that is not ours."""
    require("systemd-notify")
    program = shutil.which("systemd-notify")
    script = f"{program} --ready --status=hello; exec sleep 600"
    supervised.start("", command=["/bin/sh", "-c", script])
    supervised.wait_for(state="ready")


def test_a_worker_that_dies_while_it_stops_is_the_last_one(supervised):
    """`imgvol stop` tells the worker, and not the supervisor."""
    supervised.start("manager.ready('x'); manager.stopping('all'); os.kill(os.getpid(), 9)")
    assert supervised.process.wait(20) == 128 + 9
    assert "there is no next one" in supervised.said()
