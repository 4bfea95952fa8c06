"""Blobs that the registry does not have, from where the image says: who is asked, and told what."""

import base64
import dataclasses
import logging

import pytest
import trio

from imgvol.errors import (
    DigestMismatch,
    NotFound,
    ProtocolError,
    RegistryUnavailable,
    Unauthorized,
)
from imgvol.registry import Credential, Secret, StaticCredentials
from support.remote_images import RemoteImage, client_of, read_blob, reference
from support.scripted_registry import (
    break_off,
    demand_basic,
    demand_token,
    drip,
    redirect,
    respond,
    serve,
    two_servers,
)

CANARY = "d0-n0t-l3ak"
LOGIN = StaticCredentials(Credential(username="jane", password=Secret(CANARY)))
BASIC = base64.b64encode(f"jane:{CANARY}".encode()).decode()


@pytest.fixture
def image():
    return RemoteImage()


@pytest.fixture
def servers():
    with two_servers() as pair:
        yield pair


def with_urls(image, *urls: str):
    return dataclasses.replace(image.layer_descriptor, urls=urls)


async def read(registry, descriptor, *, credentials=None, **part) -> bytes:
    async with client_of(registry, credentials=credentials) as client:
        return await read_blob(client, registry, descriptor, **part)


async def test_registry_that_has_the_blob_is_the_only_one_asked(servers, image):
    registry, other = servers
    registry.on("GET", image.layer_path, serve(image.layer))
    assert await read(registry, with_urls(image, f"{other.url}/x")) == image.layer
    assert other.seen == []


async def test_blob_comes_from_where_the_image_says_without_our_login(servers, image, caplog):
    caplog.set_level(logging.DEBUG)
    registry, other = servers
    registry.on("GET", image.layer_path, demand_basic(BASIC, respond(404)))
    other.on("GET", "/x", serve(image.layer))
    url = f"{other.url}/x?signature={CANARY}"
    assert await read(registry, with_urls(image, url), credentials=LOGIN) == image.layer
    assert registry.fired == ["401"]
    assert [seen.headers.get("authorization") for seen in other.seen] == [None]
    assert f"asking {other.url}/x" in caplog.text
    assert CANARY not in caplog.text
    assert BASIC not in caplog.text


@pytest.mark.parametrize("knows_ranges", [True, False])
async def test_part_of_a_blob(servers, image, knows_ranges):
    registry, other = servers
    other.on("GET", "/x", serve(image.layer, ranges=knows_ranges))
    part = await read(registry, with_urls(image, f"{other.url}/x"), offset=1000, end=200_000)
    assert part == image.layer[1000:200_000]
    assert [seen.range for seen in (*registry.seen, *other.seen)] == [(1000, 200_000)] * 2


async def test_server_that_asks_for_a_login_is_told_nothing(servers, image, caplog):
    caplog.set_level(logging.DEBUG)
    registry, other = servers
    registry.on("GET", image.layer_path, demand_basic(BASIC, respond(404)))
    other.on("GET", "/x", demand_token(f"{other.url}/token", ["t"], serve(image.layer)))
    other.on("GET", "/y", demand_basic(BASIC, serve(image.layer)))
    descriptor = with_urls(image, f"{other.url}/x", f"{other.url}/y")
    with pytest.raises(Unauthorized, match="the server that the image names") as raised:
        await read(registry, descriptor, credentials=LOGIN)
    assert [seen.path for seen in other.seen] == ["/x", "/y"]
    assert all("authorization" not in seen.headers for seen in other.seen)
    assert CANARY not in caplog.text + str(raised.value)


async def test_registry_under_another_path_gets_no_login_either(servers, image):
    registry, _ = servers
    registry.on("GET", image.layer_path, demand_basic(BASIC, respond(404)))
    registry.on("GET", "/v2/other/blobs/x", serve(image.layer))
    descriptor = with_urls(image, f"{registry.url}/v2/other/blobs/x")
    assert await read(registry, descriptor, credentials=LOGIN) == image.layer
    assert "authorization" in registry.requests("GET", image.layer_path)[-1].headers
    (seen,) = registry.requests("GET", "/v2/other/blobs/x")
    assert "authorization" not in seen.headers


