"""Credentials, redirects, certificates and proxies: who is told what, over real sockets."""

import base64
import json
import logging
import socket
import ssl
import threading
import time
from dataclasses import replace
from itertools import chain

import httpx
import pytest
import trio
import trustme

from imgvol.errors import (
    ImgvolError,
    InvalidArgument,
    NotFound,
    ProtocolError,
    RegistryUnavailable,
    RemoteError,
    Unauthorized,
)
from imgvol.registry import Credential, Lookup, RegistryOptions, Secret, StaticCredentials
from support.programs import free_port
from support.remote_images import BOUNDS, RemoteImage, client_of, read_blob, reference
from support.scripted_registry import (
    ScriptedServer,
    break_off,
    demand_basic,
    demand_token,
    raw,
    redirect,
    respond,
    serve,
    tunnel,
    two_servers,
)

CANARY = "c4n4ry-p4ssw0rd"
PLAIN = RegistryOptions(plain_http=True)
LOGIN = StaticCredentials(Credential(username="jane", password=Secret(CANARY)))
IDENTITY = StaticCredentials(Credential(identity_token=Secret(CANARY)))
BASIC = base64.b64encode(f"jane:{CANARY}".encode()).decode()


@pytest.fixture
def image():
    return RemoteImage()


@pytest.fixture
def server(image):
    with ScriptedServer() as running:
        image.install(running)
        yield running


def token_answer(token="t0", **members):
    return respond(200, json.dumps({"token": token, **members}).encode())


def guard_with_tokens(server, image, tokens, **options):
    """Every path of the image now wants one of `tokens`, from a service on the same server."""
    realm = f"{server.url}/token"
    for path in (image.manifest_path(), image.manifest_path(image.descriptor.digest)):
        for method in ("HEAD", "GET"):
            step = demand_token(realm, tokens, image.manifest_answer(), **options)
            server.on(method, path, step)
    server.on("GET", image.layer_path, demand_token(realm, tokens, serve(image.layer), **options))


# --- Basic --------------------------------------------------------------------------------------


async def test_basic_login_is_sent_when_asked_for_and_from_then_on(server, image):
    for method in ("HEAD", "GET"):
        server.on(method, image.manifest_path(), demand_basic(BASIC, image.manifest_answer()))
    async with client_of(server, credentials=LOGIN) as client:
        await client.resolve(reference(server))
        await client.fetch_manifest(reference(server), None)
    assert server.fired == ["401"]
    assert "authorization" not in server.seen[0].headers


async def test_wrong_password_is_tried_once(server, image):
    for method in ("HEAD", "GET"):
        server.on(method, image.manifest_path(), demand_basic("other", image.manifest_answer()))
    async with client_of(server, credentials=LOGIN) as client:
        with pytest.raises(Unauthorized) as raised:
            await client.fetch_manifest(reference(server), None)
    assert server.fired == ["401"] * 2
    assert "used the login that came with the request" in raised.value.hint


async def test_no_login_where_one_is_wanted(server, image):
    for method in ("HEAD", "GET"):
        server.on(method, image.manifest_path(), demand_basic(BASIC, image.manifest_answer()))
    async with client_of(server) as client:
        with pytest.raises(Unauthorized) as raised:
            await client.resolve(reference(server))
    assert f"Log in to {server.domain}" in raised.value.hint
    assert "no login was given" in raised.value.hint


async def test_login_of_an_unknown_kind(server, image):
    answer = respond(401, WWW_Authenticate="Negotiate abc=", fault="401")
    server.on("HEAD", image.manifest_path(), answer)
    async with client_of(server, credentials=LOGIN) as client:
        with pytest.raises(Unauthorized, match="negotiate"):
            await client.resolve(reference(server))
    assert server.fired == ["401"]


# --- tokens -------------------------------------------------------------------------------------


async def test_anonymous_token(server, image):
    guard_with_tokens(server, image, ["t0"], scope="repository:other/image:pull,push")
    server.on("GET", "/token", token_answer())
    async with client_of(server) as client:
        descriptor = await client.resolve(reference(server))
        assert await client.fetch_manifest(reference(server), descriptor) == image.manifest
        assert await read_blob(client, server, image.layer_descriptor) == image.layer
    [asked] = server.requests("GET", "/token")
    assert asked.query == {
        "service": ["registry"],
        "scope": ["repository:other/image:pull,push", "repository:some/image:pull"],
    }
    assert "authorization" not in asked.headers
    assert server.fired == ["401"]


async def test_access_token_is_preferred(server, image):
    guard_with_tokens(server, image, ["better"])
    server.on("GET", "/token", token_answer("worse", access_token="better"))
    async with client_of(server) as client:
        assert await client.resolve(reference(server)) == image.descriptor


async def test_bearer_is_preferred_to_basic_among_several_challenges(server, image):
    challenges = [
        'Basic realm="a, b"',
        f'Digest nonce="x", Bearer realm="{server.url}/token",service="a,b"',
    ]
    unauthorized = respond(401, WWW_Authenticate=challenges, fault="401")
    server.on("HEAD", image.manifest_path(), unauthorized, image.manifest_answer())
    server.on("POST", "/token", token_answer())
    async with client_of(server, credentials=LOGIN) as client:
        assert await client.resolve(reference(server)) == image.descriptor
    assert server.seen[-1].headers["authorization"] == "Bearer t0"
    assert server.requests("POST", "/token")[0].form["service"] == "a,b"


