"""Lazy layers in the background: completed, verified, compared, switched; or condemned."""

import contextlib
import errno
import logging
import os
import threading
import time
import weakref

import pytest
import trio
import trio.testing

from imgvol import limits
from imgvol.content.layer_store import LayerStore
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.records import FaultKind, LayerRecord
from imgvol.content.span_intake import SpanIntake
from imgvol.content.span_map import SpanMap
from imgvol.content.store import Store, open_store
from imgvol.errors import (
    ContentError,
    InvalidLayer,
    RegistryUnavailable,
    StoreDamaged,
    StoreFull,
)
from imgvol.images.fetch.engine import FetchEngine
from imgvol.images.ingest import LayerIngest, LayerProgress
from imgvol.images.views import Views
from imgvol.layers.compression import Compression
from imgvol.layers.index import ROOT
from imgvol.oci.descriptor import Descriptor
from imgvol.view.paths import resolve
from support import images
from support.completing import (
    CONTENTS,
    LARGE,
    LIES,
    SMALL,
    Case,
    background,
    case_of,
    complete,
    honest,
    is_settled,
    lying,
    other_mode,
    read,
)
from support.records import image_record
from support.spans import RangeReader, RangeSource, until
from support.stargz import TIME, Stargz


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name, value in {"QUIET": 0.001, "FAILURE_REST": 0.01, "RETRY": 0.02, "FLUSH": 0.05}.items():
        monkeypatch.setattr(limits, f"FETCH_{name}", value)


# --- to a good end -------------------------------------------------------------------------------


async def test_a_layer_completes_is_compared_and_is_served_from_its_final_form(
    tmp_path, monkeypatch
):
    async with case_of(tmp_path, honest(), monkeypatch) as case:
        layer = await complete(case)
        assert layer.is_complete
        assert layer.failure is None
        assert {name: await read(layer, name) for name in CONTENTS} == CONTENTS
        fetched = sum(end - start for start, end in case.source.opened)
        assert fetched == case.record.size, "every byte once"
        stored = await case.store.records.layer(case.record.digest)
        assert (stored.is_complete, stored.slot) == (True, case.record.slot)
        final = await case.open()
        assert isinstance(final, LayerStore)
        assert {name: await read(final, name) for name in CONTENTS} == CONTENTS
        assert not list((tmp_path / "lazy").iterdir())
        assert not list((tmp_path / "ingest").iterdir())


async def test_views_of_a_completed_layer_have_one_index_and_look_the_same(tmp_path, monkeypatch):
    async with case_of(tmp_path, honest(), monkeypatch) as case, background(case.store) as lazy:
        views = Views(case.store)
        views.layers.on_lazy, views.layers.on_lazy_closed = lazy.attach, lazy.detach
        async with views.hold(image_record([case.record])) as view:
            layer = view.layers[0]
            nodes = {name: resolve(view.tree, b"/etc/" + name) for name in CONTENTS}
            before = [view.tree.attributes(node) for node in nodes.values()]
            first = layer.index
            await until(lambda: is_settled(lazy, layer))
            assert view.tree.layers[0] is layer.index is not first
            assert [view.tree.attributes(node) for node in nodes.values()] == before
            for name, node in nodes.items():
                assert resolve(view.tree, b"/etc/" + name) == node
                assert bytes(await view.read(node, 0, 2 << 20)) == CONTENTS[name]


async def test_a_table_of_contents_in_another_order_is_no_lie(tmp_path, monkeypatch):
    stargz = honest()
    chunks = [[]]
    for entry in stargz.body.entries:
        if entry["type"] == "chunk":
            chunks[-1].append(entry)
        else:
            chunks.append([entry])
    stargz.body.entries = [entry for group in reversed(chunks) for entry in group]
    async with case_of(tmp_path, stargz, monkeypatch) as case:
        layer = await complete(case)
        assert layer.failure is None
        assert layer.is_complete


