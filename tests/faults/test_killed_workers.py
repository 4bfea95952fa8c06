"""The worker is killed every two seconds, or replaced all the time, while everything goes on.

For two minutes, as the project promises it: IMGVOL_KILL_SECONDS=120.
"""

import contextlib
import http.client
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field

import pytest

from support import images
from support.bundle import Runtime, bind, write_bundle
from support.daemon import Imgvol
from support.programs import require, stop, wait_until
from support.readers import Readers
from support.runtime import call

pytestmark = [pytest.mark.fuse, pytest.mark.servers, pytest.mark.slow]

SECONDS = float(os.environ.get("IMGVOL_KILL_SECONDS", "16"))
EVERY = 2.0
READERS = 20
FINDERS = 3
PULLS = 5
# What a worker has open beside what it had at the beginning: threads' and tasks' own for a moment.
SLACK = 12

NOISE = random.Random(19)
FILES = {
    "motd": b"hello\n",
    "large": NOISE.randbytes(3_000_000),
    **{f"etc/conf.d/{n:03}": NOISE.randbytes(70 * n) for n in range(120)},
    **{f"usr/lib/m{n}.so": NOISE.randbytes(150_000 + n) for n in range(6)},
}
# Runs in a container, reads what lies at /data, and says what it sees.
CONTAINED = """
import hashlib, os
while True:
    whole = hashlib.sha256()
    for directory, below, names in os.walk("/data", onerror=lambda error: print(error, flush=True)):
        below.sort()
        for name in sorted(names):
            with open(os.path.join(directory, name), "rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                whole.update(name.encode() + file.readall())
    print(whole.hexdigest(), flush=True)
"""
FIND = """
set -o pipefail
while :; do find "$1" -printf '%P %y %s %i\\n' | sort | sha256sum || echo failed; done
"""


@pytest.fixture
def imgvol(short_path):
    imgvol = Imgvol(
        short_path,
        options=("--supervisor", "--transport", "kernel"),
        expected_log=["imgvol.supervisor"],
    )
    imgvol.start()
    try:
        yield imgvol
    except BaseException:
        stop(imgvol.process)
        raise
    imgvol.terminate()
    assert not imgvol.unexpected_log()


@pytest.fixture
def layout(short_path):
    entries = [images.file(path, data) for path, data in FILES.items()]
    tags = {"v1": images.Image([images.Layer(entries[:60]), images.Layer(entries[60:], "gzip")])}
    for number in range(PULLS):
        own = [images.file(f"{n}", NOISE.randbytes(200_000)) for n in range(20)]
        tags[f"pulled{number}"] = images.Image([images.Layer(own, "gzip")])
    return images.write_layout(short_path / "layout", tags)


@dataclass
class Pulls:
    """Pulls and removes one image for ever; what comes of it is counted."""

    imgvol: Imgvol
    name: str
    is_over: threading.Event
    done: int = 0
    broken_off: int = 0
    refused: list[dict] = field(default_factory=list)

    def run(self) -> None:
        while not self.is_over.is_set():
            try:
                _, answer = call(self.imgvol, "POST", "/images/pull", {"image": self.name})
                if "error" in answer:
                    self.refused.append(answer)
                else:
                    self.done += 1
                call(self.imgvol, "DELETE", f"/images?image={self.name}")
                self.is_over.wait(0.1)
            except (OSError, http.client.HTTPException, ValueError):
                # What was being answered when the worker was killed.
                self.broken_off += 1


