"""Asking registries what refers to a manifest: with the API, without it, and with a bad one."""

import base64
import json
from urllib.parse import parse_qs

import pytest

from imgvol import limits
from imgvol.errors import (
    InvalidDocument,
    LimitExceeded,
    NotFound,
    ProtocolError,
    RegistryUnavailable,
    Unauthorized,
)
from imgvol.oci.media_types import OCI_INDEX, OCI_MANIFEST
from imgvol.registry import Credential, Secret, StaticCredentials
from support.remote_images import REPOSITORY, RemoteImage, client_of, describe, reference
from support.scripted_registry import (
    ScriptedServer,
    demand_basic,
    endless,
    respond,
    two_servers,
)

WANTED = "application/vnd.example+json"


@pytest.fixture
def image():
    return RemoteImage(1000)


@pytest.fixture
def server():
    with ScriptedServer() as running:
        yield running


def artifact(content: bytes, kind: str = WANTED) -> dict:
    return {**describe(content, OCI_MANIFEST).to_json(), "artifactType": kind}


def page(*artifacts: dict, link: str | None = None, media_type: str = OCI_INDEX):
    raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": artifacts})
    headers = {"Content_Type": media_type}
    if link:
        headers["Link"] = f'<{link}>; rel="next"'
    return respond(200, raw.encode(), **headers)


def api(image) -> str:
    return f"/v2/{REPOSITORY}/referrers/{image.descriptor.digest}"


def tag(image) -> str:
    return image.manifest_path(str(image.descriptor.digest).replace(":", "-"))


async def ask(server, image, **how):
    async with client_of(server, **how) as client:
        found = await client.list_referrers(reference(server), image.descriptor.digest, WANTED)
    return [str(item.digest) for item in found]


def digests(*contents: bytes) -> list[str]:
    return [str(describe(content, OCI_MANIFEST).digest) for content in contents]


async def test_api_is_asked_for_the_type_and_not_believed_to_have_filtered(server, image):
    other = artifact(b"other", "application/x.signature")
    server.on("GET", api(image), page(artifact(b"one"), other, artifact(b"two")))
    assert await ask(server, image) == digests(b"one", b"two")
    (seen,) = server.seen
    assert seen.query == {"artifactType": [WANTED]}
    assert OCI_INDEX in seen.headers["accept"]


async def test_no_referrers_is_an_answer(server, image):
    server.on("GET", api(image), page())
    assert await ask(server, image) == []
    assert len(server.seen) == 1


async def test_pages_are_followed_in_order(server, image):
    server.on(
        "GET",
        api(image),
        page(artifact(b"one"), link="?page=2"),
        page(link=f"{api(image)}?page=3"),
        page(artifact(b"two")),
    )
    assert await ask(server, image) == digests(b"one", b"two")
    queries = [parse_qs(seen.target.partition("?")[2]) for seen in server.seen]
    assert queries == [{"artifactType": [WANTED]}, {"page": ["2"]}, {"page": ["3"]}]


async def test_pages_without_end_are_refused(server, image):
    server.on("GET", api(image), page(artifact(b"one"), link="?again"))
    with pytest.raises(LimitExceeded) as raised:
        await ask(server, image)
    assert raised.value.fields["limit"] == "REFERRER_PAGES"
    assert len(server.seen) == limits.REFERRER_PAGES


async def test_next_page_on_another_server_is_not_asked_for(image):
    with two_servers() as (registry, other):
        registry.on("GET", api(image), page(link=f"{other.url}/more"))
        with pytest.raises(ProtocolError, match="another server"):
            await ask(registry, image)
        assert other.seen == []


async def test_registry_without_the_api_keeps_them_under_a_tag(server, image):
    server.on("GET", tag(image), page(artifact(b"one"), artifact(b"x", "application/x")))
    assert await ask(server, image) == digests(b"one")
    assert [seen.path for seen in server.seen] == [api(image), tag(image)]


async def test_neither_api_nor_tag_means_that_there_are_none(server, image):
    assert await ask(server, image) == []
    assert [seen.path for seen in server.seen] == [api(image), tag(image)]


async def test_page_that_is_missing_is_no_missing_api(server, image):
    server.on("GET", api(image), page(link="?page=2"), respond(404))
    with pytest.raises(NotFound):
        await ask(server, image)
    assert {seen.path for seen in server.seen} == {api(image)}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (respond(403), Unauthorized),
        (respond(400), ProtocolError),
        (respond(200, b"<html>", Content_Type="text/html"), ProtocolError),
        (respond(200, b"{}", Content_Type=OCI_INDEX), InvalidDocument),
        (page(media_type=OCI_MANIFEST), InvalidDocument),
        (endless(b"HTTP/1.1 200 OK\r\n\r\n", b" " * 100_000), LimitExceeded),
        (respond(503), RegistryUnavailable),
    ],
    ids=["403", "400", "web page", "no index", "another type", "endless", "503"],
)
async def test_answers_that_are_no_list(server, image, answer, error):
    server.on("GET", api(image), answer)
    with pytest.raises(error):
        await ask(server, image)


async def test_tag_that_is_a_manifest_is_refused(server, image):
    server.on("GET", tag(image), image.manifest_answer())
    with pytest.raises(InvalidDocument):
        await ask(server, image)


async def test_login_is_sent_as_for_any_document(server, image):
    login = StaticCredentials(Credential(username="jane", password=Secret("pass")))
    basic = base64.b64encode(b"jane:pass").decode()
    server.on("GET", api(image), demand_basic(basic, page(artifact(b"one"))))
    assert await ask(server, image, credentials=login) == digests(b"one")
    assert server.fired == ["401"]
