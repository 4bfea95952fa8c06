"""Removing and pinning images that are here, as users and as container runtimes want it."""

from dataclasses import replace

import pytest
import trio
import trio.testing

from imgvol.content.records import VolumeRecord
from imgvol.content.store import open_store
from imgvol.errors import Conflict, InvalidReference, LocalError, NotFound
from imgvol.images.collection import Collector
from imgvol.images.leases import Leases
from imgvol.images.pull import Puller, PullProgress
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.images.service import ImageService
from imgvol.images.views import Views
from imgvol.oci.digest import Digest
from support import images
from support.catalogs import reloaded
from support.sources import MemorySource

ONE = images.Image([images.Layer([images.file("one", b"1" * 100_000)], "gzip")])
TWO = images.Image([images.Layer([images.file("two", b"2")], "gzip")])
A, B, ELSEWHERE = "example.com/a:1", "example.com/b:2", "other.example:5000/a:1"


@pytest.fixture
async def store(tmp_path):
    async with open_store(tmp_path / "store") as store:
        yield store


@pytest.fixture
def service(store):
    return ImageService(store, Views(store), leases=Leases(store.records))


async def pull(store, image, *names):
    for name in names:
        source = MemorySource(image)
        resolved = await resolve_image(source, wanted_platform("linux/amd64"))
        record = await Puller(store).pull(source, resolved, name, PullProgress())
    return record


def files_below(root):
    kinds = ("layers", "blobs", "lazy", "files")
    return sorted(p.name for kind in kinds for p in (root / kind).rglob("*") if p.is_file())


def volume_of(image):
    return VolumeRecord(
        id="v",
        sandbox="s",
        image=A,
        manifest=image.manifest,
        target=None,
        options="{}",
        patience=0.0,
        view_id=image.view_id,
        created_at=1.0,
        boot_id="b",
    )


@pytest.mark.parametrize("text", ["a:1 by tag", "by digest", "by ID", "by short ID", "elsewhere"])
async def test_a_runtime_removes_an_image_with_all_that_it_is_called(store, service, text):
    record = await pull(store, ONE, A, B, ELSEWHERE)
    other = await pull(store, TWO, "example.com/other:1")
    (image,) = [image for image in service.catalog.images() if image.id == record.id]
    text = {
        "a:1 by tag": A,
        "by digest": image.repo_digests[0],
        "by ID": str(image.id),
        "by short ID": image.id.encoded[:13],
        "elsewhere": ELSEWHERE,
    }[text]
    report = await service.remove_image(text)
    assert report.untagged == (A, B, ELSEWHERE)
    assert report.deleted == (str(record.manifest),)
    assert report.freed > 0
    assert [listed.id for listed in service.catalog.images()] == [other.id]
    for name in (A, B, ELSEWHERE, str(image.id), *image.repo_digests):
        with pytest.raises(NotFound):
            service.catalog.resolve(name)
    assert await store.records.images() == [other]


@pytest.mark.parametrize("text", ["0" * 64, "sha256:" + "0" * 64, "example.com/none:1", "No name"])
async def test_what_is_not_here_is_removed_again_and_again(store, service, text):
    record = await pull(store, ONE, A)
    for _ in range(2):
        report = await service.remove_image(text)
        assert (report.untagged, report.deleted, report.freed) == ((), (), 0)
    assert await store.records.images() == [record]


async def test_five_removals_at_once_all_succeed_and_one_does_it(store, service):
    record = await pull(store, ONE, A, B)
    reports = []

    async def remove():
        reports.append(await service.remove_image(str(record.id)))
        assert service.catalog.images() == ()

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(remove)
    assert sorted(len(report.untagged) for report in reports) == [0, 0, 0, 0, 2]
    assert files_below(store.layout.root) == []


async def test_pins_do_not_hinder_a_runtime(store, service):
    record = await pull(store, ONE, A)
    await service.pin_configured([A])
    await service.pin(A)
    await service.pin(str(record.id))
    assert service.catalog.images()[0].is_pinned
    assert (await service.remove_image(A)).untagged == (A,)
    assert service.catalog.images() == ()
    assert await store.records.images() == []
    # What is configured holds for the next one of that name, and what users wanted does not.
    again = await pull(store, ONE, A)
    assert again.pinned_by == ("config",)


async def test_what_uses_an_image_keeps_its_bytes_and_not_its_name(store, service):
    record = await pull(store, ONE, A, B)
    await store.records.add_volume(volume_of(record))
    before = files_below(store.layout.root)
    report = await service.remove_image(A)
    assert (report.untagged, report.freed) == ((A, B), 0)
    assert service.catalog.images() == ()
    with pytest.raises(NotFound):
        service.catalog.resolve(str(record.id))
    assert files_below(store.layout.root) == before
    # A daemon that starts now finds what it has to mount again.
    assert [image.manifest for image in await store.records.images()] == [record.manifest]
    await store.records.remove_volume("v")
    await service.collect()
    assert files_below(store.layout.root) == []


async def test_a_pull_and_a_removal_at_once_end_in_one_of_two_states(store, service):
    await pull(store, ONE, A)
    for _ in range(12):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pull, store, TWO, A)
            nursery.start_soon(service.remove_image, A)
        listed = [image.repo_tags for image in service.catalog.images()]
        assert listed in ([], [(A,)])
        assert (await reloaded(store.records)).images() == service.catalog.images()
        for image in await store.records.images():
            assert image.names == (A,)
            await store.read_blob(image.manifest)
        await service.remove_image(A)


