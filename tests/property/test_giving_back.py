"""Spans of a lazy layer are given back: whatever stays is right, and whole blocks are free."""

import errno
import random
import tempfile
import threading
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from imgvol import limits
from imgvol.config import SpaceLimits
from imgvol.content import span_map
from imgvol.content.punch import BLOCK, allocated
from imgvol.content.space import SpaceLedger
from imgvol.content.spare_spans import Spared
from imgvol.errors import LocalError, StoreFull
from imgvol.layers.index import ROOT
from support.spans import (
    FakeFetcher,
    PlainTable,
    make_lazy_layer,
    reopen_lazy_layer,
    use_plain_tables,
)

SIZE = 200_000
BLOB = random.Random(8).randbytes(SIZE)


@pytest.fixture(autouse=True, scope="module")
def _plain_tables():
    with pytest.MonkeyPatch.context() as patch:
        use_plain_tables(patch)
        patch.setattr(limits, "SPAN_WINDOW", 7000)
        yield


@st.composite
def tables(draw) -> PlainTable:
    """Spans of any size, with gaps, or with a byte that neighbours share."""
    ranges, at = [], draw(st.integers(0, 9000))
    while at < SIZE - 1 and len(ranges) < 60:
        size = draw(st.sampled_from([1, 2, 100, 511, 4095, 4096, 4097, 9000, 40_000]))
        end = min(SIZE, at + size)
        ranges.append((at, end))
        at = end + draw(st.sampled_from([0, 0, 0, 1, 300, 5000]))
        if size > 1 and draw(st.booleans()):
            at = max(at - 1, ranges[-1][0] + 1)
    return PlainTable(BLOB, ranges)


def put(layer, span: int) -> None:
    start, end = layer.table.compressed_range(span)
    layer.intake.put_span(span, layer.table.decode(span, BLOB[start:end]), BLOB[start:end])


def check(layer, *, present: set[int]) -> None:
    """Everything that counts as present is there, as data and as blob."""
    assert set(layer.present) == present
    node = layer.index.child(ROOT, b"all")
    for span in present:
        start, end = layer.table.compressed_range(span)
        ((first, last),) = layer.table.positions(span)
        assert layer.read_blocking(node, first, last - first) == BLOB[start:end]
        assert layer.kept.covers(start, end)
        assert layer.kept.read(start, end - start) == BLOB[start:end]


