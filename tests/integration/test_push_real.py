"""Pushing to real registries: what arrives is what others read."""

import hashlib
import json
import subprocess

import pytest
import trio

from imgvol.errors import DigestMismatch, NotFound, PushRefused, Unauthorized
from imgvol.oci.digest import Digest
from imgvol.oci.media_types import OCI_EMPTY, OCI_INDEX, OCI_MANIFEST
from imgvol.publish.pushing import PushProgress, push_tree
from imgvol.registry import Credential, Secret, StaticCredentials
from imgvol.registry.push import PushOutcome
from support.images import Image, Layer, file, sha256
from support.peers import running_registry_peer
from support.programs import require, run
from support.pushing import (
    blob_of,
    describe,
    document_of,
    get,
    pusher_of,
    random_bytes,
    referrer_of,
    tree_of,
)
from support.registry import PASSWORD, USERNAME, running_registry

pytestmark = pytest.mark.servers

LOGIN = StaticCredentials(Credential(username=USERNAME, password=Secret(PASSWORD)))


@pytest.fixture(scope="module")
def peer():
    """go-containerregistry's registry, which lists referrers itself."""
    with running_registry_peer() as host:
        yield host


@pytest.fixture(params=["docker-registry", "go-containerregistry"])
def host(request):
    """Each of the registries that we have."""
    if request.param == "docker-registry":
        return request.getfixturevalue("registry").host
    return request.getfixturevalue("peer")


def image_of(*contents: bytes) -> Image:
    return Image([Layer([file("content", content)], "gzip") for content in contents])


async def test_blob_is_uploaded_once(host):
    data = random_bytes(300_000)
    told = []
    async with pusher_of(f"{host}/push/once") as pusher:
        assert not await pusher.has_blob(Digest.of(data))
        blob = blob_of(data)
        outcome = await pusher.push_blob(blob.descriptor, blob.open_body, sent=told.append)
        assert outcome is PushOutcome.UPLOADED
        assert await pusher.has_blob(Digest.of(data))
        outcome = await pusher.push_blob(blob.descriptor, blob.open_body)
        assert outcome is PushOutcome.EXISTS
    assert told == sorted(told)
    assert told[-1] == len(data)
    assert get(f"http://{host}/v2/push/once/blobs/{sha256(data)}") == data


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000])
async def test_blobs_of_all_sizes_arrive(host, size):
    data = random_bytes(size)
    async with pusher_of(f"{host}/push/sizes") as pusher:
        blob = blob_of(data)
        await pusher.push_blob(blob.descriptor, blob.open_body)
    assert get(f"http://{host}/v2/push/sizes/blobs/{sha256(data)}") == data