async def test_login_is_posted_as_oauth2(server, image):
    guard_with_tokens(server, image, ["t0"])
    server.on("POST", "/token", token_answer())
    async with client_of(server, credentials=LOGIN) as client:
        await client.resolve(reference(server))
    [asked] = server.requests("POST", "/token")
    assert asked.form == {
        "grant_type": "password",
        "username": "jane",
        "password": CANARY,
        "service": "registry",
        "client_id": "imgvol",
        "scope": "repository:some/image:pull",
    }
    assert asked.headers["content-type"] == "application/x-www-form-urlencoded"


async def test_identity_token_is_posted_as_refresh_token(server, image):
    guard_with_tokens(server, image, ["t0"])
    server.on("POST", "/token", token_answer())
    async with client_of(server, credentials=IDENTITY) as client:
        await client.resolve(reference(server))
    form = server.requests("POST", "/token")[0].form
    assert form["grant_type"] == "refresh_token"
    assert form["refresh_token"] == CANARY
    assert "password" not in form


@pytest.mark.parametrize("status", [400, 401, 404, 405])
async def test_service_without_oauth2_gets_the_older_request(server, image, status):
    guard_with_tokens(server, image, ["t0"])
    server.on("POST", "/token", respond(status, fault="no post"))
    server.on("GET", "/token", demand_basic(BASIC, token_answer()))
    async with client_of(server, credentials=LOGIN) as client:
        await client.resolve(reference(server))
    assert server.fired == ["401", "no post"]


async def test_registry_token_is_used_as_it_is(server, image):
    guard_with_tokens(server, image, [CANARY])
    given = StaticCredentials(Credential(registry_token=Secret(CANARY)))
    async with client_of(server, credentials=given) as client:
        await client.resolve(reference(server))
    assert server.requests("GET", "/token") == server.requests("POST", "/token") == []


async def test_login_that_the_token_service_refuses(server, image):
    guard_with_tokens(server, image, ["t0"])
    words = json.dumps({"errors": [{"code": "DENIED", "message": f"not {BASIC}, {CANARY}"}]})
    for method in ("POST", "GET"):
        server.on(method, "/token", respond(401, words.encode(), fault="denied"))
    async with client_of(server, credentials=LOGIN) as client:
        with pytest.raises(Unauthorized, match=r"DENIED: not \*\*\*, \*\*\*") as raised:
            await client.resolve(reference(server))
    assert CANARY not in raised.value.hint
    assert server.fired == ["401", "denied", "denied"]


async def test_token_is_renewed_once_when_it_is_refused(server, image):
    tokens = ["t0"]
    guard_with_tokens(server, image, tokens)
    server.on("GET", "/token", token_answer("t0"), token_answer("t1"))
    async with client_of(server) as client:
        await client.resolve(reference(server))
        tokens[:] = ["t1"]
        await client.resolve(reference(server))
    assert len(server.requests("GET", "/token")) == 2
    assert server.fired == ["401", "401"]


async def test_token_that_is_never_enough(server, image):
    guard_with_tokens(server, image, ["other"])
    server.on("GET", "/token", token_answer())
    async with client_of(server) as client:
        with pytest.raises(Unauthorized, match="UNAUTHORIZED: go away"):
            await client.fetch_manifest(reference(server), None)
    assert server.fired == ["401"] * 2
    assert len(server.requests("GET", "/token")) == 1


async def test_token_is_renewed_before_it_expires(server, image):
    guard_with_tokens(server, image, ["t0", "t1"])
    server.on("GET", "/token", token_answer("t0", expires_in=1), token_answer("t1"))
    async with client_of(server) as client:
        await client.resolve(reference(server))
        await trio.sleep(0.95)
        await client.resolve(reference(server))
    assert [seen.headers.get("authorization") for seen in server.seen if seen.method == "HEAD"] == [
        None,
        "Bearer t0",
        None,
        "Bearer t1",
    ]


async def test_token_that_expires_while_a_blob_is_read(server, image):
    tokens = ["t0"]
    realm = f"{server.url}/token"

    def break_off_and_expire(connection, request):
        tokens[:] = ["t1"]
        break_off(image.layer, 150_000, how="reset")(connection, request)

    server.on(
        "GET",
        image.layer_path,
        demand_token(realm, tokens, break_off_and_expire),
        demand_token(realm, tokens, break_off_and_expire),
        demand_token(realm, tokens, serve(image.layer)),
    )
    server.on("GET", "/token", token_answer("t0"), token_answer("t1"))
    async with client_of(server) as client:
        assert await read_blob(client, server, image.layer_descriptor) == image.layer
    assert server.fired == ["401", "reset", "401"]


async def test_many_refused_at_once_fetch_one_token(server, image):
    guard_with_tokens(server, image, ["t0"])

    def slow(connection, request):
        connection.pause(0.2)
        token_answer()(connection, request)

    server.on("GET", "/token", slow)
    async with client_of(server) as client, trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(client.resolve, reference(server))
    assert server.fired == ["401"] * 8
    assert len(server.requests("GET", "/token")) == 1


