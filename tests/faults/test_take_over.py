"""A daemon that dies and comes back without one failed read (F05): docs/design/supervision.md."""

import hashlib
import json
import os
import random
import re
import signal
import statistics
import threading
import time

import pytest

from imgvol.volumes import syscalls
from support import images, transports
from support.agent import Agent
from support.daemon import Imgvol
from support.detaching import detach
from support.metrics import scrape
from support.programs import stop, wait_until
from support.readers import Readers
from support.runtime import mount_for, our_mounts

pytestmark = pytest.mark.fuse

# Bytes per second of a line that is too slow for what is asked of it.
CRAWL = 20_000
# What the background asks for at once, and readers never do.
WINDOW = 4 << 20

NOISE = random.Random(5)
FILES = {
    "motd": b"hello\n",
    **{f"{n}.so": NOISE.randbytes(300_000) for n in (1, 2)},
    **{f"etc/conf.d/{n:02}": NOISE.randbytes(700 * n) for n in range(12)},
    **{f"usr/lib/m{n}.so": NOISE.randbytes(200_000 + n) for n in range(4)},
}
IMAGE = images.Image(
    [
        images.Layer([images.file(p, d) for p, d in FILES.items() if not p.startswith("etc")]),
        images.Layer([images.file(p, d) for p, d in FILES.items() if p.startswith("etc")], "gzip"),
    ]
)
# What a worker does otherwise as long as a file is there; the file says what.
SWITCHED = """
import os, pathlib, signal, sys
import trio
switch = pathlib.Path({switch!r})

def is_on(what):
    try:  # in one step: it may go at any time, and what is raised here no guard would catch
        return switch.read_text() == what
    except FileNotFoundError:
        return False

from imgvol.fs import operations, session
from imgvol.fs.kernel import keeping
from imgvol.volumes import recovery, reopening
session.LINGERING_CHECK = 0.2

read, read_now = operations.Operations.read, operations.Operations.read_now
async def hanging_read(self, *arguments):
    if is_on("hang"):
        switch.with_suffix(".hangs").touch()
        await trio.sleep_forever()
    return await read(self, *arguments)
def hanging_read_now(self, *arguments):
    return None if is_on("hang") else read_now(self, *arguments)
operations.Operations.read = hanging_read
operations.Operations.read_now = hanging_read_now

def dying(module, name):
    function = getattr(module, name)
    def die(*arguments, **options):
        if is_on(name):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    setattr(module, name, die)
dying(recovery, "recover")
dying(recovery, "detach_dead")
dying(reopening, "_used_views")

if is_on("version"):
    keeping._VERSION += 1
if is_on("store"):
    from imgvol.content import database
    database.SCHEMA_VERSION += 1
if is_on("broken"):
    recovery.recover = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
if is_on("slow"):
    from imgvol import limits
    limits.TAKE_OVER_DEADLINE = 0.0
if is_on("pyfuse3"):
    from imgvol.config import TransportChoice
    from imgvol.fs import choice
    choice.choose = lambda *_, **_facts: choice.Choice(TransportChoice.PYFUSE3, "of the test")
"""


@pytest.fixture
def switch(short_path):
    return short_path / "switch"


@pytest.fixture
def imgvol(short_path, switch):
    imgvol = Imgvol(
        short_path,
        options=("--supervisor", "--transport", "kernel"),
        prelude=f"exec({SWITCHED.format(switch=str(switch))!r})",
        expected_log=["imgvol.supervisor"],
    )
    imgvol.start()
    try:
        yield imgvol
    except BaseException:
        stop(imgvol.process)
        raise
    imgvol.terminate()
    assert set(os.listdir(imgvol.run_dir)) <= {"views", "volumes"}, "nothing is left behind"
    assert not imgvol.unexpected_log()


@pytest.fixture
def reference(short_path):
    return f"oci:{images.write_layout(short_path / 'layout', {'v1': IMAGE})}:v1"


# Of the supervisor: which large files are open, and how.
OPEN_FILES = "/memfd:imgvol-open-files (deleted)"


def status(imgvol):
    wait_until((imgvol.run_dir / "supervisor.json").exists, what="the supervisor tells of itself")
    return json.loads((imgvol.run_dir / "supervisor.json").read_text())


