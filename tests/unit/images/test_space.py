"""The space keeper: what goes, what does not, and who wins when it meets mounts."""

import os

import pytest
import trio
import trio.testing

from imgvol import limits
from imgvol.config import SpaceLimits
from imgvol.content.records import LeaseRecord
from imgvol.content.store import open_store
from imgvol.errors import NotFound
from imgvol.images import usage
from imgvol.images.catalog import Catalog
from imgvol.images.collection import Collector
from imgvol.images.events import IMAGE_EVICTED
from imgvol.images.leases import Leases
from imgvol.images.local import LocalImages
from imgvol.images.pull import Puller, PullProgress
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.images.space import SpaceKeeper
from imgvol.images.usage import UsageMeter
from imgvol.images.views import Views
from support import images
from support.sources import MemorySource

SIZE = 400_000
SHARED = images.Layer([images.file("shared", os.urandom(SIZE))], "none")


def image_of(number):
    own = images.Layer([images.file(f"own{number}", os.urandom(SIZE))], "none")
    return images.Image([SHARED, own])


def write(space, size):
    with space.writing(size):
        pass


class NoLazyLayers:
    def attached(self):
        return []


async def pull(store, image, name, *, is_fetchable=True):
    resolved = await resolve_image(MemorySource(image), wanted_platform("linux/amd64"))
    record = await Puller(store).pull(MemorySource(image), resolved, name, PullProgress())
    if is_fetchable:
        await store.records.note_pulled(name, record)
    return record


def keeper_of(store, events=None):
    return SpaceKeeper(
        store,
        UsageMeter(store),
        Collector(store),
        NoLazyLayers(),
        publish=(events if events is not None else []).append,
    )


def present(store):
    return {image.names[0] for image in store.images if image.names}


async def test_the_image_that_was_used_longest_ago_goes_with_what_only_it_has(tmp_path):
    async with open_store(tmp_path) as store:
        events = []
        keeper = keeper_of(store, events)
        one, two = (
            await pull(store, image_of(1), "x/one:1"),
            await pull(store, image_of(2), "x/two:1"),
        )
        async with Views(store).hold(one):
            pass  # looked into: later than the pull of the other
        await keeper.meter.measure()
        used = store.space.level.used
        report = await keeper.evict_to(used - 1)
        assert [each.manifest for each in report.evictions] == [two.manifest]
        assert report.evictions[0].layers == {two.layers[1].digest}
        assert present(store) == {"x/one:1"}
        assert [event.kind for event in events] == [IMAGE_EVICTED]
        assert events[0].image == "x/two:1"
        # Neither a listing nor the CRI's catalog has it, and its documents are here.
        assert [image.id for image in Catalog(store.images).images()] == [one.id]
        (evicted,) = await store.records.evicted_images()
        assert (evicted.manifest, evicted.names) == (two.manifest, ("x/two:1",))
        await store.read_blob(two.manifest)
        assert (await Collector(store).collect()).removed == ()
        assert await store.check() == []
        assert keeper.statistics().images == 1

        report = await keeper.evict_to(0)
        assert present(store) == set()
        assert {digest for each in report.evictions for digest in each.layers} == {
            layer.digest for layer in one.layers
        }
        assert os.listdir(tmp_path / "layers") == []


async def test_an_evicted_image_is_pulled_again_with_what_it_lacks(tmp_path):
    async with open_store(tmp_path) as store:
        keeper = keeper_of(store)
        image = image_of(3)
        record = await pull(store, image, "x/one:1")
        await keeper.evict_to(0)
        assert len(await store.records.evicted_images()) == 1
        again = await pull(store, image, "x/one:1")
        assert again.manifest == record.manifest
        assert await store.records.evicted_images() == []
        assert present(store) == {"x/one:1"}


@pytest.mark.parametrize("keeper_of_it", ["pin", "lease", "view", "import", "copy"])
async def test_what_is_needed_or_cannot_be_fetched_again_stays(tmp_path, keeper_of_it):
    async with open_store(tmp_path) as store:
        keeper = keeper_of(store)
        is_fetchable = keeper_of_it != "import"
        image = await pull(store, image_of(4), "x/one:1", is_fetchable=is_fetchable)
        views, view, reason = Views(store), None, "not from a registry"
        match keeper_of_it:
            case "pin":
                await store.records.pin([str(image.manifest)], "user")
                reason = "pinned"
            case "lease":
                lease = LeaseRecord(id="pod", created_at=1.0)
                await store.records.ensure_lease(lease, images=[image.manifest])
                reason = "held by a lease"
            case "view":
                view = await views.acquire(image)
                reason = "mounted"
            case "copy":
                await store.records.copy_names([("mirror/one:1", "x/one:1")])
        report = await keeper.evict_to(0)
        assert report.evictions == ()
        assert present(store)
        status = await keeper.status()
        assert status.layers == 0
        assert set(status.kept) == {reason}
        assert status.kept[reason] >= 2 * SIZE
        if view is not None:
            views.release(view)


