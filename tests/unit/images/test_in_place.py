"""Which layers of layouts and archives stay where they are, and what becomes of them later."""

import gzip
import os
from contextlib import asynccontextmanager

import pytest

from imgvol.content.place import PlacedFile
from imgvol.content.store import open_store
from imgvol.errors import DigestMismatch, InvalidLayer, StoreDamaged
from imgvol.images.leases import Leases
from imgvol.images.pull import PullProgress
from imgvol.images.readiness import Readiness
from imgvol.images.service import ImageService, PullOptions
from imgvol.images.status import layer_status
from imgvol.images.views import Views
from imgvol.view.paths import resolve
from support import images

LARGE = bytes(range(256)) * 8192
PLAIN = images.Layer([images.directory("etc"), images.file("large", LARGE)], "none")
SECOND = images.Layer([images.file("etc/second", b"2")], "none")
PACKED = images.Layer([images.file("etc/packed", b"packed"), images.file("more", LARGE)], "gzip")
IMAGE = images.Image([PLAIN, PACKED, SECOND])
WRITERS = {
    "oci": lambda path: images.write_layout(path, {"v1": IMAGE}),
    "oci-archive": lambda path: images.write_oci_archive(path, {"v1": IMAGE}),
    "docker-archive": lambda path: images.write_docker_archive(path, IMAGE, "app:v1"),
}


@asynccontextmanager
async def open_service(root):
    async with open_store(root) as store:
        views = Views(store)
        yield ImageService(store, views, leases=Leases(store.records)), views, store


async def pull(service, name, readiness=Readiness.LAZY):
    progress = PullProgress()
    record = await service.pull(
        name, platform="linux/amd64", options=PullOptions(), progress=progress, readiness=readiness
    )
    return record, [layer.state for layer in progress.layers]


async def content(views, record, path=b"/large"):
    async with views.hold(record) as view:
        return bytes(await view.read(resolve(view.tree, path), 0, 1 << 30))


def formats(record):
    return [layer.format for layer in record.layers]


@pytest.fixture(params=WRITERS)
def kind(request):
    return request.param


@pytest.fixture
def source(kind, tmp_path):
    return WRITERS[kind](tmp_path / "source")


async def test_plain_layers_stay_and_packed_ones_are_copied(tmp_path, kind, source):
    name = f"{kind}:{source}"
    async with open_service(tmp_path / "root") as (service, views, store):
        record, states = await pull(service, name)
        # A docker-archive has no compressed layers.
        packed = "in place" if kind == "docker-archive" else "tar"
        assert formats(record) == ["in place", packed, "in place"]
        assert states == ["done"] * 3
        assert record.is_complete
        assert record.view_id == record.chain_id
        assert not record.is_stored
        for path, expected in [(b"/large", LARGE), (b"/more", LARGE), (b"/etc/second", b"2")]:
            assert await content(views, record, path) == expected
        async with views.hold(record) as view:
            status = layer_status(view.layers[0], record.layers[0])
        assert (status.format, status.state, status.present) == ("in place", "complete", PLAIN.size)
        if kind == "docker-archive":
            assert (await store.usage()).layers_size < 100_000
    async with open_service(tmp_path / "root") as (service, views, _):
        again, states = await pull(service, name)
        assert states == ["exists"] * 3
        assert again.layers == record.layers
        assert await content(views, again) == LARGE


async def test_layers_that_are_verified_where_they_lie_are_verified_enough(tmp_path, kind, source):
    name = f"{kind}:{source}"
    async with open_service(tmp_path / "root") as (service, _, _):
        record, _ = await pull(service, name, Readiness.VERIFIED)
        assert "in place" in formats(record)
        assert Readiness.VERIFIED.is_met_by(record)
        assert not Readiness.STORED.is_met_by(record)
        _, states = await pull(service, name, Readiness.VERIFIED)
        assert states == ["exists"] * 3


async def test_a_later_pull_copies_and_a_later_mount_takes_the_copy(tmp_path, kind, source):
    name = f"{kind}:{source}"
    async with open_service(tmp_path / "root") as (service, views, _):
        first, _ = await pull(service, name)
        async with views.hold(first) as view:
            copied, _ = await pull(service, name, Readiness.STORED)
            assert formats(copied) == ["tar"] * 3
            assert copied.is_stored
            assert [r.slot for r in copied.layers] == [r.slot for r in first.layers]
            node = resolve(view.tree, b"/large")
            assert bytes(await view.read(node, 0, 1 << 30)) == LARGE, "open views go on"
            assert resolve(view.tree, b"/etc/second")
        assert os.listdir(tmp_path / "root" / "places") == []
        os.rename(source, tmp_path / "gone")
        assert await content(views, copied) == LARGE
        os.rename(tmp_path / "gone", source)
        _, states = await pull(service, name)
        assert states == ["exists"] * 3


async def test_a_layer_that_is_copied_while_its_view_is_opened_is_opened_where_it_is_then(
    tmp_path, monkeypatch
):
    name = f"oci:{images.write_layout(tmp_path / 'source', {'v1': IMAGE})}"
    async with open_service(tmp_path / "root") as (service, views, store):
        record, _ = await pull(service, name)
        open_there = store.open_in_place_layer

        async def copied_first(layer):
            monkeypatch.undo()
            await pull(service, name, Readiness.STORED)
            assert await store.records.place(layer) is None
            return await open_there(layer)

        monkeypatch.setattr(store, "open_in_place_layer", copied_first)
        assert await content(views, record) == LARGE


