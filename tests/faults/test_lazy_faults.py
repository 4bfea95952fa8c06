"""Lines and registries that fail under a lazy mount, and daemons that die over one (F01, F04, F09,
F43 to F48, F53, F56)."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.caches import drop_caches
from support.daemon import Imgvol
from support.gates import RedirectGate, SignatureGate, TokenGate
from support.images import sha256
from support.lazy_images import EVERY_FORMAT
from support.programs import require_fuse, stop, wait_until
from support.proxy import running_proxy

pytestmark = pytest.mark.servers

MIB = 1 << 20
# What the background asks for at once, and readers never do.
WINDOW = 4 * MIB
CRAWL = 20_000
# Shorter waits than those of a daemon that people use; the deadline of a read among them.
DEADLINE = 2.0
QUICK = {
    "FETCH_RETRY": 0.5,
    "FETCH_QUIET": 0.2,
    "FETCH_FLUSH": 0.2,
    "HANDLER_DEADLINE": DEADLINE,
    # The kernel reads ahead as far over every line, so that two runs ask for the same.
    "READAHEAD_KIB": 128,
}
OUTAGE = ["its registry fails", "read: no answer within"]


@pytest.fixture
def quick(short_path):
    """A daemon with short waits, which a test may kill."""
    require_fuse()
    imgvol = Imgvol(short_path, limits=dict(QUICK), supervisor=False)
    imgvol.start()
    try:
        yield imgvol
    except BaseException:
        stop(imgvol.process)
        raise
    imgvol.terminate()
    assert imgvol.unexpected_log() == []


def check_reads(agent, reads, *, readers=20, exactly=False):
    """Asks all at once."""
    reads, wanted = zip(*reads, strict=True)
    how = {"readers": readers, "exactly": exactly}
    found = agent.ask("read_together", reads=reads, **how, deadline=60)
    wrong = [(read, f) for read, w, f in zip(reads, wanted, found, strict=True) if f != w]
    assert wrong == []


def check_all(agent, image, target):
    for name, data in image.files.items():
        digest = agent.ask("digest", path=f"{target}/{name}")
        assert f"sha256:{digest}" == sha256(data), name


def wait_complete(image, daemon, seconds=20):
    wait_until(lambda: image.is_complete(daemon), seconds=seconds, what="the layer to be complete")


def kill(imgvol):
    imgvol.process.send_signal(signal.SIGKILL)
    assert imgvol.process.wait(10) == -signal.SIGKILL


def only(format_):
    """One format is enough where the engine is looked at."""
    return pytest.mark.parametrize("lazy_image", [format_], indirect=True)


def mount_held(imgvol, proxy, image):
    """Mounts with a background that crawls through its first range until the fault is lifted."""
    held = proxy.throttle(CRAWL, at_least=WINDOW)
    target = imgvol.target("mnt")
    imgvol.run("mount", proxy.reference(image.name), target)
    wait_until(lambda: held.fired, what="the background to begin")
    return held, target


every_format = pytest.mark.parametrize("lazy_image", EVERY_FORMAT, indirect=True)


@pytest.fixture
def patient(quick):
    """The same with readers who wait as long as they usually do, for lines that hang for less."""
    stop(quick.process)
    quick.limits |= {"FETCH_STALL": 0.5, "HANDLER_DEADLINE": 30.0}
    quick.start()
    return quick


@pytest.fixture
def elsewhere(registry):
    """A second host that has the blobs."""
    with running_proxy(registry.host) as running:
        yield running


@every_format
def test_reads_are_right_whatever_the_line_does(patient, agent, proxy, elsewhere, lazy_image):
    """Every other range comes from another host, tokens and places expire, and lines break."""
    tokens, signatures = TokenGate(proxy.host, uses=12), SignatureGate()
    proxy.gates = [tokens, RedirectGate(elsewhere)]
    elsewhere.gates = [signatures]
    target = patient.target("mnt")
    lines = [proxy.throttle(8_000_000), elsewhere.throttle(8_000_000)]
    patient.run("mount", proxy.reference(lazy_image.name), target)
    # No more in all than the client has patience for.
    faults = [
        proxy.refuse(500, times=1),
        proxy.refuse(503, times=1),
        proxy.refuse(429, times=1, Retry_After="1"),
        elsewhere.stall_after(1000, times=1),
        elsewhere.reset_after(100_000, times=1),
        proxy.reset_after(0, times=1),
        *(line.reset_after(20_000, times=1) for line in (proxy, elsewhere)),
        *(line.truncate_after(30_000, times=1) for line in (proxy, elsewhere)),
        *(line.ignore_range(times=1) for line in (proxy, elsewhere)),
    ]
    check_reads(agent, lazy_image.random_reads(target, 7, 200), readers=50)
    for line in lines:
        line.lift()
    wait_complete(lazy_image, patient)
    assert [fault.fired for fault in faults] == [1] * len(faults)
    assert tokens.refused > 0
    assert signatures.refused > 0
    assert signatures.leaked == 0
    check_all(agent, lazy_image, target)


@every_format
def test_wrong_bytes_are_errors_and_never_shown(patient, agent, proxy, lazy_image):
    patient.expected_log += [*OUTAGE, "read: "]
    line = proxy.throttle(8_000_000)
    target = patient.target("mnt")
    patient.run("mount", proxy.reference(lazy_image.name), target)
    faults = [proxy.damage(times=2), proxy.shift_range(times=2)]
    reads, wanted = zip(*lazy_image.random_reads(target, 11, 60), strict=True)
    found = agent.ask("read_together", reads=reads, readers=50, deadline=60)
    # The kernel gives the pages that it has got, and tells of the error only then.
    wrong = [f for f, w in zip(found, wanted, strict=True) if f not in (w, "EIO", "SHORT")]
    assert wrong == []
    wait_until(
        lambda: agent.ask("read_together", reads=reads, readers=10, deadline=60) == list(wanted),
        what="all to be right again",
    )
    line.lift()
    wait_complete(lazy_image, patient)
    assert [fault.fired for fault in faults] == [2, 2]
    check_all(agent, lazy_image, target)


@pytest.mark.alone("drops the kernel's caches")
@pytest.mark.fault("F87")
@only("podman")
def test_outage_spares_what_is_here_and_ends_by_itself(quick, agent, proxy, lazy_image):
    quick.expected_log += OUTAGE
    held, target = mount_held(quick, proxy, lazy_image)
    here = list(lazy_image.random_reads(target, 8, 40, below="usr/lib"))
    check_reads(agent, here)
    fd = agent.ask("open", path=f"{target}/first/filler")
    proxy.down()
    # The kernel's own copies would prove nothing.
    drop_caches()
    check_reads(agent, here)
    started = time.monotonic()
    # In the range that crawls: whatever readers have been given beside what they asked for.
    assert agent.errno_of("pread", fd=fd, offset=0, size=10) == "EIO"
    assert agent.errno_of("pread", fd=fd, offset=3 * MIB, size=10) == "EIO"
    assert agent.errno_of("content", path=f"{target}/first/filler") == "EIO"
    assert time.monotonic() - started < 2 * DEADLINE
    assert "refuses the connection" in quick.log_end()
    assert agent.ask("stat", path=f"{target}/usr/data9")["st_size"] == 150_000

    proxy.up()
    held.lift()
    wait_until(
        lambda: agent.errno_of("pread", fd=fd, offset=0, size=10) == "OK",
        seconds=DEADLINE,
        what="a read to succeed again",
    )
    agent.ask("close", fd=fd)
    wait_complete(lazy_image, quick)
    check_all(agent, lazy_image, target)


@only("podman")
def test_readers_of_a_patient_volume_wait_until_the_registry_is_back(
    quick, agent, proxy, lazy_image
):
    quick.expected_log += OUTAGE
    held = proxy.throttle(CRAWL, at_least=WINDOW)
    target = quick.target("mnt")
    waiting = ("--on-outage=block", "--outage-deadline=60")
    quick.run("mount", *waiting, proxy.reference(lazy_image.name), target)
    (volume,) = quick.json("ps")
    assert volume["patience"] == 60
    wait_until(lambda: held.fired, what="the background to begin")
    proxy.down()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(agent.ask, "digest", path=f"{target}/usr/last", deadline=60)
        wait_until(lambda: "its registry fails" in quick.log_end(), what="the outage to be noticed")
        # Longer than any reader of an impatient volume would have waited.
        with pytest.raises(TimeoutError):
            reading.result(1.5 * DEADLINE)
        proxy.up()
        held.lift()
        assert f"sha256:{reading.result(20)}" == sha256(lazy_image.files["usr/last"])
    wait_complete(lazy_image, quick)


@only("podman")
def test_a_patient_volume_stays_so_over_a_restart_and_has_a_deadline(
    quick, agent, proxy, lazy_image
):
    quick.expected_log += OUTAGE
    mount_held(quick, proxy, lazy_image)
    target = quick.target("patient")
    waiting = ("--on-outage=block", "--outage-deadline=3")
    quick.run("mount", *waiting, proxy.reference(lazy_image.name), target)
    proxy.down()
    kill(quick)
    quick.start()
    started = time.monotonic()
    assert agent.errno_of("digest", path=f"{target}/usr/last") == "EIO"
    assert 3 <= time.monotonic() - started < 3 + DEADLINE + 2


@only("estargz")
def test_stalled_read_fails_at_its_deadline_and_a_later_one_succeeds(
    quick, agent, proxy, lazy_image
):
    quick.expected_log += OUTAGE
    _, target = mount_held(quick, proxy, lazy_image)
    stall = proxy.stall_after(1000, times=100)
    started = time.monotonic()
    assert agent.errno_of("content", path=f"{target}/usr/last") == "EIO"
    # The kernel asks twice: for what it reads ahead, then for the page that is wanted.
    assert DEADLINE * 0.8 < time.monotonic() - started < DEADLINE * 3
    assert stall.fired > 0
    stall.lift()
    got = agent.ask_bytes("content", path=f"{target}/usr/last")
    assert got == lazy_image.files["usr/last"]


@only("zstd:chunked")
def test_stall_that_is_noticed_in_time_costs_no_error(patient, agent, proxy, lazy_image):
    _, target = mount_held(patient, proxy, lazy_image)
    stall = proxy.stall_after(1000, times=1)
    got = agent.ask_bytes("content", path=f"{target}/usr/last")
    assert got == lazy_image.files["usr/last"]
    assert stall.fired == 1


@pytest.mark.fault("F09")
@only("zstd:chunked")
def test_daemon_starts_and_serves_what_it_has_without_its_registry(quick, agent, proxy, lazy_image):
    quick.expected_log += OUTAGE
    held, target = mount_held(quick, proxy, lazy_image)
    here = list(lazy_image.random_reads(target, 9, 40, below="usr/lib"))
    check_reads(agent, here, exactly=True)
    quick.terminate()
    proxy.down()
    quick.start()
    check_reads(agent, here, exactly=True)
    assert agent.errno_of("content", path=f"{target}/first/filler") == "EIO"
    assert "refuses the connection" in quick.log_end()
    proxy.up()
    held.lift()
    wait_complete(lazy_image, quick)
    check_all(agent, lazy_image, target)


@only("podman")
def test_killed_daemon_fetches_nothing_again(quick, agent, proxy, lazy_image):
    held, target = mount_held(quick, proxy, lazy_image)
    here = list(lazy_image.random_reads(target, 10, 60, below="usr/lib"))
    check_reads(agent, here, exactly=True)
    before = agent.ask("stat_tree", path=target)
    spans = quick.root / "lazy" / lazy_image.hex / "spans"
    # What is saved first from here on may be of before the reads; what is saved next is not.
    for name in ("usr/data0", "usr/last"):
        saved = content_of(spans)
        agent.ask("digest", path=f"{target}/{name}")
        wait_until(lambda saved=saved: content_of(spans) != saved, what="spans to be saved")
    kill(quick)
    quick.start()
    check_reads(agent, here, exactly=True)
    # The background fetches the holes between; readers have waited for nothing.
    (volume,) = quick.json("ps")
    assert [layer["needed"] for layer in volume["layers"]] == [0]
    assert agent.ask("stat_tree", path=target) == before
    held.lift()
    wait_complete(lazy_image, quick)
    check_all(agent, lazy_image, target)


@only("estargz")
def test_daemon_killed_in_the_middle_of_a_range_completes_the_layer(
    quick, agent, proxy, lazy_image
):
    line = proxy.throttle(1_000_000)
    target = quick.target("mnt")
    quick.run("mount", proxy.reference(lazy_image.name), target)
    # Some spans of the first range are here, the range as a whole is not.
    wait_until((quick.root / "lazy" / lazy_image.hex / "spans").exists, what="spans to be saved")
    assert proxy.ranges()[-1].sent < proxy.ranges()[-1].asked
    kill(quick)
    assert line.fired > 0
    line.lift()
    quick.start()
    wait_complete(lazy_image, quick)
    check_all(agent, lazy_image, target)


def content_of(path):
    return path.read_bytes() if path.exists() else b""
