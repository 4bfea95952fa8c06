"""The daemon as the worker of its supervisor: what users see when it dies."""

import json
import os
import re
import signal
import socket
import subprocess
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from imgvol.cli.client import Client, NotRunning
from imgvol.config import TransportChoice
from imgvol.errors import DaemonUnavailable
from imgvol.fs.choice import choose
from support import images
from support.cri import client_of
from support.daemon import Imgvol
from support.metrics import scrape
from support.programs import require, stop, wait_until

pytestmark = pytest.mark.fuse

IMAGE = images.Image([images.Layer([images.file("motd", b"hello")], "gzip")])
# A worker dies while it starts, as long as the file is there.
CRASHING = """
import os
from imgvol.volumes import recovery
whole = recovery.recover

async def recover(*arguments, **options):
    if os.path.exists({switch!r}):
        os.kill(os.getpid(), 9)
    await whole(*arguments, **options)

recovery.recover = recover
"""


@pytest.fixture
def serves_cri():
    """Whether the daemon does, which few tests are about."""
    return False


@pytest.fixture
def imgvol(short_path, serves_cri):
    switch = short_path / "switch"
    imgvol = Imgvol(
        short_path,
        options=("--supervisor",),
        prelude=f"exec({CRASHING.format(switch=str(switch))!r})",
        expected_log=["imgvol.supervisor"],
        serves_cri=serves_cri,
    )
    imgvol.start()
    yield imgvol
    if imgvol.process.poll() is None:
        imgvol.terminate()
        assert sorted(os.listdir(imgvol.run_dir)) == ["views"], "nothing is left behind"
    assert not imgvol.unexpected_log()


@pytest.fixture
def reference(short_path):
    return f"oci:{images.write_layout(short_path / 'layout', {'v1': IMAGE})}:v1"


def status(imgvol):
    # Whoever has started the daemon may know that it is ready just before its supervisor does.
    wait_until((imgvol.run_dir / "supervisor.json").exists, what="the supervisor tells of itself")
    return json.loads((imgvol.run_dir / "supervisor.json").read_text())


def kill_worker(imgvol):
    os.kill(status(imgvol)["worker"], signal.SIGKILL)


def wait_for_restart(imgvol, restarts):
    def is_so():
        found = status(imgvol)
        return found["restarts"] == restarts and found["state"] == "ready"

    wait_until(is_so, seconds=30, what=f"restart {restarts}")


class Asker(threading.Thread):
    """A client that asks one thing after the other, each over a connection of its own."""

    def __init__(self, imgvol, until):
        super().__init__()
        self._client = Client(str(imgvol.run_dir / "imgvol.sock"), timeout=30)
        self._until = until
        self.answered = []
        self.refused = []
        self.broken_off = []

    def run(self):
        while not self._until.is_set():
            try:
                self.answered.append(self._client.call("GET", "/version")["pid"])
            except NotRunning as error:
                self.refused.append(error)
            except DaemonUnavailable as error:
                self.broken_off.append(error)
            time.sleep(0.005)


@pytest.mark.fault("F17")
def test_a_killed_worker_is_followed_by_another_and_no_client_is_refused(imgvol, reference, agent):
    target = imgvol.target("mnt")
    imgvol.run("mount", reference, target)
    is_over = threading.Event()
    askers = [Asker(imgvol, is_over) for _ in range(20)]
    for asker in askers:
        asker.start()
    pids = [status(imgvol)["worker"]]
    for restarts in (1, 2):
        wait_until(lambda: all(a.answered[-1:] == pids[-1:] for a in askers), what="all asked")
        kill_worker(imgvol)
        wait_for_restart(imgvol, restarts)
        pids.append(status(imgvol)["worker"])
    wait_until(lambda: all(a.answered[-1] == pids[-1] for a in askers), what="all are answered")
    is_over.set()
    for asker in askers:
        asker.join()
        assert not asker.refused
        assert set(asker.answered) == set(pids)
        # What was being answered: one request for each kill.
        assert len(asker.broken_off) <= 2
    assert agent.ask_bytes("content", path=f"{target}/motd") == b"hello"
    (volume,) = imgvol.json("ps")
    assert volume["state"] == "mounted"
    assert scrape(imgvol.run_dir / "imgvol.sock")["imgvol_worker_restarts_total"] == 2
    checks = {check["name"]: check for check in imgvol.json("doctor", check=False)}
    assert checks["supervisor"]["status"] == "warn"
    assert "2 restarts, the last after signal 9 (SIGKILL)" in checks["supervisor"]["detail"]
    imgvol.run("stop", "--force")
    assert imgvol.process.wait(20) == 0
    assert sorted(os.listdir(imgvol.run_dir)) == ["views"]