@pytest.mark.parametrize(
    "first",
    [
        respond(404),
        respond(403),
        respond(410),
        respond(400),
        respond(200, b"not found, says this page", Content_Type="text/html"),
        redirect("http://169.254.169.254/latest/meta-data"),
        redirect("http://jane:secret@127.0.0.2/"),
    ],
    ids=["404", "403", "410", "400", "page", "metadata service", "with a login"],
)
async def test_next_url_is_tried(servers, image, first):
    registry, other = servers
    other.on("GET", "/first", first)
    other.on("GET", "/second", serve(image.layer))
    descriptor = with_urls(image, f"{other.url}/first", f"{other.url}/second")
    assert await read(registry, descriptor) == image.layer
    assert [seen.path for seen in other.seen] == ["/first", "/second"]


async def test_last_refusal_is_told(servers, image):
    registry, other = servers
    with pytest.raises(NotFound, match="the server that the image names has no blob"):
        await read(registry, with_urls(image, f"{other.url}/x"))


async def test_blob_without_usable_urls_is_missing_from_the_registry(servers, image):
    registry, _ = servers
    with pytest.raises(NotFound, match="the registry has no blob"):
        await read(registry, with_urls(image, "file:///etc/passwd", "ftp://127.0.0.2/x"))


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:a9fe:a9fe]/",
        "http://2852039166/",
    ],
)
async def test_image_cannot_send_us_where_the_registry_cannot(servers, image, url):
    registry, _ = servers
    with pytest.raises(ProtocolError, match="no business with"):
        await read(registry, with_urls(image, url))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (respond(403), Unauthorized),
        (respond(503), RegistryUnavailable),
        (respond(200, b"short"), DigestMismatch),
    ],
    ids=["403", "503", "another length"],
)
async def test_registry_that_fails_otherwise_is_no_missing_blob(servers, image, answer, error):
    registry, other = servers
    registry.on("GET", image.layer_path, answer)
    with pytest.raises(error):
        await read(registry, with_urls(image, f"{other.url}/x"))
    assert other.seen == []


@pytest.mark.parametrize("how", ["reset", "eof"])
async def test_transfer_that_breaks_off_is_resumed_there(servers, image, how):
    registry, other = servers
    other.on("GET", "/x", break_off(image.layer, 100_000, how=how), serve(image.layer))
    assert await read(registry, with_urls(image, f"{other.url}/x")) == image.layer
    assert other.fired == [how]
    assert [seen.range for seen in other.seen] == [None, (100_000, len(image.layer))]
    assert len(registry.seen) == 1


async def test_the_next_place_goes_on_where_one_fails_later(servers, image):
    registry, other = servers
    other.on("GET", "/x", break_off(image.layer, 100_000, how="reset"), respond(404))
    other.on("GET", "/y", serve(image.layer))
    descriptor = with_urls(image, f"{other.url}/x", f"{other.url}/y")
    assert await read(registry, descriptor) == image.layer
    assert other.fired == ["reset"]
    [last] = other.requests("GET", "/y")
    assert last.range == (100_000, len(image.layer))


async def test_cancel_wakes_a_reader_that_waits_for_a_stranger(servers, image):
    registry, other = servers
    other.on("GET", "/x", drip(image.layer, every=0.05))
    async with client_of(registry) as client:
        reader = client.open_blob(reference(registry), with_urls(image, f"{other.url}/x"))

        def receive() -> None:
            with reader:
                for _ in reader.iter_pieces():
                    reader.cancel()

        with pytest.raises(RegistryUnavailable, match="cancelled"), trio.fail_after(5):
            await trio.to_thread.run_sync(receive)
        # The client works on.
        registry.on("GET", image.layer_path, serve(image.layer))
        assert await read_blob(client, registry, image.layer_descriptor) == image.layer
