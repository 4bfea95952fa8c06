"""The registry client against servers that behave, and against servers that do not."""

import json
import threading
import time

import pytest
import trio

from imgvol import limits
from imgvol.errors import (
    DigestMismatch,
    InvalidDocument,
    LimitExceeded,
    NotFound,
    ProtocolError,
    RegistryUnavailable,
    TooManyRequests,
    Unauthorized,
    Unsupported,
)
from imgvol.oci.digest import Digest
from imgvol.oci.media_types import DOCKER_MANIFEST, DOCKER_SCHEMA1, OCI_INDEX, OCI_MANIFEST
from imgvol.registry import Bounds
from support.remote_images import (
    BOUNDS,
    RemoteImage,
    client_of,
    read_blob,
    reference,
)
from support.scripted_registry import (
    ScriptedServer,
    break_off,
    chunked,
    drip,
    endless,
    raw,
    respond,
    serve,
)


@pytest.fixture
def image():
    return RemoteImage()


@pytest.fixture
def server(image):
    with ScriptedServer() as running:
        image.install(running)
        yield running


# --- resolve ------------------------------------------------------------------------------------


async def test_resolve_asks_with_head_only(server, image):
    async with client_of(server) as client:
        assert await client.resolve(reference(server)) == image.descriptor
    assert [seen.method for seen in server.seen] == ["HEAD"]
    assert OCI_INDEX in server.seen[0].headers["accept"]
    assert server.seen[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "head",
    [
        respond(405),
        respond(403),
        respond(200, Content_Type=OCI_MANIFEST),
        respond(200, Docker_Content_Digest="sha256:00"),
        respond(200, Content_Type="text/html", Docker_Content_Digest=f"sha256:{'0' * 64}"),
    ],
    ids=["405", "403", "no digest", "broken digest", "no manifest"],
)
async def test_resolve_hashes_the_document_where_head_does_not_tell(server, image, head):
    server.on("HEAD", image.manifest_path(), head)
    async with client_of(server) as client:
        assert await client.resolve(reference(server)) == image.descriptor
    assert [seen.method for seen in server.seen] == ["HEAD", "GET"]


async def test_resolve_without_tag_asks_for_latest(server, image):
    server.on("HEAD", image.manifest_path("latest"), image.manifest_answer())
    async with client_of(server) as client:
        assert await client.resolve(reference(server, None)) == image.descriptor


async def test_resolve_verifies_the_digest_that_was_asked_for(server, image):
    other = Digest.of(b"other")
    for method in ("HEAD", "GET"):
        server.on(method, image.manifest_path(other), image.manifest_answer())
    async with client_of(server) as client:
        with pytest.raises(DigestMismatch) as raised:
            await client.resolve(reference(server, None).with_digest(other))
    assert raised.value.fields["expected"] == other


async def test_resolve_hashes_when_the_registry_names_another_algorithm(server, image):
    wanted = Digest.of(image.manifest, "sha512")
    for method in ("HEAD", "GET"):
        server.on(method, image.manifest_path(wanted), image.manifest_answer())
    async with client_of(server) as client:
        descriptor = await client.resolve(reference(server, None).with_digest(wanted))
    assert descriptor.digest == wanted
    assert [seen.method for seen in server.seen] == ["HEAD", "GET"]