async def test_a_mount_that_begins_while_it_is_chosen_wins(tmp_path, monkeypatch):
    async with open_store(tmp_path) as store:
        keeper, views = keeper_of(store), Views(store)
        image = await pull(store, image_of(5), "x/one:1")
        evict = store.records.evict_layers
        opened = []

        async def late(layers, holds):
            opened.append(await views.acquire(image))
            return await evict(layers, holds)

        monkeypatch.setattr(store.records, "evict_layers", late)
        assert (await keeper.evict_to(0)).evictions == ()
        (view,) = opened
        node = view.layers[0].index.child(0, b"shared")
        assert len(await view.layers[0].read(node, 0, SIZE)) == SIZE
        views.release(view)


async def test_a_mount_that_begins_after_it_has_gone_is_told(tmp_path):
    async with open_store(tmp_path) as store:
        image = await pull(store, image_of(6), "x/one:1")
        await keeper_of(store).evict_to(0)
        with pytest.raises(NotFound):
            await Views(store).acquire(image)


async def test_a_plan_changes_nothing_and_is_what_happens(tmp_path):
    async with open_store(tmp_path) as store:
        keeper = keeper_of(store)
        for number in range(3):
            await pull(store, image_of(number), f"x/{number}:1")
        plan = await keeper.plan(0)
        assert len(present(store)) == 3
        report = await keeper.evict_to(0)
        assert [(e.manifest, e.layers) for e in report.evictions] == [
            (e.manifest, e.layers) for e in plan.evictions
        ]


async def test_above_the_high_line_it_evicts_down_to_the_low_one_by_itself(tmp_path, monkeypatch):
    async with open_store(tmp_path) as store:
        keeper = keeper_of(store)
        await keeper.begin(SpaceLimits(quota=3_000_000, high=90, low=50))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.run)
            for number in range(8):
                await pull(store, image_of(number), f"x/{number}:1")
                # What is pulled while it measures counts twice, and more may go than has to.
                with trio.fail_after(20):
                    while store.space.level.used > 2_700_000:
                        await trio.sleep(0.02)
            assert keeper.statistics().rounds
            nursery.cancel_scope.cancel()
        left = present(store)
        assert 1 <= len(left) < 8
        assert left == {f"x/{number}:1" for number in range(8 - len(left), 8)}, "the latest"


async def test_uses_are_written_down_and_survive(tmp_path):
    async with open_store(tmp_path) as store:
        one = await pull(store, image_of(1), "x/one:1")
        two = await pull(store, image_of(2), "x/two:1")
        async with Views(store).hold(one):
            pass
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper_of(store).note_uses)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    async with open_store(tmp_path) as store:
        report = await keeper_of(store).evict_to(SIZE * 2 + 600_000)
        assert [each.manifest for each in report.evictions] == [two.manifest]


async def test_the_background_waits_for_room(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "SPACE_CHECK", 0.01)
    async with open_store(tmp_path) as store:
        keeper = keeper_of(store)
        await keeper.wait_room(10**12)
        await keeper.begin(SpaceLimits(quota=10_000_000))
        await keeper.wait_room(1_000_000)
        with trio.move_on_after(0.1) as scope:
            await keeper.wait_room(9_500_000)
        assert scope.cancelled_caught


async def test_names_of_evicted_images_can_be_removed(tmp_path):
    async with open_store(tmp_path) as store:
        image = await pull(store, image_of(7), "docker.io/x/one:1")
        keeper = keeper_of(store)
        await keeper.evict_to(0)
        local = LocalImages(store, leases=Leases(store.records), collector=Collector(store))
        with pytest.raises(NotFound):
            await local.remove("docker.io/x/other:1")
        report = await local.remove("x/one:1")
        assert report.untagged == ("docker.io/x/one:1",)
        assert await local.evicted() == []
        assert await store.records.image(image.manifest) is None
        assert os.listdir(tmp_path / "blobs" / "sha256") == []


async def test_it_also_evicts_when_too_little_is_free_on_the_disk(tmp_path, monkeypatch):
    async with open_store(tmp_path) as store:
        keeper = keeper_of(store)
        await keeper.begin(SpaceLimits(min_free=1_000_000))
        for number in range(4):
            await pull(store, image_of(number), f"x/{number}:1")
        assert (await keeper.relieve()).freed == 0
        monkeypatch.setattr(usage, "_free_bytes", lambda _path: 700_000)
        report = await keeper.relieve()
        assert 300_000 <= report.evicted < 1_300_000
        assert "x/0:1" not in present(store)
        assert "x/3:1" in present(store)


async def test_a_round_that_need_not_evict_does_not_tell_writers_to_give_up(tmp_path):
    async with open_store(tmp_path) as store:
        keeper = keeper_of(store)
        await keeper.begin(SpaceLimits(quota=10_000_000))
        write(store.space, 9_500_000)  # counted, and never on the disk: the measurement finds less
        assert store.space.excess > 0
        assert (await keeper.relieve()).freed == 0
        assert store.space.excess == 0
        write(store.space, 9_000_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.run)
            # Waits for the next round, which measures, too.
            await trio.to_thread.run_sync(write, store.space, 5_000_000)
            nursery.cancel_scope.cancel()
        assert store.space.level.used < 10_000_000
