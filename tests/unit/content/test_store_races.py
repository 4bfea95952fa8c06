"""Two tasks at one layer, one document, one file: what one does must not harm the other."""

import errno
import os
import shutil
from dataclasses import replace

import pytest
import trio
import trio.testing

from imgvol.content import exchange
from imgvol.content.layer_writer import LayerWriter
from imgvol.content.layout import StoreLayout
from imgvol.content.records import VolumeRecord
from imgvol.content.store import open_store
from imgvol.errors import LocalError, NotFound
from imgvol.images.collection import Collector
from imgvol.images.pull import Puller, PullProgress
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.oci.digest import Digest
from support import images
from support.records import image_record, layer_record, record_of
from support.sources import MemorySource

LAYER = images.Layer([images.file("big", b"b" * (2 << 20)), images.file("x", b"x")], "gzip")
IMAGE = images.Image([LAYER])


async def pull(puller, name="example.com/a:1"):
    source = MemorySource(IMAGE)
    resolved = await resolve_image(source, wanted_platform("linux/amd64"))
    return await puller.pull(source, resolved, name, PullProgress())


@pytest.fixture
def layout(tmp_path) -> StoreLayout:
    layout = StoreLayout(tmp_path)
    for directory in layout.directories():
        directory.mkdir(exist_ok=True)
    return layout


def test_what_a_layer_replaces_does_not_stay(layout, means):
    digest = Digest.of(b"layer")
    for content in (b"old", b"new"):
        with LayerWriter(layout) as writer:
            writer.write(content, 0)
            writer.publish(record_of(digest), b"index", [])
    assert (layout.layer(digest) / "data").read_bytes() == b"new"
    assert os.listdir(layout.ingest) == []


@pytest.fixture(params=["exchange", "renames", "no renameat2"])
def means(request, monkeypatch) -> str:
    """What the filesystem and the C library offer."""

    def unsupported(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    if request.param == "renames":
        monkeypatch.setattr(exchange, "exchange", unsupported)
    elif request.param == "no renameat2":
        monkeypatch.setattr(exchange, "_libc", None)
    return request.param


def test_of_two_equal_layers_published_at_once_one_stays(layout, means, monkeypatch):
    place = layout.layer(Digest.of(b"layer"))
    rename = os.rename
    outran = []

    def outrun(source, target):
        # Between looking for an old one and putting its own there.
        if target == place and len(outran) < 2:
            outran.append(source)
            place.mkdir(exist_ok=True)
            (place / "data").write_bytes(b"same")
        rename(source, target)

    monkeypatch.setattr(os, "rename", outrun)
    with LayerWriter(layout) as writer:
        writer.write(b"same", 0)
        writer.publish(record_of(Digest.of(b"layer")), b"index", [])
    assert outran
    assert (place / "index").read_bytes() == b"index", "ours"
    assert (place / "data").read_bytes() == b"same"
    assert os.listdir(layout.ingest) == []


def test_a_layer_that_is_replaced_is_never_away(layout, monkeypatch):
    """Killed between any two system calls, the one or the other is there."""
    digest = Digest.of(b"layer")
    place = layout.layer(digest)
    seen = []

    def watched(call):
        def watching(*arguments, **keywords):
            seen.append((place / "data").exists())
            result = call(*arguments, **keywords)
            seen.append((place / "data").exists())
            return result

        return watching

    def publish(content):
        with LayerWriter(layout) as writer:
            writer.write(content, 0)
            writer.publish(record_of(digest), b"index", [])

    publish(b"old")
    for module, name in [(os, "rename"), (exchange, "exchange"), (shutil, "rmtree")]:
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    publish(b"new")
    assert len(seen) >= 4
    assert all(seen)
    assert (place / "data").read_bytes() == b"new"


def test_what_is_in_the_way_may_go_in_that_moment(layout, monkeypatch):
    digest = Digest.of(b"layer")
    place = layout.layer(digest)
    (place / "x").mkdir(parents=True)
    swap = exchange.exchange

    def gone(one, other):
        shutil.rmtree(other)
        swap(one, other)

    monkeypatch.setattr(exchange, "exchange", gone)
    with LayerWriter(layout) as writer:
        writer.publish(record_of(digest), b"index", [])
    assert (place / "index").read_bytes() == b"index"
    assert os.listdir(layout.ingest) == []


def test_a_failing_rename_is_told(layout, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    (layout.layer(Digest.of(b"layer")) / "x").mkdir(parents=True)
    monkeypatch.setattr(exchange, "exchange", fail)
    with LayerWriter(layout) as writer, pytest.raises(LocalError):
        writer.publish(record_of(Digest.of(b"layer")), b"index", [])


async def test_a_shared_file_that_is_collected_in_that_moment_is_simply_not_shared(
    tmp_path, monkeypatch
):
    link = os.link

    def collected(source, target):
        if "sha256" in str(target):
            raise FileExistsError(17, "File exists")  # and it has gone before anybody looks
        link(source, target)

    monkeypatch.setattr(os, "link", collected)
    async with open_store(tmp_path) as store:
        record = await pull(Puller(store))
        (layer,) = record.layers
        opened = await store.open_layer(layer)
        node = opened.index.child(0, b"big")
        assert bytes(await opened.read(node, 0, 10)) == b"b" * 10


async def test_pulling_again_repairs_a_document_that_has_changed_on_disk(tmp_path):
    data = b"document"
    digest = Digest.of(data)
    async with open_store(tmp_path) as store:
        await store.put_blob(digest, data)
        (tmp_path / "blobs" / "sha256" / digest.encoded).write_bytes(b"damaged!")
        await store.put_blob(digest, data)
        assert await store.read_blob(digest) == data


async def test_documents_of_a_pull_under_way_are_not_collected(tmp_path, monkeypatch):
    async with open_store(tmp_path) as store:
        puller = Puller(store)
        stored, go_on = trio.Event(), trio.Event()
        add_image = store.records.add_image

        async def slow(*arguments):
            stored.set()
            await go_on.wait()
            return await add_image(*arguments)

        monkeypatch.setattr(store.records, "add_image", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pull, puller)
            await stored.wait()
            nursery.start_soon(Collector(store).collect)
            await trio.testing.wait_all_tasks_blocked(0.05)
            go_on.set()
        (image,) = await store.records.images()
        await store.read_blob(image.manifest)
        await store.read_blob(image.id)


async def test_an_image_that_was_removed_while_it_was_mounted_is_not_in_use(tmp_path):
    image = image_record([layer_record("a")])
    volume = VolumeRecord(
        id="v",
        sandbox="cli",
        image="x",
        manifest=image.manifest,
        target=None,
        options="{}",
        patience=0.0,
        view_id=image.view_id,
        created_at=1.0,
        boot_id="b",
    )
    async with open_store(tmp_path) as store:
        with pytest.raises(NotFound):
            await store.records.add_volume(volume)
        layer = await store.records.add_layer(layer_record("a"))
        await store.records.add_image(replace(image, layers=(layer,)), "x", image.manifest)
        await store.records.add_volume(volume)
        assert len(await store.records.volumes()) == 1