@pytest.mark.parametrize(
    ("status", "expected"), [(404, NotFound), (410, NotFound), (403, Unauthorized)]
)
async def test_resolve_quotes_the_error_body(server, image, status, expected):
    body = json.dumps(
        {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no \x1b[31msuch\nthing"}]}
    ).encode()
    for method in ("HEAD", "GET"):
        server.on(method, image.manifest_path(), respond(status, body, fault="refused"))
    async with client_of(server) as client:
        with pytest.raises(expected) as raised:
            await client.resolve(reference(server))
    assert "MANIFEST_UNKNOWN: no �[31msuch thing" in str(raised.value)
    assert str(reference(server)) in str(raised.value)
    assert raised.value.fields["status"] == status
    assert server.fired == ["refused"] * 2


async def test_resolve_refuses_schema_1(server, image):
    body = json.dumps({"schemaVersion": 1, "fsLayers": []}).encode()
    server.on("HEAD", image.manifest_path(), respond(200, body, Content_Type=DOCKER_SCHEMA1))
    server.on("GET", image.manifest_path(), respond(200, body, Content_Type=DOCKER_SCHEMA1))
    async with client_of(server) as client:
        with pytest.raises(Unsupported, match="schema 1"):
            await client.resolve(reference(server))


async def test_resolve_refuses_a_manifest_announced_as_too_large(server, image):
    lines = [
        "HTTP/1.1 200 OK",
        "Content-Length: 99999999",
        f"Content-Type: {OCI_MANIFEST}",
        f"Docker-Content-Digest: {image.descriptor.digest}",
    ]
    answer = "\r\n".join([*lines, "", ""]).encode()
    server.on("HEAD", image.manifest_path(), raw(answer, fault="huge"))
    async with client_of(server) as client:
        with pytest.raises(LimitExceeded) as raised:
            await client.resolve(reference(server))
    assert raised.value.fields["limit"] == "MANIFEST_SIZE"
    assert server.fired == ["huge"]


async def test_web_page_is_not_taken_for_a_registry(server, image):
    page = respond(200, b"<html>Log in to the hotel", Content_Type="text/html; charset=utf-8")
    for method in ("HEAD", "GET"):
        server.on(method, image.manifest_path(), page)
    async with client_of(server) as client:
        with pytest.raises(ProtocolError, match="web page"):
            await client.resolve(reference(server))


# --- documents ----------------------------------------------------------------------------------


async def test_documents_are_fetched_by_digest_over_one_connection(server, image):
    async with client_of(server) as client:
        descriptor = await client.resolve(reference(server))
        assert await client.fetch_manifest(reference(server), descriptor) == image.manifest
        config = image.config_descriptor
        assert await client.fetch_blob(reference(server), config, max_size=1000) == image.config
    assert server.seen[1].path == image.manifest_path(image.descriptor.digest)
    assert server.connections == 1


async def test_manifest_without_descriptor_is_fetched_by_tag(server, image):
    async with client_of(server) as client:
        assert await client.fetch_manifest(reference(server), None) == image.manifest


async def test_manifest_of_another_digest_is_refused(server, image):
    path = image.manifest_path(image.descriptor.digest)
    server.on("GET", path, respond(200, image.manifest.replace(b"}", b" ", 1) + b"}"))
    async with client_of(server) as client:
        with pytest.raises(DigestMismatch):
            await client.fetch_manifest(reference(server), image.descriptor)


async def test_manifest_of_another_length_is_refused(server, image):
    server.on(
        "GET", image.manifest_path(image.descriptor.digest), respond(200, image.manifest + b" ")
    )
    async with client_of(server) as client:
        with pytest.raises(DigestMismatch) as raised:
            await client.fetch_manifest(reference(server), image.descriptor)
    assert raised.value.fields["actual"] == len(image.manifest) + 1


@pytest.mark.parametrize("content_type", [DOCKER_MANIFEST, OCI_INDEX])
@pytest.mark.parametrize("has_descriptor", [True, False])
async def test_content_type_that_contradicts_is_refused(
    server, image, content_type, has_descriptor
):
    for name in ("v1", image.descriptor.digest):
        path = image.manifest_path(name)
        server.on("GET", path, image.manifest_answer(Content_Type=content_type))
    async with client_of(server) as client:
        with pytest.raises(InvalidDocument):
            await client.fetch_manifest(
                reference(server), image.descriptor if has_descriptor else None
            )


async def test_vague_content_type_is_no_contradiction(server, image):
    path = image.manifest_path(image.descriptor.digest)
    server.on("GET", path, image.manifest_answer(Content_Type="application/json; charset=utf-8"))
    async with client_of(server) as client:
        assert await client.fetch_manifest(reference(server), image.descriptor) == image.manifest


async def test_endless_manifest_is_cut_at_the_limit(server, image):
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    path = image.manifest_path(image.descriptor.digest)
    server.on("GET", path, endless(head, b"10000\r\n" + bytes(65536) + b"\r\n"))
    async with client_of(server) as client:
        with pytest.raises(LimitExceeded) as raised:
            await client.fetch_manifest(reference(server), image.descriptor)
    assert raised.value.fields["allowed"] == limits.MANIFEST_SIZE
    assert server.fired == ["endless"]


async def test_endless_headers_are_refused(server, image):
    path = image.manifest_path()
    for method in ("HEAD", "GET"):
        server.on(method, path, endless(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n" * 500))
    async with client_of(server) as client:
        with pytest.raises(ProtocolError, match="not HTTP"):
            await client.resolve(reference(server))
    assert "endless" in server.fired


async def test_blob_larger_than_allowed_is_not_even_asked_for(server, image):
    async with client_of(server) as client:
        with pytest.raises(LimitExceeded):
            await client.fetch_blob(reference(server), image.layer_descriptor, max_size=1000)
    assert server.seen == []


async def test_small_blob_is_verified(server, image):
    server.on("GET", image.config_path, respond(200, image.config.replace(b"amd64", b"arm64")))
    async with client_of(server) as client:
        with pytest.raises(DigestMismatch):
            await client.fetch_blob(reference(server), image.config_descriptor, max_size=1000)


@pytest.mark.parametrize("how", ["reset", "eof"])
async def test_document_that_breaks_off_is_asked_for_again(server, image, how):
    path = image.manifest_path(image.descriptor.digest)
    server.on("GET", path, break_off(image.manifest, 10, how=how), image.manifest_answer())
    async with client_of(server) as client:
        assert await client.fetch_manifest(reference(server), image.descriptor) == image.manifest
    assert server.fired == [how]


@pytest.mark.parametrize("head", [False, True])
async def test_document_that_drips_is_given_up_at_the_deadline(server, image, head):
    path = image.manifest_path(image.descriptor.digest)
    server.on("GET", path, drip(image.manifest, every=0.05, head=head))
    begun = time.monotonic()
    async with client_of(server) as client:
        with pytest.raises(RegistryUnavailable, match="in time"):
            await client.fetch_manifest(reference(server), image.descriptor)
    # Each byte came well within the read timeout: only the deadline of the whole can have ended it.
    assert BOUNDS.document_deadline <= time.monotonic() - begun < BOUNDS.document_deadline + 1
    assert server.fired == ["drip"]


async def test_server_that_never_answers_is_given_up(server, image):
    path = image.manifest_path(image.descriptor.digest)
    server.on("GET", path, raw(b"", fault="silence", then="linger"))
    async with client_of(server) as client:
        with pytest.raises(RegistryUnavailable, match="stopped answering"):
            await client.fetch_manifest(reference(server), image.descriptor)
    assert server.fired == ["silence"] * (1 + BOUNDS.stall_retries)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_passing_failures_are_retried(server, image, status):
    server.on(
        "HEAD",
        image.manifest_path(),
        respond(status, fault="busy"),
        respond(status, fault="busy"),
        image.manifest_answer(),
    )
    async with client_of(server) as client:
        assert await client.resolve(reference(server)) == image.descriptor
    assert server.fired == ["busy"] * 2


async def test_lasting_failure_is_reported_with_its_status(server, image):
    server.on("HEAD", image.manifest_path(), respond(503, fault="busy"))
    async with client_of(server) as client:
        with pytest.raises(RegistryUnavailable) as raised:
            await client.resolve(reference(server))
    assert raised.value.fields["status"] == 503
    assert server.fired == ["busy"] * (1 + BOUNDS.retries)


async def test_retry_after_is_obeyed(server, image):
    busy = respond(429, Retry_After="1", fault="429")
    server.on("HEAD", image.manifest_path(), busy, image.manifest_answer())
    begun = time.monotonic()
    async with client_of(server) as client:
        assert await client.resolve(reference(server)) == image.descriptor
    assert time.monotonic() - begun >= 1
    assert server.fired == ["429"]


async def test_retry_after_beyond_patience_is_reported_at_once(server, image):
    busy = respond(429, Retry_After="3600", fault="429")
    server.on("HEAD", image.manifest_path(), busy)
    async with client_of(server) as client:
        with pytest.raises(TooManyRequests) as raised:
            await client.resolve(reference(server))
    assert raised.value.fields["retry_after"] == 3600
    assert server.fired == ["429"]


async def test_registry_in_trouble_is_not_flooded(server, image):
    server.on("HEAD", image.manifest_path(), respond(500, fault="500"))
    async with client_of(server) as client:
        for _ in range(20):
            with pytest.raises(RegistryUnavailable):
                await client.resolve(reference(server))
    assert len(server.fired) == 20 + BOUNDS.retry_budget


async def test_answer_that_is_not_http_is_refused(server, image):
    server.on("HEAD", image.manifest_path(), raw(b"SSH-2.0-OpenSSH\r\n\r\n", fault="ssh"))
    async with client_of(server) as client:
        with pytest.raises(ProtocolError, match="not HTTP"):
            await client.resolve(reference(server))
    assert "ssh" in server.fired


async def test_bytes_after_an_answer_do_no_harm_to_the_next(server, image):
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (
        len(image.config),
        image.config,
    )
    surplus = b"more than was announced"
    server.on("GET", image.config_path, raw(answer + surplus, fault="surplus", then="linger"))
    async with client_of(server) as client:
        for _ in range(2):
            blob = await client.fetch_blob(
                reference(server), image.config_descriptor, max_size=1000
            )
            assert blob == image.config
    assert server.fired == ["surplus"] * 2


async def test_cookies_are_not_kept(server, image):
    server.on("HEAD", image.manifest_path(), image.manifest_answer(Set_Cookie="id=1; Path=/"))
    async with client_of(server) as client:
        for _ in range(2):
            await client.resolve(reference(server))
    assert all("cookie" not in seen.headers for seen in server.seen)


async def test_cancelling_a_document_returns_at_once(server, image):
    server.on("HEAD", image.manifest_path(), raw(b"", fault="silence", then="linger"))
    async with client_of(server, bounds=Bounds()) as client:
        begun = time.monotonic()
        with trio.move_on_after(0.2) as scope:
            await client.resolve(reference(server))
        assert scope.cancelled_caught
    assert time.monotonic() - begun < 1
    assert server.fired == ["silence"]


async def test_cancelling_at_any_moment_leaves_a_client_that_works(server, image):
    async with client_of(server) as client:
        for step in range(30):
            with trio.move_on_after(step * 0.0005):
                descriptor = await client.resolve(reference(server))
                await client.fetch_manifest(reference(server), descriptor)
        assert await client.resolve(reference(server)) == image.descriptor
    assert threading.active_count() < 30


async def test_many_documents_at_once(server, image):
    async with client_of(server) as client, trio.open_nursery() as nursery:

        async def fetch():
            assert await client.fetch_manifest(reference(server), None) == image.manifest

        for _ in range(40):
            nursery.start_soon(fetch)
    assert server.connections <= limits.DOCUMENT_THREADS


# --- blobs --------------------------------------------------------------------------------------


async def test_blob_comes_whole_in_bounded_pieces(server, image):
    def read(client):
        with client.open_blob(reference(server), image.layer_descriptor) as reader:
            return list(reader.iter_pieces())

    async with client_of(server) as client:
        pieces = await trio.to_thread.run_sync(read, client)
    assert b"".join(pieces) == image.layer
    assert max(map(len, pieces)) <= limits.BODY_PIECE
    assert "range" not in server.seen[0].headers


@pytest.mark.parametrize(
    ("offset", "end"),
    [(0, 1), (5, 5), (7, 200_001), (299_999, 300_000), (100, None), (300_000, None)],
)
@pytest.mark.parametrize("knows_ranges", [True, False])
async def test_part_of_a_blob(server, image, offset, end, knows_ranges):
    server.on("GET", image.layer_path, serve(image.layer, ranges=knows_ranges))
    async with client_of(server) as client:
        part = await read_blob(client, server, image.layer_descriptor, offset=offset, end=end)
    assert part == image.layer[offset:end]


async def test_parts_of_a_blob_come_over_one_connection(server, image):
    async with client_of(server) as client:
        for offset in range(0, 300_000, 50_000):
            await read_blob(
                client, server, image.layer_descriptor, offset=offset, end=offset + 50_000
            )
    assert len(server.seen) == 6
    assert server.connections == 1


@pytest.mark.parametrize(("offset", "end"), [(-1, 1), (2, 1), (0, 300_001), (300_001, None)])
async def test_part_that_does_not_exist_is_a_mistake(server, image, offset, end):
    async with client_of(server) as client:
        with pytest.raises(ValueError, match="no bytes"):
            client.open_blob(reference(server), image.layer_descriptor, offset=offset, end=end)


@pytest.mark.parametrize("how", ["reset", "eof", "stall"])
@pytest.mark.parametrize("knows_ranges", [True, False])
async def test_blob_that_breaks_off_is_resumed(server, image, how, knows_ranges):
    server.on(
        "GET",
        image.layer_path,
        break_off(image.layer, 100_000, how=how),
        serve(image.layer, ranges=knows_ranges),
    )
    async with client_of(server) as client:
        assert await read_blob(client, server, image.layer_descriptor) == image.layer
    assert server.fired == [how]
    first, end = server.seen[1].range
    assert 0 < first <= 100_000
    assert end == len(image.layer)


async def test_part_that_breaks_off_is_resumed_within_the_part(server, image):
    server.on(
        "GET", image.layer_path, break_off(image.layer, 50_000, how="eof"), serve(image.layer)
    )
    async with client_of(server) as client:
        part = await read_blob(client, server, image.layer_descriptor, offset=1000, end=200_000)
    assert part == image.layer[1000:200_000]
    assert server.fired == ["eof"]
    assert server.seen[1].range[1] == 200_000


async def test_blob_that_breaks_off_often_but_moves_on_is_read_to_its_end():
    image = RemoteImage(3_000_000)
    with ScriptedServer() as server:
        server.on("GET", image.layer_path, break_off(image.layer, 200_000, how="eof"))
        async with client_of(server) as client:
            assert await read_blob(client, server, image.layer_descriptor) == image.layer
        assert len(server.fired) >= 14 > BOUNDS.retries


@pytest.mark.parametrize("after", [0, 1, 1000])
async def test_blob_that_hardly_moves_on_is_given_up(server, image, after):
    server.on("GET", image.layer_path, break_off(image.layer, after, how="eof"))
    async with client_of(server) as client:
        with pytest.raises(RegistryUnavailable, match="ended early"):
            await read_blob(client, server, image.layer_descriptor)
    assert server.fired == ["eof"] * (1 + BOUNDS.retries)


async def test_body_without_a_length_that_ends_early_is_resumed(server, image):
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    short = raw(head + image.layer[:1000], fault="short")
    server.on("GET", image.layer_path, short, serve(image.layer))
    async with client_of(server) as client:
        assert await read_blob(client, server, image.layer_descriptor) == image.layer
    assert server.fired == ["short"]
    assert server.seen[1].range[0] == 1000


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"Content-Length: 299999\r\n\r\n", "not as long"),
        (b"Content-Length: 300001\r\n\r\n", "not as long"),
        (b"Transfer-Encoding: chunked\r\n\r\n" + chunked([b"abc"]), "shorter"),
        (b"Transfer-Encoding: chunked\r\n\r\n" + chunked([bytes(300_000), b"x"]), "longer"),
        (b"Connection: close\r\n\r\n" + bytes(300_001), "longer"),
    ],
    ids=["length short", "length long", "chunks short", "chunks long", "close long"],
)
async def test_blob_of_another_length_is_refused(server, image, answer, message):
    server.on("GET", image.layer_path, raw(b"HTTP/1.1 200 OK\r\n" + answer, fault="length"))
    async with client_of(server) as client:
        with pytest.raises(DigestMismatch, match=message):
            await read_blob(client, server, image.layer_descriptor)
    assert server.fired == ["length"]


async def test_missing_last_chunk_costs_nothing(server, image):
    body = chunked([image.layer], is_ended=False)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    server.on("GET", image.layer_path, raw(head + body, fault="no end"))
    async with client_of(server) as client:
        assert await read_blob(client, server, image.layer_descriptor) == image.layer
    assert server.fired == ["no end"]
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "content_range",
    [
        "bytes 0-299999/300000",
        "bytes 101-299999/300000",
        "bytes 100-299998/300000",
        "bytes 100-299999/300001",
        "bytes 100-",
        "nonsense",
        "",
    ],
)
async def test_answer_with_another_range_is_refused(server, image, content_range):
    headers = f"HTTP/1.1 206 Partial Content\r\nContent-Range: {content_range}\r\n\r\n"
    server.on("GET", image.layer_path, raw(headers.encode() + bytes(299_900), fault="range"))
    async with client_of(server) as client:
        with pytest.raises(ProtocolError, match="another range"):
            await read_blob(client, server, image.layer_descriptor, offset=100)
    assert server.fired == ["range"]


