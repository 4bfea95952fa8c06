"""What cannot be pulled: refused by its documents, before any layer of it is asked for."""

import json
import random

import pytest

from imgvol.errors import (
    InvalidDocument,
    InvalidPlatform,
    InvalidReference,
    NoMatchingPlatform,
    Unsupported,
)
from imgvol.images.pull import PullProgress
from imgvol.images.service import PullOptions
from support.images import Image, Layer, file, sha256, to_json
from support.pulling import MANIFEST, Served, open_service
from support.scripted_registry import ScriptedServer

INDEX = "application/vnd.oci.image.index.v1+json"
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"


def layer(seed):
    return Layer([file(f"file-{seed}", random.Random(seed).randbytes(1000))])


IMAGE = Image([layer(1), layer(2)])


@pytest.fixture
def server():
    with ScriptedServer() as running:
        yield running


def changed(change):
    """The image's manifest with something else in it."""
    manifest = json.loads(IMAGE.manifest_bytes())
    change(manifest)
    return to_json(manifest)


def encrypt(manifest):
    manifest["layers"][1]["mediaType"] += "+encrypted"


def index_for(platform):
    manifest = IMAGE.manifest_bytes()
    entry = {"mediaType": MANIFEST, "digest": sha256(manifest), "size": len(manifest)}
    entry |= {"platform": {"os": "linux", "architecture": platform}}
    return to_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})


@pytest.mark.parametrize(
    ("manifest", "media_type", "error", "message"),
    [
        (
            to_json({"schemaVersion": 1, "name": "a", "tag": "b", "fsLayers": [], "history": []}),
            SCHEMA_1,
            Unsupported,
            "schema",
        ),
        (index_for("s390x"), INDEX, NoMatchingPlatform, "no variant for this platform"),
        (changed(encrypt), MANIFEST, Unsupported, "encrypted"),
        (changed(lambda m: m["layers"].pop()), MANIFEST, InvalidDocument, "number of layers"),
        (changed(lambda m: m.pop("config")), MANIFEST, InvalidDocument, "config"),
        (b"[]", MANIFEST, InvalidDocument, None),
        (b"{", MANIFEST, InvalidDocument, None),
    ],
    ids=["schema 1", "other platform", "encrypted", "layers", "no config", "no object", "no JSON"],
)
async def test_what_cannot_be_an_image_is_refused_before_any_layer(
    tmp_path, server, manifest, media_type, error, message
):
    served = Served(server, "some/image", IMAGE, manifest=manifest, media_type=media_type)
    async with open_service(tmp_path) as service:
        with pytest.raises(error, match=message) as raised:
            await service.pull(served.name)
        assert not raised.value.retryable
        assert await service.images.list() == []
    assert server.requests("HEAD", served.manifest_path())
    assert not any(served.fetched(each.digest) for each in IMAGE.layers)


async def test_a_malformed_reference_is_refused_before_anybody_is_asked(tmp_path, server):
    async with open_service(tmp_path) as service:
        for name in (f"{server.domain}/UPPER", f"{server.domain}/a:b c", "", "a@sha256:12"):
            with pytest.raises(InvalidReference):
                await service.pull(name)
        with pytest.raises(InvalidPlatform):
            await service.images.pull(
                f"{server.domain}/a", platform="!", options=PullOptions(), progress=PullProgress()
            )
    assert server.connections == 0


async def test_an_image_without_diff_ids_gets_those_of_its_layers(tmp_path, server):
    class Bare(Image):
        def config_bytes(self):
            return to_json({"architecture": "amd64", "os": "linux"})

    served = Served(server, "some/image", Bare([layer(1)]))
    async with open_service(tmp_path) as service:
        record = await service.pull(served.name)
    assert [str(each.diff_id) for each in record.layers] == [served.image.layers[0].diff_id]
