"""The fetch engine: each span once, in few ranges, for as long as somebody wants it.

Most tests run without threads, in virtual time: every flight takes what `line` says.
"""

import random
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from imgvol import limits
from imgvol.content.records import Origin
from imgvol.errors import DigestMismatch, ImgvolError, RegistryUnavailable
from imgvol.images.fetch import layer as fetch_layer
from imgvol.images.fetch import sources as fetch_sources
from imgvol.images.fetch.engine import open_fetch_engine
from imgvol.images.fetch.flight import Flight, Purpose
from imgvol.images.fetch.line import Line
from imgvol.images.fetch.pace import Pace
from imgvol.images.fetch.rest import windows
from imgvol.images.fetch.slots import FlightSlots
from imgvol.layers.index import ROOT
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.tallies import QueueLength
from support.spans import (
    LAYER_TYPE,
    PlainTable,
    RangeSource,
    cut,
    make_lazy_layer,
    reopen_lazy_layer,
    serve,
    until,
    use_plain_tables,
)

KIB = 1024
BLOB = random.Random(5).randbytes(1000 * KIB)
SPANS = cut(len(BLOB), 10 * KIB)  # 100 of them
ORIGIN = Origin(argument="example.com/x:1", plain_http=False, insecure=False, ca_file=None)


@dataclass
class Slowness:
    """How long a flight takes; virtual seconds."""

    seconds: float = 1.0


@pytest.fixture
def line(monkeypatch):
    """Flights without threads."""
    line = Slowness()

    async def run(work, _cancel, *, limiter):
        async with limiter:
            await trio.sleep(line.seconds)
            return work()

    monkeypatch.setattr(fetch_layer, "run_cancellable", run)
    return line


@pytest.fixture
def source(monkeypatch):
    source = RangeSource(BLOB)
    serve(monkeypatch, source)
    use_plain_tables(monkeypatch)
    return source


@pytest.fixture
def small(monkeypatch):
    """No amplification, and gaps of up to 2 KiB."""
    monkeypatch.setattr(limits, "FETCH_SMALLEST", 1)
    monkeypatch.setattr(limits, "FETCH_LARGEST", 200 * KIB)
    monkeypatch.setattr(limits, "FETCH_GAP", 2 * KIB)
    monkeypatch.setattr(limits, "FETCH_ALONG_FREE", 0)
    monkeypatch.setattr(limits, "FETCH_ALONG_SHARE", 0.0)
    monkeypatch.setattr(Line, "worthwhile", property(lambda _: limits.FETCH_SMALLEST))


@asynccontextmanager
async def attached(root, ranges=SPANS, rate=None, **fields):
    """A layer, and its fetcher."""
    layer = make_lazy_layer(root, PlainTable(BLOB, ranges, **fields))
    descriptor = Descriptor(media_type=LAYER_TYPE, digest=layer.digest, size=len(BLOB))
    async with open_fetch_engine(rate) as engine:
        yield layer, engine.attach(layer, descriptor, ORIGIN)


async def read(layer, offset, size):
    node = layer.index.child(ROOT, b"all")
    return bytes(await layer.read(node, offset, size))


# --- ranges --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("line", "small")
@pytest.mark.parametrize(
    ("spans", "ranges"),
    [
        pytest.param([3], [(30, 40)], id="one"),
        pytest.param([3, 4, 5], [(30, 60)], id="neighbours"),
        pytest.param([5, 3, 4, 4], [(30, 60)], id="in any order"),
        pytest.param([3, 5], [(30, 40), (50, 60)], id="apart"),
        pytest.param(range(30), [(0, 200), (200, 300)], id="no more than the largest range"),
        pytest.param([], [], id="none"),
    ],
)
async def test_neighbours_are_fetched_in_one_range(autojump_clock, tmp_path, source, spans, ranges):
    async with attached(tmp_path) as (layer, fetcher):
        await fetcher.ensure(spans)
        assert sorted(source.opened) == [(start * KIB, end * KIB) for start, end in ranges]
        assert layer.present.present_count == len(set(spans))
        for start, end in ranges:
            size = (end - start) * KIB
            assert layer.kept.covers(start * KIB, end * KIB)
            assert await read(layer, start * KIB, size) == BLOB[start * KIB : end * KIB]
        assert fetcher.statistics.requests == len(ranges)
        assert fetcher.statistics.fetched == sum(end - start for start, end in ranges) * KIB
        assert fetcher.statistics.needed == fetcher.statistics.fetched


@pytest.mark.usefixtures("line", "small")
async def test_a_gap_is_fetched_along_if_that_is_cheaper_than_asking_twice(
    autojump_clock, tmp_path, source
):
    ranges = [(0, 1000), (1000 + 2 * KIB, 5000), (5001 + 2 * KIB, 9000)]
    async with attached(tmp_path, ranges) as (layer, fetcher):
        await fetcher.ensure([0, 1, 2])
        assert sorted(source.opened) == [(0, 5000), (5001 + 2 * KIB, 9000)]
        assert layer.kept.covers(0, 5000)
        assert not layer.kept.covers(5000, 5002)
        assert layer.present.is_full


