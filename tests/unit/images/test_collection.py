"""Collection: what goes, what stays and why, and who wins when it meets mounts and pulls."""

import errno
import os
from itertools import pairwise

import pytest
import trio
import trio.testing

from imgvol import limits
from imgvol.content.reachability import RootKind, Thing, ThingKind
from imgvol.content.records import LeaseRecord, VolumeRecord
from imgvol.content.store import open_store
from imgvol.errors import NotFound, StoreFull
from imgvol.images.collection import CollectionReport, Collector
from imgvol.images.pull import Puller, PullProgress
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.images.views import Views
from support import images
from support.sources import MemorySource

BIG = b"b" * 2_000_000
BASE = images.Layer([images.file("base", b"base"), images.file("big", BIG)], "none")
ONE = images.Image([BASE, images.Layer([images.file("one", b"1")], "gzip")])
TWO = images.Image([BASE, images.Layer([images.file("two", b"2"), images.file("again", BIG)])])


async def pull(store, image, name, puller=None):
    source = MemorySource(image)
    resolved = await resolve_image(source, wanted_platform("linux/amd64"))
    return await (puller or Puller(store)).pull(source, resolved, name, PullProgress())


def layer_names(root):
    return set(os.listdir(root / "layers"))


def names_of(record):
    return {layer.digest.encoded for layer in record.layers}


async def test_without_its_name_an_image_goes_with_what_only_it_needed(tmp_path):
    async with open_store(tmp_path) as store:
        collector = Collector(store)
        one, two = await pull(store, ONE, "one"), await pull(store, TWO, "two")
        view = await store.records.view_slot(one.view_id)
        assert view
        await store.records.remove_names(["one"])
        report = await collector.collect()
        assert layer_names(tmp_path) == names_of(two)
        assert await store.records.images() == [two]
        removed = set(report.removed)
        assert removed == {
            Thing(ThingKind.IMAGE, one.manifest),
            Thing(ThingKind.VIEW, one.view_id),
            Thing(ThingKind.DOCUMENT, one.manifest),
            Thing(ThingKind.DOCUMENT, one.id),
            Thing(ThingKind.LAYER, one.layers[1].digest),
        }
        assert report.freed > 0
        assert len(os.listdir(tmp_path / "files" / "sha256")) == 1, "the other image has the file"
        await store.records.remove_names(["two"])
        report = await collector.collect()
        assert {thing.kind for thing in report.removed} >= {ThingKind.FILE, ThingKind.LAYER}
        assert report.freed > len(BIG)
        for place in ("layers", "files/sha256", "blobs/sha256", "ingest"):
            assert os.listdir(tmp_path / place) == []
        assert (await collector.collect()).removed == ()


async def test_an_image_that_loses_its_name_during_a_collection_keeps_its_documents_as_its_record(
    tmp_path, monkeypatch
):
    """Whoever dies after this collection must not find an image without its documents."""
    async with open_store(tmp_path) as store:
        collector = Collector(store)
        one = await pull(store, ONE, "one")
        stray_layers = store.files.stray_layers

        async def lose_the_name():
            await store.records.remove_names(["one"])
            return await stray_layers()

        monkeypatch.setattr(store.files, "stray_layers", lose_the_name)
        assert (await collector.collect()).removed == ()
        assert await store.records.image(one.manifest) is not None
        assert set(os.listdir(tmp_path / "blobs" / "sha256")) == {
            one.manifest.encoded,
            one.id.encoded,
        }
        monkeypatch.undo()
        assert Thing(ThingKind.IMAGE, one.manifest) in (await collector.collect()).removed
        assert os.listdir(tmp_path / "blobs" / "sha256") == []


async def test_the_plan_is_what_happens_and_gives_every_reason(tmp_path):
    async with open_store(tmp_path) as store:
        collector = Collector(store)
        one, two = await pull(store, ONE, "one"), await pull(store, TWO, "two")
        await store.records.pin([str(one.manifest)], "user")
        async with Views(store).hold(two):
            fates = {fate.thing: fate for fate in await collector.explain()}
        base = fates[Thing(ThingKind.LAYER, one.layers[0].digest)]
        assert [str(root) for root in base.reasons] == [
            "name one",
            "name two",
            f"open view {two.view_id}",
            "pin by user",
        ]
        assert base.size > len(BIG)
        (shared,) = [fate for thing, fate in fates.items() if thing.kind is ThingKind.FILE]
        assert shared.reasons == base.reasons, "both layers link to it"

        await store.records.remove_names(["one"])
        await store.records.unpin([str(one.manifest)], "user")
        goes = {fate.thing for fate in await collector.explain() if not fate.reasons}
        assert goes == set((await collector.collect()).removed) != set()