class Lines:
    """What a program says that goes on for ever, line by line."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.said: list[str] = []
        self._process = process
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        self.wait_more()

    def _read(self) -> None:
        with contextlib.suppress(ValueError):  # it was closed at the end
            for line in self._process.stdout:
                self.said.append(line)

    def wait_more(self) -> None:
        """Until two more rounds have been told of: one of them began after this."""
        wanted = len(self.said) + 2
        wait_until(lambda: len(self.said) >= wanted, seconds=60, what="it goes on")

    def join(self) -> None:
        self._thread.join(20)


@contextlib.contextmanager
def finders(target):
    processes = [
        subprocess.Popen(
            ["bash", "-c", FIND, "find", target],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(FINDERS)
    ]
    try:
        yield [Lines(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait(20)
            process.stdout.close()


@contextlib.contextmanager
def container(base, target):
    program = next(filter(shutil.which, ("runc", "crun")), None)
    if program is None:
        require("runc")
    python = "/usr/bin/python3"
    bundle = write_bundle(base / "bundle", [python, "-I", "-c", CONTAINED], [bind(target, "/data")])
    with Runtime(program, base / "state").running(bundle, "reader") as process:
        yield Lines(process)


@contextlib.contextmanager
def pulls(imgvol, layout):
    is_over = threading.Event()
    running = [Pulls(imgvol, f"oci:{layout}:pulled{n}", is_over) for n in range(PULLS)]
    threads = [threading.Thread(target=each.run) for each in running]
    for thread in threads:
        thread.start()
    try:
        yield running
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def status(imgvol):
    return imgvol.supervisor_status()


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def settled(imgvol):
    """The worker's and the supervisor's process, once a worker serves and another stands by."""
    wait_until(lambda: status(imgvol)["standby"], seconds=60, what="a worker that stands by")
    return status(imgvol)["worker"], imgvol.process.pid


def kill_every_two_seconds(imgvol):
    """How often that could be done."""
    killed, until = set(), time.monotonic() + SECONDS
    while time.monotonic() < until:
        time.sleep(EVERY)  # this is the fault's own rhythm: nothing is waited for
        worker = status(imgvol)["worker"]
        if worker is not None:  # there is none while the next one still loads
            os.kill(worker, signal.SIGKILL)
            killed.add(worker)
    return len(killed)


def upgrade_all_the_time(imgvol):
    """How often that was done."""
    upgrades, until = 0, time.monotonic() + SECONDS
    while time.monotonic() < until:
        imgvol.run("upgrade")
        upgrades += 1
    return upgrades


@pytest.mark.fault("F05")
@pytest.mark.timeout(int(SECONDS) + 240)
@pytest.mark.parametrize("disturb", [kill_every_two_seconds, upgrade_all_the_time])
def test_nobody_notices_that_workers_are_killed_or_replaced(imgvol, layout, short_path, disturb):
    require("runc", "find")
    target = imgvol.target("mnt")
    reference = f"oci:{layout}:v1"
    imgvol.run("mount", reference, target)
    (volume,) = imgvol.json("ps")
    before = [descriptors(pid) for pid in settled(imgvol)]
    with (
        Readers([volume["view"], target], FILES, readers=READERS) as readers,
        container(short_path, target) as contained,
        finders(target) as found,
        pulls(imgvol, layout) as pulling,
    ):
        times = disturb(imgvol)
        readers.wait_rounds()
        for lines in (contained, *found):
            lines.wait_more()
        failures = readers.stop()
    assert failures == []
    for lines in (contained, *found):
        lines.join()
        # The last line may have been cut short.
        assert len(set(lines.said[:-1])) == 1, lines.said[:20]
        assert re.match("[0-9a-f]{64}", lines.said[0])
    assert all(each.done for each in pulling), "pulls are broken off at times, and go on"
    assert not any(each.refused for each in pulling), [each.refused[:2] for each in pulling]
    worker, supervisor = settled(imgvol)
    # Fewer than one every two seconds where a worker takes longer than that to load.
    assert times >= SECONDS / EVERY / 5
    assert status(imgvol)["restarts"] == (0 if disturb is upgrade_all_the_time else times)
    wait_until(lambda: descriptors(supervisor) <= before[1], what="no descriptor is left")
    wait_until(lambda: descriptors(worker) <= before[0] + SLACK, what="nor in the worker")
    assert imgvol.json("fsck")["wrong"] == []
    (volume,) = imgvol.json("ps")
    assert volume["state"] == "mounted"
