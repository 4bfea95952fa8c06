"""The registry client against the real registry, filled by a real client."""

import hashlib

import pytest
import trio
import trustme

from imgvol.errors import NotFound, Unauthorized
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import Manifest, parse_manifest
from imgvol.oci.reference import Reference
from imgvol.registry import (
    Credential,
    NoCredentials,
    RegistryOptions,
    Secret,
    StaticCredentials,
    open_registry_client,
)
from support.images import Image, Layer, file, push, write_layout
from support.programs import require
from support.registry import PASSWORD, USERNAME, running_registry

pytestmark = pytest.mark.servers

LOGIN = StaticCredentials(Credential(username=USERNAME, password=Secret(PASSWORD)))


def client_of(domain, *, options=None, credentials=None):
    return open_registry_client(
        domain, options or RegistryOptions(), credentials or NoCredentials(), environ={}
    )


@pytest.fixture(scope="module")
def image():
    content = hashlib.shake_256(b"content").digest(700_000)
    return Image([Layer([file("large", content)], "none"), Layer([file("small", b"x")], "gzip")])


@pytest.fixture(scope="module")
def pushed(image, registry, tmp_path_factory):
    text = registry.reference("client/real:v1")
    push(write_layout(tmp_path_factory.mktemp("pushed"), {"v1": image}), "v1", text)
    return Reference.parse(text)


def receive(client, reference, descriptor, **part):
    with client.open_blob(reference, descriptor, **part) as reader:
        return b"".join(reader.iter_pieces())


async def test_whole_image_is_read(pushed, image):
    async with client_of(pushed.domain) as client:
        descriptor = await client.resolve(pushed)
        raw = await client.fetch_manifest(pushed, descriptor)
        manifest = parse_manifest(raw, media_type=descriptor.media_type, expected=descriptor.digest)
        assert isinstance(manifest, Manifest)
        config = await client.fetch_blob(pushed, manifest.config, max_size=100_000)
        blobs = [
            await trio.to_thread.run_sync(receive, client, pushed, layer)
            for layer in manifest.layers
        ]
    assert manifest.config.digest.matches(config)
    assert blobs == [layer.blob for layer in image.layers]


async def test_image_is_resolved_by_digest(pushed):
    async with client_of(pushed.domain) as client:
        descriptor = await client.resolve(pushed)
        by_digest = pushed.with_tag(None).with_digest(descriptor.digest)
        assert await client.resolve(by_digest) == descriptor


@pytest.mark.parametrize(("offset", "end"), [(0, 1), (1, 300_000), (699_999, None)])
async def test_ranges_of_a_blob(pushed, image, offset, end):
    layer = image.layers[0]
    descriptor = Descriptor(
        media_type="application/vnd.oci.image.layer.v1.tar",
        digest=Digest.parse(layer.digest),
        size=len(layer.blob),
    )
    async with client_of(pushed.domain) as client:
        part = receive(client, pushed, descriptor, offset=offset, end=end)
    assert part == layer.blob[offset:end]


async def test_what_is_not_there(pushed):
    async with client_of(pushed.domain) as client:
        with pytest.raises(NotFound, match="MANIFEST_UNKNOWN"):
            await client.resolve(pushed.with_tag("other"))
        with pytest.raises(NotFound):
            await client.resolve(Reference(pushed.domain, "no/such/repository", "v1"))
        missing = Descriptor(media_type="a/b", digest=Digest.of(b"missing"), size=7)
        with pytest.raises(NotFound, match="BLOB_UNKNOWN"):
            receive(client, pushed, missing)


async def test_password_is_asked_for(tmp_path):
    require("docker-registry")
    with running_registry(tmp_path, with_password=True) as registry:
        reference = Reference.parse(registry.reference("some/image:v1"))
        async with client_of(reference.domain) as client:
            with pytest.raises(Unauthorized) as raised:
                await client.resolve(reference)
        assert "Log in" in raised.value.hint
        async with client_of(reference.domain, credentials=LOGIN) as client:
            with pytest.raises(NotFound):
                await client.resolve(reference)


async def test_certificate_is_checked(tmp_path):
    require("docker-registry")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, key, ca_file = (tmp_path / name for name in ("chain.pem", "key.pem", "ca.pem"))
    certificate.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca_file)
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(chain, append=True)
    with running_registry(tmp_path, certificate=(chain, key)) as registry:
        reference = Reference.parse(registry.reference("some/image:v1"))
        for options in (RegistryOptions(ca_file=ca_file), RegistryOptions(insecure=True)):
            async with client_of(reference.domain, options=options) as client:
                with pytest.raises(NotFound):
                    await client.resolve(reference)
