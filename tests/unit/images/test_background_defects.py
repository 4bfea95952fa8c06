"""A defect in the work behind one lazy layer costs that work, and no other view."""

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from imgvol import limits
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.records import Origin
from imgvol.content.span_intake import SpanIntake
from imgvol.content.store import open_store
from imgvol.errors import InternalError, RegistryUnavailable
from imgvol.images.collection import Collector
from imgvol.images.fetch.engine import open_fetch_engine
from imgvol.images.fetch.layer import LayerFetcher
from imgvol.images.lazy import LazyLayers
from imgvol.layers.index import ROOT
from imgvol.layers.lazy.spans import LazyLayer
from imgvol.oci.descriptor import Descriptor
from support import members
from support.records import layer_record
from support.spans import (
    LAYER_TYPE,
    PlainTable,
    RangeSource,
    cut,
    index_of,
    make_lazy_layer,
    serve,
    until,
    use_plain_tables,
)

BLOB = bytes(range(250)) * 4
ORIGIN = Origin(argument="example.com/x:1", plain_http=False, insecure=False, ca_file=None)


class BuggyTable(PlainTable):
    """Meets a defect of its own in one span."""

    def decode(self, span, data):
        if span == 3:
            raise ZeroDivisionError("a defect")
        return super().decode(span, data)


@pytest.fixture
def source(monkeypatch):
    use_plain_tables(monkeypatch)
    monkeypatch.setattr(limits, "FETCH_SMALLEST", 1)
    monkeypatch.setattr(limits, "FETCH_LARGEST", 100)
    monkeypatch.setattr(limits, "FETCH_WINDOW", 100)
    source = RangeSource(BLOB)
    serve(monkeypatch, source)
    return source


def open_layer(root) -> LazyLayerStore:
    layer = make_lazy_layer(root, PlainTable(BLOB, cut(len(BLOB), 100)))
    layer._holdings.table = BuggyTable(BLOB, cut(len(BLOB), 100))
    return layer


def attach(engine, layer: LazyLayerStore) -> LayerFetcher:
    descriptor = Descriptor(media_type=LAYER_TYPE, digest=layer.digest, size=len(BLOB))
    return engine.attach(layer, descriptor, ORIGIN)


async def read(layer: LazyLayerStore, offset: int, size: int) -> bytes:
    return bytes(await layer.read(layer.index.child(ROOT, b"all"), offset, size))


@pytest.mark.expects_log("a defect of imgvol")
@pytest.mark.usefixtures("source")
async def test_a_defect_in_a_flight_fails_its_readers_and_nobody_else(tmp_path):
    layer = open_layer(tmp_path)
    async with open_fetch_engine() as engine:
        attach(engine, layer)
        with pytest.raises(InternalError):
            await read(layer, 300, 10)
        assert await read(layer, 100, 10) == BLOB[100:110]


@pytest.mark.expects_log("a source could not be closed")
async def test_a_source_that_fails_when_it_is_closed_takes_nothing_with_it(tmp_path, monkeypatch):
    use_plain_tables(monkeypatch)
    monkeypatch.setattr(limits, "FETCH_IDLE", 0.001)
    monkeypatch.setattr(limits, "FETCH_SMALLEST", 1)
    monkeypatch.setattr(limits, "FETCH_LARGEST", 100)
    monkeypatch.setattr(limits, "FETCH_WINDOW", 100)
    source = RangeSource(BLOB)
    closed = []

    @asynccontextmanager
    async def open_source(*_: object, **_settings: object):
        yield source
        closed.append(source)
        raise RegistryUnavailable("the connection was gone")

    monkeypatch.setattr("imgvol.images.fetch.sources.open_source", open_source)
    layer = open_layer(tmp_path)
    async with open_fetch_engine() as engine:
        attach(engine, layer)
        assert await read(layer, 900, 10) == BLOB[900:910]
        await until(lambda: closed)
        assert await read(layer, 100, 10) == BLOB[100:110]