@pytest.mark.usefixtures("line", "small")
async def test_spans_that_share_a_byte_both_arrive(autojump_clock, tmp_path, source):
    ranges = [(0, 1000), (999, 2000), (1999, 3000)]
    async with attached(tmp_path, ranges) as (layer, fetcher):
        await fetcher.ensure([0, 1, 2])
        assert source.opened == [(0, 3000)]
        assert await read(layer, 0, 3002) == BLOB[:1000] + BLOB[999:2000] + BLOB[1999:3000]
        assert layer.kept.read(0, 3000) == BLOB[:3000]


@pytest.mark.usefixtures("line")
async def test_a_small_flight_takes_the_spans_behind_it_along(
    autojump_clock, tmp_path, source, monkeypatch
):
    monkeypatch.setattr(Line, "worthwhile", property(lambda _: 35 * KIB))
    async with attached(tmp_path) as (layer, fetcher):
        await fetcher.ensure([12])
        await fetcher.ensure([10])
        await fetcher.ensure([97])
        assert source.opened == [
            (120 * KIB, 160 * KIB),
            (100 * KIB, 120 * KIB),  # stops where spans are present
            (970 * KIB, len(BLOB)),  # or at the end
        ]
        assert not layer.missing([10, 11, 12, 13, 14, 15, 97, 98, 99])
        assert fetcher.statistics.needed == 30 * KIB
        assert fetcher.statistics.fetched == 90 * KIB


@pytest.mark.usefixtures("line", "small")
async def test_amplification_stops_at_gaps_and_at_the_largest_range(
    autojump_clock, tmp_path, source, monkeypatch
):
    monkeypatch.setattr(limits, "FETCH_LARGEST", 25 * KIB)
    monkeypatch.setattr(limits, "FETCH_ALONG_FREE", 10**9)
    monkeypatch.setattr(Line, "worthwhile", property(lambda _: 10**9))
    ranges = [*cut(40 * KIB, 10 * KIB), (50 * KIB, 60 * KIB)]
    async with attached(tmp_path, ranges) as (_, fetcher):
        await fetcher.ensure([0])
        await fetcher.ensure([3])
        assert source.opened == [(0, 20 * KIB), (30 * KIB, 40 * KIB)]


def test_the_more_asking_costs_the_more_is_worth_taking():
    near, far = Line(), Line()
    for _ in range(30):
        near.learn(0.0001, limits.MIB, 0.0101, 0.01)
        far.learn(0.05, limits.MIB, 0.15, 0.15)
    assert near.worthwhile == limits.FETCH_SMALLEST
    assert far.worthwhile == pytest.approx(0.05 * limits.MIB / 0.15, rel=0.01)
    far.learn(30.0, limits.MIB, 0.15, 0.15)  # a pause before a retry is no round trip
    far.learn(0.05, 100, 1e-6, 1e-6)  # too little to tell a bandwidth
    assert far.worthwhile == pytest.approx(0.05 * limits.MIB / 0.15, rel=0.01)
    for _ in range(30):
        far.learn(60.0, 100 * limits.MIB, 1.0, 1.0)
    assert far.worthwhile == limits.FETCH_LARGEST


def test_a_line_that_nobody_knows_brings_little_along():
    line = Line()
    assert not line.is_known
    assert line.worthwhile == limits.FETCH_SMALLEST
    assert line.is_worth_stopping(10 * limits.MIB)
    assert line.is_worth_asking(100_000, ahead=10 * limits.MIB, rate=None)
    assert not line.is_worth_asking(100_000, ahead=200_000, rate=None)


