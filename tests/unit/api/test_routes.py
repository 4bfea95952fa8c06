"""Every route, over fakes: what it does, and that its answers are what the document promises."""

import json

import pytest
import trio
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from imgvol.api import encoding, handlers
from imgvol.api.http import JSON, NDJSON, Request, Response, Stream
from imgvol.api.openapi import openapi_document
from imgvol.api.problems import RequestError
from imgvol.api.routes import PREFIX, ROUTES, make_dispatch
from imgvol.api.schemas import COMPONENTS
from imgvol.errors import DigestMismatch, InvalidArgument, NotFound, RegistryUnavailable
from imgvol.images.readiness import Readiness
from imgvol.images.service import PullOptions
from imgvol.images.streams import Showing
from imgvol.registry import Credential, Secret
from imgvol.volumes.manager import Volume
from imgvol.volumes.options import BindOptions, Escapes, Propagation, parse_mappings
from support.api_fakes import FakeDaemon, broken_content, digest, invalid_reference

ALPINE = "image=alpine:3.20"
# One good request for each operation.
EXAMPLES = {
    "getVersion": ("", None),
    "getOpenAPI": ("", None),
    "getMetrics": ("", None),
    "stopDaemon": ("", None),
    "getUsage": ("", None),
    "getSpace": ("", None),
    "planEviction": ("", {"to": 20_000_000_000}),
    "evict": ("", {"to": 20_000_000_000}),
    "followEvents": ("kinds=pull.failed,image.removed", None),
    "checkStore": ("", None),
    "scrubImages": ("", {"image": "busybox:1", "repair": True}),
    "planCollection": ("", None),
    "collectGarbage": ("", None),
    "getPreload": ("", None),
    "listImages": ("", None),
    "removeImage": (ALPINE, None),
    "importImages": ("", {"path": "/srv/a.tar", "platforms": ["linux/arm64"], "link": True}),
    "exportImages": ("", {"images": ["alpine:3.20"]}),
    "convertImage": ("", {"image": "a:1", "target": "oci:/x:1", "format": "estargz"}),
    "pullImage": ("", {"image": "busybox:1"}),
    "inspectImage": (ALPINE, None),
    "listTraces": ("", None),
    "recordTrace": ("", {"volume": "/mnt/x", "seconds": 0.15}),
    "finishTrace": ("", {"recording": "0123456789ab"}),
    "pushTrace": ("", {"image": "alpine:3.20"}),
    "readTrace": (ALPINE, None),
    "removeTrace": (ALPINE, None),
    "createIndex": ("", {"image": "registry.example.com/app:1", "span_size": 1 << 20}),
    "listIndexes": ("", None),
    "removeIndexes": ("image=registry.example.com/app:1", None),
    "pushIndexes": ("", {"image": "registry.example.com/app:1", "target": "127.0.0.1:5000/a:l"}),
    "pinImage": ("", {"image": "docker.io/library/alpine:3.20"}),
    "unpinImage": ("", {"image": "docker.io/library/alpine:3.20"}),
    "listFiles": (f"{ALPINE}&path=/etc", None),
    "readFile": (f"{ALPINE}&path=/etc/os-release", None),
    "sumFiles": (ALPINE, None),
    "listVolumes": ("", None),
    "mountVolume": ("", {"image": "busybox:1", "target": "/mnt/a"}),
    "unmountVolume": ("volume=/mnt/x", None),
    "mountForSandbox": (
        "",
        {"sandbox": "pod", "mounts": [{"image": "a:1", "readonly": True}, {"host_path": "/x"}]},
    ),
    "listLeases": ("", None),
    "createLease": ("", {"lease": "l", "labels": {"a": "b"}, "expires": 9, "images": ["a:1"]}),
    "renewLease": ("", {"lease": "pod"}),
    "deleteLease": ("lease=pod&drain=0.5&detach=true", None),
}


@pytest.fixture
def daemon():
    return FakeDaemon()


@pytest.fixture
def quick_progress(monkeypatch):
    monkeypatch.setattr(handlers, "PROGRESS_INTERVAL", 0.01)


async def call(daemon, method, path, query="", body=None, *, prefix=PREFIX, file=None):
    """The answer's body: a document, the documents of its lines, or its bytes."""
    data = b"" if body is None else json.dumps(body).encode()
    request = Request(method=method, path=prefix + path, query=query, body=data, file=file)
    answer = await make_dispatch(daemon.services)(request)
    if isinstance(answer, Response):
        if answer.after is not None:
            answer.after()
        return json.loads(answer.body) if answer.media_type == JSON else answer.body
    assert isinstance(answer, Stream)
    pieces = []

    async def send(piece):
        await trio.lowlevel.checkpoint()
        pieces.append(piece)

    await answer.produce(send)
    whole = b"".join(pieces)
    if answer.media_type == NDJSON:
        return [json.loads(line) for line in whole.splitlines()]
    return whole