@pytest.mark.parametrize("keeper", ["pin", "lease", "volume", "view"])
async def test_each_of_these_keeps_an_image_without_a_name(tmp_path, keeper):
    async with open_store(tmp_path) as store:
        collector = Collector(store)
        views = Views(store)
        image = await pull(store, ONE, "one")
        view = None
        match keeper:
            case "pin":
                await store.records.pin([str(image.manifest)], "user")
            case "lease":
                lease = LeaseRecord(id="pod", created_at=1.0)
                await store.records.ensure_lease(lease, images=[image.manifest])
            case "volume":
                await store.records.add_volume(volume_of(image))
            case "view":
                view = await views.acquire(image)
        await store.records.remove_names(["one"])
        assert (await collector.collect()).removed == ()
        assert layer_names(tmp_path) == names_of(image)
        await store.read_blob(image.manifest)

        match keeper:
            case "pin":
                await store.records.unpin([str(image.manifest)], "user")
            case "lease":
                await store.records.remove_lease("pod")
            case "volume":
                await store.records.remove_volume("v")
            case "view":
                views.release(view)
        assert (await collector.collect()).removed
        assert layer_names(tmp_path) == set()


def volume_of(image):
    return VolumeRecord(
        id="v",
        sandbox="cli",
        image="one",
        manifest=image.manifest,
        target=None,
        options="{}",
        patience=0.0,
        view_id=image.view_id,
        created_at=1.0,
        boot_id="b",
    )


async def test_a_mount_that_begins_before_the_records_go_keeps_everything(tmp_path, monkeypatch):
    """It holds what it needs while the transaction is on its way: the transaction asks again."""
    async with open_store(tmp_path) as store:
        collector, views = Collector(store), Views(store)
        image = await pull(store, ONE, "one")
        await store.records.remove_names(["one"])
        sweep = store.records.sweep
        opened = []

        async def late(holds):
            opened.append(await views.acquire(image))
            return await sweep(holds)

        monkeypatch.setattr(store.records, "sweep", late)
        assert (await collector.collect()).removed == ()
        (view,) = opened
        assert [layer.failure for layer in view.layers] == [None, None]
        assert await view.layers[0].read(view.layers[0].index.child(0, b"base"), 0, 9) == b"base"
        await store.records.add_volume(volume_of(image))
        views.release(view)


async def test_a_mount_that_begins_after_the_records_have_gone_is_told(tmp_path, monkeypatch):
    async with open_store(tmp_path) as store:
        collector, views = Collector(store), Views(store)
        image = await pull(store, ONE, "one")
        await store.records.remove_names(["one"])
        stray_layers = store.files.stray_layers

        async def late():
            with pytest.raises(NotFound, match="removed while"):
                await views.acquire(image)
            return await stray_layers()

        monkeypatch.setattr(store.files, "stray_layers", late)
        await collector.collect()
        assert layer_names(tmp_path) == set()
        assert store.pins.snapshot() == {}


async def test_a_pull_that_begins_after_the_records_have_gone_gets_a_whole_image(
    tmp_path, monkeypatch
):
    async with open_store(tmp_path) as store:
        collector = Collector(store)
        image = await pull(store, ONE, "one")
        await store.records.remove_names(["one"])
        stray_layers = store.files.stray_layers
        again = []

        async def late():
            strays = await stray_layers()
            again.append(await pull(store, ONE, "one"))
            return strays

        monkeypatch.setattr(store.files, "stray_layers", late)
        await collector.collect()
        (found,) = await store.records.images()
        assert found.names == ("one",)
        assert layer_names(tmp_path) == names_of(image)
        async with Views(store).hold(found) as view:
            layer = view.layers[0]
            assert await layer.read(layer.index.child(0, b"base"), 0, 9) == b"base"
        await store.read_blob(found.manifest)


async def test_layers_of_a_pull_under_way_stay(tmp_path, monkeypatch):
    async with open_store(tmp_path) as store:
        puller, collector = Puller(store), Collector(store)
        reached, go_on = trio.Event(), trio.Event()
        put_blob = store.put_blob

        async def slow(*arguments):
            reached.set()
            await go_on.wait()
            await put_blob(*arguments)

        monkeypatch.setattr(store, "put_blob", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pull, store, ONE, "one", puller)
            await reached.wait()
            # All layers are recorded, and no image has them.
            kept = {fate.reasons[0].kind for fate in await collector.explain() if fate.reasons}
            assert kept == {RootKind.PULL}
            with trio.move_on_after(0.2):
                await collector.collect()
            assert len(layer_names(tmp_path)) == 2
            go_on.set()
        assert len(await store.records.images()) == 1