async def test_readers_are_served_before_and_after_the_switch(tmp_path, monkeypatch):
    async with case_of(tmp_path, honest(), monkeypatch) as case, background(case.store) as lazy:
        layer = await case.open()
        await lazy.attach(layer, case.record)
        while not is_settled(lazy, layer):
            assert await read(layer, b"large") == LARGE
            assert await read(layer, b"hard") == SMALL
            await trio.sleep(0)  # what is in the page cache is read without waiting
        assert layer.is_complete
        assert await read(layer, b"large") == LARGE


async def test_what_the_maker_wants_first_comes_first(tmp_path, monkeypatch):
    stargz = Stargz([images.file("first", SMALL, mtime_ns=TIME)])
    landmark = images.file(".prefetch.landmark", b"\x0f", mtime_ns=TIME)
    stargz._add(landmark, 100)
    stargz._add(images.file("later", LARGE, mtime_ns=TIME), 50_000)
    async with case_of(tmp_path, stargz, monkeypatch) as case:
        layer = await case.open()
        assert list(layer.table.prefetch) == [0]
        await complete(case)
        assert case.source.opened[0][0] == layer.table.compressed_range(0)[0]


# --- lies ----------------------------------------------------------------------------------------


@pytest.mark.expects_log("is bad, its readers get errors: a table of contents does not tell")
@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
async def test_a_lie_condemns_the_layer_and_the_next_mount_shows_the_tar(
    tmp_path, monkeypatch, lie
):
    async with case_of(tmp_path, lying(lie), monkeypatch) as case:
        layer = await complete(case)
        assert not layer.is_complete
        assert isinstance(layer.failure, InvalidLayer)
        for name in CONTENTS:
            if layer.index.child(layer.index.child(ROOT, b"etc"), name) is not None:
                with pytest.raises(ContentError):
                    await read(layer, name)
        final = await case.open()
        assert isinstance(final, LayerStore)
        assert {name: await read(final, name) for name in CONTENTS} == CONTENTS
        assert final.slot != case.record.slot, "the kernel knows other files under the old one"
        stored = await case.store.records.layer(case.record.digest)
        assert stored.fault.kind is FaultKind.TOC
        assert "does not tell what the layer holds" in stored.fault.reason


@pytest.mark.expects_log("is bad, its readers get errors: layer's content does not match its diff")
async def test_a_wrong_diff_id_condemns_the_layer_and_publishes_nothing(tmp_path, monkeypatch):
    changes = {"diff_id": images.sha256(b"claimed")}
    async with case_of(tmp_path, honest(), monkeypatch, **changes) as case:
        layer = await complete(case)
        with pytest.raises(ContentError):
            await read(layer, b"small")
        stored = await case.store.records.layer(case.record.digest)
        assert not stored.is_complete
        assert not list((tmp_path / "layers").iterdir())
        assert not list((tmp_path / "ingest").iterdir())
        await check_refused(case.store, case.record, FaultKind.DIFF_ID)
        (left,) = (tmp_path / "lazy").iterdir()
        assert sorted(os.listdir(left)) == ["index", "table"], "the content is given back"
    async with open_store(tmp_path) as store:
        await check_refused(store, case.record, FaultKind.DIFF_ID)


@pytest.mark.expects_log("is bad, its readers get errors")
async def test_a_map_that_is_just_being_saved_goes_with_a_bad_layer(tmp_path, monkeypatch):
    saving, save = threading.Event(), SpanMap.save

    def slow(spans, bits):
        saving.set()
        time.sleep(0.3)  # the layer is found to be bad meanwhile
        save(spans, bits)

    monkeypatch.setattr(limits, "FETCH_FLUSH", 0.0)
    monkeypatch.setattr(SpanMap, "save", slow)
    changes = {"diff_id": images.sha256(b"claimed")}
    async with case_of(tmp_path, honest(), monkeypatch, **changes) as case:
        await complete(case)
        assert saving.is_set()
        (left,) = (tmp_path / "lazy").iterdir()
        assert sorted(os.listdir(left)) == ["index", "table"]