async def test_an_error_that_many_readers_get_does_not_grow(tmp_path, monkeypatch):
    use_plain_tables(monkeypatch)
    layer = open_layer(tmp_path)
    layer.failure = RegistryUnavailable("x")
    for _ in range(50):
        with pytest.raises(RegistryUnavailable):
            await read(layer, 0, 10)
    frames, trace = 0, layer.failure.__traceback__
    while trace is not None:
        frames, trace = frames + 1, trace.tb_next
    assert frames < 10


@asynccontextmanager
async def looked_after(root, source):
    """A lazy layer in a store, attached; the block's end cancels what is under way."""
    table = PlainTable(BLOB, cut(len(BLOB), 100))
    index = index_of(members.file(b"all", len(BLOB), payload_offset=0))
    record = replace(
        layer_record("x"), media_type=LAYER_TYPE, size=len(BLOB), is_complete=False, format="SOCI"
    )
    async with (
        open_store(root) as store,
        open_fetch_engine() as engine,
        trio.open_nursery() as nursery,
    ):
        stored = await store.add_lazy_layer(record, LazyLayer(index, table), ORIGIN)
        lazy = LazyLayers(store, engine, nursery)
        layer = await store.open_lazy_layer(stored)
        await lazy.attach(layer, stored)
        yield store, lazy, layer
        nursery.cancel_scope.cancel()


@pytest.fixture
def quick(monkeypatch):
    for name, value in {"QUIET": 0.001, "FAILURE_REST": 0.01, "RETRY": 0.01, "FLUSH": 0.01}.items():
        monkeypatch.setattr(limits, f"FETCH_{name}", value)


@pytest.mark.fault("F13")
@pytest.mark.expects_log("is not completed: a defect")
@pytest.mark.usefixtures("quick")
async def test_a_defect_in_the_background_of_one_layer_ends_that_and_no_more(
    tmp_path, source, monkeypatch
):
    async def defect(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(LazyLayers, "_verify", defect)
    async with looked_after(tmp_path, source) as (_, lazy, layer):
        await until(lambda: lazy.fetcher(layer) is None)
        assert await read(layer, 100, 10) == BLOB[100:110]


@pytest.mark.expects_log("is not made durable: a defect")
@pytest.mark.usefixtures("quick")
async def test_a_defect_in_making_durable_spares_the_rest(tmp_path, source, monkeypatch):
    def defect(_):
        raise ZeroDivisionError

    monkeypatch.setattr(SpanIntake, "flush", defect)
    source.hold(500)
    async with looked_after(tmp_path, source) as (_, _, layer):
        await until(lambda: layer.present.present_count >= 5)
        await trio.sleep(0.05)
        assert await read(layer, 100, 10) == BLOB[100:110]


@pytest.mark.expects_log("waits to be completed")
@pytest.mark.usefixtures("quick")
async def test_a_span_that_arrives_damaged_is_asked_for_again_and_poisons_nothing(
    tmp_path, source, monkeypatch
):
    verified = trio.Event()

    async def verify(*_):
        verified.set()

    monkeypatch.setattr(LazyLayers, "_verify", verify)
    source.blob[250] ^= 1
    async with looked_after(tmp_path, source) as (_, _, layer):
        await until(lambda: len(source.opened) > 3)
        assert layer.failure is None
        source.blob[250] ^= 1
        with trio.fail_after(5):
            await verified.wait()
        assert await read(layer, 200, 100) == BLOB[200:300]


@pytest.mark.usefixtures("quick")
async def test_a_layer_that_was_removed_while_it_was_verified_does_not_come_back(
    tmp_path, source, monkeypatch
):
    started = trio.Event()

    async def verify(*_):
        started.set()
        await trio.sleep_forever()

    monkeypatch.setattr(LazyLayers, "_verify", verify)
    async with looked_after(tmp_path, source) as (store, lazy, layer):
        await started.wait()
        (record,) = await store.records.layers()
        await Collector(store).collect()
        await lazy._record(replace(record, is_complete=True))
        assert await store.records.layers() == []
        lazy.detach(layer)
