"""Scrubbing: a changed byte anywhere is found, its layer refused, and pulled again when asked."""

import os
import random
import threading
from dataclasses import replace

import pytest
import trio

from imgvol.content.card import LayerCard
from imgvol.content.records import FaultKind, Origin
from imgvol.content.store import open_store
from imgvol.errors import NotFound, StoreDamaged
from imgvol.images import scrubbing
from imgvol.images.leases import Leases
from imgvol.images.pull import Puller, PullProgress
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.images.scrubbing import Scrubber, ScrubProgress
from imgvol.images.service import ImageService, PullOptions
from imgvol.images.views import Views
from imgvol.layers.lazy.spans import LazyLayer
from support import images, members
from support.records import image_record, layer_record
from support.sources import MemorySource
from support.spans import PlainTable, index_of, use_plain_tables

BIG = random.Random(1).randbytes(1_500_000)
TWICE = random.Random(2).randbytes(1_200_000)
HOLES = b"begin" + bytes(2_000_000) + b"end"
FILES = [images.file("base", b"base" * 3000), images.file("big", BIG), images.file("end", b"end")]
IMAGE = images.Image(
    [
        images.Layer(FILES, "gzip"),
        # A large file that a later member of the same layer replaces: its payload is gone.
        images.Layer([images.file("twice", TWICE), *FILES, images.file("twice", b"new")], "none"),
    ]
)

pytestmark = pytest.mark.expects_log("is damaged|spans were damaged")


async def pull(store, name="x.test/one:1"):
    source = MemorySource(IMAGE)
    resolved = await resolve_image(source, wanted_platform("linux/amd64"))
    return await Puller(store).pull(source, resolved, name, PullProgress())


def scrubber_of(store, views=None):
    views = views or Views(store)
    return Scrubber(store, views, ImageService(store, views, leases=Leases(store.records)))


async def scrub(scrubber, *chosen, repair=False, progress=None):
    return await scrubber.scrub(
        chosen, repair=repair, options=PullOptions(), progress=progress or ScrubProgress()
    )