async def test_several_ranges_for_one_are_refused(server, image):
    several = respond(
        206, b"--x\r\n", Content_Type="multipart/byteranges; boundary=x", fault="multipart"
    )
    server.on("GET", image.layer_path, several)
    async with client_of(server) as client:
        with pytest.raises(ProtocolError, match="another range"):
            await read_blob(client, server, image.layer_descriptor, offset=100)
    assert server.fired == ["multipart"]


async def test_range_that_nobody_asked_for_is_refused(server, image):
    headers = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-299999/300000\r\n\r\n"
    server.on("GET", image.layer_path, raw(headers + image.layer, fault="206"))
    async with client_of(server) as client:
        with pytest.raises(ProtocolError):
            await read_blob(client, server, image.layer_descriptor)
    assert server.fired == ["206"]


async def test_unsatisfiable_range_says_that_the_blob_is_short(server, image):
    server.on("GET", image.layer_path, respond(416, fault="416"))
    async with client_of(server) as client:
        with pytest.raises(DigestMismatch, match="shorter"):
            await read_blob(client, server, image.layer_descriptor, offset=100)
    assert server.fired == ["416"]


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "identity, gzip"])
async def test_encoded_blob_is_refused(server, image, encoding):
    server.on("GET", image.layer_path, serve(image.layer, Content_Encoding=encoding))
    async with client_of(server) as client:
        with pytest.raises(ProtocolError, match="encoded"):
            await read_blob(client, server, image.layer_descriptor)
    assert server.seen[0].headers["accept-encoding"] == "identity"