async def test_many_refused_at_once_share_one_failure(server, image):
    guard_with_tokens(server, image, ["t0"])

    def slow(connection, request):
        connection.pause(0.2)
        respond(403)(connection, request)

    server.on("GET", "/token", slow)
    failures = []

    async def resolve(client):
        with pytest.raises(Unauthorized):
            await client.resolve(reference(server))
        failures.append(1)

    async with client_of(server) as client, trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(resolve, client)
    assert len(failures) == 8
    assert len(server.requests("GET", "/token")) == 1


async def test_cancelled_leader_does_not_take_the_others_along(server, image):
    guard_with_tokens(server, image, ["t0"])
    server.on("GET", "/token", raw(b"", fault="silence", then="linger"), token_answer())
    async with client_of(server) as client, trio.open_nursery() as nursery:
        leader = trio.CancelScope()

        async def lead():
            with leader:
                await client.resolve(reference(server))

        nursery.start_soon(lead)
        while "silence" not in server.fired:
            await trio.sleep(0.01)
        nursery.start_soon(client.resolve, reference(server))
        await trio.sleep(0.1)
        leader.cancel()
    assert leader.cancelled_caught
    assert len(server.requests("GET", "/token")) == 2


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"{}",
        b"[]",
        b'{"token": 7}',
        b'{"token": ""}',
        b'{"token": "a\\r\\nX-Evil: 1"}',
        b"[" * 100_000,
        b'{"token": "' + bytes(2_000_000) + b'"}',
    ],
    ids=["text", "empty", "list", "number", "none", "header", "deep", "huge"],
)
async def test_token_answers_that_make_no_sense(server, image, body):
    guard_with_tokens(server, image, ["t0"])
    server.on("GET", "/token", respond(200, body, fault="nonsense"))
    async with client_of(server) as client:
        with pytest.raises(ImgvolError) as raised:
            await client.resolve(reference(server))
    assert not raised.value.retryable
    assert server.fired == ["401", "nonsense"]


async def test_answer_whose_head_does_not_end_is_refused(server, image):
    taken = 0

    def pour(connection, _):
        nonlocal taken
        connection.fire("head")
        connection.send(b"HTTP/1.1 200 OK\r\nX-Endless: ")
        for _ in range(1000):
            connection.send(b"a" * 64 * 1024)
            taken += 64 * 1024

    guard_with_tokens(server, image, ["t0"])
    server.on("GET", "/token", pour)
    async with client_of(server) as client:
        with pytest.raises(ImgvolError):
            await client.resolve(reference(server))
    assert "head" in server.fired
    # What the client took is less than what sockets hold, and far from the 64 MB.
    assert taken < 32 * 1024 * 1024


@pytest.mark.parametrize("expires_in", [0, -1, True, "60", None, 1e300])
async def test_token_lifetimes_that_make_no_sense(server, image, expires_in):
    guard_with_tokens(server, image, ["t0"])
    server.on("GET", "/token", token_answer(expires_in=expires_in))
    async with client_of(server) as client:
        for _ in range(2):
            assert await client.resolve(reference(server)) == image.descriptor
    assert len(server.requests("GET", "/token")) == 1


async def test_token_service_in_trouble_is_retried(server, image):
    guard_with_tokens(server, image, ["t0"])
    server.on("GET", "/token", respond(500, fault="500"), token_answer())
    async with client_of(server) as client:
        assert await client.resolve(reference(server)) == image.descriptor
    assert server.fired == ["401", "500"]


async def test_token_service_that_drips_is_given_up(server, image):
    guard_with_tokens(server, image, ["t0"])

    def drip(connection, _):
        connection.fire("drip")
        connection.send_head(200, {"Content-Length": "1000"})
        while True:
            connection.send(b" ")
            connection.pause(0.05)

    server.on("GET", "/token", drip)
    begun = time.monotonic()
    async with client_of(server) as client:
        with pytest.raises(RegistryUnavailable, match="in time"):
            await client.resolve(reference(server))
    assert time.monotonic() - begun < BOUNDS.document_deadline + 1
    assert "drip" in server.fired


async def test_broken_source_of_credentials_is_told_in_the_hint(server, image):
    class Broken:
        def find(self, registry, repository):
            assert (registry, repository) == (server.domain, "some/image")
            return Lookup(None, ("helper x failed: no such file",))

    server.on("HEAD", image.manifest_path(), demand_basic(BASIC, image.manifest_answer()))
    async with client_of(server, credentials=Broken()) as client:
        with pytest.raises(Unauthorized) as raised:
            await client.resolve(reference(server))
    assert "helper x failed" in raised.value.hint


# --- realms -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "realm",
    [
        "",
        "/token",
        "file:///etc/passwd",
        "ftp://127.0.0.1/token",
        "http://jane:secret@127.0.0.1/token",
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1]/token",
        "http://[::ffff:169.254.169.254]/token",
        "http://2852039166/token",
        "http://224.0.0.1/token",
        "http://:80/",
        "http://[",
    ],
)
async def test_realms_that_lead_astray(server, image, realm):
    unauthorized = respond(401, WWW_Authenticate=f'Bearer realm="{realm}"', fault="401")
    server.on("HEAD", image.manifest_path(), unauthorized)
    async with client_of(server, credentials=LOGIN) as client:
        with pytest.raises(ProtocolError) as raised:
            await client.resolve(reference(server))
    assert "secret" not in str(raised.value)
    assert server.fired == ["401"]


