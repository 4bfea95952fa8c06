"""Pulling one image from memory: what is stored, what is refused, what is left behind."""

import os
from contextlib import asynccontextmanager

import pytest
import trio

from imgvol import limits
from imgvol.content.store import open_store
from imgvol.errors import (
    DigestMismatch,
    ImgvolError,
    InvalidDocument,
    InvalidLayer,
    LimitExceeded,
    NoMatchingPlatform,
    NotFound,
    Unsupported,
)
from imgvol.images.pull import Puller, PullProgress
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.images.views import Views
from imgvol.oci.digest import Digest
from imgvol.view.paths import resolve
from support import images
from support.sources import MemorySource

BASE = images.Layer(
    [
        images.directory("etc"),
        images.file("etc/motd", b"hello"),
        images.file("big", b"b" * (3 << 20)),
        images.file("gone", b"x"),
    ],
    "gzip",
)
TOP = images.Layer([images.file("etc/motd", b"good bye"), images.whiteout("gone")], "zstd")
PLAIN = images.Layer([images.file("plain", b"p")], "none")
IMAGE = images.Image([BASE, TOP, PLAIN])
NAME = "example.com/test:1"


@asynccontextmanager
async def open_puller(root):
    async with open_store(root) as store:
        yield store, Puller(store)


async def pull(puller, source, name=NAME, progress=None):
    resolved = await resolve_image(source, wanted_platform("linux/amd64"))
    return await puller.pull(source, resolved, name, progress or PullProgress())


def assert_nothing_left(root, *, layers=0):
    assert os.listdir(root / "ingest") == []
    assert len(os.listdir(root / "layers")) == layers


async def test_a_pulled_image_reads_as_its_layers_merged(tmp_path):
    progress = PullProgress()
    async with open_puller(tmp_path) as (store, puller):
        record = await pull(puller, MemorySource(IMAGE), progress=progress)
        assert [layer.state for layer in progress.layers] == ["done"] * 3
        assert [str(layer.digest) for layer in record.layers] == [
            layer.digest for layer in IMAGE.layers
        ]
        assert record.layers[0].unpacked_size == len(BASE.tar)
        assert record.names == (NAME,)
        views = Views(store)
        async with views.hold(record) as view:
            for path, content in [
                (b"/etc/motd", b"good bye"),
                (b"/plain", b"p"),
                (b"/big", b"b" * (3 << 20)),
            ]:
                node = resolve(view.tree, path)
                assert bytes(await view.read(node, 0, 1 << 30)) == content
            with pytest.raises(NotFound):
                resolve(view.tree, b"/gone")
        assert views.by_slot(view.slot) is None, "closed with its last holder"
        assert views.store.pins.snapshot() == {}
    assert_nothing_left(tmp_path, layers=3)


async def test_the_second_start_needs_no_source(tmp_path):
    async with open_puller(tmp_path) as (_, puller):
        first = await pull(puller, MemorySource(IMAGE))
    async with open_puller(tmp_path) as (store, _):
        (again,) = await store.records.images()
        assert again == first
        async with Views(store).hold(again) as view:
            assert view.tree.lookup(view.tree.root, b"plain") is not None


async def test_layers_that_are_here_are_not_fetched_again(tmp_path):
    async with open_puller(tmp_path) as (_, puller):
        await pull(puller, MemorySource(images.Image([BASE])))
        source, progress = MemorySource(IMAGE), PullProgress()
        await pull(puller, source, "example.com/test:2", progress)
        assert Digest.parse(BASE.digest) not in source.opened
        assert progress.layers[0].state == "exists"


async def test_two_pulls_at_once_fetch_a_layer_once(tmp_path):
    async with open_puller(tmp_path) as (_, puller):
        source = MemorySource(IMAGE)
        async with trio.open_nursery() as nursery:
            for tag in range(3):
                nursery.start_soon(pull, puller, source, f"example.com/test:{tag}")
        assert sorted(map(str, source.opened)) == sorted(layer.digest for layer in IMAGE.layers)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        pytest.param(lambda blob: blob[:-20], ImgvolError, id="truncated"),
        pytest.param(lambda blob: blob + b"more", ImgvolError, id="longer"),
        pytest.param(
            lambda blob: blob[:500] + bytes([blob[500] ^ 1]) + blob[501:], ImgvolError, id="flipped"
        ),
        pytest.param(
            lambda _: images.Layer([images.file("other")]).blob, DigestMismatch, id="another"
        ),
    ],
)
async def test_a_blob_that_is_not_what_was_promised_leaves_nothing(tmp_path, damage, error):
    source = MemorySource(images.Image([BASE]))
    source.blobs[BASE.digest] = damage(BASE.blob)
    async with open_puller(tmp_path) as (store, puller):
        with pytest.raises(error):
            await pull(puller, source)
        assert await store.records.images() == []
        assert await store.records.layers() == []
    assert_nothing_left(tmp_path)


