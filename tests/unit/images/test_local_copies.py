"""Copies between layers as the fetch engine asks for them: who waits for what, and what fails."""

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from imgvol import limits
from imgvol.content.reachability import Root, RootKind, Thing, ThingKind
from imgvol.content.records import Origin, Saving
from imgvol.content.store import open_store
from imgvol.errors import StoreFull
from imgvol.images.fetch import copies as copies_module
from imgvol.images.fetch.copies import CopyStatistics, LocalCopies
from imgvol.images.pull import Puller, PullProgress
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.oci.digest import Digest
from support.images import Image, Layer, file
from support.records import layer_record
from support.sources import MemorySource
from support.stargz import Stargz

ENTRIES = [file(f"f{number}", bytes([number]) * 3000) for number in range(20)]
ORIGIN = Origin(argument="example.com/x:1", plain_http=False, insecure=False, ca_file=None)


@asynccontextmanager
async def two_layers(root):
    """A store with a pulled layer, and a lazy one that has the same files; and their copies."""
    async with open_store(root) as store:
        source = MemorySource(Image([Layer(ENTRIES)]))
        resolved = await resolve_image(source, wanted_platform("linux/amd64"))
        await Puller(store).pull(source, resolved, "old", PullProgress())
        built, lazy = Stargz(ENTRIES).opened()
        record = replace(layer_record("new"), digest=Digest.parse(built.digest), is_complete=False)
        stored = await store.add_lazy_layer(record, lazy, ORIGIN)
        layer = await store.open_lazy_layer(stored)
        yield store, layer, LocalCopies(store, lambda _slot: None)


async def no_wait(_size):
    """There is room for everything."""


def spans_of(layer) -> range:
    return range(layer.table.span_count)


async def test_all_is_copied_and_noted(tmp_path):
    async with two_layers(tmp_path) as (store, layer, copies):
        copies.expect(layer)
        await copies.fill(layer, no_wait)
        assert layer.is_settled
        told = copies.statistics()
        assert (told.spans, told.unlike, told.damaged) == (layer.table.span_count, 0, 0)
        assert (await store.records.savings())[Saving.COPIED] == (told.spans, told.size)
        assert store.pins.snapshot() == {}
        # Nothing is left to do, or to be known.
        await copies.fill(layer, no_wait)
        copies.expect(layer)
        assert not copies.has(layer, 0)
        assert copies.statistics() == told


async def test_who_is_copied_from_is_held_meanwhile(tmp_path, monkeypatch):
    async with two_layers(tmp_path) as (store, layer, copies):
        held = []
        plan_copies = copies_module.plan_copies

        def plan(*arguments):
            held.append(store.pins.snapshot())
            return plan_copies(*arguments)

        monkeypatch.setattr(copies_module, "plan_copies", plan)
        copies.expect(layer)
        await copies.fill(layer, no_wait)
        (old,) = [r for r in await store.records.layers() if r.digest != layer.digest]
        root = Root(RootKind.COPY, str(layer.digest))
        assert held == [{root: {Thing(ThingKind.LAYER, old.digest)}}]


async def test_reader_waits_for_a_search_for_a_moment_only(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "COPY_SEARCH_WAIT", 0.01)
    async with two_layers(tmp_path) as (_, layer, copies):
        await copies.take(layer, spans_of(layer))  # nobody searches
        copies.expect(layer)
        with trio.fail_after(5):
            await copies.take(layer, spans_of(layer))  # nor does anybody now
        assert layer.missing(spans_of(layer)) == list(spans_of(layer))
        copies.forget(layer)
        await copies.fill(layer, no_wait)
        assert copies.statistics() == CopyStatistics()


async def test_reader_gets_what_it_asks_for_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "COPY_BATCH_SPANS", 1)
    async with two_layers(tmp_path) as (_, layer, copies):
        copies.expect(layer)
        put_span, seen = layer.intake.put_span, []
        is_read, goes_on = trio.Event(), trio.Event()
        token = trio.lowlevel.current_trio_token()

        def put(span, regions, *, is_kept=True):
            seen.append(span)
            if len(seen) == 1:  # the background, at its first span: a reader comes
                trio.from_thread.run_sync(is_read.set, trio_token=token)
                trio.from_thread.run(goes_on.wait, trio_token=token)
            put_span(span, regions, is_kept=is_kept)

        monkeypatch.setattr(layer.intake, "put_span", put)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(copies.fill, layer, no_wait)
            await is_read.wait()
            assert copies.has(layer, 17)
            await copies.take(layer, [17])
            assert (layer.missing([17]), layer.missing([18])) == ([], [18])
            goes_on.set()
        assert sorted(seen) == list(spans_of(layer)), "each once"
        assert layer.is_settled


async def test_without_room_the_background_fails_and_readers_fetch(tmp_path, monkeypatch):
    async with two_layers(tmp_path) as (store, layer, copies):
        put_span = layer.intake.put_span

        def refuse(*_arguments, **_fields):
            raise StoreFull("no room")

        monkeypatch.setattr(layer.intake, "put_span", refuse)
        copies.expect(layer)
        with pytest.raises(StoreFull):
            await copies.fill(layer, no_wait)
        assert store.pins.snapshot() == {}
        await copies.take(layer, spans_of(layer))
        assert layer.present.present_count == 0
        monkeypatch.setattr(layer.intake, "put_span", put_span)
        await copies.fill(layer, no_wait)  # tried once more
        assert layer.is_settled
