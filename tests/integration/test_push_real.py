"""Pushing to real registries: what arrives is what others read."""

import json

import pytest
import trio
import trustme

from imgvol.config import RegistryPaths
from imgvol.errors import BadConfiguration, DigestMismatch, PushRefused, Unauthorized
from imgvol.oci.digest import Digest
from imgvol.oci.media_types import OCI_INDEX, OCI_MANIFEST
from imgvol.publish.pushing import PushProgress, push_tree
from imgvol.registry import Credential, Registries, RegistryOptions, Secret, StaticCredentials
from imgvol.registry.push import PushOutcome
from support.images import Image, Layer, file, sha256
from support.peers import running_registry_peer
from support.programs import require, run
from support.pulling import open_service
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
from support.relay import Relay
from support.scripted_registry import ScriptedServer, respond
from support.upload_server import Refusal, UploadServer

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


async def test_an_image_that_was_pushed_is_read_by_skopeo_and_by_us(host, tmp_path, monkeypatch):
    require("skopeo")
    image = image_of(random_bytes(100_000), b"small", random_bytes(2_500_000))
    blobs, manifest = tree_of(image)
    progress = PushProgress()
    async with pusher_of(f"{host}/push/image") as pusher:
        pushed = await push_tree(pusher, blobs, [manifest], "v1", progress)
        again = await push_tree(pusher, blobs, [manifest], "v2")
    assert (pushed.uploaded, pushed.mounted, pushed.existing) == (4, 0, 0)
    assert pushed.uploaded_bytes == sum(blob.descriptor.size for blob in blobs)
    assert (again.uploaded, again.existing) == (0, 4)
    assert pushed.name == f"{host}/push/image:v1"
    assert progress.stage == "done"
    assert {blob.state for blob in progress.blobs} == {"done"}

    run(
        "skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false",
        "--preserve-digests", f"docker://{pushed.name}", f"oci:{tmp_path}/layout:v1",
    )  # fmt: skip
    for blob in (*(layer.blob for layer in image.layers), image.manifest_bytes()):
        stored = tmp_path / "layout/blobs/sha256" / sha256(blob).partition(":")[2]
        assert stored.read_bytes() == blob

    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "none"))
    async with open_service(tmp_path / "store") as service:
        record = await service.pull(pushed.name)
    assert str(record.manifest) == sha256(image.manifest_bytes())
    assert [str(layer.diff_id) for layer in record.layers] == [
        each.diff_id for each in image.layers
    ]


async def test_an_index_of_several_platforms_is_pushed_children_first(host):
    variants = [
        Image([Layer([file("a", arch.encode())])], architecture=arch) for arch in ("amd64", "arm64")
    ]
    trees = [tree_of(variant) for variant in variants]
    entries = [
        {**document.descriptor.to_json(), "platform": {"os": "linux", "architecture": arch}}
        for (_, document), arch in zip(trees, ("amd64", "arm64"), strict=True)
    ]
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    blobs = [blob for tree, _ in trees for blob in tree]
    documents = [*(document for _, document in trees), document_of(index, OCI_INDEX)]
    async with pusher_of(f"{host}/push/index") as pusher:
        pushed = await push_tree(pusher, blobs, documents, "v1")
        read = await pusher.read_manifest("v1")
        assert await pusher.read_manifest("v2") is None
    assert pushed.digest == Digest.of(index)
    assert read is not None
    assert read.raw == index
    for document in documents:
        url = f"http://{host}/v2/push/index/manifests/{document.descriptor.digest}"
        assert get(url, document.descriptor.media_type) == document.raw


async def test_what_a_registry_has_in_another_repository_is_mounted(registry):
    data = random_bytes(400_000, seed=7)
    async with pusher_of(registry.reference("push/source")) as pusher:
        await pusher.push_blob(blob_of(data).descriptor, blob_of(data).open_body)
        source = pusher.repository
    async with pusher_of(registry.reference("push/target")) as pusher:
        mount_from = pusher.mount_source(source)
        assert mount_from == "push/source"
        assert pusher.mount_source(pusher.repository) is None
        assert pusher.mount_source(source.parse("example.com/push/source")) is None
        blob = blob_of(data, mount_from)
        pushed = await push_tree(
            pusher, [blob, blob_of(b"{}")], [document_of(referrer_of(b"-"))], None
        )
    assert (pushed.mounted, pushed.uploaded) == (1, 1)
    assert get(f"http://{registry.host}/v2/push/target/blobs/{sha256(data)}") == data


