"""Leases over a real database: what they keep, and when they end; the clock is moved by hand."""

import contextlib
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from imgvol import limits
from imgvol.content.reachability import Thing, ThingKind
from imgvol.content.records import VolumeRecord
from imgvol.content.store import open_store
from imgvol.errors import Conflict, ImgvolError, InvalidLayer, NotFound, RegistryUnavailable
from imgvol.images.collection import Collector
from imgvol.images.leases import Leases
from imgvol.images.pull import Puller, PullProgress
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.images.service import ImageService
from imgvol.images.views import Views
from imgvol.oci.digest import Digest
from support import images
from support.sources import MemorySource

NAME = "example.com/app:1"
IMAGE = images.Image([images.Layer([images.file("a", b"a")], "gzip")])


@asynccontextmanager
async def open_leases(root):
    async with open_store(root) as store:
        leases = Leases(store.records)
        await leases.recover()
        yield leases, store


async def pull(store):
    source = MemorySource(IMAGE)
    resolved = await resolve_image(source, wanted_platform("linux/amd64"))
    return await Puller(store).pull(source, resolved, NAME, PullProgress())


def service(store, leases):
    return ImageService(store, Views(store), leases=leases)


async def test_however_many_make_a_lease_at_once_there_is_one(tmp_path):
    async with open_leases(tmp_path) as (leases, _):
        made = []

        async def ensure(number):
            made.append(await leases.ensure("pod", labels={"n": str(number)}, duration=9.0))

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(ensure, number)
        assert len(made) == 20
        assert len({(tuple(lease.labels.items()), lease.created_at) for lease in made}) == 1
        assert len(await leases.list()) == 1


async def test_leases_are_found_by_label(tmp_path):
    async with open_leases(tmp_path) as (leases, _):
        await leases.ensure("one", labels={"pod": "a", "tier": ""})
        await leases.ensure("two", labels={"pod": "b"})
        await leases.ensure("three")
        found = {
            label: [lease.id for lease in await leases.list(label)]
            for label in (None, "pod", "pod=a", "pod=", "tier=", "other")
        }
    assert found == {
        None: ["one", "two", "three"],
        "pod": ["one", "two"],
        "pod=a": ["one"],
        "pod=": [],
        "tier=": ["one"],
        "other": [],
    }


async def test_a_lease_ends_when_its_time_is_over_and_no_sooner(tmp_path, mock_clock):
    ended = []
    async with open_leases(tmp_path) as (leases, _), trio.open_nursery() as nursery:

        async def end(lease_id):
            ended.append(lease_id)
            await leases.drop(lease_id)

        await leases.ensure("short", duration=10.0)
        await leases.ensure("long", duration=20.0)
        await leases.ensure("lasting")
        nursery.start_soon(leases.run, end)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(9.9)
        await trio.testing.wait_all_tasks_blocked()
        assert ended == []
        await leases.renew("short", 15.0)
        mock_clock.jump(10.2)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert ended == ["long"]
        mock_clock.jump(5.0)
        while len(ended) < 2:
            await trio.testing.wait_all_tasks_blocked()
        assert ended == ["long", "short"]
        nursery.cancel_scope.cancel()


@pytest.mark.expects_log("cannot be ended")
async def test_a_lease_that_cannot_be_ended_is_tried_again(tmp_path, mock_clock):
    tries = []
    async with open_leases(tmp_path) as (leases, _), trio.open_nursery() as nursery:

        async def end(lease_id):
            tries.append(lease_id)
            raise Conflict("busy")

        await leases.ensure("pod", duration=1.0)
        nursery.start_soon(leases.run, end)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(1.0)
        await trio.testing.wait_all_tasks_blocked()
        assert tries == ["pod"]
        mock_clock.jump(limits.LEASE_RETRY)
        await trio.testing.wait_all_tasks_blocked()
        assert tries == ["pod", "pod"]
        assert len(await leases.list()) == 1
        nursery.cancel_scope.cancel()


@pytest.mark.fault("F84")
async def test_a_restart_counts_on_from_what_was_left_whatever_the_wall_clock_says(
    tmp_path, mock_clock, monkeypatch
):
    async with open_leases(tmp_path) as (leases, _):
        await leases.ensure("pod", duration=100.0)
        mock_clock.jump(30.0)
        await leases.note()
    monkeypatch.setattr("time.time", lambda: 4e9)
    mock_clock.jump(1e6)
    async with open_leases(tmp_path) as (leases, _):
        (lease,) = await leases.list()
        assert (lease.duration, lease.remaining) == (100.0, 70.0)
        assert not leases.has_ended("pod")
        mock_clock.jump(70.0)
        assert leases.has_ended("pod")


async def test_what_does_not_exist_is_not_renewed_and_is_dropped_without_ado(tmp_path):
    async with open_leases(tmp_path) as (leases, _):
        with pytest.raises(NotFound):
            await leases.renew("pod", 1.0)
        assert await leases.drop("pod")
        with pytest.raises(NotFound):
            await leases.ensure("pod", images=[Digest.of(b"no such image")])
        assert await leases.list() == []