async def test_blob_that_trickles_is_given_up(server, image):
    # A byte every 10 ms: never a read timeout, and not 1 KiB a second.
    server.on("GET", image.layer_path, drip(image.layer, every=0.01))
    begun = time.monotonic()
    async with client_of(server) as client:
        with pytest.raises(RegistryUnavailable, match="too slowly"):
            await read_blob(client, server, image.layer_descriptor)
    assert BOUNDS.rate_window <= time.monotonic() - begun < BOUNDS.rate_window + 1
    assert server.fired == ["drip"]


async def test_slow_reader_is_not_taken_for_a_slow_server(server, image):
    def read(client):
        received = 0
        with client.open_blob(reference(server), image.layer_descriptor) as reader:
            for piece in reader.iter_pieces():
                received += len(piece)
                time.sleep(0.2)
        return received

    async with client_of(server) as client:
        assert await trio.to_thread.run_sync(read, client) == len(image.layer)


async def test_stalled_blob_is_given_up(server, image):
    server.on("GET", image.layer_path, break_off(image.layer, 10, how="stall"))
    async with client_of(server) as client:
        with pytest.raises(RegistryUnavailable, match="stopped answering"):
            await read_blob(client, server, image.layer_descriptor)
    assert server.fired == ["stall"] * (1 + BOUNDS.stall_retries)