@pytest.mark.fault("F18")
@pytest.mark.parametrize("who", ["supervisor", "worker first", "supervisor first"])
def test_whoever_is_killed_the_next_daemon_has_the_volumes(imgvol, reference, agent, who):
    target = imgvol.target("mnt")
    imgvol.run("mount", reference, target)
    worker = status(imgvol)["worker"]
    if who == "worker first":
        os.kill(worker, signal.SIGKILL)
    imgvol.process.kill()
    if who == "supervisor first":
        os.kill(worker, signal.SIGKILL)
    assert imgvol.process.wait(20) == -signal.SIGKILL
    wait_until(lambda: not os.path.exists(f"/proc/{worker}/exe"), what="the worker is gone")
    # An error, not an empty directory; the second one while the kernel ends the connection.
    assert agent.errno_of("list", path=target) in {"ENOTCONN", "ECONNABORTED"}
    assert imgvol.run("version").stdout.count("not running") == 1
    imgvol.start()
    assert agent.ask_bytes("content", path=f"{target}/motd") == b"hello"
    # Once more, and the next one at once: it finds no lock.
    imgvol.process.kill()
    imgvol.process.wait()
    imgvol.start()
    assert agent.ask_bytes("content", path=f"{target}/motd") == b"hello"
    checks = {check["name"]: check for check in imgvol.json("doctor", check=False)}
    assert checks["supervisor"]["status"] == "ok"


def is_told_in_seconds(imgvol):
    return re.search(r"next_try in \d+ s", imgvol.run("ps", check=False).stderr)


@pytest.mark.fault("F19")
def test_a_daemon_that_crashes_again_and_again_is_told_and_can_be_stopped(imgvol):
    switch = imgvol.base / "switch"
    switch.touch()
    kill_worker(imgvol)
    began = time.monotonic()
    done = imgvol.run("ps", check=False, timeout=60)
    assert done.returncode == 1
    assert "the daemon crashes again and again" in done.stderr
    # It may be asked in a pause, in a try, or while the one after that is being loaded.
    next_try = r"next_try (in \d+ s|under way|once it is loaded)"
    assert re.search(rf"last_end signal 9 \(SIGKILL\), {next_try}", done.stderr)
    assert time.monotonic() - began < 20
    # The pauses get longer than all else: the time is told sooner or later.
    wait_until(lambda: is_told_in_seconds(imgvol), seconds=30, what="when the next one is due")
    began = time.monotonic()
    assert imgvol.run("ps", check=False).returncode == 1
    assert time.monotonic() - began < 3, "from now on it is known at once"
    checks = {check["name"]: check for check in imgvol.json("doctor", check=False)}
    assert checks["daemon"]["status"] == "fail"
    assert "crashes again and again" in checks["daemon"]["detail"]
    began = time.monotonic()
    imgvol.run("stop", timeout=30)
    assert time.monotonic() - began < 10
    assert imgvol.process.wait(20) == 0
    # The name of the socket stays: nobody was left who could take it away.
    assert imgvol.run("version").stdout.count("not running") == 1
    switch.unlink()
    imgvol.start()
    assert imgvol.json("ps") == []


def test_it_takes_little_memory_and_one_thread(imgvol):
    """A bare interpreter has 3 MB of its own, the modules that it needs the rest."""
    with open(f"/proc/{imgvol.process.pid}/status") as lines:
        facts = dict(re.findall(r"^(\w+):\s+(\d+)", lines.read(), re.MULTILINE))
    assert int(facts["RssAnon"]) < 8_000, "kB"
    assert facts["Threads"] == "1"
    assert status(imgvol)["pid"] == imgvol.process.pid


