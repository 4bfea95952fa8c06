"""Lazy layers of a store that has a size: proven where they lie, and completed when they close."""

import os
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from imgvol import limits
from imgvol.config import SpaceLimits
from imgvol.content.layer_store import LayerStore
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.records import FaultKind
from imgvol.errors import ContentError, InvalidLayer
from imgvol.images.collection import Collector
from imgvol.images.space import SpaceKeeper
from imgvol.images.status import layer_status
from imgvol.images.usage import UsageMeter
from imgvol.layers.index import ROOT
from support import images
from support.completing import (
    CONTENTS,
    LIES,
    Case,
    background,
    case_of,
    honest,
    is_settled,
    lying,
    other_mode,
    read,
)
from support.records import image_record
from support.spans import until
from support.stargz import TIME, Stargz

QUOTA = 100_000_000


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name, value in {"QUIET": 0.001, "FAILURE_REST": 0.01, "RETRY": 0.02, "FLUSH": 0.05}.items():
        monkeypatch.setattr(limits, f"FETCH_{name}", value)


@asynccontextmanager
async def within(quota, case: Case):
    """The background of a store that has a size; and its keeper."""
    async with background(case.store) as lazy:
        keeper = SpaceKeeper(case.store, UsageMeter(case.store), Collector(case.store), lazy)
        await keeper.begin(SpaceLimits(quota=quota))
        # Not garbage, and of no name that a registry has answered: it does not go as a whole.
        await case.store.records.add_image(image_record([case.record]), "x", case.record.digest)
        yield lazy, keeper


async def attached(case: Case, lazy) -> LazyLayerStore:
    layer = await case.open()
    assert isinstance(layer, LazyLayerStore)
    await lazy.attach(layer, case.record)
    return layer


async def contents(layer) -> dict[bytes, bytes]:
    return {name: await read(layer, name) for name in CONTENTS}


async def closed(lazy, layer) -> None:
    lazy.detach(layer)
    await until(lambda: is_settled(lazy, layer))


async def wrong_layers(case: Case) -> list[str]:
    """What is wrong with the store, but for the documents of the image, which it never had."""
    return [each.problem for each in await case.store.check() if "document" not in each.problem]


async def test_a_layer_is_proven_where_it_lies_and_gives_back_what_it_can_fetch_again(
    tmp_path, monkeypatch
):
    async with case_of(tmp_path, honest(), monkeypatch) as case:
        async with within(QUOTA, case) as (lazy, keeper):
            layer = await attached(case, lazy)
            await until(lambda: layer.is_proven and lazy.statistics().verified == 1)
            assert (layer.is_complete, layer.is_whole) == (False, True)
            assert layer_status(layer, case.record).state == "complete"
            assert not list((tmp_path / "layers").iterdir())
            assert not list((tmp_path / "ingest").iterdir())
            assert await contents(layer) == CONTENTS

            # The compressed bytes first, of which no reader knows.
            await keeper.meter.measure()
            used = case.store.space.level.used
            plan = await keeper.plan(used - 1)
            report = await keeper.evict_to(used - 1)
            assert (report.spans, report.windows, plan.windows) == (0, 0, 0)
            assert report.given_back >= plan.given_back == case.record.size
            assert layer.is_whole
            assert layer_status(layer, case.record).present == case.record.size
            assert layer.scrubber.damaged_spans(lambda _size: None) == []

            # Then spans, all of them if need be.
            asked = len(case.source.opened)
            assert await contents(layer) == CONTENTS
            assert len(case.source.opened) == asked, "nothing was missing yet"
            report = await keeper.evict_to(0)
            assert report.spans == layer.table.span_count
            status = layer_status(layer, case.record)
            assert (status.state, status.present) == ("lazy", 0)
            assert "fetched when they are read" in status.reason
            assert await contents(layer) == CONTENTS
            assert len(case.source.opened) > asked
            assert layer.kept.size == 0, "the rest of the blob will not come"
            assert await wrong_layers(case) == []
            await closed(lazy, layer)

        # What has gone is missing after a restart, too, and the proof is remembered.
        async with within(QUOTA, case) as (lazy, keeper):
            layer = await attached(case, lazy)
            assert layer.is_proven
            await until(lambda: layer.is_whole)
            await keeper.evict_to(0)
            assert not layer.is_whole
            await closed(lazy, layer)
            again = await attached(case, lazy)
            assert again.present.present_count == 0
            assert await contents(again) == CONTENTS


async def test_a_proven_layer_gets_its_final_form_when_it_closes(tmp_path, monkeypatch):
    async with (
        case_of(tmp_path, honest(), monkeypatch) as case,
        within(QUOTA, case) as (lazy, _),
    ):
        layer = await attached(case, lazy)
        await until(lambda: layer.is_proven)
        await closed(lazy, layer)
        final = await case.open()
        assert isinstance(final, LayerStore)
        assert await contents(final) == CONTENTS
        stored = await case.store.records.layer(case.record.digest)
        assert (stored.is_complete, stored.slot) == (True, case.record.slot)
        assert not list((tmp_path / "lazy").iterdir())
        assert not list((tmp_path / "ingest").iterdir())
        assert sum(e - s for s, e in case.source.opened) == case.record.size, "every byte once"
        assert await wrong_layers(case) == []