def validator(name):
    schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": COMPONENTS}}
    return Draft202012Validator(schema)


def test_the_document_is_valid_openapi():
    validate(json.loads(json.dumps(openapi_document())))


def test_every_operation_is_named_once_and_has_an_example():
    names = [route.operation for route in ROUTES]
    assert len(set(names)) == len(names)
    assert set(names) == set(EXAMPLES)


def test_every_component_is_used():
    text = json.dumps(openapi_document())
    for name in COMPONENTS:
        assert f"#/components/schemas/{name}" in text


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation)
async def test_answers_match_their_schema(route, daemon, quick_progress):
    daemon.images.pull_steps, daemon.images.pull_pause = 3, 0.03
    if route.operation in {"unmountVolume", "recordTrace"}:
        await call(daemon, "POST", "/volumes", body={"image": "a:1", "target": "/mnt/x"})
    if route.operation == "renewLease":
        await call(daemon, "POST", "/leases", body={"lease": "pod"})
    query, body = EXAMPLES[route.operation]
    file = 1 if route.operation == "exportImages" else None
    answer = await call(
        daemon, route.method, route.path, query, body, prefix=route.prefix, file=file
    )
    if route.media_type == NDJSON:
        assert answer[-1]["event"] == "done"
        validators = [validator(name) for name in route.answers]
        for line in answer:
            assert sum(v.is_valid(line) for v in validators) == 1, line
    elif route.answers:
        validator(route.answers[0]).validate(answer)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation)
async def test_unknown_parameters_are_refused(route, daemon):
    with pytest.raises(InvalidArgument):
        await call(
            daemon,
            route.method,
            route.path,
            f"{ALPINE}&nonsense=1",
            {"image": "a"},
            prefix=route.prefix,
        )


async def test_unknown_paths_and_methods(daemon):
    for method, path, status in [("GET", "/nothing", 404), ("PUT", "/images", 405)]:
        with pytest.raises(RequestError) as caught:
            await call(daemon, method, path)
        assert caught.value.status == status
        # RFC 9110, section 15.5.6.
        allowed = (("allow", "DELETE, GET"),) if status == 405 else ()
        assert caught.value.headers == allowed


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"username": "jane", "password": "x"}, {"username": "jane", "password": Secret("x")}),
        ({"auth": "amFuZTp4"}, {"username": "jane", "password": Secret("x")}),
        ({"identity_token": "x"}, {"identity_token": Secret("x")}),
        ({"registry_token": "x"}, {"registry_token": Secret("x")}),
    ],
)
async def test_a_login_is_passed_on_with_a_pull(daemon, members, expected):
    await call(daemon, "POST", "/images/pull", body={"image": "busybox:1", **members})
    (*_, options) = daemon.images.calls[0]
    assert options == PullOptions(credential=Credential(**expected))


def test_secrets_are_marked_and_taken_in_bodies_only():
    marked = set()
    for route in ROUTES:
        assert not any(field.is_secret for field in route.query)
        for field in route.body:
            if field.is_secret:
                marked.add(field.name)
                assert field.schema()["writeOnly"] is True
    assert marked == {"password", "auth", "identity_token", "registry_token"}


async def test_pull_passes_everything_on_and_reports(daemon, quick_progress):
    daemon.images.pull_steps, daemon.images.pull_pause = 4, 0.03
    options = {"plain_http": True, "insecure": False, "ca_file": "/ca.pem"}
    body = {"image": "busybox:1", "platform": "linux/arm64", **options}
    events = await call(daemon, "POST", "/images/pull", body=body)
    assert daemon.images.calls == [("pull", "busybox:1", "linux/arm64", PullOptions(**options))]
    kinds = [event["event"] for event in events]
    assert kinds.count("progress") >= 2
    assert kinds[-1] == "done"
    received = [e["layers"][1]["received"] for e in events if e["event"] == "progress"]
    assert received == sorted(received)
    assert events[-1]["image"]["names"] == ["docker.io/library/busybox:1"]
    assert events[-1]["stats"]["resolve_seconds"] == 0.12


async def test_unchanged_progress_is_said_once_until_the_heartbeat(
    daemon, quick_progress, monkeypatch
):
    monkeypatch.setattr(handlers, "HEARTBEAT", 0.15)
    daemon.images.pull_pause = 0.4
    events = await call(daemon, "POST", "/images/pull", body={"image": "busybox:1"})
    assert 2 <= sum(event["event"] == "progress" for event in events) <= 4


async def test_a_failing_pull_raises_its_own_error(daemon, quick_progress):
    daemon.images.pull_pause = 0.05
    daemon.images.pull_error = RegistryUnavailable("cannot connect")
    with pytest.raises(RegistryUnavailable):
        await call(daemon, "POST", "/images/pull", body={"image": "busybox:1"})