async def test_referrers_are_found_afterwards(host, request):
    image = image_of(b"subject")
    blobs, manifest = tree_of(image)
    name = f"{host}/push/referrers"
    kind = "application/vnd.example.kind"
    referrers = [referrer_of(manifest.raw, kind=kind, note=str(n)) for n in range(3)]
    async with pusher_of(name) as pusher:
        await push_tree(pusher, [*blobs, blob_of(b"{}")], [manifest], "v1")
        for referrer in referrers:
            await push_tree(pusher, [blob_of(b"{}")], [document_of(referrer)], None)
        found = await pusher.list_referrers(manifest.descriptor.digest, kind)
        assert {str(each.digest) for each in found} == set(map(sha256, referrers))
        # The one registry lists them itself, the other one needs the tag.
        tag = str(manifest.descriptor.digest).replace(":", "-")
        listed = get(f"http://{host}/v2/push/referrers/manifests/{tag}", OCI_INDEX)
        is_list_needed = "go-containerregistry" not in request.node.name
        assert (listed is not None) == is_list_needed
        assert await pusher.delete_referrer(manifest.descriptor.digest, Digest.of(referrers[0]))
        found = await pusher.list_referrers(manifest.descriptor.digest, kind)
        assert {str(each.digest) for each in found} == set(map(sha256, referrers[1:]))


async def test_many_who_push_referrers_at_once_lose_none(registry):
    subject = tree_of(image_of(b"contended"))
    name = registry.reference("push/contended")
    kind = "application/vnd.example.contended"
    raws = [referrer_of(subject[1].raw, kind=kind, note=str(n)) for n in range(3)]
    async with pusher_of(name) as pusher:
        await push_tree(pusher, [*subject[0], blob_of(b"{}")], [subject[1]], "v1")

        async def refer(raw):
            async with pusher_of(name) as another:
                await another.push_referrer(raw, OCI_MANIFEST)

        async with trio.open_nursery() as nursery:
            for raw in raws:
                nursery.start_soon(refer, raw)
        found = await pusher.list_referrers(subject[1].descriptor.digest, kind)
    assert {str(each.digest) for each in found} == set(map(sha256, raws))


async def test_login_is_needed_and_used(tmp_path):
    require("docker-registry")
    blobs, manifest = tree_of(image_of(b"secret"))
    with running_registry(tmp_path, with_password=True) as locked:
        name = locked.reference("push/locked")
        async with pusher_of(name, credentials=LOGIN) as pusher:
            await push_tree(pusher, blobs, [manifest], "v1")
        wrong = StaticCredentials(Credential(username=USERNAME, password=Secret("wrong-canary")))
        for credentials in (None, wrong):
            async with pusher_of(name, credentials=credentials) as pusher:
                with pytest.raises(Unauthorized) as raised:
                    await push_tree(pusher, [blob_of(b"more")], [manifest], "v2")
            assert "podman login" in raised.value.hint
            assert "wrong-canary" not in f"{raised.value} {raised.value.hint}"


@pytest.mark.parametrize("kind", ["read-only", "cache"])
async def test_a_registry_that_takes_no_pushes_says_so(registry, tmp_path, kind):
    settings = {
        "read-only": {"storage": {"maintenance": {"readonly": {"enabled": True}}}},
        "cache": {"proxy": {"remoteurl": f"http://{registry.host}"}},
    }
    with running_registry(tmp_path, settings=settings[kind]) as closed:
        async with pusher_of(closed.reference("push/closed")) as pusher:
            with pytest.raises(PushRefused, match="takes no pushes") as raised:
                await push_tree(pusher, [blob_of(b"x")], [document_of(referrer_of(b"-"))], "v1")
    assert "read-only, or a cache" in raised.value.hint
    assert raised.value.fields["status"] == 405


@pytest.mark.fault("F97")
@pytest.mark.parametrize("cut", [200_000, 1_500_000, 4_500_000])
async def test_a_line_that_breaks_in_the_middle_of_an_upload(host, cut):
    data = random_bytes(5_000_000, seed=cut)
    with Relay(host) as line:
        line.cuts += [cut, 300_000]
        async with pusher_of(f"{line.host}/push/broken") as pusher:
            outcome = await pusher.push_blob(blob_of(data).descriptor, blob_of(data).open_body)
        assert line.fired == 2
    assert outcome is PushOutcome.UPLOADED
    assert get(f"http://{host}/v2/push/broken/blobs/{sha256(data)}") == data


async def test_a_blob_that_is_not_what_it_is_said_to_be_is_not_there_afterwards(host):
    data = random_bytes(2_000_000, seed=9)
    async with pusher_of(f"{host}/push/wrong") as pusher:
        wrong = data[:-1] + bytes([data[-1] ^ 1])
        with pytest.raises(DigestMismatch):
            await pusher.push_blob(describe(data), blob_of(wrong).open_body)
        assert not await pusher.has_blob(Digest.of(data))