def test_when_the_cause_is_mended_it_goes_on_and_nobody_has_to_do_anything(imgvol):
    switch = imgvol.base / "switch"
    switch.touch()
    kill_worker(imgvol)
    wait_until(lambda: status(imgvol)["unready"] >= 2, seconds=30, what="two tries")
    switch.unlink()
    assert imgvol.json("ps") == [], "it has waited for the next one"
    assert status(imgvol)["unready"] == 0


@pytest.mark.fault("F17")
@pytest.mark.parametrize("serves_cri", [True])
def test_a_client_of_the_cri_that_comes_while_nobody_serves_is_answered(imgvol):
    switch = imgvol.base / "switch"
    with client_of(imgvol.cri_socket) as early, client_of(imgvol.cri_socket) as late:
        assert early.version().runtime_name == "imgvol"
        switch.touch()
        kill_worker(imgvol)
        wait_until(lambda: status(imgvol)["unready"] >= 1, seconds=30, what="a failed start")
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(client.images) for client in (early, late)]
            wait_until(lambda: status(imgvol)["unready"] >= 2, seconds=30, what="another one")
            assert not any(each.done() for each in asked), "neither answered nor refused"
            switch.unlink()
            assert [list(each.result(30)) for each in asked] == [[], []]
    assert imgvol.log.read_text().count("took over the listener cri") >= 1


def test_a_start_that_fails_is_told_as_without_a_supervisor(imgvol):
    second = imgvol.run("serve", "--supervisor", check=False, timeout=20)
    assert second.returncode == 1
    assert "another imgvol daemon" in second.stderr
    assert f"pid {status(imgvol)['worker']}, stage store" in second.stderr
    wrong = imgvol.run("serve", "--supervisor", "--cri-socket=x", "--no-cri", check=False)
    assert wrong.returncode == 1
    assert "not both" in wrong.stderr
    assert status(imgvol)["pid"] == imgvol.process.pid, "the first one still tells of itself"


def test_a_socket_whose_name_has_gone_is_made_anew_by_the_next_worker(imgvol):
    imgvol.expected_log.append("the kept listener api is of no use")
    (imgvol.run_dir / "imgvol.sock").unlink()
    kill_worker(imgvol)
    wait_for_restart(imgvol, 1)
    assert imgvol.json("ps") == []
    kill_worker(imgvol)
    wait_for_restart(imgvol, 2)
    assert imgvol.json("ps") == []


def test_a_daemon_that_is_started_on_demand_can_have_one(short_path):
    imgvol = Imgvol(short_path)
    command = [*imgvol.command, "images"]
    environment = {**os.environ, "IMGVOL_SUPERVISOR": "1"}
    subprocess.run(command, env=environment, check=True, timeout=60, capture_output=True)
    first = status(imgvol)
    kill_worker(imgvol)
    assert imgvol.json("version")["daemon"]["pid"] != first["worker"]
    assert status(imgvol)["pid"] == first["pid"]
    imgvol.run("stop")
    assert sorted(os.listdir(imgvol.run_dir)) == ["views"]


def test_every_daemon_has_one_where_the_filesystem_can_be_handed_over(short_path, transport):
    """Also one that a command has started; but not if somebody does not want it."""
    imgvol = Imgvol(short_path)
    chosen = choose(TransportChoice(transport), release=os.uname().release).transport
    imgvol.run("images")
    (short_path / "alone").mkdir()
    alone = Imgvol(short_path / "alone")
    command = [*alone.command, "images"]
    environment = {**os.environ, "IMGVOL_SUPERVISOR": "0"}
    subprocess.run(command, env=environment, check=True, timeout=60, capture_output=True)
    try:
        if chosen is TransportChoice.KERNEL:
            assert status(imgvol)["worker"] == imgvol.worker_pid
        else:
            assert not (imgvol.run_dir / "supervisor.json").exists()
        assert not (alone.run_dir / "supervisor.json").exists()
    finally:
        imgvol.run("stop")
        alone.run("stop")


def test_a_daemon_that_leaves_when_it_is_idle_takes_its_supervisor_along(short_path):
    imgvol = Imgvol(short_path, options=("--supervisor", "--idle-exit", "0.1"))
    imgvol.start()
    assert imgvol.process.wait(20) == 0
    assert os.listdir(imgvol.run_dir) == ["views"]
    assert not imgvol.unexpected_log()