async def test_a_removal_waits_for_a_pull_that_names_its_image(store, service, monkeypatch):
    await pull(store, ONE, A)
    add, naming, go_on = store.records.add_image, trio.Event(), trio.Event()

    async def add_slowly(*arguments):
        naming.set()
        await go_on.wait()
        return await add(*arguments)

    monkeypatch.setattr(store.records, "add_image", add_slowly)
    reports = []

    async def remove():
        reports.append(await service.remove_image(A))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pull, store, TWO, A)
        await naming.wait()
        nursery.start_soon(remove)
        await trio.testing.wait_all_tasks_blocked()
        assert reports == []
        go_on.set()
    # The pull was first: what it has named is what was removed.
    assert service.catalog.images() == ()
    assert await store.records.images() == []


@pytest.mark.expects_log("is not collected yet: no luck")
async def test_a_collection_that_fails_does_not_undo_a_removal(store, service, monkeypatch, caplog):
    await pull(store, ONE, A)

    async def fail(_self):
        raise LocalError("no luck")

    monkeypatch.setattr(Collector, "collect", fail)
    report = await service.remove_image(A)
    assert (report.untagged, report.freed) == ((A,), 0)
    assert "not collected yet" in caplog.text
    assert service.catalog.images() == ()


async def test_a_user_removes_one_name_and_the_image_with_the_last(store, service):
    record = await pull(store, ONE, A, B)
    report = await service.remove(A)
    assert (report.untagged, report.deleted) == ((A,), ())
    assert service.catalog.resolve(B).repo_tags == (B,)
    report = await service.remove(B)
    assert (report.untagged, report.deleted) == ((B,), (str(record.manifest),))
    assert files_below(store.layout.root) == []


async def test_a_user_removes_by_digest_what_resolved_to_it(store, service):
    record = await pull(store, ONE, A, "example.com/a:2", B)
    report = await service.remove(f"example.com/a@{record.manifest}")
    assert (report.untagged, report.deleted) == ((A, "example.com/a:2"), ())
    assert service.catalog.resolve(str(record.id)).repo_tags == (B,)


async def test_a_user_removes_no_mounted_image(store, service):
    record = await pull(store, ONE, A, B)
    await store.records.add_volume(volume_of(record))
    assert (await service.remove(A)).untagged == (A,)
    for text in (B, str(record.id)):
        with pytest.raises(Conflict, match="mounted"):
            await service.remove(text)
    assert service.catalog.resolve(B).id == record.id


@pytest.mark.parametrize("call", ["find", "remove", "pin", "unpin"])
async def test_what_is_not_here_is_told(service, call):
    for text, error in (("example.com/x:1", NotFound), ("No Name", InvalidReference)):
        with pytest.raises(error):
            await getattr(service, call)(text)


async def test_a_pinned_image_stays_without_a_name_until_it_is_unpinned(store, service):
    record = await pull(store, ONE, A)
    assert (await service.pin(str(record.id))).pinned_by == ("user",)
    report = await service.remove(A)
    assert (report.untagged, report.deleted) == ((A,), ())
    (fate, *_) = await service.explain_collection()
    assert [str(root) for root in fate.reasons] == ["pin by user"]
    assert (await service.unpin(str(record.id))).pinned_by == ()
    await service.collect()
    assert files_below(store.layout.root) == []


async def test_unpinning_ends_every_pin_of_users_and_none_of_the_configuration(store, service):
    record = await pull(store, ONE, A, B)
    await service.pin(A)
    await service.pin(str(record.id))
    await store.records.pin([str(record.manifest)], "rebuild")
    await service.pin_configured([B])
    assert (await service.find(A)).pinned_by == ("config", "rebuild", "user")
    assert (await service.unpin(A)).pinned_by == ("config",)
    await service.pin_configured([])
    assert (await service.find(A)).pinned_by == ()


async def test_what_is_configured_is_pinned_when_it_comes(store, service):
    await service.pin_configured(["example.com/a:1", "busybox"])
    assert (await pull(store, ONE, A)).pinned_by == ("config",)
    assert (await pull(store, TWO, "docker.io/library/busybox:latest")).is_pinned
    assert [image.is_pinned for image in service.catalog.images()] == [True, True]


async def test_names_are_copied_on_every_platform_and_replace_what_was_meant(store, service):
    one = await pull(store, ONE, A)
    arm = replace(one, manifest=Digest.of(b"arm"), id=Digest.of(b"arm config"), platform="arm64")
    await store.records.add_image(arm, A, arm.manifest)
    other = await pull(store, TWO, ELSEWHERE)
    await service.copy_names(
        [(ELSEWHERE, A), ("new.example/x:1", A), ("y.example/x:1", "no.example/x:1")]
    )
    for name in (ELSEWHERE, "new.example/x:1"):
        found = service.catalog.search(name, is_listed=True).images
        assert {image.manifest for image in found} == {one.manifest, arm.manifest}
    assert service.catalog.search("y.example/x:1", is_listed=True).images == ()
    assert store.images.get(other.manifest).names == ()


async def test_pins_are_replaced_as_a_whole_for_one_owner(store, service):
    await pull(store, ONE, A)
    await service.pin(A)
    await service.pin_only([A, B], "preload:/x")
    await service.pin_only([B], "preload:/y")
    assert await service.pin_owners("preload:") == ["preload:/x", "preload:/y"]
    await service.pin_only([], "preload:/x")
    assert await service.pin_owners("preload:") == ["preload:/y"]
    (record,) = await service.list()
    assert record.pinned_by == ("user",)