async def test_missing_blob_is_named(server, image):
    server.on("GET", image.layer_path, respond(404, fault="404"))
    async with client_of(server) as client:
        with pytest.raises(NotFound, match=str(image.layer_descriptor.digest)):
            await read_blob(client, server, image.layer_descriptor)
    assert server.fired == ["404"]


async def test_passing_failure_while_resuming(server, image):
    server.on(
        "GET",
        image.layer_path,
        break_off(image.layer, 1000, how="reset"),
        respond(503, fault="503"),
        serve(image.layer),
    )
    async with client_of(server) as client:
        assert await read_blob(client, server, image.layer_descriptor) == image.layer
    assert server.fired == ["reset", "503"]


async def test_cancel_wakes_a_reader_that_waits(server, image):
    server.on("GET", image.layer_path, break_off(image.layer, 1000, how="stall"))
    async with client_of(server, bounds=Bounds()) as client:
        reader = client.open_blob(reference(server), image.layer_descriptor)
        cancelled_at = []

        def read():
            with reader, pytest.raises(RegistryUnavailable, match="cancelled"):
                for _ in reader.iter_pieces():
                    pass
            return time.monotonic()

        async with trio.open_nursery() as nursery:

            async def cancel():
                while not server.fired:
                    await trio.sleep(0.01)
                cancelled_at.append(time.monotonic())
                reader.cancel()

            nursery.start_soon(cancel)
            ended_at = await trio.to_thread.run_sync(read)
    assert ended_at - cancelled_at[0] < 0.3
    assert server.fired == ["stall"]