async def check_refused(store: Store, record: LayerRecord, kind: FaultKind) -> None:
    stored = await store.records.layer(record.digest)
    assert stored.is_refused
    assert stored.fault.kind is kind
    with pytest.raises(ContentError, match="turned out to be bad") as refused:
        await store.open_lazy_layer(stored)
    assert stored.fault.reason in str(refused.value)
    assert "imgvol pull" in refused.value.hint


@pytest.mark.expects_log("is bad, its readers get errors: layer does not match its digest")
async def test_a_whole_pull_clears_the_mark_of_a_bad_layer(tmp_path, monkeypatch):
    async with case_of(tmp_path, honest(), monkeypatch) as case:
        good = bytes(case.source.blob)
        case.source.blob[4] ^= 1
        await complete(case)
        await check_refused(case.store, case.record, FaultKind.BLOB)
        case.source.blob[:] = good
        await pull_whole(case)
        stored = await case.store.records.layer(case.record.digest)
        assert (stored.fault, stored.is_complete) == (None, True)
        final = await case.open()
        assert {name: await read(final, name) for name in CONTENTS} == CONTENTS


@pytest.mark.expects_log("is bad, its readers get errors")
@pytest.mark.expects_log("will not know it is bad: no room")
async def test_a_layer_that_cannot_be_remembered_as_bad_is_bad_all_the_same(tmp_path, monkeypatch):
    async def full(*_):
        raise StoreFull("no room")

    async with case_of(tmp_path, lying(other_mode), monkeypatch) as case:
        monkeypatch.setattr(Store, "complete_layer", full)
        layer = await complete(case)
        with pytest.raises(ContentError):
            await read(layer, b"small")


@pytest.mark.expects_log("is bad, its readers get errors: layer does not match its digest")
async def test_bytes_that_no_span_covers_are_covered_by_the_digest(tmp_path, monkeypatch):
    async with case_of(tmp_path, honest(), monkeypatch) as case:
        case.source.blob[4] ^= 1  # the time in the head of a gzip member: it decodes all the same
        layer = await complete(case)
        with pytest.raises(ContentError):
            await read(layer, b"small")
        assert not (await case.store.records.layer(case.record.digest)).is_complete


async def test_what_a_failing_disk_has_lost_is_not_the_layers_fault(tmp_path, monkeypatch):
    async with case_of(tmp_path, honest(), monkeypatch) as case, background(case.store) as lazy:
        layer = await case.open()
        monkeypatch.setattr(layer.kept, "read", lambda _, size: bytes(size))
        layer.failure = StoreDamaged("what was fetched could not be written")
        await lazy.attach(layer, case.record)
        await until(lambda: is_settled(lazy, layer))
        assert isinstance(layer.failure, StoreDamaged)
        assert lazy.statistics().bad == 0
        again = await case.open()
        assert isinstance(again, LazyLayerStore), "another try may go well"


