"""A daemon that is killed again and again under load (F06)."""

import contextlib
import http.client
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from support import images
from support.daemon import Imgvol
from support.programs import require_fuse, stop
from support.runtime import call, our_mounts

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

IS_WHOLE = os.environ.get("IMGVOL_EVERY_CALL") == "1"
ROUNDS = 50 if IS_WHOLE else 6
LEASES = 1000 if IS_WHOLE else 100
READY_SECONDS = 2.0
NOISE = random.Random(21)
LARGE = NOISE.randbytes(8 << 20)
KEPT = images.Image([images.Layer([images.file("large", LARGE)], "gzip")])
PULLED = {
    f"p{number}": images.Image([images.Layer([images.file("f", NOISE.randbytes(300_000))], "gzip")])
    for number in range(5)
}
ARCHIVED = "registry.example/archived:1"
# Twenty threads that read and compare until their input ends. Errors are what a dead mount gives.
READERS = """
import os, random, sys, threading
path, reference = sys.argv[1], open(sys.argv[2], "rb").read()
done, right, wrong = threading.Event(), [], []
def read(seed):
    choice = random.Random(seed)
    while not done.is_set():
        start = choice.randrange(len(reference))
        size = choice.randrange(1, 200_000)
        try:
            with open(path, "rb", buffering=0) as file:
                data = os.pread(file.fileno(), size, start)
        except OSError:
            done.wait(0.02)
            continue
        wanted = reference[start : start + size]
        # Of a request that dies the kernel gives what it had of it, perhaps nothing.
        if data == wanted or not wanted.startswith(data):
            (right if data == wanted else wrong).append(start)
threads = [threading.Thread(target=read, args=(n,)) for n in range(20)]
for thread in threads: thread.start()
sys.stdin.read()
done.set()
for thread in threads: thread.join()
print(len(right), len(wrong))
"""


@pytest.mark.alone("measures time")
@pytest.mark.fault("F06")
@pytest.mark.timeout(1200 if IS_WHOLE else 240)
def test_killed_again_and_again_under_load(short_path):
    require_fuse()
    choice = random.Random(seed := random.randrange(1 << 32))
    layout = images.write_layout(short_path / "layout", {"kept": KEPT, **PULLED})
    (short_path / "reference").write_bytes(LARGE)
    archives = short_path / "archives"
    archives.mkdir()
    archive = images.write_docker_archive(archives / "a.tar", KEPT, ARCHIVED)
    imgvol = Imgvol(short_path, options=("--preload", str(archives)), supervisor=False)
    imgvol.start()
    target = imgvol.target("mnt")
    imgvol.run("mount", f"oci:{layout}:kept", target)
    kept = {f"kept-{number}" for number in range(LEASES)}
    for lease in kept:
        assert call(imgvol, "POST", "/leases", {"lease": lease})[0] == 200
    readers = subprocess.Popen(
        [sys.executable, "-c", READERS, f"{target}/large", short_path / "reference"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    seconds = []
    try:
        with load(imgvol, layout, archive):
            for _ in range(ROUNDS):
                time.sleep(choice.uniform(0.2, 1.2))
                imgvol.process.send_signal(signal.SIGKILL)
                assert imgvol.process.wait(10) == -signal.SIGKILL
                started = time.monotonic()
                imgvol.start()
                seconds.append(time.monotonic() - started)
        right, wrong = map(int, readers.communicate("", timeout=60)[0].split())
    finally:
        readers.kill()
        readers.wait()
        if imgvol.process.poll() is not None:
            imgvol.start()
    try:
        assert wrong == 0, seed
        assert right > 20 * ROUNDS
        assert sorted(seconds)[ROUNDS // 2] < READY_SECONDS, (seed, seconds)
        leases = {lease["id"] for lease in imgvol.json("lease", "ls")}
        assert kept <= leases, "nothing that was acknowledged is lost"
        for lease in leases - kept - {"cli"}:
            imgvol.run("lease", "rm", lease)
        preloaded = next(i for i in imgvol.json("images") if ARCHIVED in i["names"])
        assert preloaded["pinned"]
        (volume,) = imgvol.json("ps")
        assert (volume["target"], volume["state"]) == (target, "mounted")
        assert our_mounts(imgvol) == []
        assert imgvol.json("fsck")["wrong"] == []
        assert imgvol.json("scrub")["faults"] == []
    finally:
        stop(imgvol.process)


@contextlib.contextmanager
def load(imgvol, layout, archive):
    """Pulls, preloads, leases and mounts of sandboxes, all the time, whatever comes of them."""
    is_over = threading.Event()

    def again_and_again(work):
        while not is_over.is_set():
            try:
                work()
            except (OSError, http.client.HTTPException, ValueError):
                is_over.wait(0.05)

    def pull(tag):
        call(imgvol, "POST", "/images/pull", {"image": f"oci:{layout}:{tag}"})
        call(imgvol, "DELETE", f"/images?image=oci:{layout}:{tag}")

    def mount():
        mounts = [{"container_path": "/d", "readonly": True, "image": f"oci:{layout}:kept"}]
        call(imgvol, "POST", "/sandboxes/mounts", {"sandbox": "churn", "mounts": mounts})
        call(imgvol, "DELETE", "/leases?lease=churn&drain=0")

    def preload():
        # Another time makes it another archive, which comes in once more.
        os.utime(archive)
        is_over.wait(0.7)

    works = [mount, preload, *(lambda tag=tag: pull(tag) for tag in PULLED)]
    threads = [threading.Thread(target=again_and_again, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