async def test_cancel_before_the_first_piece(server, image):
    async with client_of(server) as client:
        reader = client.open_blob(reference(server), image.layer_descriptor)
        reader.cancel()
        with reader, pytest.raises(RegistryUnavailable, match="cancelled"):
            next(iter(reader.iter_pieces()))
    assert server.seen == []


async def test_reader_that_is_left_early_gives_its_channel_back(server, image):
    async with client_of(server) as client:
        with client.open_blob(reference(server), image.layer_descriptor) as reader:
            next(iter(reader.iter_pieces()))
        assert await read_blob(client, server, image.layer_descriptor) == image.layer


async def test_leaving_the_client_ends_its_readers(server, image):
    server.on("GET", image.layer_path, break_off(image.layer, 1000, how="stall"))
    failures = []

    def read(reader):
        with reader, pytest.raises(RegistryUnavailable) as raised:
            for _ in reader.iter_pieces():
                pass
        failures.append(raised.value)

    async with trio.open_nursery() as nursery:
        async with client_of(server, bounds=Bounds()) as client:
            reader = client.open_blob(reference(server), image.layer_descriptor)
            nursery.start_soon(trio.to_thread.run_sync, read, reader)
            while not server.fired:
                await trio.sleep(0.01)
        with trio.fail_after(1):
            while not failures:
                await trio.sleep(0.01)
    assert "cancelled" in str(failures[0])