def blocks_of(ranges) -> int:
    blocks = {block for s, e in ranges for block in range(s // BLOCK, (e - 1) // BLOCK + 1)}
    return len(blocks) * BLOCK


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_what_stays_is_right_and_nothing_else_takes_a_block(data):
    table = data.draw(tables())
    spans = st.sets(st.integers(0, table.span_count - 1))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as base:
        layer = make_lazy_layer(Path(base), table)
        present: set[int] = set()
        reading: set[int] = set()
        for _ in range(data.draw(st.integers(1, 4))):
            for span in (come := data.draw(spans)):
                put(layer, span)
            present |= come
            layer.intake.flush()
            # Gaps that came along with a range.
            start = data.draw(st.integers(0, SIZE - 1))
            layer.intake.keep(start, BLOB[start : start + 3000])

            reading = data.draw(spans) & present
            layer.uses.enter(reading)
            windows = data.draw(st.sets(st.integers(0, SIZE // 7000)))
            gone = {s for w in windows for s in layer.uses.spans_in(w)} & present - reading
            given_back = layer.reclaimer.give_back(windows)
            layer.uses.leave(reading)
            present -= gone
            assert given_back.spans == len(gone)
            assert layer.stays_lazy or not gone
            check(layer, present=present)
            # What is durable is here, whatever happens now.
            reopened = reopen_lazy_layer(Path(base))
            check(reopened, present=set(reopened.present))
            assert set(reopened.present) <= present
        layer.reclaimer.give_back(range(SIZE // 7000 + 1))
        assert allocated(layer._holdings.data.fd) == 0
        reopened = reopen_lazy_layer(Path(base))
        assert set(reopened.present) == set()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_only_blocks_of_present_spans_are_taken(data):
    table = data.draw(tables())
    with tempfile.TemporaryDirectory(dir="/dev/shm") as base:
        layer = make_lazy_layer(Path(base), table)
        for span in range(table.span_count):
            put(layer, span)
        for _ in range(data.draw(st.integers(1, 5))):
            layer.reclaimer.give_back(data.draw(st.sets(st.integers(0, SIZE // 7000))))
        present = set(layer.present)
        check(layer, present=present)
        if not layer.stays_lazy:
            return
        positions = [place for span in present for place in table.positions(span)]
        assert allocated(layer._holdings.data.fd) <= blocks_of(positions)
        ranges = [table.compressed_range(span) for span in present]
        assert allocated(layer.kept.file.fd) <= blocks_of(ranges)


def test_a_span_that_comes_back_at_once_is_not_swallowed_by_the_hole(tmp_path):
    """Threads that bring what others give back, over and over."""
    table = PlainTable(BLOB, [(at, min(SIZE, at + 3000)) for at in range(0, SIZE, 3000)])
    layer = make_lazy_layer(tmp_path, table)
    stop = threading.Event()
    failures: list[BaseException] = []

    def bring(seed: int) -> None:
        chance = random.Random(seed)
        try:
            while not stop.is_set():
                span = chance.randrange(table.span_count)
                layer.uses.enter([span])
                try:
                    if layer.missing([span]):
                        put(layer, span)
                    node = layer.index.child(ROOT, b"all")
                    ((first, last),) = table.positions(span)
                    assert layer.read_blocking(node, first, last - first) == BLOB[first:last]
                finally:
                    layer.uses.leave([span])
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=bring, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    chance = random.Random(9)
    given_back = 0
    for _ in range(50):
        given_back += layer.reclaimer.give_back(chance.sample(range(SIZE // 7000 + 1), 9)).spans
        if chance.random() < 0.3:
            layer.intake.flush()
    stop.set()
    for thread in threads:
        thread.join(20)
    assert failures == []
    assert given_back > 50
    check(layer, present=set(layer.present))
    check(reopen_lazy_layer(tmp_path), present=set(reopen_lazy_layer(tmp_path).present))


class SlowFetcher(FakeFetcher):
    """Brings what it is asked for, and lets everything else be given back meanwhile."""

    def __init__(self, layer) -> None:
        self.layer = layer

    async def ensure(self, spans) -> None:
        for span in spans:
            put(self.layer, span)
        await trio.to_thread.run_sync(self.layer.reclaimer.give_back, range(SIZE // 7000 + 1))


async def test_what_a_reader_waits_for_is_not_given_back_before_it_has_been_read(tmp_path):
    table = PlainTable(BLOB, [(at, min(SIZE, at + 3000)) for at in range(0, SIZE, 3000)])
    layer = make_lazy_layer(tmp_path, table)
    layer.fetcher = SlowFetcher(layer)
    node = layer.index.child(ROOT, b"all")
    chance = random.Random(6)
    for _ in range(40):
        offset, size = chance.randrange(SIZE), chance.choice([1, 4096, 50_000])
        assert bytes(await layer.read(node, offset, size)) == BLOB[offset : offset + size]
    assert layer.reclaimer.give_back(range(SIZE // 7000 + 1)).spans > 0
    assert layer.present.present_count == 0, "nobody reads any more"


async def test_without_room_and_memory_a_reader_is_told_and_the_next_one_is_served(tmp_path):
    space = SpaceLedger()
    space.limits = SpaceLimits(quota=10_000)
    space.settle(9999, space.begin_measuring(), 0)
    space.end_round(is_hopeless=True)
    table = PlainTable(BLOB, [(at, min(SIZE, at + 3000)) for at in range(0, SIZE, 3000)])
    layer = make_lazy_layer(tmp_path, table, space=space)

    class Spares(FakeFetcher):
        async def ensure(self, spans) -> None:
            for span in spans:
                start, end = table.compressed_range(span)
                regions = table.decode(span, BLOB[start:end])
                with pytest.raises(StoreFull):
                    layer.intake.put_span(span, regions, BLOB[start:end])
                if layer.intake.put_spare(span, regions) is not Spared.KEPT:
                    raise StoreFull("no room")

    layer.fetcher = Spares()
    node = layer.index.child(ROOT, b"all")
    space.end_round(is_hopeless=True)
    assert await layer.read(node, 2990, 5000) == BLOB[2990:7990]
    assert layer.present.present_count == 0
    assert layer.missing([0, 1, 2]) == [0, 1, 2], "nothing is kept of it"
    assert space.borrow_memory(limits.SPARE_SPANS)
    space.end_round(is_hopeless=True)
    with pytest.raises(LocalError) as refused:
        await layer.read(node, 0, 10)
    assert refused.value.errno == errno.EIO
    space.repay_memory(limits.SPARE_SPANS)
    space.end_round(is_hopeless=True)
    assert await layer.read(node, 0, 10) == BLOB[:10]


def test_a_full_disk_does_not_keep_space_from_being_given_back(tmp_path, monkeypatch):
    """There is no room for a new map: the old one is overwritten."""
    table = PlainTable(BLOB, [(at, min(SIZE, at + 3000)) for at in range(0, SIZE, 3000)])
    layer = make_lazy_layer(tmp_path, table)
    for span in range(40):
        put(layer, span)
    layer.intake.flush()

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(span_map, "write_file", full)
    assert layer.reclaimer.give_back([0, 1, 2]).spans > 0
    present = set(layer.present)
    check(reopen_lazy_layer(tmp_path), present=present)


def test_what_an_earlier_process_has_left_goes_with_the_first(tmp_path):
    """Bytes of spans that were written, and not marked before it was killed."""
    table = PlainTable(BLOB, [(at, min(SIZE, at + 3000)) for at in range(0, SIZE, 3000)])
    layer = make_lazy_layer(tmp_path, table)
    for span in range(60):
        put(layer, span)
    reopened = reopen_lazy_layer(tmp_path)
    assert set(reopened.present) == set()
    put(reopened, 5)
    put(reopened, 30)
    before = allocated(reopened._holdings.data.fd, reopened.kept.file.fd)
    given_back = reopened.reclaimer.give_back([reopened.uses._window_of(30)])
    assert given_back.spans == 1
    assert given_back.size > before - 40_000
    check(reopened, present={5})