async def test_a_mirror_is_never_pushed_to(registry, tmp_path):
    with UploadServer() as mirror:
        host = registry.host.replace(":", "_") + "_"
        hosts = tmp_path / host
        hosts.mkdir()
        hosts.joinpath("hosts.toml").write_text(f'[host."http://{mirror.domain}"]\n')
        registries = Registries(RegistryPaths(hosts_dirs=(tmp_path,)))
        name = registry.reference("push/mirrored")
        async with pusher_of(name, registries=registries) as pusher:
            await pusher.push_blob(blob_of(b"m").descriptor, blob_of(b"m").open_body)
        assert mirror.seen == []
        hosts.joinpath("hosts.toml").write_text(f'server = "http://{mirror.domain}"\n')
        with pytest.raises(BadConfiguration, match="only a registry itself is pushed to"):
            async with pusher_of(name, registries=registries):
                pass
        assert mirror.seen == []


async def test_tokens_are_asked_for_with_what_is_to_be_done():
    data, other = random_bytes(3000), random_bytes(4000)
    with ScriptedServer() as service, UploadServer() as server:
        service.on("GET", "/token", respond(200, b'{"token":"sesame","expires_in":300}'))
        server.authorization = "Bearer sesame"
        server.challenge = f'Bearer realm="{service.url}/token",service="test"'
        server.mountable[sha256(other)] = other
        async with pusher_of(f"{server.domain}/some/image") as pusher:
            await pusher.push_blob(blob_of(data).descriptor, blob_of(data).open_body)
            outcome = await pusher.push_blob(
                blob_of(other).descriptor, blob_of(other).open_body, mount_from="its/source"
            )
        assert outcome is PushOutcome.MOUNTED
    assert [seen.query["scope"] for seen in service.seen] == [
        ["repository:some/image:pull,push"],
        ["repository:its/source:pull", "repository:some/image:pull,push"],
    ]
    assert server.blobs == {sha256(data): data, sha256(other): other}


async def test_a_token_that_is_not_good_for_pushing():
    with ScriptedServer() as service, UploadServer() as server:
        service.on("GET", "/token", respond(200, b'{"token":"sesame","expires_in":300}'))
        server.refusals.append(
            Refusal(
                "POST", 401, "UNAUTHORIZED", "authentication required",
                headers=(
                    ("WWW-Authenticate", f'Bearer realm="{service.url}/token",service="test"'),
                ),
            )
        )  # fmt: skip
        async with pusher_of(f"{server.domain}/some/image") as pusher:
            with pytest.raises(Unauthorized, match="does not let us push blob") as raised:
                await pusher.push_blob(describe(b"x"), blob_of(b"x").open_body)
    assert "may push there" in raised.value.hint


async def test_over_tls(tmp_path):
    """With a certificate that is configured for the registry, whose Location is absolute."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    ca, chain, key = (tmp_path / name for name in ("ca", "chain", "key"))
    authority.cert_pem.write_to_path(ca)
    for position, part in enumerate(issued.cert_chain_pems):
        part.write_to_path(chain, append=position > 0)
    issued.private_key_pem.write_to_path(key)
    blobs, manifest = tree_of(image_of(random_bytes(3_000_000, seed=3)))
    (tmp_path / "data").mkdir()
    with running_registry(tmp_path / "data", certificate=(chain, key)) as locked:
        name = locked.reference("push/tls")
        async with pusher_of(name, options=RegistryOptions(ca_file=ca)) as pusher:
            await push_tree(pusher, blobs, [manifest], "v1")
            read = await pusher.read_manifest("v1")
            assert read is not None
            assert read.raw == manifest.raw
        async with pusher_of(name, options=RegistryOptions(insecure=True)) as pusher:
            assert await pusher.has_blob(blobs[0].descriptor.digest)


async def test_a_plain_registry_with_certificates_is_tried_with_tls_first(tmp_path):
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    with UploadServer() as server:
        hosts = tmp_path / server.domain.replace(":", "_").join(["", "_"])
        hosts.mkdir()
        hosts.joinpath("hosts.toml").write_text(
            f'[host."http://{server.domain}"]\nca = "{tmp_path}/ca.pem"\n'
        )
        registries = Registries(RegistryPaths(hosts_dirs=(tmp_path,)))
        async with pusher_of(f"{server.domain}/some/image", registries=registries) as pusher:
            await pusher.push_blob(describe(b"x"), blob_of(b"x").open_body)
        assert server.blobs == {sha256(b"x"): b"x"}