async def test_cancelling_a_pull_reaches_the_service(daemon):
    daemon.images.pull_pause = 60
    async with trio.open_nursery() as nursery:

        async def pull():
            await call(daemon, "POST", "/images/pull", body={"image": "busybox:1"})

        nursery.start_soon(pull)
        while not daemon.images.pull_started.is_set():
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert daemon.images.pull_cancelled.is_set()


async def test_mount_passes_on_what_is_bound_and_how(daemon):
    body = {
        "image": "a:1",
        "target": "/mnt",
        "nosymfollow": True,
        "sub_path": "etc/\udcff",
        "escapes": "refuse",
        "dirs_only": True,
        "uid_mappings": "0:100000:65536",
        "gid_mappings": "0:200000:65536",
        "propagation": "PROPAGATION_HOST_TO_CONTAINER",
        "selinux_relabel": True,
    }
    events = await call(daemon, "POST", "/volumes", body=body)
    assert daemon.volumes.calls[-1]["bind"] == BindOptions(
        nosymfollow=True,
        sub_path=b"etc/\xff",
        escapes=Escapes.REFUSE,
        dirs_only=True,
        uid_mappings=parse_mappings("0:100000:65536"),
        gid_mappings=parse_mappings("0:200000:65536"),
        propagation=Propagation.HOST_TO_CONTAINER,
        selinux_relabel=True,
    )
    told = events[-1]["volume"]["options"]
    assert told["uid_mappings"] == ["0:100000:65536"]
    assert told["sub_path"] == "etc/\udcff"


@pytest.mark.parametrize(
    "wrong",
    [
        {"uid_mappings": "0:1"},
        {"uid_mappings": "0:0:1"},
        {"propagation": "rshared"},
        {"propagation": "up"},
        {"escapes": "yes"},
        {"sub_path": "a\0b"},
        {"sub_path": "a" * 5000},
    ],
)
async def test_mount_refuses_options_that_make_no_sense(daemon, wrong):
    with pytest.raises(InvalidArgument):
        await call(daemon, "POST", "/volumes", body={"image": "a:1", "target": "/mnt"} | wrong)
    assert daemon.volumes.calls == []


async def test_mount_wants_absolute_targets_and_passes_habits(daemon):
    with pytest.raises(InvalidArgument):
        await call(daemon, "POST", "/volumes", body={"image": "a:1", "target": "mnt"})
    body = {
        "image": "a:1",
        "target": "/mnt",
        "pull": "never",
        "noexec": True,
        "sandbox": "s",
        "patience": 7.5,
    }
    events = await call(daemon, "POST", "/volumes", body=body)
    assert events[-1]["volume"]["path"] == "/mnt"
    asked = daemon.volumes.calls[-1]
    assert (asked["pull"], asked["bind"].noexec, asked["sandbox"]) == ("never", True, "s")
    assert asked["patience"] == 7.5


@pytest.mark.parametrize(
    ("wanted", "readiness"),
    [
        ({}, Readiness.LAZY),
        ({"lazy": "auto", "verify": "lazy"}, Readiness.LAZY),
        ({"verify": "full"}, Readiness.VERIFIED),
        ({"lazy": "off"}, Readiness.STORED),
        ({"lazy": "off", "verify": "full"}, Readiness.STORED),
    ],
)
async def test_what_a_mount_waits_for(daemon, wanted, readiness):
    await call(daemon, "POST", "/volumes", body={"image": "a:1", **wanted})
    assert daemon.volumes.calls[-1]["readiness"] is readiness


@pytest.mark.parametrize(
    ("wanted", "showing"),
    [
        ({}, None),
        ({"wait": "index"}, None),
        ({"verify": "stream"}, Showing.ARRIVING),
        ({"verify": "stream", "wait": "manifest"}, Showing.ARRIVING),
        ({"verify": "stream", "wait": "index"}, None),
        ({"wait": "manifest"}, Showing.VERIFIED),
    ],
)
async def test_what_is_shown_while_an_image_is_pulled(daemon, wanted, showing):
    await call(daemon, "POST", "/volumes", body={"image": "a:1", **wanted})
    assert daemon.volumes.calls[-1]["showing"] is showing


@pytest.mark.parametrize(
    "wanted",
    [
        {"verify": "stream", "lazy": "off"},
        {"wait": "manifest", "lazy": "off"},
        {"wait": "manifest", "verify": "full"},
        {"wait": "all"},
    ],
)
async def test_a_mount_cannot_wait_for_less_than_it_is_to_have(daemon, wanted):
    with pytest.raises(InvalidArgument):
        await call(daemon, "POST", "/volumes", body={"image": "a:1", **wanted})
    assert not daemon.volumes.calls


