"""Several servers for one registry: who is asked, for what, with which login, and who is next."""

import base64
import contextlib
import json
import socket
import ssl
import time
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
import trustme

from imgvol import limits
from imgvol.config import RegistryPaths
from imgvol.errors import (
    BadConfiguration,
    NotFound,
    RegistryUnavailable,
    Unauthorized,
)
from imgvol.registry import (
    Credential,
    FileCredentials,
    RegistryOptions,
    Secret,
    StaticCredentials,
    open_registry_client,
)
from imgvol.registry.registries import Registries
from support.programs import free_port
from support.remote_images import BOUNDS, REPOSITORY, RemoteImage, read_blob, reference
from support.scripted_registry import (
    ScriptedServer,
    break_off,
    demand_basic,
    demand_token,
    drip,
    redirect,
    respond,
    serve,
)

CANARY = "c4n4ry-p4ssw0rd"
REQUEST = StaticCredentials(Credential(username="request", password=Secret(CANARY)))


@pytest.fixture
def image():
    return RemoteImage()


@pytest.fixture
def own(image):
    with ScriptedServer() as running:
        image.install(running)
        yield running


@pytest.fixture
def mirror(image):
    with ScriptedServer(host="127.0.0.2") as running:
        image.install(running)
        yield running


def toml(value):
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name} = {toml(each)}' for name, each in value.items())}}}"
    return json.dumps(value)


class Setup:
    """Configuration in a directory, which a test may change at any time."""

    def __init__(self, root):
        self.root = root
        self.yaml = root / "registries.yaml"
        self.registries = Registries(
            RegistryPaths(hosts_dirs=(root / "certs.d",), registries_files=(self.yaml,))
        )

    def hosts(self, domain, *mirrors, server="", **settings):
        """A hosts.toml with mirrors that have the same settings."""
        directory = self.root / "certs.d" / domain
        directory.mkdir(parents=True, exist_ok=True)
        lines = [f'server = "{server}"'] if server else []
        for url in mirrors:
            lines.append(f'[host."{url}"]')
            lines += [f"{name} = {toml(value)}" for name, value in settings.items()]
        (directory / "hosts.toml").write_text("\n".join(lines) + "\n")

    def write_yaml(self, **document):
        self.yaml.write_text(json.dumps(document))  # JSON is YAML

    @asynccontextmanager
    async def client(self, domain, *, credentials=None, kept_logins=None, options=None):
        async with open_registry_client(
            domain,
            options or RegistryOptions(),
            credentials,
            registries=self.registries,
            kept_logins=kept_logins,
            bounds=BOUNDS,
            environ={},
            random=Random(1),
        ) as client:
            yield client

    async def pull(self, own, image, **settings):
        """Everything of an image, with a client of its own."""
        async with self.client(own.domain, **settings) as client:
            descriptor = await client.resolve(reference(own))
            assert descriptor == image.descriptor
            assert await client.fetch_manifest(reference(own), descriptor) == image.manifest
            config = image.config_descriptor
            assert await client.fetch_blob(reference(own), config, max_size=1000) == image.config
            assert await read_blob(client, own, image.layer_descriptor) == image.layer


@pytest.fixture
def setup(tmp_path):
    return Setup(tmp_path)


def authorizations(*servers):
    return {seen.headers.get("authorization", "") for server in servers for seen in server.seen}


# --- who is asked ---------------------------------------------------------------------------------


async def test_a_mirror_is_asked_first_and_told_whom_it_stands_for(setup, own, mirror, image):
    setup.hosts(own.domain, mirror.url)
    await setup.pull(own, image)
    assert own.seen == []
    assert len(mirror.seen) == 4
    assert all(seen.query == {"ns": [own.domain]} for seen in mirror.seen)


async def test_the_registry_itself_is_told_nothing(setup, own, image):
    setup.hosts(own.domain, own.url)
    await setup.pull(own, image)
    assert all(seen.query == {} for seen in own.seen)


async def test_a_mirror_that_may_only_deliver_is_asked_by_digest_only(setup, own, mirror, image):
    setup.hosts(own.domain, mirror.url, capabilities=["pull"])
    await setup.pull(own, image)
    assert [(seen.method, seen.path) for seen in own.seen] == [("HEAD", image.manifest_path())]
    assert [seen.path for seen in mirror.seen] == [
        image.manifest_path(image.descriptor.digest),
        image.config_path,
        image.layer_path,
    ]
    async with setup.client(own.domain) as client:
        pinned = reference(own, tag=None).with_digest(image.descriptor.digest)
        assert await client.resolve(pinned) == image.descriptor
    assert mirror.seen[-1].method == "HEAD"
    assert len(own.seen) == 1