async def test_a_wrong_diff_id_leaves_nothing(tmp_path):
    layer = images.Layer([images.file("x", b"x")])
    layer.diff_id = images.sha256(b"something else")
    async with open_puller(tmp_path) as (_, puller):
        with pytest.raises(DigestMismatch, match="diff ID"):
            await pull(puller, MemorySource(images.Image([layer])))
    assert_nothing_left(tmp_path)


async def test_one_bad_layer_cancels_the_others(tmp_path):
    bad = images.Layer(b"not a tar" * 1000)
    async with open_puller(tmp_path) as (store, puller):
        with pytest.raises(InvalidLayer):
            await pull(puller, MemorySource(images.Image([BASE, bad]), piece=10))
        assert await store.records.images() == []
    assert os.listdir(tmp_path / "ingest") == []


async def test_a_bomb_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "TAR_SIZE", 2 << 20)
    bomb = images.Layer([images.file("zeros", bytes(8 << 20))], "zstd")
    assert len(bomb.blob) < 4096
    async with open_puller(tmp_path) as (_, puller):
        with pytest.raises(LimitExceeded):
            await pull(puller, MemorySource(images.Image([bomb])))
    assert_nothing_left(tmp_path)


@pytest.mark.fault("F90")
async def test_a_cancelled_pull_ends_at_once_and_leaves_nothing(tmp_path):
    reached = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def stall(position: int) -> None:
        if position > 0:
            token.run_sync_soon(reached.set)
            for _ in range(2000):
                if source.readers[0].is_cancelled:
                    return
                import time

                time.sleep(0.005)

    source = MemorySource(images.Image([BASE]), on_piece=stall)
    async with open_puller(tmp_path) as (_, puller):
        with trio.fail_after(8):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pull, puller, source)
                await reached.wait()
                nursery.cancel_scope.cancel()
        assert source.readers[0].is_cancelled
    assert_nothing_left(tmp_path)


async def test_config_and_manifest_must_agree_on_layers(tmp_path):
    class Short(images.Image):
        def config_bytes(self):
            return images.Image([BASE]).config_bytes()

    async with open_puller(tmp_path) as (_, puller):
        with pytest.raises(InvalidDocument, match="number of layers"):
            await pull(puller, MemorySource(Short([BASE, TOP])))


async def test_an_image_without_index_must_fit_only_a_platform_that_was_asked_for():
    source = MemorySource(images.Image([BASE], architecture="s390x"))
    wanted = wanted_platform("linux/amd64")
    resolved = await resolve_image(source, wanted)
    assert resolved.platform == "linux/s390x"
    with pytest.raises(NoMatchingPlatform) as caught:
        await resolve_image(source, wanted, must_match=True)
    assert "linux/s390x" in caught.value.hint


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
async def test_compressed_bytes_under_the_plain_type_are_read(tmp_path, compression):
    layer = images.Layer([images.file("x", b"x")], compression)
    layer.media_type = "application/vnd.oci.image.layer.v1.tar"
    async with open_puller(tmp_path) as (_, puller):
        record = await pull(puller, MemorySource(images.Image([layer])))
    assert record.layers[0].entries == 1


async def test_a_compression_that_nobody_can_read_is_named(tmp_path):
    layer = images.Layer([images.file("x", b"x")], "none")
    layer.blob = b"BZh91AY&SY" + bytes(100)
    layer.digest, layer.size = images.sha256(layer.blob), len(layer.blob)
    async with open_puller(tmp_path) as (_, puller):
        with pytest.raises(Unsupported, match="bzip2"):
            await pull(puller, MemorySource(images.Image([layer])))
    assert_nothing_left(tmp_path)


async def test_a_platform_that_an_index_does_not_have_is_named(tmp_path):
    manifest = IMAGE.manifest_bytes()
    index = images.to_json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [
                {
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": images.sha256(manifest),
                    "size": len(manifest),
                    "platform": {"os": "linux", "architecture": "s390x"},
                }
            ],
        }
    )
    source = MemorySource(IMAGE)
    source.blobs[images.sha256(index)] = index

    async def top():
        from imgvol.oci.descriptor import Descriptor
        from imgvol.oci.media_types import OCI_INDEX

        return Descriptor(media_type=OCI_INDEX, digest=Digest.of(index), size=len(index))

    source.resolve = top
    with pytest.raises(NoMatchingPlatform) as caught:
        await resolve_image(source, wanted_platform("linux/amd64"))
    assert "linux/s390x" in caught.value.hint
    resolved = await resolve_image(source, wanted_platform("linux/s390x"))
    assert resolved.manifest.raw == manifest
