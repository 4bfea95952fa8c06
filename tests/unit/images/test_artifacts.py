"""Pulling artifacts, and images whose configs know nothing of their layers."""

import json
import os
from contextlib import asynccontextmanager

import pytest
import trio

from imgvol.content.records import LayerRecord
from imgvol.content.store import open_store
from imgvol.errors import DigestMismatch, InvalidLayer, NoMatchingPlatform, RegistryUnavailable
from imgvol.images import inspection
from imgvol.images.pull import Puller, PullProgress
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.images.views import Views
from imgvol.layers.index import NodeType
from imgvol.oci.digest import DiffID, Digest
from support import images
from support.artifacts import MANIFEST, Artifact, Blob
from support.sources import MemorySource

LARGE = b"L" * (1 << 20) + b"arge"
DEEP = f"{'d' * 120}/deep"
ARTIFACT = Artifact(
    [
        Blob(b"hello", "greeting.txt"),
        Blob(LARGE, "models/large"),
        Blob(b"untitled"),
        Blob(b"", "empty"),
        Blob(b"p" * 512, DEEP),
        Blob(LARGE, "models/again"),
    ],
    annotations={"org.opencontainers.image.created": "2024-01-02T03:04:05.678Z"},
)
UNTITLED = Blob(b"untitled").digest.replace(":", "-")
NAME = "example.com/thing:1"


@asynccontextmanager
async def open_puller(root):
    async with open_store(root) as store:
        yield store, Puller(store)


async def pull(puller, source, name=NAME, progress=None):
    resolved = await resolve_image(source, wanted_platform("linux/amd64"))
    return await puller.pull(source, resolved, name, progress or PullProgress())


async def contents(store, record):
    found = {}
    async with Views(store).hold(record) as view:
        for entry in inspection.list_entries(view, b"/", recursive=True):
            if entry.type is NodeType.FILE:
                pieces = [piece async for piece in inspection.iter_content(view, entry.path)]
                found[entry.path.decode()] = b"".join(pieces)
    return found


async def test_an_artifact_shows_its_blobs_as_they_are(tmp_path):
    async with open_puller(tmp_path) as (store, puller):
        record = await pull(puller, MemorySource(ARTIFACT))
        assert await contents(store, record) == {
            "/greeting.txt": b"hello",
            "/models/large": LARGE,
            "/models/again": LARGE,
            f"/{UNTITLED}": b"untitled",
            "/empty": b"",
            f"/{DEEP}": b"p" * 512,
        }
        async with Views(store).hold(record) as view:
            entries = {
                e.path.decode(): e for e in inspection.list_entries(view, b"/", recursive=True)
            }
    for entry in entries.values():
        is_directory = entry.type is NodeType.DIRECTORY
        assert entry.mode == (0o555 if is_directory else 0o444), entry.path
        assert (entry.uid, entry.gid, entry.mtime_ns) == (0, 0, 1704164645 * 10**9)
    assert set(entries) >= {"/", "/models", f"/{'d' * 120}"}
    assert entries["/models/large"].ino == entries["/models/again"].ino
    assert os.listdir(tmp_path / "ingest") == []


async def test_an_artifact_without_a_time_is_of_the_epoch(tmp_path):
    for number, annotations in enumerate([{}, {"org.opencontainers.image.created": "né"}]):
        async with open_puller(tmp_path / str(number)) as (store, puller):
            artifact = Artifact([Blob(b"x", "x")], annotations=annotations)
            record = await pull(puller, MemorySource(artifact))
            async with Views(store).hold(record) as view:
                listed = inspection.list_entries(view, b"/", recursive=True)
                assert {entry.mtime_ns for entry in listed} == {0}


async def test_an_artifact_has_its_manifest_for_an_identity(tmp_path):
    async with open_puller(tmp_path) as (store, puller):
        record = await pull(puller, MemorySource(ARTIFACT))
        assert record.is_artifact
        assert record.id == record.manifest == Digest.of(ARTIFACT.manifest_bytes())
        other = await pull(puller, MemorySource(Artifact([Blob(b"o", "o")])), "example.com/o:1")
        assert other.id != record.id
        assert record.is_stored
        (layer,) = record.layers
        assert record.chain_id == layer.diff_id != layer.digest
        assert await store.records.images() == [other, record]
    async with open_puller(tmp_path) as (store, _):
        again = await store.records.image(record.manifest)
        assert again == record
        assert (await contents(store, again))["/greeting.txt"] == b"hello"


async def test_what_is_here_is_not_fetched_again(tmp_path):
    async with open_puller(tmp_path) as (_, puller):
        source, progress = MemorySource(ARTIFACT), PullProgress()
        await pull(puller, source)
        fetched = list(source.opened)
        assert len(fetched) == len(set(fetched)) == 5, "what has two names is fetched once"
        await pull(puller, source, "example.com/thing:2", progress)
        assert source.opened == fetched
        assert [layer.state for layer in progress.layers] == ["exists"]


async def test_what_a_lazy_layer_claims_to_be_is_no_artifact(tmp_path):
    async with open_puller(tmp_path) as (store, puller):
        source = MemorySource(ARTIFACT)
        resolved = await resolve_image(source, wanted_platform("linux/amd64"))
        claimed = LayerRecord(
            digest=resolved.layers[0].digest,
            diff_id=DiffID(Digest.of(b"claimed")),
            media_type="application/vnd.oci.image.layer.v1.tar+gzip",
            size=1,
            unpacked_size=1,
            entries=1,
            format="eStargz",
            is_complete=False,
        )
        await store.records.add_layer(claimed)
        record = await pull(puller, source)
        assert record.is_stored
        assert (await contents(store, record))["/greeting.txt"] == b"hello"