async def test_what_the_database_does_not_know_is_removed_and_ingest_left_alone(tmp_path):
    async with open_store(tmp_path) as store:
        image = await pull(store, ONE, "one")
        stray = "0" * 64
        for home in ("layers", "lazy", "places"):
            (tmp_path / home / stray).mkdir()
            (tmp_path / home / stray / "data").write_bytes(b"x" * 10_000)
        # An earlier form of a layer that is complete by now.
        (tmp_path / "lazy" / image.layers[0].digest.encoded).mkdir()
        (tmp_path / "blobs" / "sha256" / stray).write_bytes(b"x")
        (tmp_path / "files" / "sha256" / stray).write_bytes(b"x")
        (tmp_path / "ingest" / "layer-1").mkdir()
        report = await Collector(store).collect()
        assert {(thing.kind, thing.digest.encoded) for thing in report.removed} >= {
            (ThingKind.LAYER, stray),
            (ThingKind.DOCUMENT, stray),
            (ThingKind.FILE, stray),
        }
        assert report.freed >= 30_000
        assert layer_names(tmp_path) == names_of(image)
        assert os.listdir(tmp_path / "lazy") == os.listdir(tmp_path / "places") == []
        assert os.listdir(tmp_path / "ingest") == ["layer-1"]
        assert await store.records.images() == [image]


async def test_a_pull_without_room_collects_once_and_tries_once_more(tmp_path, monkeypatch):
    async with open_store(tmp_path) as store:
        puller, collector = Puller(store), Collector(store)
        await pull(store, ONE, "one")
        await store.records.remove_names(["one"])
        collections = []

        async def make_room():
            collections.append(await collector.collect())

        puller.make_room = make_room
        new_layer, tries = store.new_layer, []

        def full_at_first():
            tries.append(None)
            if not collections:
                raise StoreFull(os.strerror(errno.ENOSPC))
            return new_layer()

        monkeypatch.setattr(store, "new_layer", full_at_first)
        two = await pull(store, TWO, "two", puller)
        assert len(collections) == 1
        assert collections[0].freed > 0
        assert layer_names(tmp_path) == names_of(two)

        def always_full():
            tries.append(None)
            raise StoreFull(os.strerror(errno.ENOSPC))

        monkeypatch.setattr(store, "new_layer", always_full)
        await store.records.remove_names(["two"])
        with pytest.raises(StoreFull):
            await pull(store, ONE, "one", puller)
        assert len(collections) == 2, "once, and no more"


@pytest.mark.fault("F13")
async def test_collection_goes_on_at_intervals_whatever_happens(tmp_path, autojump_clock, caplog):
    async with open_store(tmp_path) as store:
        rounds = []

        async def collect():
            rounds.append(trio.current_time())
            if len(rounds) == 1:
                raise StoreFull("no room for the store's database")
            if len(rounds) == 2:
                raise ZeroDivisionError
            return CollectionReport(removed=(), freed=0)

        waited = Waiting(collect, store)
        with trio.move_on_after(3600 * 4.5):
            await waited.run(interval=3600)
    gaps = [later - earlier for earlier, later in pairwise(rounds)]
    assert len(rounds) in {4, 5}
    assert all(3240 <= gap <= 3960 for gap in gaps)
    assert "no room" in caplog.text
    assert "a defect" in caplog.text


class Waiting(Collector):
    """A collector whose collections are a test's."""

    def __init__(self, collect, store):
        super().__init__(store)
        self.scripted = collect

    async def collect(self):
        return await self.scripted()


@pytest.mark.parametrize("keeper", ["volume", "lease"])
async def test_what_lost_its_name_in_use_goes_soon_after_it_is_used_no_more(
    tmp_path, keeper, monkeypatch
):
    monkeypatch.setattr(limits, "COLLECTION_DELAY", 0.0)
    async with open_store(tmp_path) as store, trio.open_nursery() as nursery:
        collector = Collector(store)
        image = await pull(store, ONE, "one")
        if keeper == "volume":
            await store.records.add_volume(volume_of(image))
        else:
            lease = LeaseRecord(id="pod", created_at=1.0)
            await store.records.ensure_lease(lease, images=[image.manifest])
        await store.records.remove_names(["one"])
        assert (await collector.collect()).removed == ()
        gone = trio.Event()
        store.images.listen(lambda _: store.images.get(image.manifest) or gone.set())
        nursery.start_soon(collector.run)
        await trio.testing.wait_all_tasks_blocked()
        assert not gone.is_set()
        if keeper == "volume":
            await store.records.remove_volume("v")
        else:
            await store.records.remove_lease("pod")
        with trio.fail_after(10):
            await gone.wait()
        nursery.cancel_scope.cancel()