async def test_a_registry_that_nobody_may_resolve_for_is_an_error(setup, own, mirror, image):
    setup.hosts(own.domain, mirror.url, capabilities=["pull"])
    file = setup.root / "certs.d" / own.domain / "hosts.toml"
    file.write_text('capabilities = ["pull"]\n' + file.read_text())
    async with setup.client(own.domain) as client:
        with pytest.raises(BadConfiguration) as caught:
            await client.resolve(reference(own))
        assert caught.value.fields["file"] == str(file)
        assert await read_blob(client, own, image.layer_descriptor) == image.layer


async def test_names_are_rewritten_on_mirrors_and_not_at_home(setup, own, mirror, image):
    setup.write_yaml(
        mirrors={own.domain: {"endpoint": [mirror.url], "rewrite": {"^some/(.*)": "cache/any-$1"}}}
    )
    renamed = image.manifest_path().replace(REPOSITORY, "cache/any-image")
    mirror.on("HEAD", renamed, image.manifest_answer())
    async with setup.client(own.domain) as client:
        assert await client.resolve(reference(own)) == image.descriptor
        assert own.seen == []
        assert await read_blob(client, own, image.layer_descriptor) == image.layer
    assert {seen.path for seen in mirror.seen} == {
        renamed,
        image.layer_path.replace(REPOSITORY, "cache/any-image"),
    }
    assert {seen.path for seen in own.seen} == {image.layer_path}


async def test_what_a_user_asks_for_is_for_the_registry_itself(setup, own, mirror, image):
    setup.write_yaml(
        mirrors={own.domain: {"endpoint": [mirror.url]}},
        configs={own.domain: {"tls": {"insecure_skip_verify": "true"}}},
    )
    mirror.on("HEAD", image.manifest_path(), respond(404))
    mirror.on("GET", image.manifest_path(), respond(404))
    await setup.pull(own, image, options=RegistryOptions(plain_http=True))
    assert [seen.path for seen in own.seen] == [image.manifest_path()]


# --- who comes next -------------------------------------------------------------------------------

REFUSALS = {
    "404": respond(404),
    "401": respond(401),
    "403": respond(403),
    "500": respond(500),
    "503": respond(503),
    "429": respond(429, retry_after="3600"),
    "web page": respond(200, b"<html>", content_type="text/html"),
    "other bytes": respond(200, b"other bytes"),
    "redirect to nowhere": redirect(None),
}


@pytest.mark.parametrize("answer", REFUSALS.values(), ids=REFUSALS)
async def test_whatever_a_mirror_does_wrong_the_registry_is_asked(
    setup, own, mirror, image, answer
):
    setup.hosts(own.domain, mirror.url)
    for name in ("v1", image.descriptor.digest):
        for method in ("GET", "HEAD"):
            mirror.on(method, image.manifest_path(name), answer)
    for path in (image.config_path, image.layer_path):
        mirror.on("GET", path, answer)
    began = time.monotonic()
    await setup.pull(own, image)
    assert mirror.seen
    assert image.layer_path in {seen.path for seen in own.seen}
    assert time.monotonic() - began < 5


async def test_a_mirror_that_is_down_is_asked_once(setup, own, image, monkeypatch, caplog):
    caplog.set_level("INFO", "imgvol")
    setup.hosts(own.domain, f"http://127.0.0.2:{free_port()}")
    await setup.pull(own, image)
    assert caplog.text.count("is asked last for a while") == 1
    assert "refuses the connection" in caplog.text


async def test_a_mirror_in_trouble_is_asked_last_and_in_turn_again_later(
    setup, own, mirror, image, monkeypatch
):
    setup.hosts(own.domain, mirror.url)
    for method in ("GET", "HEAD"):
        mirror.on(method, image.manifest_path(), respond(503))
    await setup.pull(own, image)
    assert {seen.path for seen in mirror.seen} == {image.manifest_path()}
    tries = len(mirror.seen)
    assert tries == 1 + limits.ALTERNATIVE_RETRIES
    await setup.pull(own, image)
    assert len(mirror.seen) == tries
    later = time.monotonic() + limits.ENDPOINT_REST
    monkeypatch.setattr(setup.registries.health, "_now", lambda: later)
    await setup.pull(own, image)
    assert len(mirror.seen) == 2 * tries


