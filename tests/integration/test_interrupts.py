"""Callers that wait for a registry can be killed, and nobody else notices."""

import os
import signal

import pytest

from support import transports
from support.callers import running_callers
from support.calling import LOOKUP
from support.daemon import running_daemon
from support.metrics import scrape
from support.programs import require_fuse, wait_until

pytestmark = pytest.mark.servers

MANY = 100
# Without the page cache, each read of a caller is a request of its own, which can be interrupted.
DIRECT = os.O_DIRECT
by_both = transports.each
only_kernel = pytest.mark.parametrize("transport", ["kernel"], scope="module")
only_estargz = pytest.mark.parametrize("lazy_image", ["estargz"], indirect=True)
# What the background asks for at once, and readers never do.
BACKGROUND = 4 << 20


@pytest.fixture
def hanging(short_path, proxy, lazy_image, transport):
    """A daemon whose registry stops answering once an image is mounted; the file to read.

    Reads wait for longer than any test.
    """
    require_fuse()
    options, prelude = transports.options(transport), transports.prelude(transport)
    patience = {"FETCH_STALL": 300.0, "HANDLER_DEADLINE": 300.0}
    with running_daemon(short_path, *options, prelude=prelude, **patience) as daemon:
        target = daemon.target("mnt")
        background = proxy.throttle(1, at_least=BACKGROUND)
        daemon.run("mount", proxy.reference(lazy_image.name), target)
        wait_until(lambda: background.fired, what="the background to begin")
        yield daemon, proxy.throttle(1), f"{target}/usr/lib/large"


def in_progress(daemon):
    metrics = scrape(daemon.run_dir / "imgvol.sock")
    return metrics.get("imgvol_filesystem_requests_in_progress", "operation=read")


@pytest.mark.fault("F81")
@pytest.mark.parametrize(
    # In the last one the kernel waits for what it reads ahead as for a page that it needs.
    "transport",
    ["pyfuse3", "kernel", "kernel without ASYNC_READ"],
    scope="module",
)
@only_estargz
def test_a_hundred_callers_that_wait_for_a_registry_are_killed_within_a_second(hanging):
    _, _, path = hanging
    with running_callers(path, 1 << 20, MANY) as callers:
        callers.wait_blocked()
        ends, seconds = callers.end(signal.SIGKILL)
    assert ends == ["killed"] * MANY
    assert seconds < 1.0


@pytest.mark.fault("F81")
@only_kernel
@only_estargz
@pytest.mark.parametrize(
    ("number", "end"), [(signal.SIGKILL, "killed"), (signal.SIGUSR1, "interrupted")]
)
def test_a_signal_ends_reads_that_go_past_the_page_cache(hanging, number, end):
    daemon, _, path = hanging
    with running_callers(path, 1 << 20, MANY, DIRECT) as callers:
        callers.wait_blocked()
        assert in_progress(daemon) == MANY
        ends, seconds = callers.end(number)
    assert ends == [end] * MANY
    assert seconds < 1.0
    assert in_progress(daemon) == 0


@pytest.mark.fault("F81")
@only_kernel
@only_estargz
@pytest.mark.parametrize(
    ("number", "end"), [(signal.SIGKILL, "killed"), (signal.SIGUSR1, "interrupted")]
)
def test_others_who_wait_for_the_same_span_are_not_disturbed(hanging, proxy, number, end):
    _, line, path = hanging
    with (
        running_callers(path, 1 << 20, 10, DIRECT) as patient,
        running_callers(path, 1 << 20, 10, DIRECT) as impatient,
    ):
        patient.wait_blocked()
        impatient.wait_blocked()
        assert impatient.end(number)[0] == [end] * 10
        patient.wait_blocked()
        line.lift()
        assert patient.end()[0] == ["done"] * 10
    # The background lets readers go first, and asks for its part again when they have gone.
    asked = [exchange.range for exchange in proxy.ranges() if exchange.asked < BACKGROUND]
    assert asked
    assert len(asked) == len(set(asked)), "nothing that is waited for is fetched twice"


@pytest.mark.fault("F81")
@by_both
@only_estargz
def test_who_is_stopped_and_continued_reads_on(hanging):
    _, line, path = hanging
    with running_callers(path, 1 << 20, 10, DIRECT) as callers:
        callers.wait_blocked()
        callers.send(signal.SIGSTOP)
        callers.wait_blocked()
        callers.send(signal.SIGCONT)
        line.lift()
        assert callers.end()[0] == ["done"] * 10


@pytest.mark.fault("F81")
@by_both
@only_estargz
def test_a_signal_does_not_take_a_mapped_page_away_from_a_program(hanging):
    """It would be told SIGBUS, and nothing of the signal."""
    _, line, path = hanging
    with running_callers(path, 1 << 20, 10, how="touch") as callers:
        callers.wait_blocked()
        callers.send(signal.SIGUSR1)
        callers.wait_blocked()
        line.lift()
        ends, _ = callers.end()
    assert ends == ["interrupted"] * 10, "by the handler, once the page is there"