@pytest.mark.expects_log("cannot store a part of a layer")
async def test_what_a_failing_disk_has_lost_is_counted_while_its_view_is_open(
    tmp_path, monkeypatch
):
    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(limits, "FETCH_FLUSH", 0.01)
    async with case_of(tmp_path, honest(), monkeypatch) as case, background(case.store) as lazy:
        case.source.hold(len(case.source.blob) // 2)
        views = Views(case.store)
        views.layers.on_lazy, views.layers.on_lazy_closed = lazy.attach, lazy.detach
        async with views.hold(image_record([case.record])):
            assert views.statistics().unsafe == 0
            with monkeypatch.context() as patched:
                patched.setattr(os, "fdatasync", fail)
                await until(lambda: views.statistics().unsafe == 1)


@pytest.mark.expects_log("is bad, its readers get errors")
async def test_a_bad_layer_that_is_unmounted_at_once_is_remembered(tmp_path, monkeypatch):
    async with case_of(tmp_path, honest(), monkeypatch) as case, background(case.store) as lazy:
        case.source.blob[4] ^= 1
        layer = await case.open()
        await lazy.attach(layer, case.record)
        async with case.store.layer_lock(case.record.digest):
            # Somebody else has the layer: the mark has to wait, and the readers do not.
            await until(lambda: layer.failure is not None)
            lazy.detach(layer)
            closing = lazy.closing_of(case.record.digest)
            assert closing is not None
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not closing.is_set()
        await closing.wait()
        assert lazy.closing_of(case.record.digest) is None
        await check_refused(case.store, case.record, FaultKind.BLOB)


@pytest.mark.expects_log("is bad, its readers get errors: a table of contents does not tell")
async def test_the_tar_is_mounted_beside_views_that_were_shown_a_lie(tmp_path, monkeypatch):
    async with (
        case_of(tmp_path, lying(other_mode), monkeypatch) as case,
        background(case.store) as lazy,
    ):
        image = image_record([case.record])
        await case.store.records.add_image(image, "x", case.record.digest)
        views = Views(case.store)
        views.layers.on_lazy, views.layers.on_lazy_closed = lazy.attach, lazy.detach
        async with views.hold(image) as deceived:
            old = deceived.layers[0]
            await until(lambda: is_settled(lazy, old))
            (image,) = await case.store.records.images()
            async with views.hold(image) as told:
                new = told.layers[0]
                assert {name: await read(new, name) for name in CONTENTS} == CONTENTS
                with pytest.raises(InvalidLayer):
                    await read(old, b"small")
                assert views.layers.by_slot(old.slot) is old
                assert views.layers.by_slot(new.slot) is new
                numbers = [
                    view.tree.inode(resolve(view.tree, b"/etc/small")) for view in (told, deceived)
                ]
                assert numbers[0] != numbers[1]
        assert views.store.pins.snapshot() == {}


async def test_a_layer_is_not_opened_again_before_it_has_been_closed(tmp_path, monkeypatch):
    flushing, go_on = threading.Event(), threading.Event()
    flush = SpanIntake.flush

    def slow(intake):
        flushing.set()
        assert go_on.wait(10)
        flush(intake)

    async with case_of(tmp_path, honest(), monkeypatch) as case, background(case.store) as lazy:
        case.source.hold(len(case.source.blob) // 2)
        monkeypatch.setattr(limits, "FETCH_FLUSH", 1000)
        monkeypatch.setattr(SpanIntake, "flush", slow)
        image = image_record([case.record])
        views = Views(case.store)
        views.layers.on_lazy, views.layers.on_lazy_closed = lazy.attach, lazy.detach
        views.layers.closing_of = lazy.closing_of
        async with views.hold(image) as view:
            first = view.layers[0]
            await until(lambda: first.present.present_count >= 5)
        await until(flushing.is_set)
        opened = []

        async def attach(layer, record):
            opened.append(layer.present.present_count)  # more come as soon as it has a fetcher
            await lazy.attach(layer, record)

        async def mount_again():
            views.layers.on_lazy = attach
            async with views.hold(image):
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount_again)
            await trio.sleep(0.05)
            assert opened == []
            go_on.set()
        assert opened == [first.present.present_count]


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.expects_log("its registry fails: down")
async def test_a_registry_that_fails_is_asked_again_and_told_of_once(tmp_path, monkeypatch, caplog):
    async with case_of(tmp_path, honest(), monkeypatch) as case:
        case.source.failures = [RegistryUnavailable("down")] * 5
        layer = await complete(case)
        assert layer.is_complete
        assert case.source.failures == []
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "its registry fails: down" in warnings[0].getMessage()


async def test_a_layer_whose_source_is_not_known_cannot_be_attached(tmp_path, monkeypatch):
    async with case_of(tmp_path, honest(), monkeypatch) as case:
        await case.store.records._database.run(lambda db: db.execute("DELETE FROM origin"))
        async with background(case.store) as lazy:
            layer = await case.open()
            with pytest.raises(StoreDamaged, match="source"):
                await lazy.attach(layer, case.record)
            assert is_settled(lazy, layer)


async def test_detaching_makes_what_is_present_durable_and_ends_the_fetching(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "FETCH_FLUSH", 1000)
    async with case_of(tmp_path, honest(), monkeypatch) as case:
        case.source.hold(len(case.source.blob) // 2)
        async with background(case.store) as lazy:
            layer = await case.open()
            await lazy.attach(layer, case.record)
            await until(lambda: layer.present.present_count >= 5)
            assert (await case.open()).present.present_count == 0
            lazy.detach(layer)
            await until(lambda: is_settled(lazy, layer))
            assert all(reader.is_cancelled for reader in case.source.readers)
        again = await case.open()
        # What a thread stored after the last flush is only not known.
        assert 5 <= again.present.present_count <= layer.present.present_count
        lazy.detach(layer)  # once more is no harm


async def test_present_spans_are_made_durable_regularly(tmp_path, monkeypatch):
    async with case_of(tmp_path, honest(), monkeypatch) as case:
        case.source.hold(len(case.source.blob) // 2)
        async with background(case.store) as lazy:
            layer = await case.open()
            await lazy.attach(layer, case.record)
            with trio.fail_after(10):
                while (await case.open()).present.present_count < 5:
                    await trio.sleep(0.01)
            lazy.detach(layer)


async def test_after_a_restart_nothing_is_fetched_again(tmp_path, monkeypatch):
    """Killed in the middle of a range, with some of its spans present."""
    async with case_of(tmp_path, honest(), monkeypatch) as case:
        source = case.source
        source.hold(len(source.blob) // 2)
        async with background(case.store) as lazy:
            layer = await case.open()
            await lazy.attach(layer, case.record)
            await until(lambda: layer.present.present_count >= 5)
            lazy.detach(layer)
            await until(lambda: is_settled(lazy, layer))
        durable = await case.open()
        present = [s for s in range(durable.table.span_count) if s in durable.present]
        assert len(present) >= 5
    source.opened.clear()
    source.release()
    async with open_store(tmp_path) as store:
        case = Case(store, await store.records.layer(case.record.digest), source)
        layer = await complete(case)
        assert layer.is_complete
        assert {name: await read(layer, name) for name in CONTENTS} == CONTENTS
        # The spans before the last present one were fetched, with nothing between them.
        first_asked = min(start for start, _ in source.opened if start > limits.FETCH_GAP)
        assert first_asked >= layer.table.compressed_range(present[-1])[1] - 1
        asked = sum(end - start for start, end in source.opened)
        assert asked < case.record.size - layer.table.compressed_range(present[-1])[1] + 1000


# --- pulled as a whole meanwhile -----------------------------------------------------------------


async def pull_whole(case: Case) -> LayerRecord:
    """What a pull of the whole layer does, of a source of its own."""
    blob = bytes(case.source.blob)
    descriptor = Descriptor(
        media_type=case.record.media_type, digest=case.record.digest, size=case.record.size
    )
    ingest = LayerIngest(
        open_blob=lambda: RangeReader(RangeSource(blob), 0, len(blob), None),
        store=case.store,
        descriptor=descriptor,
        compression=Compression.GZIP,
        diff_id=case.record.diff_id,
        progress=LayerProgress(digest=str(case.record.digest), size=case.record.size),
    )
    return await case.store.complete_layer(await trio.to_thread.run_sync(ingest.run))


async def test_a_layer_pulled_as_a_whole_serves_the_views_that_are_open(tmp_path, monkeypatch):
    monkeypatch.setattr(FetchEngine, "wait_quiet", lambda *_: trio.sleep_forever())
    async with case_of(tmp_path, honest(), monkeypatch) as case, background(case.store) as lazy:
        layer = await case.open()
        await lazy.attach(layer, case.record)
        assert await read(layer, b"small") == SMALL
        assert layer.missing(range(layer.table.span_count))
        assert await lazy.adopt(await pull_whole(case)) is None
        assert layer.is_complete
        assert layer.failure is None
        assert {name: await read(layer, name) for name in CONTENTS} == CONTENTS
        await until(lambda: is_settled(lazy, layer))


async def test_a_layer_pulled_as_a_whole_while_its_view_is_opened_is_opened_where_it_is_then(
    tmp_path, monkeypatch
):
    async with case_of(tmp_path, honest(), monkeypatch) as case:
        open_lazily = case.store.open_lazy_layer

        async def pulled_first(record):
            await pull_whole(case)
            return await open_lazily(record)

        monkeypatch.setattr(case.store, "open_lazy_layer", pulled_first)
        async with Views(case.store).hold(image_record([case.record])) as view:
            assert not isinstance(view.layers[0], LazyLayerStore)
            assert {name: await read(view.layers[0], name) for name in CONTENTS} == CONTENTS


@pytest.mark.expects_log("is bad, its readers get errors: a table of contents does not tell")
async def test_a_lie_that_a_whole_pull_finds_condemns_the_layer_and_not_the_pull(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(FetchEngine, "wait_quiet", lambda *_: trio.sleep_forever())
    stargz = lying(other_mode)
    async with case_of(tmp_path, stargz, monkeypatch) as case, background(case.store) as lazy:
        layer = await case.open()
        await lazy.attach(layer, case.record)
        fault = await lazy.adopt(await pull_whole(case))
        assert fault.kind is FaultKind.TOC
        with pytest.raises(ContentError):
            await read(layer, b"small")
        await until(lambda: is_settled(lazy, layer))


# --- what a closed layer leaves behind -----------------------------------------------------------


def files_open_below(root) -> list[str]:
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [link for link in links if link.startswith((f"{root}/lazy/", f"{root}/layers/"))]


async def view_and_close(case, lazy, *, until_complete: bool) -> weakref.ref[LazyLayerStore]:
    """Has a view of a layer that is open while readers read it, and then closes it."""
    views = Views(case.store)
    views.layers.on_lazy, views.layers.on_lazy_closed = lazy.attach, lazy.detach
    async with views.hold(image_record([case.record])) as view:
        layer = view.layers[0]
        node = resolve(view.tree, b"/etc/large")
        assert isinstance(layer, LazyLayerStore)
        with contextlib.suppress(RegistryUnavailable):
            await view.read(node, 0, 1)
        await until(lambda: not case.source.failures and layer.fetcher.failure is None)
        assert bytes(await view.read(node, 0, len(LARGE))) == LARGE
        assert files_open_below(case.store.layout.root)
        if until_complete:
            await until(lambda: layer.is_complete)
            huge = resolve(view.tree, b"/etc/huge")
            await view.read(huge, 0, 10)
    await until(lambda: is_settled(lazy, layer))
    return weakref.ref(layer)


@pytest.mark.expects_log("its registry fails: down")
@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("until_complete", [False, True])
@pytest.mark.parametrize("failures", [0, 2])
async def test_a_layer_goes_with_its_last_view_and_closes_its_files(
    tmp_path, monkeypatch, until_complete, failures
):
    async with case_of(tmp_path, honest(), monkeypatch) as case, background(case.store) as lazy:
        case.source.failures = [RegistryUnavailable("down")] * failures
        layer = await view_and_close(case, lazy, until_complete=until_complete)
        await until(lambda: layer() is None and not files_open_below(tmp_path))