async def test_registry_on_this_machine_may_name_a_token_service_on_this_machine(image):
    with two_servers() as (registry, other):
        image.install(registry)
        step = demand_token(f"{other.url}/token", ["t0"], image.manifest_answer())
        registry.on("HEAD", image.manifest_path(), step)
        other.on("POST", "/token", token_answer())
        async with client_of(registry, credentials=LOGIN) as client:
            assert await client.resolve(reference(registry)) == image.descriptor
        assert len(other.seen) == 1


async def test_login_is_not_posted_on(image):
    with two_servers() as (registry, other):
        step = demand_token(f"{registry.url}/token", ["t0"], image.manifest_answer())
        registry.on("HEAD", image.manifest_path(), step)
        registry.on("POST", "/token", redirect(f"{other.url}/token"))
        async with client_of(registry, credentials=LOGIN) as client:
            with pytest.raises(ProtocolError, match="with a login"):
                await client.resolve(reference(registry))
        assert registry.fired == ["401", "redirect"]
        assert other.seen == []


# --- redirects ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_blob_from_another_host_without_our_login(image, status):
    with two_servers() as (registry, other):
        step = redirect(f"{other.url}/data?signature=1", status)
        registry.on("GET", image.layer_path, demand_basic(BASIC, step))
        other.on("GET", "/data", serve(image.layer))
        async with client_of(registry, credentials=LOGIN) as client:
            assert await read_blob(client, registry, image.layer_descriptor) == image.layer
        assert registry.fired == ["401", "redirect"]
        assert "authorization" not in other.seen[0].headers
        assert CANARY not in str(other.seen)


async def test_other_port_is_another_origin(image):
    with ScriptedServer() as registry, ScriptedServer() as other:
        registry.on("GET", image.layer_path, demand_basic(BASIC, redirect(f"{other.url}/data")))
        other.on("GET", "/data", serve(image.layer))
        async with client_of(registry, credentials=LOGIN) as client:
            assert await read_blob(client, registry, image.layer_descriptor) == image.layer
        assert "authorization" not in other.seen[0].headers


async def test_relative_redirect_within_the_registry_keeps_the_login(server, image):
    server.on("GET", image.layer_path, demand_basic(BASIC, redirect("../data")))
    path = f"{image.layer_path.rpartition('/blobs/')[0]}/data"
    server.on("GET", path, demand_basic(BASIC, serve(image.layer)))
    async with client_of(server, credentials=LOGIN) as client:
        assert await read_blob(client, server, image.layer_descriptor) == image.layer
    assert server.fired == ["401", "redirect"]


async def test_second_host_cannot_ask_for_our_login(image):
    with two_servers() as (registry, other):
        registry.on("GET", image.layer_path, redirect(f"{other.url}/data"))
        other.on("GET", "/data", demand_token(f"{other.url}/token", ["t0"], serve(image.layer)))
        async with client_of(registry, credentials=LOGIN) as client:
            with pytest.raises(Unauthorized):
                await read_blob(client, registry, image.layer_descriptor)
        assert {seen.path for seen in other.seen} == {"/data"}
        assert all("authorization" not in seen.headers for seen in other.seen)


@pytest.mark.parametrize(
    "location",
    [
        None,
        "",
        "file:///etc/passwd",
        "http://jane:secret@127.0.0.1/data",
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:a9fe:a9fe]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://[",
        "http://127.0.0.1:99999999/",
        "gopher://127.0.0.1/",
        f"http://127.0.0.1/{'x' * 20_000}",
    ],
)
async def test_redirects_that_lead_astray(server, image, location):
    server.on("GET", image.layer_path, redirect(location))
    async with client_of(server, credentials=LOGIN) as client:
        with pytest.raises(ProtocolError) as raised:
            await read_blob(client, server, image.layer_descriptor)
    assert "secret" not in str(raised.value)
    assert server.fired == ["redirect"]


async def test_redirects_without_end(server, image):
    server.on("GET", image.layer_path, redirect(image.layer_path))
    async with client_of(server) as client:
        with pytest.raises(ProtocolError, match="too many redirects"):
            await read_blob(client, server, image.layer_descriptor)
    assert server.fired == ["redirect"] * (BOUNDS.redirects + 1)


async def test_as_many_redirects_as_allowed(server, image):
    path = image.layer_path
    for hop in range(BOUNDS.redirects):
        server.on("GET", path, redirect(f"/hop/{hop}"))
        path = f"/hop/{hop}"
    server.on("GET", path, serve(image.layer))
    async with client_of(server) as client:
        assert await read_blob(client, server, image.layer_descriptor) == image.layer