@pytest.fixture
def hangups_count():
    """Also where the tests run under nohup(1), whose children ignore them."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_hangup_ends_all_of_it_as_it_ends_a_daemon_alone(hangups_count, imgvol):
    worker = status(imgvol)["worker"]
    imgvol.process.send_signal(signal.SIGHUP)
    assert imgvol.process.wait(20) == -signal.SIGHUP
    wait_until(lambda: not os.path.exists(f"/proc/{worker}/exe"), what="the worker is gone")
    imgvol.start()
    assert imgvol.json("ps") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_sent_to_all_of_a_terminal_comes_once_and_is_no_failure(short_path, number):
    imgvol = Imgvol(short_path, options=("--supervisor",))
    with open(imgvol.log, "ab") as log:
        imgvol.process = subprocess.Popen(
            imgvol._serve_command, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_until(lambda: status(imgvol)["standby"] is not None, what="one stands by")
        os.killpg(imgvol.process.pid, number)
        assert imgvol.process.wait(20) == 0
    finally:
        stop(imgvol.process)
    assert imgvol.log.read_text().count(f"received {number.name}") == 1
    assert not imgvol.unexpected_log()


def test_a_terminal_that_stops_its_background_does_not_stop_the_worker(short_path):
    imgvol = Imgvol(short_path, options=("--supervisor",))
    ours, theirs = os.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[3] |= termios.TOSTOP
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    # It says something when it is ready, and when it ends.
    shell = ["setsid", "--ctty", *imgvol._serve_command]
    imgvol.process = subprocess.Popen(shell, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        wait_until(lambda: status(imgvol)["state"] == "ready", what="it is ready")
        imgvol.process.terminate()
        assert imgvol.process.wait(20) == 0
    finally:
        stop(imgvol.process)
    with open(ours, "rb", buffering=0) as terminal:
        assert b"received SIGTERM" in terminal.read(65536)


def test_a_failed_component_is_a_new_worker_and_the_socket_stays(imgvol, reference):
    imgvol.expected_log.append("connection ended")
    target = imgvol.target("mnt")
    imgvol.run("mount", reference, target)
    imgvol.run("abort")
    wait_for_restart(imgvol, 1)
    assert status(imgvol)["last_end"] == "exit code 1"
    (volume,) = imgvol.json("ps")
    assert volume["state"] == "mounted"


def test_a_worker_that_is_supervised_by_nobody_ignores_what_it_is_told(short_path, monkeypatch):
    monkeypatch.setenv("IMGVOL_SUPERVISOR_PID", "1")
    monkeypatch.setenv("IMGVOL_WORKER_RESTARTS", "7")
    imgvol = Imgvol(short_path, supervisor=False)
    imgvol.start()
    try:
        assert not (imgvol.run_dir / "supervisor.json").exists()
        assert imgvol.json("ps") == []
    finally:
        assert stop(imgvol.process) == 0


def is_listening(address):
    """Its name is there a moment before it listens."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(address) == 0


@pytest.mark.parametrize("option", ["--supervisor", "--no-supervisor"])
def test_systemd_can_own_the_listener_from_the_beginning(short_path, option):
    """Socket activation, by systemd's own program: the first connection starts the daemon."""
    require("systemd-socket-activate")
    imgvol = Imgvol(short_path, options=(option,))
    imgvol.run_dir.mkdir(mode=0o700)
    address = str(imgvol.run_dir / "imgvol.sock")
    activate = ["systemd-socket-activate", f"--listen={address}", "--fdname=api"]
    with open(imgvol.log, "ab") as log:
        imgvol.process = subprocess.Popen(
            [*activate, *imgvol._serve_command], stdout=log, stderr=log
        )
    try:
        wait_until(lambda: is_listening(address), what="systemd listens")
        assert Client(address).call("GET", "/version")["can_mount"]
        assert "took over the listener api" in imgvol.log_end()
        imgvol.run("stop")
        assert imgvol.process.wait(20) == 0
    finally:
        stop(imgvol.process)
