"""An event loop that does not turn (F14): it is noticed, told, counted, and not called alive."""

import json
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from support import images
from support.daemon import Imgvol
from support.metrics import scrape
from support.programs import require_fuse, stop, wait_until

pytestmark = pytest.mark.fuse

SECONDS = 2.5
IMAGE = images.Image([images.Layer([images.file("motd", b"hello")], "gzip")])
# The handler of a signal runs in the loop's thread, between two steps of a task or in one.
PRELUDE = """
import json, signal, time

def block(*_):
    secret = "hunter2"
    began = time.monotonic()
    time.sleep({seconds})
    with open({log!r}, "w") as log:
        json.dump([began, time.monotonic()], log)

signal.signal(signal.SIGUSR1, block)
"""


class Manager:
    """A service manager that writes down what it is told, and when."""

    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.told: list[tuple[float, str]] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self):
        while message := self._socket.recv(1000):
            self.told.append((time.monotonic(), message.decode()))

    def pings(self):
        return [at for at, message in list(self.told) if message == "WATCHDOG=1"]

    def close(self, path):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(path))
        self._thread.join(5)
        self._socket.close()


@pytest.fixture
def manager(short_path, monkeypatch):
    path = short_path / "notify"
    manager = Manager(path)
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    monkeypatch.setenv("WATCHDOG_USEC", "800000")
    yield manager
    manager.close(path)


@pytest.mark.fault("F14")
def test_a_loop_that_does_not_turn_is_told_counted_and_not_called_alive(short_path, manager, agent):
    require_fuse()
    fired = short_path / "fired"
    source = PRELUDE.format(seconds=SECONDS, log=str(fired))
    imgvol = Imgvol(
        short_path,
        prelude=f"exec({source!r})",
        limits={"LOOP_BLOCKED": 1.0, "LOOP_BEAT": 0.1},
        expected_log=["the event loop"],
        supervisor=False,
    )
    layout = images.write_layout(short_path / "layout", {"v1": IMAGE})
    imgvol.start()
    try:
        target = imgvol.target("mnt")
        imgvol.run("mount", f"oci:{layout}:v1", target)
        imgvol.run("lease", "create", "pod", "--expires", "1h")
        wait_until(lambda: len(manager.pings()) > 2, what="it says that it lives")
        imgvol.process.send_signal(signal.SIGUSR1)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(agent.ask_bytes, "content", path=f"{target}/motd")
            wait_until(fired.exists, what="the loop was blocked")
            assert reading.result(30) == b"hello", "who waited is answered"
        began, ended = json.loads(fired.read_text())
        assert ended - began >= SECONDS
        wait_until(
            lambda: manager.pings()[-1] > ended and "turns again" in imgvol.log_end(),
            what="it says so again",
        )
        assert not [at for at in manager.pings() if began < at < ended], (
            "it never says so meanwhile"
        )
        told = scrape(imgvol.run_dir / "imgvol.sock")
        assert told["imgvol_loop_blocked_seconds_count"] == 1
        assert 1.0 <= told["imgvol_loop_blocked_seconds_sum"] < 30
        assert "pod" in {lease["id"] for lease in imgvol.json("lease", "ls")}
        imgvol.terminate()
    finally:
        stop(imgvol.process)
    log = imgvol.log.read_text()
    assert len(re.findall("the event loop has been blocked for", log)) == 1, "once"
    report = log.partition("has been blocked for")[2].partition("turns again")[0]
    assert re.search(r"thread MainThread:\n(  .*\n)*  <string>:\d+ block\n", report)
    assert re.search(r"\n +control API: .*server\.py:\d+ ", report)
    assert "hunter2" not in report, "no values"
    assert not imgvol.unexpected_log()
    states = [message.partition("\n")[0] for _, message in manager.told]
    assert states.index("STATUS=starting: store") < states.index("READY=1")
    assert states.index("READY=1") < states.index("STOPPING=1")