async def test_resumed_blob_asks_the_second_host_directly(image):
    with two_servers() as (registry, other):
        registry.on("GET", image.layer_path, redirect(f"{other.url}/data"))
        other.on("GET", "/data", break_off(image.layer, 1000, how="eof"), serve(image.layer))
        async with client_of(registry) as client:
            assert await read_blob(client, registry, image.layer_descriptor) == image.layer
        assert other.fired == ["eof"]
        assert len(registry.seen) == 1


async def test_the_next_range_asks_the_second_host_directly(image):
    with two_servers() as (registry, other):
        registry.on("GET", image.layer_path, redirect(f"{other.url}/data"))
        other.on("GET", "/data", serve(image.layer))
        async with client_of(registry) as client:
            for start in (0, 100, 200):
                got = await read_blob(
                    client, registry, image.layer_descriptor, offset=start, end=start + 100
                )
                assert got == image.layer[start : start + 100]
        assert len(registry.seen) == 1
        assert [seen.range[0] for seen in other.seen] == [0, 100, 200]


async def test_a_place_that_other_readers_found_and_that_has_gone_is_asked_for_again(image):
    with two_servers() as (registry, other):
        gone = f"http://localhost:{free_port()}/data"
        registry.on("GET", image.layer_path, redirect(f"{other.url}/data"))
        other.on("GET", "/data", serve(image.layer))
        blob = httpx.URL(f"{registry.url}{image.layer_path}")
        async with client_of(registry) as client:
            for start in (0, 100, 200):
                part = {"offset": start, "end": start + 100}
                got = await read_blob(client, registry, image.layer_descriptor, **part)
                assert got == image.layer[start : start + 100]
                if start == 0:
                    client._stations.authority.session.hops.locations.note(blob, httpx.URL(gone))
            assert client._stations.authority.session.hops.locations.get(blob) == httpx.URL(
                f"{other.url}/data"
            )
        assert len(registry.seen) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
async def test_an_expired_place_that_another_reader_found_is_asked_for_again(image, status):
    with two_servers() as (registry, other):
        registry.on(
            "GET", image.layer_path, redirect(f"{other.url}/old"), redirect(f"{other.url}/new")
        )
        expired = respond(status, fault="expired")
        other.on("GET", "/old", serve(image.layer), expired)
        other.on("GET", "/new", serve(image.layer))
        async with client_of(registry) as client:
            for start in (0, 100, 200):
                got = await read_blob(
                    client, registry, image.layer_descriptor, offset=start, end=start + 100
                )
                assert got == image.layer[start : start + 100]
        assert other.fired == ["expired"]
        assert len(registry.seen) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
async def test_expired_location_is_resolved_again(image, status):
    with two_servers() as (registry, other):
        registry.on(
            "GET",
            image.layer_path,
            redirect(f"{other.url}/old"),
            redirect(f"{other.url}/new"),
        )
        expired = respond(status, fault="expired")
        other.on("GET", "/old", break_off(image.layer, 1000, how="eof"), expired)
        other.on("GET", "/new", serve(image.layer))
        async with client_of(registry) as client:
            assert await read_blob(client, registry, image.layer_descriptor) == image.layer
        assert other.fired == ["eof", "expired"]
        assert len(registry.seen) == 2
        assert other.seen[-1].range[0] == 1000


async def test_location_that_is_always_expired(image):
    with two_servers() as (registry, other):
        registry.on("GET", image.layer_path, redirect(f"{other.url}/data?sig={CANARY}"))
        other.on("GET", "/data", respond(403, fault="expired"))
        async with client_of(registry) as client:
            with pytest.raises(Unauthorized) as raised:
                await read_blob(client, registry, image.layer_descriptor)
        assert other.fired == ["expired"] * 2
    assert CANARY not in str(raised.value)


# --- certificates -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority, tmp_path_factory):
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


def tls_server(authority, name="127.0.0.1", host="127.0.0.1"):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return ScriptedServer(host, tls=context)


async def test_registry_with_a_certificate_of_a_given_authority(authority, ca_file, image):
    with tls_server(authority) as server:
        image.install(server)
        async with client_of(server, options=RegistryOptions(ca_file=ca_file)) as client:
            assert await client.resolve(reference(server)) == image.descriptor
            assert await read_blob(client, server, image.layer_descriptor) == image.layer


@pytest.mark.parametrize("how", ["reset", "eof", "stall"])
async def test_blob_over_tls_that_breaks_off_is_resumed(authority, ca_file, image, how):
    with tls_server(authority) as server:
        server.on(
            "GET", image.layer_path, break_off(image.layer, 100_000, how=how), serve(image.layer)
        )
        async with client_of(server, options=RegistryOptions(ca_file=ca_file)) as client:
            assert await read_blob(client, server, image.layer_descriptor) == image.layer
        assert server.fired == [how]


async def test_cancel_wakes_a_reader_that_waits_on_tls(authority, ca_file, image):
    with tls_server(authority) as server:
        server.on("GET", image.layer_path, break_off(image.layer, 1000, how="stall"))
        async with client_of(server, options=RegistryOptions(ca_file=ca_file)) as client:
            reader = client.open_blob(reference(server), image.layer_descriptor)
            threading.Timer(0.2, reader.cancel).start()
            with reader, pytest.raises(RegistryUnavailable, match="cancelled"):
                for _ in reader.iter_pieces():
                    pass
        assert server.fired == ["stall"]