@pytest.mark.fault("F81")
@only_kernel
@only_estargz
@pytest.mark.parametrize("before", [None, signal.SIGUSR1], ids=["at once", "after a signal"])
def test_who_waits_for_a_mapped_page_can_be_killed(hanging, before):
    _, _, path = hanging
    with running_callers(path, 1 << 20, MANY, how="touch") as callers:
        callers.wait_blocked()
        if before:
            callers.send(before)
            callers.wait_blocked()
        ends, seconds = callers.end(signal.SIGKILL)
    assert ends == ["killed"] * MANY
    assert seconds < 2.0


# --- handlers and threads -----------------------------------------------------------------------


@pytest.mark.fault("F81")
@only_kernel
@only_estargz
@pytest.mark.parametrize(
    ("how", "number"),
    [
        ("once", signal.SIGUSR1),
        ("once", signal.SIGINT),
        ("once, restarting", signal.SIGINT),
        ("thread", signal.SIGUSR1),
    ],
)
def test_a_handler_ends_a_read_past_the_page_cache_with_eintr(hanging, how, number):
    """Also with SA_RESTART: FUSE has no way to say that the call is to be made again."""
    _, _, path = hanging
    with running_callers(path, 1 << 20, 10, DIRECT, how) as callers:
        callers.wait_blocked()
        ends, seconds = callers.end(number)
    assert ends == ["EINTR"] * 10
    assert seconds < 1.0


@pytest.mark.fault("F81")
@by_both
@only_estargz
@pytest.mark.parametrize("how", ["once", "once, restarting"])
def test_a_handler_changes_nothing_about_a_read_through_the_page_cache(hanging, how):
    """Programs do not expect EINTR, nor less than they asked for, from a file."""
    _, line, path = hanging
    with running_callers(path, 1 << 20, 10, how=how) as callers:
        callers.wait_blocked()
        callers.send(signal.SIGUSR1)
        callers.wait_blocked()
        line.lift()
        assert callers.end()[0] == ["done"] * 10


@pytest.mark.fault("F81")
@by_both
@only_estargz
@pytest.mark.parametrize("flags", [0, DIRECT], ids=["cached", "direct"])
def test_a_thread_reads_on_whose_process_is_sent_a_signal(hanging, flags):
    _, line, path = hanging
    with running_callers(path, 1 << 20, 10, flags, "bystander") as callers:
        callers.wait_blocked()
        callers.send(signal.SIGUSR1)
        callers.wait_blocked()
        line.lift()
        assert callers.end()[0] == ["done"] * 10


@pytest.mark.fault("F81")
@only_kernel
@only_estargz
@pytest.mark.parametrize("flags", [0, DIRECT], ids=["cached", "direct"])
def test_a_process_is_killed_while_one_of_its_threads_waits(hanging, flags):
    _, _, path = hanging
    with running_callers(path, 1 << 20, 10, flags, "bystander") as callers:
        callers.wait_blocked()
        ends, seconds = callers.end(signal.SIGKILL)
    assert ends == ["killed"] * 10
    assert seconds < 1.0


# --- lookups ------------------------------------------------------------------------------------


@pytest.mark.fault("F81")
@by_both
@only_estargz
@pytest.mark.parametrize("name", ["absent-{}", "large"])
def test_lookups_do_not_wait_for_a_registry(hanging, name):
    """Indexes are here before an image is mounted: what is asked is answered from memory, beside a
    hundred readers that wait."""
    _, _, path = hanging
    place = os.path.dirname(path)
    with (
        running_callers(path, 1 << 20, MANY) as readers,
        running_callers(f"{place}/{name}", 0, MANY, how=LOOKUP) as lookers,
    ):
        readers.wait_blocked()
        ends, seconds = lookers.end()
        assert ends == ["done" if name == "large" else "absent"] * MANY
        assert seconds < 1.0
        readers.wait_blocked()
        readers.end(signal.SIGKILL)


@pytest.mark.fault("F81")
@by_both
@only_estargz
@pytest.mark.parametrize("name", ["absent-{}", "absent"], ids=["each its own", "all the same"])
def test_a_hundred_lookups_that_wait_are_killed_within_a_second(hanging, name):
    """For a daemon that does not answer at all, as nothing else lets them wait."""
    daemon, _, path = hanging
    place = os.path.dirname(path)
    with running_callers(path, 0, 1, how=LOOKUP) as first:
        assert first.end()[0] == ["done"], "the directory is known"
    worker = daemon.worker_pid
    os.kill(worker, signal.SIGSTOP)
    try:
        with running_callers(f"{place}/{name}", 0, MANY, how=LOOKUP) as callers:
            callers.wait_blocked()
            ends, seconds = callers.end(signal.SIGKILL)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert ends == ["killed"] * MANY
    assert seconds < 1.0