async def test_an_image_that_a_lease_keeps_is_not_removed(tmp_path):
    async with open_leases(tmp_path) as (leases, store):
        image = await pull(store)
        await leases.ensure("pod", images=[image.manifest])
        for name in (NAME, image.id.encoded):
            with pytest.raises(Conflict, match="lease pod"):
                await service(store, leases).remove(name)
        await leases.drop("pod")
        report = await service(store, leases).remove(NAME)
        assert report.deleted == (str(image.manifest),)


async def test_an_image_without_a_name_lives_as_long_as_its_lease(tmp_path):
    """Its name may have been given to another image by a pull."""
    async with open_leases(tmp_path) as (leases, store):
        image = await pull(store)
        await leases.ensure("pod", images=[image.manifest])
        await store.records.remove_names([NAME])
        collector = Collector(store)
        assert (await collector.collect()).removed == ()
        await leases.drop("pod")
        removed = (await collector.collect()).removed
        assert Thing(ThingKind.IMAGE, image.manifest) in removed


@pytest.mark.parametrize(
    ("failure", "is_kept"),
    [
        (RegistryUnavailable("x"), True),
        (InvalidLayer("x"), False),
        (None, False),
    ],
)
async def test_what_a_pull_has_brought_outlives_only_the_network(
    tmp_path, failure, is_kept, mock_clock
):
    async with open_leases(tmp_path) as (leases, store):
        image = await pull(store)
        (layer,) = image.layers
        thing, collector = Thing(ThingKind.LAYER, layer.digest), Collector(store)
        # As if the pull had brought the layer and had not come to its end.
        with contextlib.suppress(ImgvolError):
            async with leases.pull(image.manifest, [layer.digest]):
                await store.records.remove_image(image.manifest)
                assert thing not in (await collector.collect()).removed
                if failure:
                    raise failure
        assert (thing not in (await collector.collect()).removed) == is_kept
        assert [lease.remaining for lease in await leases.list()] == [limits.PULL_LEASE] * is_kept


async def test_pulls_of_one_image_share_a_lease_until_the_last_one_ends(tmp_path):
    """They begin and end as they like: none takes the lease from another that has just begun."""
    async with open_leases(tmp_path) as (leases, store):
        image = await pull(store)
        kept = [layer.digest for layer in image.layers]

        async def hold(turns):
            for _ in range(turns):
                async with leases.pull(image.manifest, kept):
                    assert len(await leases.list()) == 1

        async with trio.open_nursery() as nursery:
            for turns in range(1, 6):
                nursery.start_soon(hold, turns)
        assert await leases.list() == []
        async with leases.pull(image.manifest, kept):
            with pytest.raises(InvalidLayer):
                async with leases.pull(image.manifest, kept):
                    raise InvalidLayer("bad")
            assert len(await leases.list()) == 1
        assert await leases.list() == []


async def test_an_image_that_is_removed_takes_no_lease_from_a_pull(tmp_path, monkeypatch):
    async with open_leases(tmp_path) as (leases, store), trio.open_nursery() as nursery:
        image = await pull(store)
        renew = store.records.renew_lease

        async def renew_late(*arguments):
            nursery.start_soon(leases.forget_pull, image.manifest)
            await trio.testing.wait_all_tasks_blocked(0.05)
            return await renew(*arguments)

        monkeypatch.setattr(store.records, "renew_lease", renew_late)
        async with leases.pull(image.manifest, [image.layers[0].digest]):
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert len(await leases.list()) == 1
        assert await leases.list() == []


async def test_removing_an_image_lets_go_of_what_its_pull_had_left(tmp_path):
    async with open_leases(tmp_path) as (leases, store):
        image = await pull(store)
        with pytest.raises(RegistryUnavailable):
            async with leases.pull(image.manifest, [image.layers[0].digest]):
                raise RegistryUnavailable("x")
        await service(store, leases).remove(NAME)
        assert await leases.list() == []
        assert await store.records.layers() == []


async def test_a_lease_whose_sandbox_has_volumes_is_not_forgotten(tmp_path, volume_record):
    async with open_leases(tmp_path) as (leases, store):
        image = await pull(store)
        await store.records.add_volume(volume_record(image, sandbox="pod"))
        (lease,) = await leases.list()
        assert (lease.id, lease.digests) == ("pod", {image.manifest})
        assert not await leases.drop("pod")
        await store.records.remove_volume("v1")
        assert await leases.drop("pod")
        assert await leases.list() == []


@pytest.fixture
def volume_record():
    def make(image, *, sandbox):
        return VolumeRecord(
            id="v1",
            sandbox=sandbox,
            image=NAME,
            manifest=image.manifest,
            target="/mnt",
            options="{}",
            patience=0.0,
            view_id=image.view_id,
            created_at=1.0,
            boot_id="boot",
        )

    return make