@pytest.mark.parametrize("name", ["127.0.0.1", "registry.example.com"])
async def test_certificate_that_is_not_trusted(authority, ca_file, image, name):
    with tls_server(authority, name) as server:
        image.install(server)
        # The wrong name with the right authority, or the right name with an unknown one.
        other = trustme.CA()
        trusted = ca_file
        if name == "127.0.0.1":
            trusted = ca_file.with_name("other.pem")
            other.cert_pem.write_to_path(trusted)
        async with client_of(server, options=RegistryOptions(ca_file=trusted)) as client:
            with pytest.raises(RemoteError, match="not trusted") as raised:
                await client.resolve(reference(server))
        assert "--ca-file" in raised.value.hint
        assert not raised.value.retryable
        assert server.connections == 1
        assert server.seen == []


async def test_insecure_accepts_any_certificate(authority, image):
    with tls_server(authority, "registry.example.com") as server:
        image.install(server)
        async with client_of(server, options=RegistryOptions(insecure=True)) as client:
            assert await client.resolve(reference(server)) == image.descriptor


async def test_client_certificate_is_shown(authority, ca_file, image, tmp_path):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    certificate = authority.issue_cert("client@example.com")
    chain, key = tmp_path / "client.pem", tmp_path / "client.key"
    certificate.cert_chain_pems[0].write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    with ScriptedServer(tls=context) as server:
        image.install(server)
        options = RegistryOptions(ca_file=ca_file, client_cert=(chain, key))
        async with client_of(server, options=options) as client:
            assert await client.resolve(reference(server)) == image.descriptor
        async with client_of(server, options=RegistryOptions(ca_file=ca_file)) as client:
            with pytest.raises(RemoteError) as raised:
                await client.resolve(reference(server))
        assert "client certificate" in raised.value.hint


async def test_client_certificate_is_not_shown_to_others(authority, ca_file, image, tmp_path):
    certificate = authority.issue_cert("client@example.com")
    pem = tmp_path / "client.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(pem)
    demanding = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.2").configure_cert(demanding)
    authority.configure_trust(demanding)
    demanding.verify_mode = ssl.CERT_REQUIRED
    options = RegistryOptions(ca_file=ca_file, client_cert=(pem, pem))
    with tls_server(authority) as server, ScriptedServer("127.0.0.2", tls=demanding) as other:
        other.on("GET", "/x", serve(image.layer))
        descriptor = replace(image.layer_descriptor, urls=(f"{other.url}/x",))
        async with client_of(server, options=options) as client:
            with pytest.raises(RemoteError) as raised:
                await read_blob(client, server, descriptor)
        assert "client certificate" in raised.value.hint
        assert other.seen == []


async def test_others_are_checked_however_little_the_registry_is(authority, image):
    with (
        tls_server(authority) as server,
        tls_server(authority, "127.0.0.2", "127.0.0.2") as other,
    ):
        other.on("GET", "/x", serve(image.layer))
        descriptor = replace(image.layer_descriptor, urls=(f"{other.url}/x",))
        async with client_of(server, options=RegistryOptions(insecure=True)) as client:
            with pytest.raises(RemoteError, match="not trusted"):
                await read_blob(client, server, descriptor)
        assert len(server.seen) == 1


async def test_blob_from_another_server_over_tls(authority, ca_file, image):
    with (
        tls_server(authority) as server,
        tls_server(authority, "127.0.0.2", "127.0.0.2") as other,
        ScriptedServer() as plain,
    ):
        other.on("GET", "/x", redirect(f"{plain.url}/x"))
        other.on("GET", "/y", serve(image.layer))
        urls = (f"{plain.url}/x", f"{other.url}/x", f"{other.url}/y")
        descriptor = replace(image.layer_descriptor, urls=urls)
        async with client_of(server, options=RegistryOptions(ca_file=ca_file)) as client:
            assert await read_blob(client, server, descriptor) == image.layer
        # Not without TLS: neither at once nor after a redirect.
        assert plain.seen == []
        assert [seen.path for seen in other.seen] == ["/x", "/y"]


async def test_https_is_not_redirected_to_http(authority, ca_file, image):
    with tls_server(authority) as server, ScriptedServer("127.0.0.2") as other:
        server.on("GET", image.layer_path, redirect(f"{other.url}/data"))
        async with client_of(server, options=RegistryOptions(ca_file=ca_file)) as client:
            with pytest.raises(ProtocolError, match="from https to http"):
                await read_blob(client, server, image.layer_descriptor)
        assert server.fired == ["redirect"]
        assert other.seen == []


async def test_https_registry_does_not_send_logins_to_an_http_realm(authority, ca_file, image):
    with tls_server(authority) as server, ScriptedServer() as other:
        step = demand_token(f"{other.url}/token", ["t0"], image.manifest_answer())
        server.on("HEAD", image.manifest_path(), step)
        options = RegistryOptions(ca_file=ca_file)
        async with client_of(server, options=options, credentials=LOGIN) as client:
            with pytest.raises(ProtocolError, match="no TLS"):
                await client.resolve(reference(server))
        assert server.fired == ["401"]
        assert other.seen == []