def flip(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def forget_pieces(store):
    for path in store.layout.layers.glob("*/pieces"):
        path.unlink()


async def test_what_was_stored_is_proven_over_every_byte(tmp_path):
    async with open_store(tmp_path) as store:
        image = await pull(store)
        progress = ScrubProgress()
        assert await scrub(scrubber_of(store), progress=progress) == ()
        assert progress.checked == progress.total
        assert progress.total == sum(layer.unpacked_size for layer in image.layers)
        first, second = (LayerCard.load(store.layout.layer(layer.digest)) for layer in image.layers)
        assert first.proof == image.layers[0].diff_id
        assert second.proof != image.layers[1].diff_id, "a payload is gone"
        assert [card.record for card in (first, second)] == [
            replace(layer, slot=0) for layer in image.layers
        ]
        with pytest.raises(NotFound):
            await scrub(scrubber_of(store), "nothing:1")


@pytest.mark.fault("F27")
@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("where", ["data begin", "data end", "own file", "index", "card", "cut"])
async def test_a_flipped_bit_anywhere_is_found_and_the_layer_refused(tmp_path, position, where):
    """Of layers that were stored before there were digests of pieces, of which all is refused."""
    async with open_store(tmp_path) as store:
        image = await pull(store)
        layer = image.layers[position]
        forget_pieces(store)
        directory = store.layout.layer(layer.digest)
        own = next((directory / "files").iterdir())
        match where:
            case "data begin":
                flip(directory / "data", 600)
            case "data end":
                flip(directory / "data", layer.unpacked_size - 1)
            case "own file":
                flip(own, 1_000_000)
            case "index":
                flip(directory / "index", 70)
            case "card":
                flip(directory / "layer.json", 70)
            case "cut":
                os.truncate(own, 1_400_000)
        faults = await scrub(scrubber_of(store))
        # Both layers link to the file.
        is_shared = where in {"own file", "cut"}
        assert len(faults) == (2 if is_shared else 1)
        assert f"layer {layer.digest}" in {fault.subject for fault in faults}
        assert not any(fault.is_repaired for fault in faults)
        assert len(os.listdir(tmp_path / "files" / "sha256")) == (0 if is_shared else 1)
        found = await store.records.layer(layer.digest)
        assert found.fault.kind is FaultKind.DAMAGED
        assert found.slot > layer.slot, "the kernel may have its bytes under the old one"
        (image,) = await store.records.images()
        with pytest.raises(StoreDamaged, match="has changed since"):
            await Views(store).acquire(image)
        again = await scrub(scrubber_of(store))
        assert {fault.subject for fault in again} == {fault.subject for fault in faults}
    async with open_store(tmp_path) as store:
        assert (await store.records.layer(layer.digest)).fault.kind is FaultKind.DAMAGED
        assert await store.records.images(), "it is known, and refused"
        repaired = await pull(store)
        assert await scrub(scrubber_of(store)) == ()
        async with Views(store).hold(repaired) as view:
            for opened in view.layers:
                assert await opened.read(opened.index.child(0, b"big"), 0, len(BIG)) == BIG


async def test_readers_of_a_layer_that_is_found_damaged_get_errors(tmp_path):
    async with open_store(tmp_path) as store:
        image, views = await pull(store), Views(store)
        condemned = []
        views.on_condemned.append(condemned.append)
        async with views.hold(image) as view:
            opened = view.layers[0]
            node = opened.index.child(0, b"base")
            assert await opened.read(node, 0, 4) == b"base"
            forget_pieces(store)
            flip(store.layout.layer(opened.digest) / "data", 600)
            await scrub(scrubber_of(store, views))
            assert condemned == [opened], "what the kernel has of it is dropped"
            with pytest.raises(StoreDamaged):
                await opened.read(node, 0, 4)
            other = view.layers[1]
            assert await other.read(other.index.child(0, b"base"), 0, 4) == b"base"


async def test_a_damaged_image_is_pulled_again_when_asked(tmp_path, short_path):
    layout = images.write_layout(short_path / "layout", {"v1": IMAGE})
    async with open_store(tmp_path) as store:
        views = Views(store)
        service = ImageService(store, views, leases=Leases(store.records))
        scrubber = Scrubber(store, views, service)
        image = await service.pull(
            f"oci:{layout}:v1", options=PullOptions(), progress=PullProgress()
        )
        flip(store.layout.layer(image.layers[0].digest) / "files" / "0", 5)
        (tmp_path / "blobs" / "sha256" / image.id.encoded).write_bytes(b"changed")
        faults = await scrub(scrubber, image.names[0], repair=True)
        assert len(faults) == 3
        assert {(fault.is_repaired, fault.outcome) for fault in faults} == {(True, "pulled again")}
        assert await scrub(scrubber) == ()


@pytest.mark.expects_log("is not repaired")
async def test_what_cannot_be_pulled_again_stays_refused(tmp_path):
    async with open_store(tmp_path) as store:
        image = await pull(store, "oci:/nowhere:1")
        forget_pieces(store)
        flip(store.layout.layer(image.layers[0].digest) / "data", 600)
        (fault,) = await scrub(scrubber_of(store), repair=True)
        assert not fault.is_repaired
        assert (await store.records.layer(image.layers[0].digest)).is_refused


BLOB = random.Random(3).randbytes(1000)


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("form", ["data", "blob"])
async def test_damaged_spans_of_lazy_layers_are_fetched_again(tmp_path, monkeypatch, form, is_open):
    use_plain_tables(monkeypatch)
    table = PlainTable(BLOB, [(start, start + 100) for start in range(0, 1000, 100)])
    index = index_of(members.file(b"all", len(BLOB), payload_offset=0))
    record = replace(layer_record("x"), size=len(BLOB), is_complete=False, format="SOCI")
    origin = Origin(argument="x", plain_http=False, insecure=False, ca_file=None)
    async with open_store(tmp_path) as store:
        stored = await store.add_lazy_layer(record, LazyLayer(index, table), origin)
        image = await store.records.add_image(image_record([stored]), "x", stored.digest)
        layer = await store.open_lazy_layer(stored)
        for span in (2, 5, 7):
            start, end = table.compressed_range(span)
            layer.kept.put(start, BLOB[start:end])
            layer.intake.put_span(span, table.decode(span, BLOB[start:end]))
        layer.intake.flush()
        views = Views(store)
        view = await views.acquire(image) if is_open else None
        assert [
            fault for fault in await scrub(scrubber_of(store, views)) if "layer" in fault.subject
        ] == []
        flip(tmp_path / "lazy" / stored.digest.encoded / form, 555)
        (fault,) = [
            fault for fault in await scrub(scrubber_of(store, views)) if "layer" in fault.subject
        ]
        assert fault.is_repaired
        if view is not None:
            (opened,) = view.layers
            assert list(opened.present) == [2, 7]
            assert not opened.kept.covers(500, 600)
            views.release(view)
        assert list((await store.open_lazy_layer(stored)).present) == [2, 7]


async def test_whoever_asked_goes_and_the_scrub_ends(tmp_path, monkeypatch):
    async with open_store(tmp_path) as store:
        await pull(store)
        began, ended = trio.Event(), threading.Event()
        token = trio.lowlevel.current_trio_token()

        def forever(_layout, _digest, note):
            token.run_sync_soon(began.set)
            assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == 19
            try:
                while True:
                    note(0)
            finally:
                ended.set()

        monkeypatch.setattr(scrubbing, "scrub_complete", forever)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scrub, scrubber_of(store))
            await began.wait()
            nursery.cancel_scope.cancel()
        assert ended.is_set()
        assert os.getpriority(os.PRIO_PROCESS, 0) < 19