async def test_what_is_known_of_a_mirror_holds_for_every_registry_that_it_stands_for(
    setup, own, mirror, image
):
    with ScriptedServer(host="127.0.0.3") as other:
        image.install(other)
        for domain in (own.domain, other.domain):
            setup.hosts(domain, mirror.url)
        mirror.on("HEAD", image.manifest_path(), respond(500))
        await setup.pull(own, image)
        asked = len(mirror.seen)
        await setup.pull(other, image)
        assert len(mirror.seen) == asked
        assert len(other.seen) == 4


async def test_a_mirror_in_trouble_still_helps_when_the_registry_is_away(
    setup, mirror, image, monkeypatch
):
    domain = f"127.0.0.1:{free_port()}"
    setup.hosts(domain, mirror.url)
    mirror.on("GET", image.layer_path, respond(503), respond(503), serve(image.layer))
    here = reference(mirror)
    async with setup.client(domain) as client:
        with pytest.raises(RegistryUnavailable):
            await read_blob(client, mirror, image.layer_descriptor)
        assert setup.registries.health.rests(client._stations.authority.endpoint)
        assert await read_blob(client, mirror, image.layer_descriptor) == image.layer
        assert await client.resolve(here) == image.descriptor


@pytest.mark.parametrize("how", ["reset", "eof", "stall"])
async def test_a_mirror_that_goes_away_in_the_middle_is_followed_from_the_same_byte_on(
    setup, own, mirror, image, how
):
    setup.hosts(own.domain, mirror.url)
    size = len(image.layer)
    mirror.on(
        "GET",
        image.layer_path,
        break_off(image.layer, 100_000, how=how),
        respond(503, fault="gone"),
    )
    async with setup.client(own.domain) as client:
        assert await read_blob(client, own, image.layer_descriptor) == image.layer
        assert mirror.fired[0] == how
        [rest] = own.requests("GET", image.layer_path)
        assert rest.range == (100_000, size)
        asked = len(mirror.seen)
        # Every range after that one goes where the last one came from.
        for start in range(0, size, 50_000):
            end = min(start + 50_000, size)
            got = await read_blob(client, own, image.layer_descriptor, offset=start, end=end)
            assert got == image.layer[start:end]
        assert len(mirror.seen) == asked
    # A stall costs too much to be tried again; what else breaks off may be whole the next time.
    assert asked == (1 if how == "stall" else 2)


async def test_a_place_that_a_mirror_names_is_remembered_for_that_mirror(setup, own, mirror, image):
    setup.hosts(own.domain, mirror.url)
    with ScriptedServer(host="127.0.0.3") as store:
        mirror.on("GET", image.layer_path, redirect(f"{store.url}/mirrored"))
        own.on("GET", image.layer_path, redirect(f"{store.url}/original"))
        store.on("GET", "/mirrored", serve(image.layer), serve(image.layer), respond(503))
        store.on("GET", "/original", serve(image.layer))
        async with setup.client(own.domain) as client:
            for start in range(0, 600, 100):
                part = {"offset": start, "end": start + 100}
                got = await read_blob(client, own, image.layer_descriptor, **part)
                assert got == image.layer[start : start + 100]
    assert [seen.path for seen in store.seen[:3]] == ["/mirrored"] * 3
    assert [seen.path for seen in store.seen[-3:]] == ["/original"] * 3
    assert len(own.requests("GET", image.layer_path)) == 1


async def test_cancel_wakes_a_reader_at_the_second_server(setup, own, mirror, image):
    setup.hosts(own.domain, mirror.url)
    mirror.on("GET", image.layer_path, respond(404))
    own.on("GET", image.layer_path, drip(image.layer, every=0.05))
    async with setup.client(own.domain) as client:
        reader = client.open_blob(reference(own), image.layer_descriptor)

        def receive() -> None:
            with reader:
                for _ in reader.iter_pieces():
                    reader.cancel()

        with pytest.raises(RegistryUnavailable, match="cancelled"), trio.fail_after(5):
            await trio.to_thread.run_sync(receive)
        assert own.fired == ["drip"]


async def test_a_reader_that_was_cancelled_asks_nobody(setup, own, mirror, image):
    setup.hosts(own.domain, mirror.url)
    async with setup.client(own.domain) as client:
        reader = client.open_blob(reference(own), image.layer_descriptor)
        reader.cancel()
        with reader, pytest.raises(RegistryUnavailable, match="cancelled"):
            await trio.to_thread.run_sync(list, reader.iter_pieces())
    assert own.seen == mirror.seen == []