async def test_plain_server_where_tls_is_expected(server):
    server.greeting = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    async with client_of(server, options=RegistryOptions(insecure=True)) as client:
        with pytest.raises(ProtocolError, match="plain HTTP response to an HTTPS client") as raised:
            await client.resolve(reference(server))
    assert "--plain-http" in raised.value.hint


async def test_missing_ca_file(server, tmp_path):
    missing = RegistryOptions(ca_file=tmp_path / "missing.pem")
    with pytest.raises(InvalidArgument, match="no such file"):
        async with client_of(server, options=missing):
            pass


# --- connecting ---------------------------------------------------------------------------------


async def test_nobody_listens(image):
    with ScriptedServer() as server:
        pass
    async with client_of(server) as client:
        with pytest.raises(RegistryUnavailable, match="refuses the connection"):
            await client.resolve(reference(server))


@pytest.fixture
def names(monkeypatch):
    """The name service: a list of answers for each name, the last one repeats."""
    table = {}
    real = socket.getaddrinfo

    def look_up(host, port, **options):
        answers = table.get(host)
        if answers is None:
            return real(host, port, **options)
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(answer):
            answer = answer()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in answer]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return table


def unknown():
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


class Named:
    """A server under a name of its own."""

    def __init__(self, server, name="registry.example.com"):
        self.domain = f"{name}:{server.port}"


async def test_name_that_does_not_exist(names, server):
    names["registry.example.com"] = [unknown]
    async with client_of(Named(server), options=PLAIN) as client:
        with pytest.raises(RegistryUnavailable, match=r"unknown host registry\.example\.com"):
            await client.resolve(reference(Named(server)))


async def test_name_that_exists_a_moment_later(names, server, image):
    names["registry.example.com"] = [unknown, ["127.0.0.1"]]
    async with client_of(Named(server), options=PLAIN) as client:
        assert await client.resolve(reference(Named(server))) == image.descriptor


async def test_first_address_that_nobody_answers_at(names, server, image):
    names["registry.example.com"] = [["127.0.0.9", "127.0.0.1"]]
    async with client_of(Named(server), options=PLAIN) as client:
        assert await client.resolve(reference(Named(server))) == image.descriptor
    assert server.connections == 1


async def test_name_service_that_does_not_answer(names, server):
    released = threading.Event()
    names["registry.example.com"] = [released.wait]
    async with client_of(Named(server), options=PLAIN) as client:
        begun = time.monotonic()
        with trio.move_on_after(0.2) as scope:
            await client.resolve(reference(Named(server)))
        assert scope.cancelled_caught
        assert time.monotonic() - begun < 1
    released.set()


async def test_helper_that_hangs_does_not_hold_a_cancelled_caller(server, image):
    released = threading.Event()

    class Hanging:
        def find(self, registry, repository):
            released.wait(10)
            return Lookup(None)

    server.on("HEAD", image.manifest_path(), demand_basic(BASIC, image.manifest_answer()))
    async with client_of(server, credentials=Hanging()) as client:
        begun = time.monotonic()
        with trio.move_on_after(0.2) as scope:
            await client.resolve(reference(server))
        assert scope.cancelled_caught
        assert time.monotonic() - begun < 1
    released.set()
    assert server.fired == ["401"]


# --- names that lead inside ----------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["127.0.0.1", "10.0.0.1", "169.254.169.254"])
@pytest.mark.parametrize("way", ["realm", "redirect", "url"])
async def test_name_that_resolves_to_an_address_inside(names, image, inside, way):
    """The registry is somewhere outside, behind the proxy; what it names is on our side of it."""
    names["inside.example.com"] = [[inside]]
    with ScriptedServer() as proxy, ScriptedServer() as victim:
        url = f"http://inside.example.com:{victim.port}/secret"
        step, fired = {
            "realm": (demand_token(url, [], respond(200)), ["401"]),
            "redirect": (redirect(url), ["redirect"]),
            "url": (respond(404, fault="missing"), ["missing"]),
        }[way]
        descriptor = replace(image.layer_descriptor, urls=(url,))
        proxy.on("GET", image.layer_path, step)
        outside = Named(proxy)
        environ = {"http_proxy": proxy.url, "no_proxy": "inside.example.com"}
        async with client_of(outside, options=PLAIN, environ=environ, credentials=LOGIN) as client:
            with pytest.raises(ProtocolError, match="no business with"):
                await read_blob(client, outside, descriptor)
        assert proxy.fired == fired
        assert victim.connections == 0