async def test_removing_the_image_forgets_the_places_and_leaves_the_archive(tmp_path):
    archive = images.write_docker_archive(tmp_path / "a.tar", IMAGE, "app:v1")
    before = archive.read_bytes()
    name = f"docker-archive:{archive}"
    async with open_service(tmp_path / "root") as (service, _, store):
        await pull(service, name)
        report = await service.remove(name)
        assert report.freed > 0
        assert await store.records.layers() == []
        assert os.listdir(tmp_path / "root" / "places") == []
    assert archive.read_bytes() == before


@pytest.mark.parametrize("packing", [gzip.compress])
async def test_layers_of_a_packed_archive_are_copied(tmp_path, packing):
    archive = images.write_docker_archive(tmp_path / "a.tar", IMAGE, "app:v1")
    archive.write_bytes(packing(archive.read_bytes()))
    async with open_service(tmp_path / "root") as (service, views, _):
        record, _ = await pull(service, f"docker-archive:{archive}")
        assert formats(record) == ["tar"] * 3
        assert await content(views, record) == LARGE


async def test_a_type_that_says_plain_over_packed_bytes_is_copied(tmp_path):
    layer = images.Layer([images.file("large", LARGE)], "gzip")
    layer.media_type = PLAIN.media_type
    layout = images.write_layout(tmp_path / "l", {"v1": images.Image([layer])})
    async with open_service(tmp_path / "root") as (service, views, _):
        record, _ = await pull(service, f"oci:{layout}")
        assert formats(record) == ["tar"]
        assert await content(views, record) == LARGE


async def test_a_name_that_is_a_link_is_followed_once_and_kept_as_what_it_leads_to(tmp_path):
    archive = images.write_docker_archive(tmp_path / "a.tar", IMAGE, "app:v1")
    link = tmp_path / "link.tar"
    link.symlink_to("a.tar")
    async with open_service(tmp_path / "root") as (service, views, store):
        record, _ = await pull(service, f"docker-archive:{link}")
        link.unlink()
        place = await store.records.place(record.layers[0])
        assert place.path == os.fsencode(archive)
        assert await content(views, record) == LARGE


async def test_bytes_that_are_not_what_the_image_promises_are_refused(tmp_path):
    good = images.Layer([images.file("large", LARGE)], "none")
    bad = images.Layer([images.file("large", LARGE)], "none")
    bad.diff_id = images.sha256(b"something else")
    layout = images.write_layout(tmp_path / "l", {"v1": images.Image([bad])})
    async with open_service(tmp_path / "root") as (service, _, store):
        with pytest.raises(DigestMismatch, match="diff ID"):
            await pull(service, f"oci:{layout}")
        assert await store.records.layers() == []
        images.write_layout(tmp_path / "m", {"v1": images.Image([good])})
        blob = tmp_path / "m/blobs/sha256" / good.digest.partition(":")[2]
        blob.write_bytes(good.blob.replace(LARGE[:256], LARGE[:255] + b"x", 1))
        with pytest.raises(DigestMismatch, match="its digest"):
            await pull(service, f"oci:{tmp_path / 'm'}")
        assert await store.records.layers() == []


async def test_a_file_that_changes_while_it_is_verified_is_copied(tmp_path, monkeypatch):
    layout = images.write_layout(tmp_path / "l", {"v1": images.Image([PLAIN])})
    blob = layout / "blobs/sha256" / PLAIN.digest.partition(":")[2]
    iter_pieces = PlacedFile.iter_pieces

    def touch_and_iter(self, offset, size):
        os.utime(blob)
        return iter_pieces(self, offset, size)

    monkeypatch.setattr(PlacedFile, "iter_pieces", touch_and_iter)
    async with open_service(tmp_path / "root") as (service, views, _):
        record, _ = await pull(service, f"oci:{layout}")
        assert formats(record) == ["tar"]
        assert await content(views, record) == LARGE


async def test_what_is_no_tar_is_refused_and_nothing_is_left(tmp_path):
    layer = images.Layer(b"not a tar" * 1000, "none")
    layout = images.write_layout(tmp_path / "l", {"v1": images.Image([layer])})
    async with open_service(tmp_path / "root") as (service, _, store):
        with pytest.raises(InvalidLayer):
            await pull(service, f"oci:{layout}")
        assert await store.records.layers() == []


async def test_an_archive_made_anew_is_a_new_image_and_one_copied_over_is_looked_at_again(tmp_path):
    archive = images.write_docker_archive(tmp_path / "a.tar", IMAGE, "app:v1")
    name = f"docker-archive:{archive}"
    async with open_service(tmp_path / "root") as (service, views, _):
        first, _ = await pull(service, name)
        assert await service.is_current(name, first)
        # The same bytes in another inode.
        archive.with_name("copy").write_bytes(archive.read_bytes())
        os.replace(archive.with_name("copy"), archive)
        assert not await service.is_current(name, first)
        with pytest.raises(StoreDamaged):
            await content(views, first)
        same, states = await pull(service, name)
        assert states == ["done"] * 3
        assert same.manifest == first.manifest
        assert await content(views, same) == LARGE
        other = images.Image([images.Layer([images.file("large", b"new")], "none")])
        images.write_docker_archive(archive, other, "app:v1")
        new, _ = await pull(service, name)
        assert await content(views, new) == b"new"
