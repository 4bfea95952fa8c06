"""Following a trace: in its order, in few ranges, in the way of nobody; in virtual time."""

import random
from collections import deque
from contextlib import asynccontextmanager

import pytest
import trio

from imgvol import limits
from imgvol.content.records import Origin
from imgvol.errors import RegistryUnavailable
from imgvol.images.fetch import layer as fetch_layer
from imgvol.images.fetch.engine import open_fetch_engine
from imgvol.images.fetch.flight import Purpose
from imgvol.images.fetch.line import Line
from imgvol.images.fetch.rest import fetch_rest
from imgvol.images.traces.run import RunState, TraceRun, TraceUse
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from support.spans import (
    LAYER_TYPE,
    PlainTable,
    RangeSource,
    cut,
    make_lazy_layer,
    serve,
    use_plain_tables,
)

KIB = 1024
BLOB = random.Random(5).randbytes(1000 * KIB)
SPANS = cut(len(BLOB), 10 * KIB)  # 100 of them
ORIGIN = Origin(argument="example.com/x:1", plain_http=False, insecure=False, ca_file=None)
FLIGHT = 1.0


@pytest.fixture
def source(monkeypatch):
    """Flights without threads: each takes a virtual second."""

    async def run(work, _cancel, *, limiter):
        async with limiter:
            await trio.sleep(FLIGHT)
            return work()

    monkeypatch.setattr(fetch_layer, "run_cancellable", run)
    monkeypatch.setattr(limits, "FETCH_SMALLEST", 1)
    monkeypatch.setattr(limits, "FETCH_ALONG_FREE", 0)
    monkeypatch.setattr(limits, "FETCH_ALONG_SHARE", 0.0)
    monkeypatch.setattr(Line, "worthwhile", property(lambda _: 20 * KIB))
    monkeypatch.setattr(Line, "window", property(lambda _: 50 * KIB))
    monkeypatch.setattr(Line, "bandwidth", property(lambda _: 1.0))
    monkeypatch.setattr(limits, "TRACE_HORIZON", 100 * KIB)
    monkeypatch.setattr(limits, "TRACE_DEPTH", 2)
    source = RangeSource(BLOB)
    serve(monkeypatch, source)
    use_plain_tables(monkeypatch)
    return source


@asynccontextmanager
async def attached(root):
    layer = make_lazy_layer(root, PlainTable(BLOB, SPANS))
    descriptor = Descriptor(media_type=LAYER_TYPE, digest=layer.digest, size=len(BLOB))
    async with open_fetch_engine() as engine:
        yield layer, engine.attach(layer, descriptor, ORIGIN), engine


def make_run(layer, fetcher, spans, *, most=float("inf"), is_wanted=lambda: True):
    return TraceRun(
        queue=deque((layer, span) for span in spans),
        fetchers={layer: fetcher},
        use=TraceUse(image=Digest.of(b"m"), source="recorded", traced=1, matched=1),
        most=most,
        is_wanted=is_wanted,
    )


def kib(ranges):
    return [(start // KIB, end // KIB) for start, end in ranges]


async def test_what_is_wanted_first_comes_first_and_neighbours_together(
    autojump_clock, tmp_path, source, monkeypatch
):
    monkeypatch.setattr(limits, "TRACE_DEPTH", 1)
    async with attached(tmp_path) as (layer, fetcher, _):
        # Within a horizon of ten spans, neighbours and what is one span apart come together.
        wanted = [90, 10, 91, 11, 13, 50, 51, 52, 53, 54, 20]
        run = make_run(layer, fetcher, wanted)
        await run.run()
        assert kib(source.opened) == [(900, 920), (100, 140), (500, 550), (200, 210)]
        assert layer.missing(wanted) == []
        assert 12 in layer.present, "what came along is kept"
        assert run.use.state is RunState.DONE
        assert run.use.launched == 120 * KIB


async def test_the_line_is_never_idle(autojump_clock, tmp_path, source):
    async with attached(tmp_path) as (layer, fetcher, _):
        began = trio.current_time()
        await make_run(layer, fetcher, range(40)).run()
        assert len(source.opened) == 8
        assert trio.current_time() - began == pytest.approx(4 * FLIGHT, rel=0.1)


async def test_a_reader_joins_what_a_trace_brings_and_ends_nothing(
    autojump_clock, tmp_path, source
):
    async with attached(tmp_path) as (layer, fetcher, engine), trio.open_nursery() as nursery:
        run = make_run(layer, fetcher, range(50, 60))
        with fetcher.following_trace():
            nursery.start_soon(run.run)
            await trio.sleep(FLIGHT / 2)
            nursery.start_soon(fetcher.ensure, [54])
            await fetcher.ensure([3])
        assert sorted(kib(source.opened)) == [(30, 40), (500, 550), (550, 600)]
        flights = engine.tallies.flights
        assert {landing.value for _, landing in flights} == {"ok"}
        assert sum(n for (purpose, _), n in flights.items() if purpose is Purpose.TRACE) == 2
        assert fetcher.statistics.needed == 20 * KIB


async def test_nothing_else_is_done_in_the_background_meanwhile(autojump_clock, tmp_path, source):
    async with attached(tmp_path) as (layer, fetcher, _), trio.open_nursery() as nursery:
        with fetcher.following_trace():
            nursery.start_soon(fetch_rest, layer, fetcher)
            await trio.sleep(20 * limits.FETCH_QUIET)
            assert source.opened == []
        await trio.sleep(20 * limits.FETCH_QUIET)
        assert layer.present.is_full


async def test_only_so_much_is_fetched_on_somebody_elses_word(autojump_clock, tmp_path, source):
    async with attached(tmp_path) as (layer, fetcher, _):
        run = make_run(layer, fetcher, range(100), most=150 * KIB)
        await run.run()
        # Windows that were in the air when the bound was reached.
        assert sum(end - start for start, end in source.opened) <= (150 + 50) * KIB
        assert run.use.state is RunState.STOPPED


async def test_a_view_that_nobody_wants_any_more_ends_it(autojump_clock, tmp_path, source):
    async with attached(tmp_path) as (layer, fetcher, _):
        answers = iter([True, False])
        run = make_run(layer, fetcher, range(100), is_wanted=lambda: next(answers))
        await run.run()
        assert sorted(kib(source.opened)) == [(0, 50), (50, 100)]
        assert run.use.state is RunState.STOPPED


@pytest.mark.expects_log("its registry fails")
async def test_a_registry_that_fails_is_left_alone(autojump_clock, tmp_path, source, monkeypatch):
    async with attached(tmp_path) as (layer, fetcher, _):
        opened = []

        def fail(*_arguments, **where):
            opened.append(where)
            raise RegistryUnavailable("gone")

        monkeypatch.setattr(source, "open_blob", fail)
        run = make_run(layer, fetcher, range(100))
        await run.run()
        assert len(opened) <= limits.TRACE_FAILURES + limits.TRACE_DEPTH
        assert run.use.state is RunState.STOPPED
        assert layer.present.present_count == 0