async def test_names_that_are_not_utf_8_survive(daemon):
    entries = await call(daemon, "GET", "/files/list", f"{ALPINE}&path=/etc")
    paths = {e["path"].encode("utf-8", "surrogateescape") for e in entries if "path" in e}
    assert b"/etc/latin\xe9.conf" in paths


async def test_a_long_listing_is_sent_in_pieces_and_counted(daemon):
    from support.api_fakes import make_entry

    daemon.inspection.extra = [make_entry(b"/x%d" % n) for n in range(1000)]
    lines = await call(daemon, "GET", "/files/list", f"{ALPINE}&path=/etc")
    assert lines[-1] == {"event": "done", "entries": 1004}
    assert len(lines) == 1005


async def test_missing_paths_are_not_found_before_anything_is_sent(daemon):
    for path in ("/files/list", "/files/content"):
        with pytest.raises(NotFound):
            await call(daemon, "GET", path, f"{ALPINE}&path=/nothing")


async def test_content_that_breaks_is_an_error(daemon):
    daemon.inspection.content_error = broken_content()
    with pytest.raises(DigestMismatch):
        await call(daemon, "GET", "/files/content", f"{ALPINE}&path=/etc/os-release")


async def test_stop_stops_after_its_answer(daemon):
    request = Request(method="POST", path="/v1/stop", query="", body=b"")
    answer = await make_dispatch(daemon.services)(request)
    assert not daemon.stopped
    answer.after()
    assert daemon.stopped


def test_error_documents_match_their_schema():
    from imgvol.api.problems import as_imgvol_error, error_document

    for error in (invalid_reference(), ValueError("x"), broken_content()):
        validator("Problem").validate(error_document(as_imgvol_error(error)))


def test_the_rooms_own_records_match_the_schemas():
    """The fakes above could drift from the real thing; the encoders are held to both."""
    from imgvol.content.records import ImageRecord, LayerRecord
    from imgvol.images.inspection import EntryInfo
    from imgvol.images.status import LayerStatus
    from imgvol.layers.index import NodeType
    from imgvol.oci.digest import Digest

    one = Digest.parse(digest(1))
    layer = LayerRecord(digest=one, diff_id=one, media_type="m", size=1, unpacked_size=2, entries=3)
    image = ImageRecord(
        id=one,
        manifest=one,
        media_type="m",
        platform="linux/amd64",
        chain_id=one,
        layers=(layer,),
        size=1,
        created=None,
        pulled_at=1.5,
        names=("a",),
    )
    validator("Image").validate(encoding.encode_image(image))
    volume = Volume(
        id="1",
        sandbox="s",
        image="a",
        image_id=one,
        chain_id=one,
        target=None,
        view="/v",
        state="lost",
        reason="image is not in the store",
        created_at=1.5,
        path="/v",
        options=BindOptions(),
        patience=0.0,
        layers=(
            LayerStatus(digest=one, format="SOCI", state="bad", size=9, present=4, reason="x"),
        ),
    )
    validator("Volume").validate(encoding.encode_volume(volume))
    for kind in NodeType:
        entry = EntryInfo(
            path=b"/x\xff",
            type=kind,
            mode=0o644,
            uid=0,
            gid=0,
            size=1,
            mtime_ns=1,
            rdev=0,
            ino=2,
            nlink=1,
            target=b"",
            layer=one,
        )
        validator("EntryEvent").validate(encoding.encode_entry(entry))


async def test_an_archive_comes_by_path_or_open_and_not_both(daemon, quick_progress):
    body = {"path": "/srv/a.tar", "base_name": "app", "digests": True}
    await call(daemon, "POST", "/images/import", body=body)
    await call(daemon, "POST", "/images/import", body={"link": True}, file=7)
    assert daemon.images.calls == [
        ("import", "/srv/a.tar", None, (False, (), "app", True)),
        ("import", "standard input", 7, (True, (), None, False)),
    ]
    for body, file in [({}, None), ({"path": "/a"}, 7), ({"path": "a.tar"}, None)]:
        with pytest.raises(InvalidArgument):
            await call(daemon, "POST", "/images/import", body=body, file=file)


async def test_an_export_needs_a_file_to_write_to(daemon, quick_progress):
    lines = await call(daemon, "POST", "/images/export", body={"images": ["alpine:3.20"]}, file=5)
    assert ("export", ("alpine:3.20",), 5, None) in daemon.images.calls
    assert (lines[-1]["size"], lines[-1]["images"][0]["is_changed"]) == (2_000, False)
    with pytest.raises(InvalidArgument, match="pass the file"):
        await call(daemon, "POST", "/images/export", body={"images": ["alpine:3.20"]})


async def test_other_routes_get_no_file(daemon):
    taking = {r.operation for r in ROUTES if r.takes_file}
    assert taking == {"importImages", "exportImages", "pushTrace"}
    await call(daemon, "GET", "/images", file=5)