async def test_closing_the_client_is_no_failure_of_its_servers(setup, own, mirror, image):
    setup.hosts(own.domain, mirror.url)
    mirror.on("GET", image.layer_path, drip(image.layer, every=0.05))
    async with trio.open_nursery() as nursery, setup.client(own.domain) as client:

        async def receive() -> None:
            with pytest.raises(RegistryUnavailable, match="cancelled"):
                await read_blob(client, own, image.layer_descriptor)

        nursery.start_soon(receive)
        with trio.fail_after(5):
            while not mirror.fired:
                await trio.sleep(0.01)
        endpoints = setup.registries.endpoints(own.domain, RegistryOptions())
    assert mirror.fired == ["drip"]
    assert not any(setup.registries.health.rests(endpoint) for endpoint in endpoints)
    assert own.seen == []


async def test_a_server_that_does_not_let_us_connect_is_left_soon(setup, own, image):
    # A backlog that is full: the kernel answers nobody.
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.2", 0), backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        setup.hosts(
            own.domain, f"http://127.0.0.2:{listener.getsockname()[1]}", dial_timeout="200ms"
        )
        began = time.monotonic()
        await setup.pull(own, image)
        assert 0.15 < time.monotonic() - began < BOUNDS.connect_timeout


# --- what is told at the end ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at_mirror", "at_home", "expected", "message"),
    [
        (respond(404), respond(404), NotFound, "the registry has no"),
        (respond(503), respond(404), NotFound, "the registry has no"),
        (respond(404), respond(401), Unauthorized, "the registry refuses access"),
        (respond(401), respond(503), Unauthorized, "mirror 127.0.0.2"),
        (respond(404), respond(503), RegistryUnavailable, "the registry fails"),
    ],
)
async def test_the_error_at_the_end_tells_every_reason_the_most_telling_first(
    setup, own, mirror, image, at_mirror, at_home, expected, message
):
    setup.hosts(own.domain, mirror.url)
    for server, answer in ((mirror, at_mirror), (own, at_home)):
        for method in ("GET", "HEAD"):
            server.on(method, image.manifest_path(), answer)
    async with setup.client(own.domain) as client:
        with pytest.raises(expected) as caught:
            await client.resolve(reference(own))
    error = caught.value
    assert message in error.message
    other = mirror if "registry" in message else own
    assert f"{other.url}/v2: " in error.fields["others"]
    assert ("mirror 127.0.0.2" in f"{error.message} {error.fields['others']}") is True


async def test_no_error_has_a_secret_in_it(setup, own, mirror, image):
    setup.write_yaml(
        mirrors={own.domain: {"endpoint": [mirror.url]}},
        configs={mirror.domain: {"auth": {"username": "m", "password": CANARY}}},
    )
    words = json.dumps({"errors": [{"code": "DENIED", "message": f"not with {CANARY}"}]}).encode()
    for server in (own, mirror):
        for method in ("GET", "HEAD"):
            challenge = 'Basic realm="here"'
            server.on(
                method, image.manifest_path(), respond(401, words, www_authenticate=challenge)
            )
    async with setup.client(own.domain, credentials=REQUEST) as client:
        with pytest.raises(Unauthorized) as caught:
            await client.resolve(reference(own))
    assert CANARY not in f"{caught.value!s} {caught.value.hint} {caught.value!r}"
    assert mirror.domain in caught.value.fields["others"]


# --- who is told which login ----------------------------------------------------------------------


def login_of(username):
    return base64.b64encode(f"{username}:{CANARY}".encode()).decode()


def basic(username):
    return f"Basic {login_of(username)}"


def guard(server, image, username):
    """Gives its layer to one user only."""
    server.on("GET", image.layer_path, demand_basic(login_of(username), serve(image.layer)))


async def test_the_login_of_a_request_is_for_the_registry_and_not_for_its_mirrors(
    setup, own, mirror, image
):
    setup.hosts(own.domain, mirror.url)
    guard(mirror, image, "request")
    guard(own, image, "request")
    async with setup.client(own.domain, credentials=REQUEST) as client:
        assert await read_blob(client, own, image.layer_descriptor) == image.layer
    assert authorizations(mirror) == {""}
    assert authorizations(own) == {"", basic("request")}


