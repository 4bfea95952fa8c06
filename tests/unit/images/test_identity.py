"""What a view is known by, and which layers it may be made of."""

import threading
import time
from dataclasses import replace

import pytest

from imgvol.content.records import FaultKind, LayerFault, Origin, Records
from imgvol.content.store import open_store
from imgvol.errors import DigestMismatch, InvalidLayer, StoreFull
from imgvol.images.pull import Puller, PullProgress
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.images.views import Views
from imgvol.layers.lazy.spans import LazyLayer
from imgvol.oci.chain import chain_id
from imgvol.oci.digest import DiffID, Digest
from imgvol.view.paths import resolve
from support import images, members
from support.records import image_record, layer_record
from support.sources import MemorySource
from support.spans import LAYER_TYPE, FakeFetcher, PlainTable, cut, index_of, use_plain_tables

BLOB = bytes(range(250)) * 4


def test_an_image_whose_claims_are_refuted_never_gets_the_chain_id_that_it_claimed():
    """Its layer has been verified since, for another image that told the truth about it (T13)."""
    truth = layer_record("evil")
    claimed = DiffID(Digest.of(b"the victim's"))
    liar = replace(image_record([truth]), chain_id=chain_id([claimed]))
    honest = replace(image_record([truth]), chain_id=chain_id([truth.diff_id]))
    assert truth.is_complete
    assert honest.view_id == honest.chain_id
    assert liar.view_id != liar.chain_id


def test_nobody_joins_the_view_of_a_layer_that_turned_out_to_be_bad():
    """Another layer is lazy still, so that the view cannot have the chain ID."""
    lazy = replace(layer_record("lazy"), is_complete=False, slot=2)
    deceived = image_record([replace(layer_record("x"), is_complete=False, slot=1), lazy])
    told = image_record([replace(layer_record("x"), slot=3), lazy])
    assert told.chain_id == deceived.chain_id
    assert told.view_id not in {deceived.view_id, told.chain_id}


async def test_a_view_that_two_images_share_tells_of_the_layers_that_it_reads(
    tmp_path, monkeypatch
):
    """The same tar, compressed in two ways: one chain ID, two blobs that both were fetched."""

    async def find_nothing(_records, _diff_id):
        return None

    monkeypatch.setattr(Records, "stored_layer", find_nothing)
    entries = [images.file("all", BLOB)]
    async with open_store(tmp_path) as store:
        views, pulled = Views(store), []
        for compression in ("gzip", "zstd"):
            source = MemorySource(images.Image([images.Layer(entries, compression)]))
            resolved = await resolve_image(source, wanted_platform("linux/amd64"))
            pulled.append(await Puller(store).pull(source, resolved, compression, PullProgress()))
        async with views.hold(pulled[0]) as first, views.hold(pulled[1]) as second:
            assert first is second
            (status,) = second.layer_statuses()
            (read,) = pulled[0].layers
            assert pulled[1].layers[0].size != read.size
            assert (status.digest, status.size) == (read.digest, read.size)


async def test_a_bad_layer_that_is_still_open_is_shown_to_no_new_view(tmp_path, monkeypatch):
    """Its inodes are known to the kernel: the tar's cannot have the same numbers beside them."""
    use_plain_tables(monkeypatch)
    layer = images.Layer([images.file("all", BLOB)], "gzip")
    table = PlainTable(BLOB, cut(len(BLOB), 100))
    index = index_of(members.file(b"all", len(BLOB), payload_offset=0))
    record = replace(
        layer_record("x"),
        digest=Digest.parse(layer.digest),
        media_type=LAYER_TYPE,
        is_complete=False,
    )
    origin = Origin(argument="example.com/x:1", plain_http=False, insecure=False, ca_file=None)
    async with open_store(tmp_path) as store:
        stored = await store.add_lazy_layer(record, LazyLayer(index, table), origin)
        image = await store.records.add_image(image_record([stored]), "x", stored.digest)
        views = Views(store)
        async with views.hold(image) as bad:
            bad.layers[0].failure = InvalidLayer("lies")
            with pytest.raises(InvalidLayer, match="lies") as refused:
                await views.acquire(replace(image, layers=(replace(stored, is_complete=True),)))
            assert "unmounted" in refused.value.hint
        assert views.store.pins.snapshot() == {}