def kill(imgvol):
    os.kill(status(imgvol)["worker"], signal.SIGKILL)


def kill_both(imgvol):
    """The worker, and the one that stands by: the next one sees the machine as it is now."""
    wait_standby(imgvol)
    os.kill(status(imgvol)["standby"], signal.SIGKILL)
    wait_until(lambda: not status(imgvol)["standby"], what="it is missed")
    kill(imgvol)


def wait_restarts(imgvol, restarts):
    def is_so():
        found = status(imgvol)
        return found["restarts"] == restarts and found["state"] == "ready"

    wait_until(is_so, seconds=30, what=f"restart {restarts}")


def wait_standby(imgvol):
    wait_until(lambda: status(imgvol)["standby"], seconds=30, what="a worker that stands by")


def kept_descriptors(imgvol):
    """What the supervisor has open while a worker stands by, without numbers of sockets."""
    wait_standby(imgvol)
    names = os.listdir(f"/proc/{imgvol.process.pid}/fd")
    links = (os.readlink(f"/proc/{imgvol.process.pid}/fd/{n}") for n in names)
    return sorted(re.sub(r"(socket|pipe):.*", r"\1", link) for link in links)


def mount_ids(imgvol):
    """Of everything of this daemon's: by mount point, with the filesystem's device."""
    with open("/proc/self/mountinfo") as table:
        rows = [line.split() for line in table if f"imgvol:{imgvol.run_dir}/views" in line]
    return {row[4]: (row[0], row[2]) for row in rows}


def taken_over(imgvol):
    """Seconds until views were open, of each successor."""
    found = re.findall(r"took the filesystem over.* in ([\d.]+) s", imgvol.log.read_text())
    return [float(seconds) for seconds in found]


@pytest.mark.fault("F05")
def test_readers_notice_nothing_of_workers_that_are_killed(imgvol, reference, agent):
    target = imgvol.target("mnt")
    imgvol.run("mount", reference, target)
    (volume,) = imgvol.json("ps")
    before = mount_ids(imgvol)
    descriptors = kept_descriptors(imgvol)
    assert sum("fuse" in name for name in descriptors) == 1
    kills = 6
    with Readers([volume["view"], target], FILES, readers=20) as readers:
        for restarts in range(1, kills + 1):
            kill(imgvol)
            wait_restarts(imgvol, restarts)
            readers.wait_rounds()
        assert readers.stop() == []
    assert len(taken_over(imgvol)) == kills
    assert mount_ids(imgvol) == before, "nothing was mounted anew"
    assert kept_descriptors(imgvol) == descriptors, "nothing is left in the supervisor"
    (volume,) = imgvol.json("ps")
    assert volume["state"] == "mounted"
    imgvol.run("unmount", target)
    assert agent.ask("list", path=target) == []


class Asking(threading.Thread):
    """One question to an agent, while the test does something else."""

    def __init__(self, agent, *arguments, **options):
        super().__init__()
        self._ask = lambda: agent.ask_bytes(*arguments, **options)
        self.answer = None
        self.start()

    def run(self):
        self.answer = self._ask()


@pytest.mark.fault("F05")
def test_a_read_that_was_being_answered_is_answered_by_the_successor(
    imgvol, reference, agent, switch
):
    target = imgvol.target("mnt")
    imgvol.run("mount", reference, target)
    handle = agent.ask("open", path=f"{target}/usr/lib/m1.so")
    switch.write_text("hang")
    asking = Asking(agent, "pread", fd=handle, size=1000, offset=5)
    wait_until(switch.with_suffix(".hangs").exists, what="a worker has the request")
    switch.unlink()
    kill(imgvol)
    asking.join(30)
    assert asking.answer == FILES["usr/lib/m1.so"][5:1005]
    assert (
        agent.ask_bytes("pread", fd=handle, size=9, offset=100_000)
        == (FILES["usr/lib/m1.so"][100_000:100_009])
    )
    wait_restarts(imgvol, 1)