async def test_large_blobs_are_shared_with_other_artifacts_and_images(tmp_path):
    image = images.Image([images.Layer([images.file("large", LARGE)], "gzip")])
    async with open_puller(tmp_path) as (_, puller):
        await pull(puller, MemorySource(ARTIFACT))
        await pull(puller, MemorySource(image), "example.com/image:1")
    shared = tmp_path / "files" / "sha256" / Digest.of(LARGE).hex
    assert shared.stat().st_nlink == 3


@pytest.mark.parametrize("served", [b"hellO", b"hell", b"hello!", b""])
async def test_a_blob_that_is_not_the_promised_one_leaves_nothing(tmp_path, served):
    async with open_puller(tmp_path) as (store, puller):
        source = MemorySource(ARTIFACT)
        source.blobs[ARTIFACT.layers[0].digest] = served
        with pytest.raises(DigestMismatch):
            await pull(puller, source)
        assert await store.records.images() == await store.records.layers() == []
        assert os.listdir(tmp_path / "ingest") == os.listdir(tmp_path / "layers") == []


async def test_a_pull_that_is_cancelled_leaves_nothing(tmp_path):
    async with open_puller(tmp_path) as (store, puller):
        with trio.CancelScope() as scope:
            source = MemorySource(
                ARTIFACT, on_piece=lambda _: trio.from_thread.run_sync(scope.cancel)
            )
            await pull(puller, source)
        assert scope.cancelled_caught
        assert await store.records.layers() == []
        assert os.listdir(tmp_path / "ingest") == []


async def test_a_registry_that_fails_is_told_as_it_is(tmp_path):
    def fail(_position):
        raise RegistryUnavailable("gone")

    async with open_puller(tmp_path) as (_, puller):
        with pytest.raises(RegistryUnavailable, match="gone"):
            await pull(puller, MemorySource(ARTIFACT, on_piece=fail))


async def test_a_name_means_an_image_or_an_artifact_not_both(tmp_path):
    image = images.Image([images.Layer([images.file("f", b"f")], "gzip")])
    async with open_puller(tmp_path) as (store, puller):
        for wanted in (image, ARTIFACT, image):
            record = await pull(puller, MemorySource(wanted))
            assert [image for image in store.images if NAME in image.names] == [record]


def index_of(*entries):
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": list(entries),
        }
    ).encode()


def entry_of(document, **members):
    digest = str(Digest.of(document))
    return {"mediaType": MANIFEST, "digest": digest, "size": len(document), **members}


class IndexedSource(MemorySource):
    """The image behind an index of these entries."""

    def with_index(self, *entries):
        self.blobs[str(Digest.of(self.manifest))] = self.manifest
        self.manifest = index_of(*entries)
        self.blobs[str(Digest.of(self.manifest))] = self.manifest
        return self

    async def resolve(self):
        top = await super().resolve()
        return type(top)(
            media_type="application/vnd.oci.image.index.v1+json", digest=top.digest, size=top.size
        )


async def test_an_artifact_beside_images_of_other_platforms_is_not_taken_for_one():
    artifact = entry_of(ARTIFACT.manifest_bytes())
    foreign = entry_of(b"x", platform={"os": "linux", "architecture": "s390x"})
    amd64 = {"os": "linux", "architecture": "amd64"}
    source = IndexedSource(ARTIFACT).with_index(artifact, foreign)
    with pytest.raises(NoMatchingPlatform):
        await resolve_image(source, wanted_platform("linux/amd64"))
    for entries in ([artifact], [{**artifact, "platform": amd64}, foreign]):
        resolved = await resolve_image(
            IndexedSource(ARTIFACT).with_index(*entries), wanted_platform("linux/amd64")
        )
        assert resolved.artifact is not None


class SilentImage(images.Image):
    """An image as ORAS pushes one: the config has a platform and no diff IDs."""

    def config_bytes(self):
        return b'{"architecture":"amd64","os":"linux"}'


LAYERS = [
    images.Layer([images.file("a", b"1"), images.file("b", b"2")], "gzip"),
    images.Layer([images.file("a", b"3"), images.whiteout("b")], "none"),
]


async def test_diff_ids_that_nobody_has_told_are_found_out(tmp_path):
    async with open_puller(tmp_path) as (store, puller):
        silent = await pull(puller, MemorySource(SilentImage(LAYERS)))
        assert await contents(store, silent) == {"/a": b"3"}
        telling = await pull(puller, MemorySource(images.Image(LAYERS)), "example.com/thing:2")
        assert [str(layer.diff_id) for layer in silent.layers] == [
            layer.diff_id for layer in LAYERS
        ]
        assert silent.chain_id == telling.chain_id == silent.view_id
        assert silent.layers == telling.layers


async def test_what_is_no_tar_is_refused_in_an_image_even_without_diff_ids(tmp_path):
    layers = [Blob(b"plain text, of the type that ORAS gives it", "notes.txt")]
    config = b'{"architecture":"amd64","os":"linux"}'
    artifact = Artifact(
        layers, config=config, config_type="application/vnd.oci.image.config.v1+json"
    )
    async with open_puller(tmp_path) as (_, puller):
        with pytest.raises(InvalidLayer):
            await pull(puller, MemorySource(artifact))