ORIGIN = Origin(argument="example.com/x:1", plain_http=False, insecure=False, ca_file=None)


async def test_a_layer_that_was_bad_is_pulled_as_a_whole_however_lazy_the_pull(
    tmp_path, monkeypatch
):
    use_plain_tables(monkeypatch)
    layer = images.Layer([images.file("all", BLOB)], "gzip")
    source = MemorySource(images.Image([layer]))
    table = PlainTable(BLOB, cut(len(BLOB), 100))
    index = index_of(members.file(b"all", len(BLOB), payload_offset=0))
    record = replace(
        layer_record("x"),
        digest=Digest.parse(layer.digest),
        diff_id=DiffID(Digest.parse(layer.diff_id)),
        is_complete=False,
    )
    fault = LayerFault(kind=FaultKind.BLOB, reason="a bit was wrong")
    async with open_store(tmp_path) as store:
        lazy = await store.add_lazy_layer(record, LazyLayer(index, table), ORIGIN)
        bad = await store.records.add_layer(replace(lazy, fault=fault))
        assert (bad.is_refused, bad.fault) == (True, fault)
        assert bad.slot > lazy.slot
        image = await store.records.add_image(image_record([bad]), "bad", bad.digest)
        with pytest.raises(DigestMismatch, match="a bit was wrong"):
            await Views(store).acquire(image)

        resolved = await resolve_image(source, wanted_platform("linux/amd64"))
        pulled = await Puller(store).pull(source, resolved, "x", PullProgress(), ORIGIN)
        assert (pulled.layers[0].fault, pulled.is_stored) == (None, True)
        assert pulled.layers[0].slot == bad.slot
        async with Views(store).hold(pulled) as view:
            assert bytes(await view.read(resolve(view.tree, b"/all"), 0, 2000)) == BLOB


async def test_the_side_of_a_pull_that_failed_first_has_the_reason(tmp_path, monkeypatch):
    """The disk is full while the line is slow: shutting the line is a consequence."""
    layer = images.Layer([images.file("x", bytes(2 << 20))], "none")
    waiting = threading.Event()

    def full(*_):
        assert waiting.wait(5)
        raise StoreFull("no room")

    def wait(position: int) -> None:
        # As a socket that nothing comes from: returns when the reader is cancelled.
        if position > 0:
            waiting.set()
            deadline = time.monotonic() + 5
            while not source.readers[0].is_cancelled and time.monotonic() < deadline:
                time.sleep(0.005)

    monkeypatch.setattr("imgvol.content.layer_writer.LayerWriter.write", full)
    source = MemorySource(images.Image([layer]), piece=100_000, on_piece=wait)
    async with open_store(tmp_path) as store:
        resolved = await resolve_image(source, wanted_platform("linux/amd64"))
        with pytest.raises(StoreFull):
            await Puller(store).pull(source, resolved, "x", PullProgress())


async def test_the_most_patient_volume_counts_for_all_that_share_a_layer(tmp_path, monkeypatch):
    use_plain_tables(monkeypatch)
    table = PlainTable(BLOB, cut(len(BLOB), 100))
    index = index_of(members.file(b"all", len(BLOB), payload_offset=0))
    async with open_store(tmp_path) as store:
        base = replace(layer_record("x"), size=len(BLOB), is_complete=False, format="SOCI")
        origin = Origin(argument="e.com/x:1", plain_http=False, insecure=False, ca_file=None)
        base = await store.add_lazy_layer(base, LazyLayer(index, table), origin)

        async def attach(layer, _record):
            layer.fetcher = FakeFetcher()

        views = Views(store)
        views.layers.on_lazy = attach
        async with views.hold(image_record([base])) as view:
            assert views.layers.patience(base.slot) == 0
            views.publish(view, 0.0)
            views.publish(view, 60.0)
            views.publish(view, 300.0)
            assert views.layers.patience(base.slot) == 300
            views.withdraw(view, 300.0)
            assert views.layers.patience(base.slot) == 60
            views.withdraw(view, 60.0)
            views.withdraw(view, 0.0)
            assert views.layers.patience(base.slot) == 0
            assert views.published() == []
        assert views.layers.patience(base.slot) == 0, "nobody has it open"