@pytest.mark.fault("F05")
@pytest.mark.parametrize("place", ["_used_views", "detach_dead", "recover"])
def test_successors_that_die_on_the_way_leave_it_to_the_next_one(imgvol, reference, switch, place):
    """Before views are open, before the filesystem is served, before volumes are taken over."""
    targets = [imgvol.target(name) for name in ("one", "two")]
    for target in targets:
        imgvol.run("mount", reference, target)
    before = mount_ids(imgvol)
    with Readers(targets, FILES, readers=6) as readers:
        switch.write_text(place)
        kill(imgvol)
        wait_until(lambda: status(imgvol)["unready"] >= 2, seconds=30, what="two more have died")
        switch.unlink()
        readers.wait_rounds()
        wait_until(lambda: status(imgvol)["state"] == "ready", seconds=30, what="one that lives")
        readers.wait_rounds()
        assert readers.stop() == []
    assert mount_ids(imgvol) == before


@pytest.mark.fault("F05")
def test_what_is_open_of_a_volume_that_has_gone_stays_good_and_is_let_go(imgvol, reference, agent):
    """No volume has the view any more: the kernel alone knows that somebody uses it."""
    target = imgvol.target("mnt")
    imgvol.run("mount", reference, target)
    handles = {n: agent.ask("open", path=f"{target}/{n}.so") for n in (1, 2)}
    imgvol.run("unmount", "--detach", target)
    imgvol.run("rmi", reference)
    imgvol.run("gc")
    for restarts in (1, 2):
        kill(imgvol)
        wait_restarts(imgvol, restarts)
        imgvol.run("gc")
        data = FILES[f"{restarts}.so"]
        handle = handles[restarts]
        assert agent.ask_bytes("pread", fd=handle, size=len(data), offset=0) == data
        time.sleep(1)
        assert lingering(imgvol) == 1, "it is not closed under whoever uses it"
    for handle in handles.values():
        agent.ask("close", fd=handle)
    wait_until(lambda: lingering(imgvol) == 0, seconds=20, what="the view is let go")
    imgvol.run("gc")
    assert imgvol.json("images") == []


@pytest.mark.fault("F05")
def test_each_open_file_is_read_on_as_it_was_opened(imgvol, short_path, agent):
    """Through us or past us: the kernel refuses both at once, and does not tell which it is."""
    files = {name: NOISE.randbytes(2_000_000) for name in ("passed", "cached", "other")}
    image = images.Image([images.Layer([images.file(p, d) for p, d in files.items()])])
    layout = images.write_layout(short_path / "large", {"v1": image})
    target = imgvol.target("mnt")
    imgvol.run("mount", f"oci:{layout}:v1", target)
    is_on = transports.passes_through()
    # Past the page cache nothing is passed through, and that is decided with the first open.
    handles = {
        "cached": agent.ask("open", path=f"{target}/cached", flags=os.O_DIRECT),
        "passed": agent.ask("open", path=f"{target}/passed"),
    }
    for restarts in (1, 2, 3):
        assert (OPEN_FILES in kept_descriptors(imgvol)) == is_on
        kill(imgvol)
        wait_restarts(imgvol, restarts)
        wait_until(lambda: held(imgvol) == is_on, what="one file is passed through")
        for name, data in files.items():
            assert agent.ask("digest", path=f"{target}/{name}") == hashlib.sha256(data).hexdigest()
        part = agent.ask_bytes("pread", fd=handles["passed"], size=4096, offset=1_000_000)
        assert part == files["passed"][1_000_000:1_004_096]
    for handle in handles.values():
        agent.ask("close", fd=handle)
    wait_until(lambda: held(imgvol) == 0, what="the kernel lets go of all files")
    again = agent.ask("open", path=f"{target}/cached")
    assert held(imgvol) == is_on, "it is a new first open"
    kill(imgvol)
    agent.ask("close", fd=again)
    wait_restarts(imgvol, 4)
    wait_until(lambda: held(imgvol) == 0, what="a RELEASE that came meanwhile counts")


def held(imgvol):
    return scrape(imgvol.run_dir / "imgvol.sock")["imgvol_filesystem_backing_files"]