async def test_each_server_gets_the_login_that_is_configured_for_it(setup, own, mirror, image):
    setup.write_yaml(
        mirrors={own.domain: {"endpoint": [mirror.url]}},
        configs={
            mirror.domain: {"auth": {"username": "mirror", "password": CANARY}},
            own.domain: {"auth": {"username": "own", "password": CANARY}},
        },
    )
    guard(mirror, image, "somebody else")
    guard(own, image, "own")
    async with setup.client(own.domain) as client:
        assert await read_blob(client, own, image.layer_descriptor) == image.layer
    assert authorizations(mirror) == {"", basic("mirror")}
    assert authorizations(own) == {"", basic("own")}


async def test_what_a_request_brings_goes_before_what_is_configured_and_that_before_what_is_kept(
    setup, own, image, tmp_path
):
    kept = tmp_path / "auth.json"
    kept.write_text(json.dumps({"auths": {own.domain: {"auth": login_of("kept")}}}))
    kept_logins = FileCredentials([kept])
    configured = {own.domain: {"auth": {"username": "configured", "password": CANARY}}}
    for configs, credentials, expected in (
        (configured, REQUEST, "request"),
        (configured, None, "configured"),
        ({}, None, "kept"),
    ):
        setup.write_yaml(configs=configs)
        guard(own, image, expected)
        settings = {"credentials": credentials, "kept_logins": kept_logins}
        async with setup.client(own.domain, **settings) as client:
            assert await read_blob(client, own, image.layer_descriptor) == image.layer


async def test_a_login_that_is_kept_for_a_mirror_is_used_there_only(
    setup, own, mirror, image, tmp_path
):
    kept = tmp_path / "auth.json"
    kept.write_text(json.dumps({"auths": {mirror.domain: {"auth": login_of("mirror")}}}))
    setup.hosts(own.domain, mirror.url)
    guard(mirror, image, "mirror")
    async with setup.client(own.domain, kept_logins=FileCredentials([kept])) as client:
        assert await read_blob(client, own, image.layer_descriptor) == image.layer
    assert authorizations(mirror) == {"", basic("mirror")}
    assert own.seen == []


async def test_a_replacement_of_the_registry_does_not_get_the_registrys_login(
    setup, own, mirror, image
):
    setup.hosts(own.domain, server=mirror.url)
    guard(mirror, image, "request")
    async with setup.client(own.domain, credentials=REQUEST) as client:
        with pytest.raises(Unauthorized):
            await read_blob(client, own, image.layer_descriptor)
    assert authorizations(mirror) == {""}
    assert own.seen == []


async def test_a_mirrors_token_service_gets_the_mirrors_login(setup, own, mirror, image):
    setup.write_yaml(
        mirrors={own.domain: {"endpoint": [mirror.url], "rewrite": {"some": "any"}}},
        configs={mirror.domain: {"auth": {"username": "mirror", "password": CANARY}}},
    )
    path = image.layer_path.replace("some/", "any/")
    mirror.on("GET", path, demand_token(f"{mirror.url}/token", ["t0k3n"], serve(image.layer)))
    mirror.on("POST", "/token", respond(200, b'{"token": "t0k3n"}'))
    async with setup.client(own.domain, credentials=REQUEST) as client:
        assert await read_blob(client, own, image.layer_descriptor) == image.layer
    [asked] = mirror.requests("POST", "/token")
    assert (asked.form["username"], asked.form["password"]) == ("mirror", CANARY)
    assert "repository:any/image:pull" in asked.form["scope"]
    assert own.seen == []


async def test_headers_are_for_their_server_only(setup, own, mirror, image):
    setup.hosts(own.domain, mirror.url, header={"X-Key": CANARY, "User-Agent": "ours"})
    with ScriptedServer(host="127.0.0.3") as store:
        mirror.on("GET", image.layer_path, redirect(f"{store.url}/data"))
        mirror.on("HEAD", image.manifest_path(), respond(404))
        mirror.on("GET", image.manifest_path(), respond(404))
        store.on("GET", "/data", serve(image.layer))
        await setup.pull(own, image)
    assert {seen.headers.get("x-key") for seen in mirror.seen} == {CANARY}
    assert {seen.headers["user-agent"] for seen in mirror.seen} == {"ours"}
    assert {seen.headers.get("x-key") for seen in own.seen + store.seen} == {None}
    assert store.seen
    assert own.seen


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def guarded_mirror(authority, image):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.2").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    with ScriptedServer(host="127.0.0.2", tls=context) as running:
        image.install(running)
        yield running