async def test_server_that_accepts_nothing(image):
    """A full backlog drops SYNs: nobody refuses, nobody answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        await trio.sleep(0.05)

        class Full:
            domain = f"127.0.0.1:{port}"

        async with client_of(Full) as client:
            begun = time.monotonic()
            with trio.move_on_after(0.3) as scope:
                await client.resolve(reference(Full))
            assert scope.cancelled_caught
            assert time.monotonic() - begun < 0.8
            with pytest.raises(RegistryUnavailable):
                await client.resolve(reference(Full))
            assert time.monotonic() - begun < 4
        for filler in fillers:
            filler.close()


# --- proxies ------------------------------------------------------------------------------------


async def test_proxy_of_the_environment(image):
    with ScriptedServer() as proxy:
        path = "/v2/some/image/manifests/v1"
        domain = "registry.example.com:5000"
        # A forward proxy is asked for whole URLs.
        proxy.on("HEAD", path, image.manifest_answer())

        class Remote:
            pass

        Remote.domain = domain
        environ = {"http_proxy": f"http://proxy-user:{CANARY}@{proxy.domain}"}
        options = RegistryOptions(plain_http=True)
        async with client_of(Remote, options=options, environ=environ) as client:
            assert await client.resolve(reference(Remote)) == image.descriptor
        [seen] = proxy.seen
        assert seen.target == f"http://{domain}{path}"
        expected = base64.b64encode(f"proxy-user:{CANARY}".encode()).decode()
        assert seen.headers["proxy-authorization"] == f"Basic {expected}"


async def test_proxy_is_told_only_the_host_of_an_https_registry(image):
    with ScriptedServer() as proxy:
        proxy.on("CONNECT", "registry.example.com:443", respond(403, fault="refused"))

        class Remote:
            domain = "registry.example.com"

        environ = {"HTTPS_PROXY": proxy.url}
        async with client_of(Remote, environ=environ, credentials=LOGIN) as client:
            with pytest.raises(RegistryUnavailable, match="proxy"):
                await client.resolve(reference(Remote))
        assert proxy.fired == ["refused"] * (1 + BOUNDS.connect_retries)
        assert {seen.method for seen in proxy.seen} == {"CONNECT"}
        assert CANARY not in str(proxy.seen)


@pytest.mark.parametrize("proxy_has_tls", [False, True])
async def test_https_registry_through_a_proxy(authority, ca_file, image, proxy_has_tls):
    domain = "registry.example.com"
    proxy_tls = None
    if proxy_has_tls:
        proxy_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(proxy_tls)
    with tls_server(authority, domain) as server, ScriptedServer(tls=proxy_tls) as proxy:
        image.install(server)
        proxy.on("CONNECT", f"{domain}:443", tunnel(server.port))

        class Remote:
            pass

        Remote.domain = domain
        options, environ = RegistryOptions(ca_file=ca_file), {"https_proxy": proxy.url}
        async with client_of(Remote, options=options, environ=environ) as client:
            assert await client.resolve(reference(Remote)) == image.descriptor
            assert await read_blob(client, Remote, image.layer_descriptor) == image.layer
        assert proxy.fired == ["tunnel"]


async def test_loopback_does_not_go_through_the_proxy(server, image):
    environ = {"http_proxy": "http://127.0.0.1:9", "all_proxy": "http://127.0.0.1:9"}
    async with client_of(server, environ=environ) as client:
        assert await client.resolve(reference(server)) == image.descriptor


async def test_netrc_is_not_read(server, image, tmp_path, monkeypatch):
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"machine 127.0.0.1 login jane password {CANARY}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    async with client_of(server) as client:
        await client.resolve(reference(server))
    assert "authorization" not in server.seen[0].headers


def with_causes(error):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# --- secrets ------------------------------------------------------------------------------------


async def test_no_secret_reaches_a_log_line_or_an_error(image, caplog):
    """Logins, tokens and signatures go every way they can; then all that was said is searched."""
    caplog.set_level(logging.DEBUG)
    echo = json.dumps({"errors": [{"code": "X", "message": f"{CANARY} {BASIC} t-{CANARY}"}]})
    errors = []
    with two_servers() as (registry, other):
        realm = f"{registry.url}/token"
        registry.on("POST", "/token", respond(405))
        registry.on("GET", "/token", demand_basic(BASIC, token_answer(f"t-{CANARY}")))
        refuse = respond(403, echo.encode())
        for method in ("HEAD", "GET"):
            step = demand_token(realm, [f"t-{CANARY}"], refuse)
            registry.on(method, image.manifest_path(), step)
        signed = f"{other.url}/data?X-Signature={CANARY}&token={CANARY}#{CANARY}"
        registry.on("GET", image.layer_path, demand_token(realm, [f"t-{CANARY}"], redirect(signed)))
        other.on("GET", "/data", respond(403, echo.replace(CANARY, "").encode()))
        async with client_of(registry, credentials=LOGIN) as client:
            for work in (
                lambda: client.resolve(reference(registry)),
                lambda: read_blob(client, registry, image.layer_descriptor),
            ):
                with pytest.raises(ImgvolError) as raised:
                    await work()
                errors.append(raised.value)
            said = [repr(client), repr(LOGIN), f"{LOGIN.credential.password}"]
        assert registry.fired.count("redirect") == 2
    for error in chain(*map(with_causes, errors)):
        said += [str(error), repr(error), getattr(error, "hint", "")]
        said += map(str, getattr(error, "fields", {}).values())
    said += [record.getMessage() for record in caplog.records]
    for text in said:
        assert CANARY not in text
        assert BASIC not in text


async def test_not_found_names_no_credentials(server):
    async with client_of(server, credentials=LOGIN) as client:
        with pytest.raises(NotFound) as raised:
            await client.resolve(reference(server).with_tag("missing"))
    assert raised.value.hint == ""