def test_a_view_that_was_taken_over_is_closed_with_its_last_volume(imgvol, reference, agent):
    target = imgvol.target("mnt")
    imgvol.run("mount", reference, target)
    agent.ask("stat_tree", path=target)
    kill(imgvol)
    wait_restarts(imgvol, 1)
    agent.ask("stat_tree", path=target)
    imgvol.run("unmount", target)
    wait_until(lambda: lingering(imgvol) == 0, seconds=20, what="the view is let go")
    imgvol.run("mount", reference, target)
    assert agent.ask_bytes("content", path=f"{target}/motd") == FILES["motd"]


def lingering(imgvol):
    return scrape(imgvol.run_dir / "imgvol.sock")["imgvol_views", "state=lingering"]


@pytest.mark.fault("F05")
@pytest.mark.parametrize("why", ["version", "slow", "pyfuse3"])
def test_a_successor_that_cannot_go_on_mounts_everything_anew(
    imgvol, reference, agent, switch, why
):
    imgvol.expected_log += ["cannot be taken over: what was negotiated", "is not taken over: its"]
    target = imgvol.target("mnt")
    imgvol.run("mount", reference, target)
    descriptors, before = kept_descriptors(imgvol), mount_ids(imgvol)
    held = agent.ask("open", path=f"{target}/usr/lib/m1.so")
    switch.write_text(why)
    kill_both(imgvol)
    wait_restarts(imgvol, 1)
    assert taken_over(imgvol) == []
    with Agent() as other:
        assert other.ask_bytes("content", path=f"{target}/motd") == FILES["motd"]
    assert agent.errno_of("pread", fd=held, size=10, offset=0) in {"ENOTCONN", "ECONNABORTED"}
    after = mount_ids(imgvol)
    assert after.keys() == before.keys()
    # What is held open keeps the old filesystem's number from being used again.
    assert not {device for _, device in after.values()} & {device for _, device in before.values()}
    if why == "pyfuse3":
        descriptors = [each for each in descriptors if each not in {"/dev/fuse", OPEN_FILES}]
    assert kept_descriptors(imgvol) == descriptors, "the new connection is kept, the old one gone"
    switch.unlink()
    kill_both(imgvol)
    wait_restarts(imgvol, 2)
    if why == "slow":
        assert len(taken_over(imgvol)) == 1


@pytest.mark.fault("F05")
def test_a_filesystem_that_somebody_unmounts_meanwhile_is_mounted_anew(imgvol, reference, agent):
    imgvol.expected_log.append("cannot be taken over: its filesystem is not mounted any more")
    target = imgvol.target("mnt")
    imgvol.run("mount", reference, target)
    worker = status(imgvol)["worker"]
    os.kill(worker, signal.SIGSTOP)
    # The volume's mount keeps the filesystem, and so the connection, alive.
    detach(imgvol.run_dir / "views")
    os.kill(worker, signal.SIGKILL)
    wait_restarts(imgvol, 1)
    assert agent.ask_bytes("content", path=f"{target}/motd") == FILES["motd"]
    assert len(mount_ids(imgvol)) == 2


def test_what_is_missing_is_mounted_and_what_is_not_recorded_goes(imgvol, reference, agent):
    targets = [imgvol.target(name) for name in ("one", "two")]
    for target in targets:
        imgvol.run("mount", reference, target)
    before = mount_ids(imgvol)
    stray = imgvol.target("stray")
    worker = status(imgvol)["worker"]
    os.kill(worker, signal.SIGSTOP)
    detach(targets[0])
    with (
        syscalls.open_place(os.fsencode(targets[1])) as source,
        syscalls.open_place(os.fsencode(stray)) as place,
        syscalls.clone_tree(source) as tree,
    ):
        syscalls.attach(tree, place)
    assert stray in mount_ids(imgvol)
    os.kill(worker, signal.SIGKILL)
    wait_restarts(imgvol, 1)
    after = mount_ids(imgvol)
    assert after.keys() == before.keys()
    assert after[targets[1]] == before[targets[1]]
    for target in targets:
        assert agent.ask_bytes("content", path=f"{target}/motd") == FILES["motd"]