def write_certificates(authority, directory):
    directory.mkdir(parents=True, exist_ok=True)
    authority.cert_pem.write_to_path(directory / "ca.crt")
    client = authority.issue_cert("client@example.com")
    client.cert_chain_pems[0].write_to_path(directory / "client.cert")
    client.private_key_pem.write_to_path(directory / "client.key")


@pytest.mark.parametrize("kind", ["hosts.toml", "registries.yaml"])
async def test_certificates_of_a_mirror(setup, own, guarded_mirror, authority, image, kind):
    url, domain = guarded_mirror.url, guarded_mirror.domain
    if kind == "hosts.toml":
        write_certificates(authority, setup.root / "certs.d" / own.domain)
        setup.hosts(own.domain, url, ca="ca.crt", client=[["client.cert", "client.key"]])
    else:
        write_certificates(authority, setup.root)
        names = {"ca_file": "ca.crt", "cert_file": "client.cert", "key_file": "client.key"}
        setup.write_yaml(
            mirrors={own.domain: {"endpoint": [url]}}, configs={domain: {"tls": names}}
        )
    await setup.pull(own, image)
    assert len(guarded_mirror.seen) == 4
    assert own.seen == []


async def test_certificates_as_docker_keeps_them(setup, guarded_mirror, authority, image):
    write_certificates(authority, setup.root / "certs.d" / guarded_mirror.domain)
    await setup.pull(guarded_mirror, image)
    assert len(guarded_mirror.seen) == 4


async def test_without_the_certificate_it_is_the_next_ones_turn(
    setup, own, guarded_mirror, authority, image
):
    setup.hosts(own.domain, guarded_mirror.url)
    await setup.pull(own, image)
    assert guarded_mirror.connections
    assert guarded_mirror.seen == []
    assert len(own.seen) == 4


async def test_a_server_without_tls_that_has_certificates_is_asked_all_the_same(
    setup, own, mirror, image
):
    setup.hosts(own.domain, mirror.url, skip_verify=True)
    await setup.pull(own, image)
    assert len(mirror.seen) == 4
    assert own.seen == []


async def test_a_certificate_that_is_none_is_an_error_and_not_the_next_ones_turn(
    setup, own, mirror, image
):
    setup.hosts(own.domain, "https://127.0.0.2:1", ca="hosts.toml")
    with pytest.raises(Exception, match="not a certificate") as caught:
        await setup.pull(own, image)
    assert caught.value.fields["file"].endswith("hosts.toml")
    assert own.seen == []


# --- without a restart ----------------------------------------------------------------------------


async def test_the_next_client_reads_what_has_changed(setup, own, mirror, image):
    await setup.pull(own, image)
    setup.hosts(own.domain, mirror.url)
    await setup.pull(own, image)
    assert (len(own.seen), len(mirror.seen)) == (4, 4)
    setup.hosts(own.domain, mirror.url, capabilities="all")
    with pytest.raises(BadConfiguration, match="not a list of texts") as caught:
        await setup.pull(own, image)
    assert caught.value.fields["key"] == f'host."{mirror.url}".capabilities'
    setup.hosts(own.domain)
    await setup.pull(own, image)
    assert (len(own.seen), len(mirror.seen)) == (8, 4)


async def test_referrers_come_from_who_knows_them(setup, own, mirror, image):
    index = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [image.descriptor.to_json() | {"artifactType": "a/b"}],
        }
    ).encode()
    path = f"/v2/{REPOSITORY}/referrers/{image.descriptor.digest}"
    answer = respond(200, index, content_type="application/vnd.oci.image.index.v1+json")
    own.on("GET", path, answer)
    setup.hosts(own.domain, mirror.url)
    async with setup.client(own.domain) as client:
        found = await client.list_referrers(reference(own), image.descriptor.digest, "a/b")
        assert [each.digest for each in found] == [image.descriptor.digest]
        assert [seen.path for seen in mirror.seen] == [path]
        mirror.on("GET", path, answer)
        await client.list_referrers(reference(own), image.descriptor.digest, "a/b")
        assert len(own.seen) == 1
    setup.hosts(own.domain, mirror.url, capabilities=["pull", "resolve"])
    async with setup.client(own.domain) as client:
        await client.list_referrers(reference(own), image.descriptor.digest, "a/b")
    assert len(mirror.seen) == 2
    assert len(own.seen) == 2