def test_a_line_is_slow_if_one_waits_for_it_not_if_there_is_much_to_do():
    line = Line()
    assert line.is_slow, "nobody knows"
    line.learn(0.01, limits.MIB, 1.0, 0.001)
    assert not line.is_slow
    for _ in range(limits.LINE_SAMPLES // 2):
        line.learn(0.01, limits.MIB, 1.0, 0.9)
    assert line.is_slow


def test_streaming_everything_is_worth_it_where_asking_is_dear_and_receiving_is_cheap():
    far, near, slow = Line(), Line(), Line()
    assert not far.is_worth_streaming(1), "nobody knows"
    far.learn(0.05, 10 * limits.MIB, 0.1, 0.1)
    near.learn(0.0005, 10 * limits.MIB, 0.1, 0.1)
    slow.learn(0.05, limits.MIB, 0.5, 0.5)
    rest = 300 * limits.MIB
    assert [line.is_worth_streaming(rest) for line in (far, near, slow)] == [True, False, False]
    assert not far.is_worth_streaming(10 * rest)


def test_waiting_for_a_stream_is_worth_it_while_it_is_near_and_comes():
    line = Line()
    line.learn(0.1, 10 * limits.MIB, 1.0, 1.0)
    assert not line.is_worth_asking(limits.MIB // 4, ahead=limits.MIB, rate=None)
    assert line.is_worth_asking(limits.MIB, ahead=3 * limits.MIB, rate=None)
    assert line.is_worth_asking(limits.MIB // 4, ahead=limits.MIB, rate=limits.MIB)
    assert line.is_worth_asking(limits.MIB // 4, ahead=limits.MIB, rate=0.0)
    assert line.is_worth_stopping(2 * limits.MIB)
    assert not line.is_worth_stopping(limits.MIB // 2)


# --- many readers --------------------------------------------------------------------------------


async def test_fifty_readers_cause_one_fetch_per_span(tmp_path, source, small):
    """With real threads: overlapping reads, all begun before the first byte arrives."""
    chance = random.Random(7)
    wanted = [(chance.randrange(900 * KIB), chance.randrange(1, 100 * KIB)) for _ in range(50)]
    source.hold()
    async with attached(tmp_path) as (layer, _):
        wrong = []

        async def reader(offset, size):
            if await read(layer, offset, size) != BLOB[offset : offset + size]:
                wrong.append((offset, size))

        async with trio.open_nursery() as nursery:
            for offset, size in wanted:
                nursery.start_soon(reader, offset, size)
            await until(lambda: len(source.opened) == limits.FETCH_PER_HOST)
            source.release()
        assert wrong == []
    fetched = sorted(source.opened)
    assert fetched == sorted(source.delivered)
    assert all(a[1] <= b[0] for a, b in pairwise(fetched)), "no byte twice"
    needed = {byte // (10 * KIB) for o, s in wanted for byte in (*range(o, o + s, KIB), o + s - 1)}
    assert sum(end - start for start, end in fetched) == len(needed) * 10 * KIB


@pytest.mark.usefixtures("line", "small")
async def test_who_comes_while_a_flight_is_under_way_joins_it(autojump_clock, tmp_path, source):
    async with attached(tmp_path) as (_, fetcher), trio.open_nursery() as nursery:
        nursery.start_soon(fetcher.ensure, [1, 2, 3])
        await trio.sleep(0.5)
        begun = trio.current_time()
        await fetcher.ensure([3, 4])
        assert trio.current_time() - begun == pytest.approx(1.0)
        assert source.opened == [(10 * KIB, 40 * KIB), (40 * KIB, 50 * KIB)]


@pytest.mark.usefixtures("small")
async def test_a_cancelled_reader_does_not_disturb_the_others(tmp_path, source):
    source.hold(12 * KIB)
    async with attached(tmp_path) as (layer, fetcher):
        done = []

        async def patient():
            await fetcher.ensure([1, 2])
            done.append(layer.missing([1, 2]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(patient)
            await until(lambda: source.opened)
            with trio.move_on_after(0.05) as scope:
                await fetcher.ensure([1])
            assert scope.cancelled_caught
            assert not source.readers[0].is_cancelled
            source.release()
        assert done == [[]]
        assert source.opened == [(10 * KIB, 30 * KIB)]


@pytest.mark.usefixtures("small")
async def test_the_last_reader_s_end_ends_the_flight_and_a_later_one_gets_its_data(
    tmp_path, source
):
    source.hold(25 * KIB)
    async with attached(tmp_path) as (layer, fetcher):
        scopes = [trio.CancelScope(), trio.CancelScope()]

        async def impatient(scope):
            with scope:
                await fetcher.ensure([1, 2])

        async with trio.open_nursery() as nursery:
            for scope in scopes:
                nursery.start_soon(impatient, scope)
            await until(lambda: 1 in layer.present)  # its part came before the line was held
            for scope in scopes:
                scope.cancel()
        await until(lambda: source.readers[0].is_cancelled)
        assert layer.missing([1, 2]) == [2]
        source.release()
        with trio.fail_after(5):
            await fetcher.ensure([1, 2])
        assert layer.missing([1, 2]) == []
        # It goes on behind the last piece that was kept when the flight ended: at the latest where
        # the line was held.
        first, (again, end) = source.opened
        assert (first, end) == ((10 * KIB, 30 * KIB), 30 * KIB)
        assert 20 * KIB <= again <= 10 * KIB + 16_000
        await until(lambda: fetcher.statistics.requests == 1)


@pytest.mark.usefixtures("small")
async def test_a_flight_lands_while_its_layer_is_just_being_completed(
    tmp_path, source, monkeypatch
):
    source.hold(25 * KIB)
    async with attached(tmp_path) as (layer, fetcher):
        is_landed, is_dropping, drop = threading.Event(), threading.Event(), layer.kept.close

        def drop_slowly():
            # The table has been dropped by now, and nothing counts as present yet.
            is_dropping.set()
            assert is_landed.wait(5)
            drop()

        monkeypatch.setattr(layer.kept, "close", drop_slowly)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetcher.ensure, [1, 2])
            await until(lambda: 1 in layer.present)
            nursery.start_soon(trio.to_thread.run_sync, layer.complete, SimpleNamespace(index=None))
            await until(is_dropping.is_set)
            source.release()
            await until(lambda: fetcher.statistics.requests)
            is_landed.set()
        assert layer.missing([1, 2]) == []
        assert fetcher.failure is None


@pytest.mark.usefixtures("line", "small")
async def test_a_reader_of_several_flights_that_ends_ends_them_all(
    autojump_clock, tmp_path, source
):
    async with attached(tmp_path) as (layer, fetcher):
        with trio.move_on_after(0.5):
            await fetcher.ensure([1, 50, 90])
        await trio.sleep(10)
        assert layer.present.present_count == 0
        assert source.opened == []


@pytest.mark.usefixtures("line", "small")
async def test_a_reader_of_several_flights_keeps_each_of_them_up(
    autojump_clock, tmp_path, source, line
):
    """Another reader's end must not take away what this one has yet to wait for."""
    async with attached(tmp_path) as (layer, fetcher), trio.open_nursery() as nursery:
        nursery.start_soon(fetcher.ensure, [1, 50])
        await trio.sleep(0.5)
        with trio.move_on_after(0.1):
            await fetcher.ensure([50])
        begun = trio.current_time()
        await fetcher.ensure([50])
        assert trio.current_time() - begun == pytest.approx(0.4)
        assert not layer.missing([50])


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.expects_log("its registry fails")
@pytest.mark.usefixtures("line", "small")
async def test_a_failed_registry_fails_all_who_wait_rests_and_recovers(
    autojump_clock, tmp_path, source
):
    source.failures = [RegistryUnavailable("down")]
    failed_at: list[float] = []
    async with attached(tmp_path) as (layer, fetcher):

        async def fails(spans):
            with pytest.raises(RegistryUnavailable, match="down"):
                await fetcher.ensure(spans)
            failed_at.append(trio.current_time())

        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, [1, 2])
            await trio.sleep(0.5)
            nursery.start_soon(fails, [2])
            nursery.start_soon(fails, [2])
            # What it wants has come before the line broke.
            nursery.start_soon(fetcher.ensure, [1])
        assert [at - begun for at in failed_at] == pytest.approx([1.0] * 3)
        assert len(source.opened) == 1
        # At rest: at once, and without asking.
        await trio.sleep(limits.FETCH_FAILURE_REST - 0.1)
        rested = trio.current_time()
        await fails([7])
        assert trio.current_time() == rested
        assert len(source.opened) == 1
        await trio.sleep(0.2)
        await fetcher.ensure([1, 2, 7])
        assert not layer.missing([1, 2, 7])
        await until(lambda: fetcher.statistics.requests == 2)
        await fetcher.ensure([9])


@pytest.mark.expects_log("its registry fails")
@pytest.mark.usefixtures("line", "small")
async def test_what_came_before_a_failure_is_kept_and_not_fetched_again(
    autojump_clock, tmp_path, source
):
    """Also after a restart: a span that is present must have its bytes of the blob, too."""
    source.failures = [RegistryUnavailable("reset")]
    async with attached(tmp_path) as (layer, fetcher):
        with pytest.raises(RegistryUnavailable):
            await fetcher.ensure(range(10))
        present = 10 - len(layer.missing(range(10)))
        assert present == 5
        layer.intake.flush()
        again = reopen_lazy_layer(tmp_path)
        size = present * 10 * KIB
        assert again.kept.covers(0, size)
        assert again.kept.read(0, size) == BLOB[:size]
        await trio.sleep(limits.FETCH_FAILURE_REST + 0.1)
        await fetcher.ensure(range(10))
        # The failure came within a span: what had come of it is not fetched again, either.
        assert source.opened == [(0, 100 * KIB), (52_000, 100 * KIB)]


@pytest.mark.usefixtures("line", "small")
async def test_wrong_bytes_fail_their_readers_and_are_not_stored(autojump_clock, tmp_path, source):
    source.blob[25 * KIB] ^= 1
    async with attached(tmp_path) as (layer, fetcher):
        with pytest.raises(DigestMismatch):
            await fetcher.ensure([1, 2, 3])
        assert layer.missing([1, 2, 3]) == [2, 3]
        assert layer.read_blocking(layer.index.child(ROOT, b"all"), 20 * KIB, KIB) == bytes(KIB)
        assert not layer.kept.covers(20 * KIB, 30 * KIB)
        # Nobody's registry has failed: others are served at once.
        await fetcher.ensure([3])
        source.blob[25 * KIB] ^= 1
        await fetcher.ensure([2])
        assert await read(layer, 10 * KIB, 30 * KIB) == BLOB[10 * KIB : 40 * KIB]


@pytest.mark.usefixtures("line", "small")
async def test_what_is_wrong_once_is_asked_for_again_and_nobody_notices(
    autojump_clock, tmp_path, source
):
    source_open = source.open_blob
    source.blob[25 * KIB] ^= 1

    def heal(descriptor, *, offset, end):
        if source.opened:
            source.blob[25 * KIB] = BLOB[25 * KIB]
        return source_open(descriptor, offset=offset, end=end)

    source.open_blob = heal
    async with attached(tmp_path) as (layer, fetcher):
        await fetcher.ensure([1, 2, 3])
        assert await read(layer, 10 * KIB, 30 * KIB) == BLOB[10 * KIB : 40 * KIB]
        # From the wrong span on; what came before is good.
        assert source.opened == [(10 * KIB, 40 * KIB), (20 * KIB, 40 * KIB)]


@pytest.mark.expects_log("its registry fails")
@pytest.mark.usefixtures("line", "small")
async def test_a_source_that_cannot_be_opened_fails_the_readers_and_recovers(
    autojump_clock, tmp_path, source, monkeypatch
):
    with monkeypatch.context() as patched:

        @asynccontextmanager
        async def refuse(*_, **_settings):
            raise RegistryUnavailable("no route")
            yield

        patched.setattr(fetch_sources, "open_source", refuse)
        async with attached(tmp_path) as (_, fetcher):
            with pytest.raises(RegistryUnavailable, match="no route"):
                await fetcher.ensure([1])
            patched.undo()
            serve(monkeypatch, source)
            use_plain_tables(monkeypatch)
            await trio.sleep(limits.FETCH_FAILURE_REST + 1)
            await fetcher.ensure([1])


@pytest.mark.expects_log("its registry fails")
@pytest.mark.usefixtures("line", "small")
async def test_a_source_that_ends_early_is_an_error_and_no_endless_loop(
    autojump_clock, tmp_path, source
):
    async with attached(tmp_path) as (layer, fetcher):
        source_open = source.open_blob
        source.open_blob = lambda d, *, offset, end: source_open(d, offset=offset, end=end - 5)
        with trio.fail_after(1000), pytest.raises(ImgvolError):
            await fetcher.ensure([1])
        assert layer.missing([1]) == [1]
        assert len(source.readers) == 1


# --- what is more urgent -------------------------------------------------------------------------


@pytest.fixture
def known(monkeypatch):
    """A line of 100 KiB/s and 0.1 s, too slow for all of the rest to be streamed."""
    monkeypatch.setattr(Line, "is_worth_streaming", lambda *_: False)
    monkeypatch.setattr(Line, "bandwidth", property(lambda _: 100.0 * KIB))
    monkeypatch.setattr(Line, "round_trip", property(lambda _: 0.1))


@pytest.mark.usefixtures("small", "known")
async def test_the_background_ends_for_a_reader_and_goes_on_where_it_was(tmp_path, source):
    source.hold(30_000)
    async with attached(tmp_path) as (layer, fetcher), trio.open_nursery() as nursery:
        window = partial(fetcher.fetch_window, 0, 100 * KIB, list(range(10)), Purpose.BACKGROUND)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(limits, "FETCH_QUIET", 0)
            nursery.start_soon(window)
            await until(lambda: source.opened and source.readers[0].reached == 30_000)
        nursery.start_soon(fetcher.ensure, [90])
        await until(lambda: source.readers[0].is_cancelled)
        source.release()
        await until(lambda: 90 in layer.present)
        assert layer.missing(range(10)) == list(range(2, 10))
        assert layer.kept.reach(0, 100 * KIB) == 30_000
        await fetcher.ensure(range(10))
        assert source.opened == [
            (0, 100 * KIB),
            (900 * KIB, 910 * KIB),
            (30_000, 100 * KIB),
        ]
        assert await read(layer, 0, 100 * KIB) == BLOB[: 100 * KIB]


@pytest.mark.usefixtures("small", "known")
async def test_a_reader_waits_for_a_window_that_is_near_and_not_for_one_that_is_far(
    tmp_path, source
):
    source.hold(10_000)
    async with attached(tmp_path) as (layer, fetcher), trio.open_nursery() as nursery:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(limits, "FETCH_QUIET", 0)
            window = partial(fetcher.fetch_window, 0, 200 * KIB, list(range(20)))
            nursery.start_soon(window, Purpose.BACKGROUND)
            await until(lambda: source.opened and source.readers[0].reached == 10_000)
        nursery.start_soon(fetcher.ensure, [1])  # 10 KiB on: sooner than another round trip
        await trio.sleep(0.05)
        assert len(source.opened) == 1
        nursery.start_soon(fetcher.ensure, [18])  # it has a reader now, so it goes on
        await trio.sleep(0.05)
        assert len(source.opened) == 1
        source.release()
        await until(lambda: not layer.missing(range(20)))
        assert len(source.opened) == 1
        # Nobody reads this one, and what is wanted is at its end.
        source.hold(300 * KIB)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(limits, "FETCH_QUIET", 0)
            window = partial(fetcher.fetch_window, 300 * KIB, 500 * KIB, list(range(30, 50)))
            nursery.start_soon(window, Purpose.BACKGROUND)
            await until(lambda: len(source.opened) == 2)
        nursery.start_soon(fetcher.ensure, [49])
        await until(lambda: len(source.opened) == 3)
        assert source.readers[1].is_cancelled
        assert source.opened[2] == (490 * KIB, 500 * KIB)
        source.release()


@pytest.mark.usefixtures("small", "known")
async def test_a_stream_of_everything_does_not_wait_for_readers_to_be_quiet(
    tmp_path, source, monkeypatch
):
    monkeypatch.setattr(limits, "FETCH_QUIET", 60)
    monkeypatch.setattr(Line, "is_worth_streaming", lambda *_: True)
    source.hold(20 * KIB)
    async with attached(tmp_path) as (layer, fetcher), trio.open_nursery() as nursery:
        fetcher.note_wanted([0])  # somebody reads
        window = partial(fetcher.fetch_window, 0, 200 * KIB, list(range(20)))
        nursery.start_soon(window, Purpose.BACKGROUND)
        await until(lambda: source.opened)
        # Nor does it give way, or keep readers waiting who want what comes late.
        for _ in range(3):
            nursery.start_soon(fetcher.ensure, [19])
        await until(lambda: len(source.opened) == 2)
        await trio.sleep(0.05)
        assert len(source.opened) == 2, "the others join the first reader"
        assert source.opened[1] == (190 * KIB, 200 * KIB)
        assert not source.readers[0].is_cancelled
        source.release()
        await until(lambda: not layer.missing(range(20)))
        assert len(source.opened) == 2


@pytest.mark.usefixtures("line", "small")
async def test_what_the_maker_marked_comes_as_soon_as_no_reader_waits(
    autojump_clock, tmp_path, source
):
    async with attached(tmp_path) as (_, fetcher), trio.open_nursery() as nursery:
        nursery.start_soon(fetcher.ensure, [50])
        nursery.start_soon(fetcher.fetch_window, 0, 10 * KIB, [0], Purpose.BACKGROUND)
        await trio.sleep(0.1)
        begun = trio.current_time()
        await fetcher.fetch_window(10 * KIB, 20 * KIB, [1], Purpose.PREFETCH)
        assert trio.current_time() - begun == pytest.approx(0.9 + 1.0)
    assert [start // KIB for start, _ in source.opened] == [500, 10, 0]


async def test_slots_go_to_the_most_urgent_and_not_all_to_one_host(autojump_clock):
    slots = FlightSlots(total=3, per_host=2)
    order = []

    async def fly(name, purpose, host, waiters=0):
        flight = Flight(0, 1, (), purpose, waiters=waiters)
        async with slots.slot(flight, host):
            order.append(name)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fly, "first", Purpose.BACKGROUND, "a")
        await trio.sleep(0.1)
        nursery.start_soon(fly, "second", Purpose.BACKGROUND, "a")
        await trio.sleep(0.1)
        nursery.start_soon(fly, "rest", Purpose.BACKGROUND, "a")
        await trio.sleep(0.1)
        nursery.start_soon(fly, "marked", Purpose.PREFETCH, "a")
        await trio.sleep(0.1)
        nursery.start_soon(fly, "joined", Purpose.BACKGROUND, "a", 1)
        await trio.sleep(0.1)
        nursery.start_soon(fly, "elsewhere", Purpose.BACKGROUND, "b")
        await trio.sleep(0.1)
        assert order == ["first", "second", "elsewhere"]
        assert slots.queue == QueueLength(3, 3)
        with trio.move_on_after(0.1):
            await fly("gave up", Purpose.READ, "a", 1)
    assert order == ["first", "second", "elsewhere", "joined", "marked", "rest"]
    assert slots.queue == QueueLength(0, 0)


@pytest.mark.usefixtures("small")
async def test_images_of_one_registry_share_its_places(tmp_path, source):
    source.hold()
    wanted = range(0, 40, 2)  # no neighbours
    async with open_fetch_engine() as engine, trio.open_nursery() as nursery:
        for number, name in enumerate(("example.com/x:1", "example.com/y:2", "other.org/x:1")):
            layer = make_lazy_layer(
                tmp_path, PlainTable(BLOB, SPANS), digest=Digest.of(name.encode())
            )
            descriptor = Descriptor(media_type=LAYER_TYPE, digest=layer.digest, size=len(BLOB))
            fetcher = engine.attach(layer, descriptor, replace(ORIGIN, argument=name))
            nursery.start_soon(fetcher.ensure, wanted)
            hosts = 1 if number < 2 else 2
            await until(lambda: len(source.opened) == hosts * limits.FETCH_PER_HOST)  # noqa: B023 - used inside of the loop only
            await trio.sleep(0.05)
            assert len(source.opened) == hosts * limits.FETCH_PER_HOST
        source.release()


def test_the_pace_spreads_bytes_over_time(monkeypatch):
    now = 100.0
    monkeypatch.setattr("imgvol.images.fetch.pace.time.monotonic", lambda: now)
    pace = Pace(1000.0)
    assert pace.pause_after(500) == pytest.approx(0.5)
    assert pace.pause_after(500) == pytest.approx(1.0)
    now = 105.0
    assert pace.pause_after(100) == pytest.approx(0.1), "what was not used is not saved up"
    assert Pace(None).pause_after(10**9) == 0


@pytest.mark.usefixtures("small")
async def test_the_background_keeps_its_pace_and_readers_do_not(tmp_path, source, monkeypatch):
    monkeypatch.setattr(limits, "FETCH_QUIET", 0)
    async with attached(tmp_path, rate=200.0 * KIB) as (_, fetcher):
        began = time.perf_counter()
        await fetcher.fetch_window(0, 100 * KIB, list(range(10)), Purpose.BACKGROUND)
        paced = time.perf_counter() - began
        assert 0.45 < paced < 2
        began = time.perf_counter()
        await fetcher.ensure(range(20, 60))
        assert time.perf_counter() - began < paced / 2


# --- taken along, and ahead ----------------------------------------------------------------------


@pytest.mark.usefixtures("line")
async def test_what_is_taken_along_in_vain_has_a_bound(
    autojump_clock, tmp_path, source, monkeypatch
):
    monkeypatch.setattr(Line, "worthwhile", property(lambda _: 40 * KIB))
    monkeypatch.setattr(limits, "FETCH_ALONG_FREE", 50 * KIB)
    monkeypatch.setattr(limits, "FETCH_ALONG_SHARE", 0.0)
    async with attached(tmp_path) as (_, fetcher):
        for span in (0, 10, 20, 30):
            await fetcher.ensure([span])
            await trio.sleep(2)
        sizes = [(end - start) // KIB for start, end in source.opened]
        assert sizes == [40, 30, 10, 10]
        # What turns out to be wanted was not in vain.
        fetcher.note_wanted([1, 2, 3, 11])
        await fetcher.ensure([40])
        assert source.opened[-1] == (400 * KIB, 440 * KIB)
        assert fetcher.statistics.needed == (4 + 4 + 1) * 10 * KIB


@pytest.mark.usefixtures("line")
async def test_who_goes_through_files_in_the_blob_s_order_waits_ever_less(
    autojump_clock, tmp_path, source, monkeypatch
):
    """Each span is a file of its own: nobody reads one of them on."""
    monkeypatch.setattr(limits, "FETCH_SMALLEST", 20 * KIB)
    monkeypatch.setattr(limits, "FETCH_LARGEST", 160 * KIB)
    monkeypatch.setattr(Line, "round_trip", property(lambda _: 1.0))  # what a flight takes here
    monkeypatch.setattr(fetch_layer.LayerFetcher, "is_slow", False)
    async with attached(tmp_path) as (layer, fetcher):
        waited = []
        for span in range(len(SPANS)):
            begun = trio.current_time()
            if layer.missing([span]):
                await fetcher.ensure([span])
            else:
                fetcher.note_wanted([span])
            waited.append(trio.current_time() - begun)
            await trio.sleep(0.2)
        assert sum(wait > 0 for wait in waited) <= 6
        assert not any(waited[30:]), "the line is always ahead"
        sizes = [(end - start) // KIB for start, end in source.opened]
        assert max(sizes) == 160
        assert all(a[1] <= b[0] for a, b in pairwise(sorted(source.opened))), "no byte twice"
        assert fetcher.statistics.needed == fetcher.statistics.fetched == len(BLOB)


@pytest.mark.usefixtures("line")
async def test_a_sweep_that_ends_has_fetched_little_in_vain(
    autojump_clock, tmp_path, source, monkeypatch
):
    monkeypatch.setattr(limits, "FETCH_ALONG_FREE", 100 * KIB)
    monkeypatch.setattr(fetch_layer.LayerFetcher, "is_slow", False)
    async with attached(tmp_path) as (_, fetcher):
        for span in range(20):
            await fetcher.ensure([span])
        await trio.sleep(10)
        vain = fetcher.statistics.fetched - fetcher.statistics.needed
        assert 0 < vain <= 100 * KIB + 0.25 * fetcher.statistics.needed
        before = len(source.opened)
        await fetcher.ensure([90])
        await fetcher.ensure([80])
        assert len(source.opened) - before == 2


@pytest.mark.usefixtures("line", "small")
async def test_a_sequential_reader_finds_what_it_reads_next(autojump_clock, tmp_path, source):
    async with attached(tmp_path) as (layer, _):
        waits = []
        for offset in range(0, 1000 * KIB, 50 * KIB):
            begun = trio.current_time()
            assert await read(layer, offset, 50 * KIB) == BLOB[offset : offset + 50 * KIB]
            waits.append(trio.current_time() - begun)
            await trio.sleep(1.1)
        assert waits[:2] == pytest.approx([1.0, 1.0])
        assert waits[2:] == pytest.approx([0.0] * 18)
        fetched = sorted(source.opened)
        assert all(a[1] <= b[0] for a, b in pairwise(fetched)), "no byte twice"


@pytest.mark.usefixtures("line", "small")
async def test_nothing_is_read_ahead_of_a_reader_who_jumps(autojump_clock, tmp_path, source):
    async with attached(tmp_path) as (layer, _):
        for offset in (0, 500, 100, 700, 300):
            await read(layer, offset * KIB, 10 * KIB)
        await trio.sleep(10)
        assert len(source.opened) == 5


# --- what was kept -------------------------------------------------------------------------------


@pytest.mark.usefixtures("line", "small")
async def test_bytes_that_an_earlier_flight_left_damaged_are_fetched_again(
    autojump_clock, tmp_path, source
):
    async with attached(tmp_path) as (layer, fetcher):
        layer.kept.put(10 * KIB, BLOB[10 * KIB : 22 * KIB])
        layer.kept.put(22 * KIB, bytes(3 * KIB))
        await fetcher.ensure([1, 2])
        assert source.opened == [(25 * KIB, 30 * KIB), (20 * KIB, 30 * KIB)]
        assert layer.kept.read(10 * KIB, 20 * KIB) == BLOB[10 * KIB : 30 * KIB]
        assert fetcher.statistics.fetched == 15 * KIB


# --- patience ------------------------------------------------------------------------------------


@pytest.mark.expects_log("its registry fails")
@pytest.mark.usefixtures("line", "small")
async def test_patient_readers_wait_for_the_registry_up_to_their_deadline(
    autojump_clock, tmp_path, source
):
    source.failures = [RegistryUnavailable("down")] * 4
    async with attached(tmp_path) as (layer, fetcher):
        fetcher.patience = 60
        await fetcher.ensure([1])
        assert not layer.missing([1])
        assert source.failures == []
        asked = 0

        def refuse(*_, **_range):
            nonlocal asked
            asked += 1
            raise RegistryUnavailable("down")

        source.open_blob = refuse
        begun = trio.current_time()
        with pytest.raises(RegistryUnavailable):
            await fetcher.ensure([5])
        assert 60 <= trio.current_time() - begun <= 62
        assert 60 / (limits.FETCH_BLOCKED_PAUSE + 1) < asked < 15


@pytest.mark.usefixtures("line", "small")
async def test_patience_is_not_for_damaged_content(autojump_clock, tmp_path, source):
    source.blob[15 * KIB] ^= 1
    async with attached(tmp_path) as (_, fetcher):
        fetcher.patience = 60
        with pytest.raises(DigestMismatch):
            await fetcher.ensure([1])
        assert trio.current_time() < 5


# --- background ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("line", "small")
async def test_a_window_brings_its_spans_and_what_lies_between(autojump_clock, tmp_path, source):
    ranges = [(100, 1000), (3000, 5000)]
    async with attached(tmp_path, ranges) as (layer, fetcher):
        await fetcher.fetch_window(0, 6000, [0, 1], Purpose.BACKGROUND)
        assert source.opened == [(0, 6000)]
        assert layer.present.is_full
        assert layer.kept.read(0, 6000) == BLOB[:6000]
        assert fetcher.statistics.needed == 0
        assert fetcher.statistics.fetched == 6000


@pytest.mark.usefixtures("line", "small")
async def test_readers_join_a_window(autojump_clock, tmp_path, source):
    async with attached(tmp_path) as (layer, fetcher), trio.open_nursery() as nursery:
        nursery.start_soon(fetcher.fetch_window, 0, 30 * KIB, [0, 1, 2], Purpose.BACKGROUND)
        await trio.sleep(limits.FETCH_QUIET + limits.LINE_ROUND_TRIP)
        await fetcher.ensure([2])
        assert source.opened == [(0, 30 * KIB)]
        assert not layer.missing([2])


@pytest.mark.usefixtures("small")
async def test_the_background_waits_until_readers_have_been_quiet(
    autojump_clock, tmp_path, source, line
):
    line.seconds = 5 * limits.FETCH_QUIET  # longer than the pause that ends the waiting
    async with attached(tmp_path) as (_, fetcher):
        begun = trio.current_time()
        await fetcher._engine.wait_quiet()
        # Nobody has asked for anything, but who opens a view is about to.
        assert trio.current_time() - begun == pytest.approx(limits.FETCH_QUIET, abs=0.01)
        begun = last_end = trio.current_time()
        await fetcher._engine.wait_quiet()
        assert trio.current_time() == begun

        async def readers():
            nonlocal last_end
            for span in (1, 20, 40):
                await fetcher.ensure([span])
                last_end = trio.current_time()
                await trio.sleep(limits.FETCH_QUIET / 2)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(readers)
            await trio.sleep(0.01)
            await fetcher._engine.wait_quiet()
            quiet_at = trio.current_time()
        assert len(source.opened) == 3
        # Not before the pause after the last reader's answer, and not long after it.
        assert last_end - begun == pytest.approx(3 * line.seconds + limits.FETCH_QUIET)
        assert limits.FETCH_QUIET <= quiet_at - last_end <= 2 * limits.FETCH_QUIET


@pytest.mark.expects_log("its registry fails")
@pytest.mark.usefixtures("small")
async def test_the_background_waits_for_readers_that_fail_or_leave_no_longer_than_for_others(
    autojump_clock, tmp_path, source, line
):
    source.failures = [RegistryUnavailable("down")]
    async with attached(tmp_path) as (_, fetcher):
        with pytest.raises(RegistryUnavailable):
            await fetcher.ensure([1])
        begun = trio.current_time()
        await fetcher._engine.wait_quiet()
        assert 0 < trio.current_time() - begun <= limits.FETCH_QUIET + 0.001
        await trio.sleep(limits.FETCH_FAILURE_REST)
        line.seconds = 100
        with trio.move_on_after(3):
            await fetcher.ensure([1])
        begun = trio.current_time()
        await fetcher._engine.wait_quiet()
        assert 0 < trio.current_time() - begun <= limits.FETCH_QUIET + 0.001


@st.composite
def layouts(draw):
    """Spans in order, that touch, share their border byte, or leave a gap; and the blob's size."""
    ranges: list[tuple[int, int]] = []
    reached = 0
    for _ in range(draw(st.integers(0, 25))):
        gap = draw(st.sampled_from([0, 0, 0, 1, 30, 350]))
        start = reached + gap
        if gap == 0 and ranges and draw(st.booleans()):
            start -= 1
        end = max(start, reached - 1) + draw(st.sampled_from([1, 2, 20, 99, 100, 101, 350]))
        end = max(end, reached)
        ranges.append((start, end))
        reached = end
    return ranges, reached + draw(st.sampled_from([0, 0, 1, 99, 100, 350]))


@given(layouts())
def test_windows_cover_the_blob_exactly_and_are_bounded(layout):
    ranges, size = layout
    table = PlainTable(b"", ranges, digests=["-"] * len(ranges), blob_size=size)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(limits, "FETCH_WINDOW", 100)
        pieces = list(windows(table))
    reached = 0
    for start, end, spans in pieces:
        assert start < end <= size
        assert start in (reached, reached - 1), "in order, with at most a shared byte"
        assert end > reached or spans
        assert all(start <= ranges[s][0] and ranges[s][1] <= end for s in spans)
        longest = max((ranges[s][1] - ranges[s][0] for s in spans), default=0)
        assert end - start <= 100 + longest, "what is held in memory has a bound"
        reached = end
    assert reached == size
    assert [s for _, _, spans in pieces for s in spans] == list(range(len(ranges)))