@pytest.mark.fault("F05")
@pytest.mark.servers
@pytest.mark.parametrize("lazy_image", ["estargz"], indirect=True)
def test_what_was_being_fetched_for_a_reader_is_fetched_by_the_successor(
    imgvol, agent, proxy, lazy_image
):
    target = imgvol.target("mnt")
    background = proxy.throttle(CRAWL, at_least=WINDOW)
    imgvol.run("mount", proxy.reference(lazy_image.name), target)
    handle = agent.ask("open", path=f"{target}/usr/last")
    line = proxy.throttle(CRAWL)
    asking = Asking(agent, "pread", fd=handle, size=1000, offset=500_000)
    wait_until(lambda: line.fired, what="the span is being fetched")
    kill(imgvol)
    assert asking.answer is None
    line.lift()
    background.lift()
    asking.join(30)
    assert asking.answer == lazy_image.files["usr/last"][500_000:501_000]
    wait_restarts(imgvol, 1)
    assert len(taken_over(imgvol)) == 1


def test_readers_notice_nothing_of_upgrades(imgvol, reference, agent):
    target = imgvol.target("mnt")
    imgvol.run("mount", reference, target)
    handle = agent.ask("open", path=f"{target}/usr/lib/m1.so")
    before, workers = mount_ids(imgvol), {status(imgvol)["worker"]}
    with Readers([target], FILES, readers=10) as readers:
        for _ in range(2):
            assert "goes on" in imgvol.run("upgrade").stderr
            readers.wait_rounds()
            workers.add(status(imgvol)["worker"])
        assert readers.stop() == []
    data = FILES["usr/lib/m1.so"][:1000]
    assert agent.ask_bytes("pread", fd=handle, size=1000, offset=0) == data
    assert mount_ids(imgvol) == before
    assert len(workers) == 3
    assert len(taken_over(imgvol)) == 2
    assert status(imgvol)["restarts"] == 0, "nothing has crashed"


@pytest.mark.fault("F05")
@pytest.mark.parametrize(
    ("what", "reason", "takes_over"),
    [
        ("version", "what was negotiated with the kernel cannot be read", 0),
        ("store", "written by another version of imgvol", 0),
        ("pyfuse3", "served by another transport", 0),
        # It serves, and dies before it is ready; then the old program does.
        ("broken", "the new daemon ended with signal 9", 2),
    ],
)
def test_an_upgrade_that_fails_is_told_and_readers_notice_nothing(
    imgvol, reference, switch, what, reason, takes_over
):
    target = imgvol.target("mnt")
    imgvol.run("mount", reference, target)
    before, worker = mount_ids(imgvol), status(imgvol)["worker"]
    wait_standby(imgvol)  # the way back
    with Readers([target], FILES, readers=6) as readers:
        switch.write_text(what)
        done = imgvol.run("upgrade", check=False)
        switch.unlink()
        assert done.returncode == 1
        assert reason in done.stderr
        readers.wait_rounds()
        wait_until(lambda: status(imgvol)["state"] == "ready", seconds=30, what="it goes on")
        assert readers.stop() == []
    assert mount_ids(imgvol) == before
    assert len(taken_over(imgvol)) == takes_over
    assert (status(imgvol)["worker"] == worker) == (not takes_over)


@pytest.mark.alone("measures time")
@pytest.mark.fault("F05")
@pytest.mark.slow
def test_a_thousand_volumes_are_served_again_within_half_a_second(imgvol, reference, agent):
    imgvol.run("pull", reference)
    paths = [mount_for(imgvol, f"pod-{n}", reference)[0] for n in range(1000)]
    before = mount_ids(imgvol)
    seconds = []
    # One after the other as soon as somebody stands by, which is also what lengthens the pauses.
    for restarts, name in enumerate([f"etc/conf.d/{number:02}" for number in range(4, 12)], 1):
        wait_standby(imgvol)
        path = f"{paths[restarts]}/{name}"
        kill(imgvol)
        began = time.monotonic()
        assert agent.ask_bytes("content", path=path) == FILES[name]
        seconds.append(time.monotonic() - began)
        wait_restarts(imgvol, restarts)
    assert mount_ids(imgvol) == before
    assert len(our_mounts(imgvol)) == len(paths)
    assert statistics.median(seconds) < 0.5
    imgvol.run("stop", "--force")
    assert imgvol.process.wait(20) == 0
    imgvol.start()
