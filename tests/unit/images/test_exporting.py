"""What goes out of the store: the same tars, proven on their way, or nothing that is an archive."""

import json
import os
import tarfile
from dataclasses import replace

import pytest

from imgvol.errors import Conflict, InvalidArgument, NotFound, StoreDamaged, Unsupported
from imgvol.images.exporting import ExportProgress
from imgvol.images.pull import PullProgress
from support.bundles import Bundle
from support.images import OCI, Image, Layer, directory, file, sha256, to_json
from support.importing import open_service

LARGE = bytes(range(256)) * 8192
BASE = Layer([directory("etc"), file("etc/a", b"a"), file("large", LARGE)], "none")
TOP = Layer([file("etc/b", b"b")], "none")
ONE = Image([BASE, TOP, BASE])
APP = "docker.io/library/app:1"


async def filled(service, path, *, link=False):
    bundle = Bundle()
    bundle.list(bundle.manifest(ONE), APP)
    archive = bundle.write(path)
    await service.importer.import_archive(str(archive), link=link, progress=PullProgress())


async def export(service, path, *images, **options):
    progress = ExportProgress()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        found = await service.exporter.export(images, descriptor, progress=progress, **options)
    finally:
        os.close(descriptor)
    return found, progress


def members(path):
    with tarfile.open(path) as archive:
        return {info.name: archive.extractfile(info).read() for info in archive if info.isfile()}


@pytest.mark.parametrize("link", [False, True])
async def test_layers_are_the_very_tars_each_written_once(tmp_path, link):
    async with open_service(tmp_path / "store") as (service, _):
        await filled(service, tmp_path / "a.tar", link=link)
        (image,), progress = await export(service, tmp_path / "out.tar", "app:1")
    found = members(tmp_path / "out.tar")
    for layer in (BASE, TOP):
        assert found[f"blobs/sha256/{layer.diff_id.partition(':')[2]}"] == layer.tar
    assert progress.written == progress.total == len(BASE.tar) + len(TOP.tar)
    (item,) = json.loads(found["manifest.json"])
    assert item["RepoTags"] == ["app:1"]
    assert [sha256(found[name]) for name in item["Layers"]] == [
        layer.diff_id for layer in ONE.layers
    ]
    assert found[item["Config"]] == ONE.config_bytes()
    assert (str(image.id), image.is_changed, image.names) == (
        sha256(ONE.config_bytes()),
        False,
        (APP,),
    )
    (entry,) = json.loads(found["index.json"])["manifests"]
    assert (
        entry["digest"]
        == str(image.manifest)
        == sha256(found[f"blobs/sha256/{image.manifest.encoded}"])
    )
    assert entry["annotations"] == {
        "io.containerd.image.name": APP,
        "org.opencontainers.image.ref.name": "1",
    }


@pytest.mark.parametrize("link", [False, True])
async def test_bytes_that_have_changed_make_no_archive(tmp_path, link):
    async with open_service(tmp_path / "store") as (service, store):
        await filled(service, tmp_path / "a.tar", link=link)
        place = tmp_path / "a.tar"
        if not link:
            (place,) = store.layout.layer(store_digest(BASE)).glob("files/*")
        with open(place, "r+b") as changed:
            position = place.read_bytes().index(LARGE[:4096])
            changed.seek(position + 1000)
            changed.write(b"other bytes")
        with pytest.raises(StoreDamaged):
            await export(service, tmp_path / "out.tar", "app:1")
    with pytest.raises((tarfile.ReadError, KeyError)):
        members(tmp_path / "out.tar")["index.json"]


def store_digest(layer):
    from imgvol.oci.digest import Digest

    return Digest.parse(layer.digest)


async def test_what_cannot_go_out(tmp_path):
    bundle = Bundle()
    empty = bundle.blob(b"{}", "application/vnd.oci.empty.v1+json")
    data = bundle.blob(b"data", "application/vnd.data")
    kind = f"{OCI}.manifest.v1+json"
    document = {"schemaVersion": 2, "mediaType": kind, "config": empty, "layers": [data]}
    bundle.list(bundle.blob(to_json(document), kind), "example.com/artifact:1")
    archive = str(bundle.write(tmp_path / "artifact.tar"))
    async with open_service(tmp_path / "store") as (service, store):
        await service.importer.import_archive(archive, progress=PullProgress())
        await filled(service, tmp_path / "a.tar")
        for images, error in [
            ((), InvalidArgument),
            (("none:1",), NotFound),
            (("app:1", "example.com/artifact:1"), Unsupported),
        ]:
            with pytest.raises(error):
                await export(service, tmp_path / "out.tar", *images)
            assert (tmp_path / "out.tar").read_bytes() == b""
        # As a lazy layer is recorded, of which not everything is here.
        image = await service.find("app:1")
        await store.records.add_layer(replace(image.layers[0], is_complete=False, format="x"))
        with pytest.raises(Conflict, match="not all of the image is here"):
            await export(service, tmp_path / "out.tar", "app:1")