async def test_whoever_opens_a_layer_again_does_not_wait_for_its_final_form(tmp_path, monkeypatch):
    async with (
        case_of(tmp_path, honest(), monkeypatch) as case,
        within(QUOTA, case) as (lazy, _),
    ):
        layer = await attached(case, lazy)
        await until(lambda: layer.is_proven)
        async with lazy._completing:  # others have their turn before it
            lazy.detach(layer)
            await trio.testing.wait_all_tasks_blocked(0.01)
            kept = {str(root) for root in case.store.pins.snapshot()}
            assert kept == {f"completion {case.record.digest}"}
            ended = lazy.closing_of(case.record.digest)
            with trio.fail_after(5):
                await ended.wait()
        assert case.store.pins.snapshot() == {}
        again = await attached(case, lazy)
        assert again.is_proven
        assert await contents(again) == CONTENTS


@pytest.mark.parametrize("why", ["removed", "no room", "given back"])
async def test_what_cannot_be_completed_stays_as_it_is(tmp_path, monkeypatch, why):
    async with (
        case_of(tmp_path, honest(), monkeypatch) as case,
        within(QUOTA, case) as (lazy, keeper),
    ):
        layer = await attached(case, lazy)
        await until(lambda: layer.is_proven)
        await keeper.meter.measure()
        if why == "removed":
            await case.store.records.forget_layer(case.record.digest)
        elif why == "no room":
            await keeper.begin(SpaceLimits(quota=case.store.space.level.used))
        else:
            await keeper.evict_to(case.store.space.level.used - 1)
        await closed(lazy, layer)
        assert not layer.is_complete
        assert not list((tmp_path / "layers").iterdir())
        assert not list((tmp_path / "ingest").iterdir())
        if why != "removed":
            assert await contents(again := await attached(case, lazy)) == CONTENTS
            assert again.is_proven


async def test_compressed_bytes_make_room_for_what_the_background_fetches(tmp_path, monkeypatch):
    async with (
        case_of(tmp_path, honest(), monkeypatch) as case,
        within(QUOTA, case) as (lazy, keeper),
    ):
        layer = await attached(case, lazy)
        await until(lambda: layer.is_proven)
        await keeper.meter.measure()
        high = case.store.space.level.high
        with trio.fail_after(5):
            await keeper.wait_room(high - case.store.space.level.used + 1)
        assert layer.reclaimer.spare_blob == 0
        assert layer.is_whole


async def test_files_with_holes_are_proven_where_they_lie(tmp_path, monkeypatch):
    noise = os.urandom(30_000)
    stargz = Stargz([images.file("x", noise + bytes(200_000) + noise, mtime_ns=TIME)], chunk=50_000)
    async with case_of(tmp_path, stargz, monkeypatch) as case, within(QUOTA, case) as (lazy, _):
        layer = await attached(case, lazy)
        await until(lambda: layer.is_proven)
        node = layer.index.child(ROOT, b"x")
        assert await layer.read(node, 0, 1 << 20) == noise + bytes(200_000) + noise


# --- what is not what it promised ----------------------------------------------------------------


@pytest.mark.expects_log("is bad, its readers get errors: a table of contents does not tell")
@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
async def test_a_lie_condemns_the_layer_and_the_next_mount_shows_the_tar(
    tmp_path, monkeypatch, lie
):
    async with case_of(tmp_path, lying(lie), monkeypatch) as case:
        async with within(QUOTA, case) as (lazy, _):
            layer = await attached(case, lazy)
            await until(lambda: is_settled(lazy, layer))
        assert isinstance(layer.failure, InvalidLayer)
        assert not layer.is_proven
        final = await case.open()
        assert await contents(final) == CONTENTS
        stored = await case.store.records.layer(case.record.digest)
        assert stored.fault.kind is FaultKind.TOC


@pytest.mark.expects_log("its tar is not kept: no room")
@pytest.mark.expects_log("is bad, its readers get errors: a table of contents does not tell")
async def test_without_room_for_the_tar_a_layer_that_lied_is_refused(tmp_path, monkeypatch):
    async with case_of(tmp_path, lying(other_mode), monkeypatch) as case:
        async with within(3_600_000, case) as (lazy, _):
            layer = await attached(case, lazy)
            await until(lambda: is_settled(lazy, layer))
            with pytest.raises(ContentError):
                await read(layer, b"small")
        stored = await case.store.records.layer(case.record.digest)
        assert stored.is_refused
        assert stored.fault.kind is FaultKind.TOC
        with pytest.raises(ContentError, match="turned out to be bad"):
            await case.open()


@pytest.mark.expects_log("is bad, its readers get errors: layer")
@pytest.mark.parametrize(
    ("changes", "place", "kind"),
    [
        ({"diff_id": images.sha256(b"claimed")}, None, FaultKind.DIFF_ID),
        ({}, 4, FaultKind.BLOB),  # the time in the head of a gzip member: it decodes all the same
    ],
)
async def test_a_wrong_digest_condemns_the_layer(tmp_path, monkeypatch, changes, place, kind):
    async with case_of(tmp_path, honest(), monkeypatch, **changes) as case:
        if place is not None:
            case.source.blob[place] ^= 1
        async with within(QUOTA, case) as (lazy, _):
            layer = await attached(case, lazy)
            await until(lambda: is_settled(lazy, layer))
        with pytest.raises(ContentError):
            await read(layer, b"small")
        stored = await case.store.records.layer(case.record.digest)
        assert stored.is_refused
        assert stored.fault.kind is kind
        assert not layer.is_proven


async def test_without_digests_of_spans_a_layer_is_completed_at_once(tmp_path, monkeypatch):
    """What came again could not be told to be what was proven."""
    async with case_of(tmp_path, honest(), monkeypatch) as case, within(QUOTA, case) as (lazy, _):
        layer = await case.open()
        layer.table.is_pinned = False
        lazy._trust = type(lazy._trust)(missing_digests=True)
        await lazy.attach(layer, case.record)
        await until(lambda: layer.is_complete)
        assert not layer.is_proven
