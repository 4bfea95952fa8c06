"""Pushing over lines that break and to registries that do wrong."""

import base64
import dataclasses
import io
import json
import os
import socket
import threading

import pytest
import trio

from imgvol.errors import (
    Conflict,
    DigestMismatch,
    LocalError,
    NotFound,
    ProtocolError,
    PushRefused,
    RegistryUnavailable,
    TooManyRequests,
    Unauthorized,
)
from imgvol.oci.digest import Digest
from imgvol.oci.media_types import OCI_INDEX, OCI_MANIFEST
from imgvol.publish.pushing import push_tree
from imgvol.registry import Credential, Secret, StaticCredentials
from imgvol.registry.push import PushOutcome
from support.images import sha256
from support.pushing import (
    BOUNDS,
    blob_of,
    describe,
    document_of,
    pusher_of,
    random_bytes,
    referrer_of,
)
from support.scripted_registry import ScriptedServer, respond
from support.upload_server import Cut, Refusal, UploadServer

# Three pieces and a bit.
DATA = random_bytes(3_500_000)
DIGEST = sha256(DATA)
LOGIN = StaticCredentials(Credential(username="me", password=Secret("hunter2-hunter2")))
BASIC = f"Basic {base64.b64encode(b'me:hunter2-hunter2').decode()}"


@pytest.fixture
def server():
    with UploadServer() as running:
        yield running


async def push(server, data=DATA, **how):
    async with pusher_of(f"{server.domain}/some/image", **how) as pusher:
        blob = blob_of(data)
        return await pusher.push_blob(blob.descriptor, blob.open_body)


async def test_pieces_follow_each_other(server):
    assert await push(server) is PushOutcome.UPLOADED
    assert server.blobs == {DIGEST: DATA}
    assert server.methods() == ["HEAD", "POST", "PATCH", "PATCH", "PATCH", "PATCH", "PUT"]
    ranges = [seen.headers["content-range"] for seen in server.seen if seen.method == "PATCH"]
    assert ranges[1] == "1048576-2097151"


async def test_a_small_blob_is_one_request(server):
    await push(server, b"small")
    assert server.methods() == ["HEAD", "POST", "PUT"]


@pytest.mark.fault("F97")
@pytest.mark.parametrize("after", [0, 300_000, 1_048_575])
async def test_a_reset_upload_goes_on_where_it_broke(server, after):
    server.cuts.append(Cut("PATCH", after))
    assert await push(server) is PushOutcome.UPLOADED
    assert server.fired == ["reset"]
    assert server.blobs == {DIGEST: DATA}
    taken = [seen for seen in server.seen if seen.method == "PATCH"]
    # What had come through was not sent again.
    assert sum(seen.size for seen in taken if seen.status) == len(DATA) - after


async def test_one_byte_cannot_be_told_from_none(server):
    server.cuts.append(Cut("PATCH", 1))
    await push(server)
    assert server.fired == ["reset"]
    assert server.blobs == {DIGEST: DATA}
    assert server.methods().count("POST") == 2


@pytest.mark.fault("F97")
@pytest.mark.parametrize("forgets", [True, False])
async def test_an_upload_that_is_forgotten_begins_again(server, forgets):
    server.forgets, server.keeps_parts = forgets, False
    server.cuts += [Cut("PATCH", 1000), Cut("PATCH", 2000)]
    assert await push(server) is PushOutcome.UPLOADED
    assert server.fired == ["reset", "reset"]
    assert server.blobs == {DIGEST: DATA}
    assert server.methods().count("POST") == (3 if forgets else 1)


async def test_a_small_blob_that_breaks_begins_again(server):
    server.cuts.append(Cut("PUT", 10))
    assert await push(server, random_bytes(100_000)) is PushOutcome.UPLOADED
    assert server.fired == ["reset"]
    assert server.methods() == ["HEAD", "POST", "PUT", "HEAD", "POST", "PUT"]


@pytest.mark.fault("F97")
@pytest.mark.parametrize("size", [1000, 3_500_000])
async def test_an_answer_that_is_lost_costs_nothing(server, size):
    server.lost_answers.append("PUT")
    assert await push(server, random_bytes(size)) is PushOutcome.UPLOADED
    assert server.fired == ["lost answer"]
    assert server.methods().count("POST") == 1
    assert server.methods()[-1] == "HEAD"


async def test_a_lost_answer_to_a_piece_is_asked_for(server):
    server.lost_answers.append("PATCH")
    await push(server)
    assert server.fired == ["lost answer"]
    assert server.methods()[:5] == ["HEAD", "POST", "PATCH", "GET", "PATCH"]
    assert server.blobs == {DIGEST: DATA}


@pytest.mark.fault("F97")
async def test_a_registry_that_breaks_again_and_again_is_left(server):
    server.keeps_parts = False
    server.cuts += [Cut("PATCH", 1000) for _ in range(50)]
    with pytest.raises(RegistryUnavailable, match="connection"):
        await push(server)
    assert len(server.fired) == BOUNDS.retries + 1
    assert server.blobs == {}


async def test_a_registry_that_forgets_each_time_at_the_same_place_is_left(server):
    server.forgets = True
    server.cuts += [Cut("PATCH", 1 << 20, skip=1) for _ in range(50)]
    with pytest.raises(RegistryUnavailable):
        await push(server)
    assert 1 < len(server.fired) <= BOUNDS.retries + 1
    assert server.blobs == {}


async def test_a_registry_without_ranges_is_believed_to_have_kept_all(server):
    server.tells_range = False
    await push(server)
    assert server.blobs == {DIGEST: DATA}


async def test_a_registry_that_wants_larger_pieces_gets_them(server):
    server.smallest_piece = 2_000_000
    await push(server)
    sizes = [seen.size for seen in server.seen if seen.method == "PATCH"]
    assert sizes == [2_000_000, 1_500_000]


@pytest.mark.parametrize("status", [400, 405, 501])
async def test_a_registry_that_takes_no_pieces_gets_all_at_once(server, status):
    server.refusals.append(Refusal("PATCH", status))
    await push(server)
    assert server.blobs == {DIGEST: DATA}
    assert [seen.size for seen in server.seen if seen.method == "PUT"] == [len(DATA)]


@pytest.mark.parametrize("status", [404, 416])
async def test_a_registry_that_knows_no_second_piece_gets_all_at_once(server, status):
    server.refusals.append(Refusal("PATCH", status, skip=1))
    await push(server)
    assert server.fired == [str(status)]
    assert server.blobs == {DIGEST: DATA}
    assert [seen.size for seen in server.seen if seen.method == "PUT"] == [len(DATA)]


async def test_what_is_too_large_goes_in_smaller_pieces(server):
    server.largest_body = 1_200_000
    data = random_bytes(9_000_000)
    await push(server, data, bounds=dataclasses.replace(BOUNDS, push_chunk=16 << 20))
    assert server.fired == ["413"]
    assert server.blobs == {sha256(data): data}
    assert max(seen.size for seen in server.seen if seen.status == 202) == 9_000_000 // 8


async def test_a_blob_that_is_just_too_large_goes_in_two_pieces(server):
    server.largest_body = 1 << 20
    data = random_bytes(1_500_000)
    await push(server, data, bounds=dataclasses.replace(BOUNDS, push_chunk=16 << 20))
    assert server.fired == ["413"]
    assert server.blobs == {sha256(data): data}


async def test_a_registry_that_keeps_parts_gets_the_rest(server):
    server.keeps_at_most = 700_000
    await push(server)
    assert server.blobs == {DIGEST: DATA}


async def test_a_registry_that_keeps_next_to_nothing_is_left(server):
    server.keeps_at_most = 2
    with pytest.raises(ProtocolError, match="only a part"):
        await push(server)
    assert server.methods().count("PATCH") == BOUNDS.retries + 1


async def test_what_stays_too_large_is_an_error(server):
    server.largest_body = 1000
    with pytest.raises(PushRefused, match=r"larger than the registry takes") as raised:
        await push(server)
    assert "proxy" in raised.value.hint
    assert server.blobs == {}


async def test_other_bytes_on_the_registry_begin_again_once_more(server):
    server.refusals.append(Refusal("PUT", 400, "DIGEST_INVALID", "did not match", times=1))
    await push(server)
    assert server.fired == ["400"]
    assert server.blobs == {DIGEST: DATA}


# --- what is wrong here -------------------------------------------------------------------------


class Changing:
    """A file whose contents differ from its descriptor's."""

    def __init__(self, content):
        self.content = content
        self.opened = []

    def open(self):
        self.opened.append(io.BytesIO(self.content))
        return self.opened[-1]


@pytest.mark.fault("F97")
@pytest.mark.parametrize("size", [100_000, 3_500_000])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "not what its digest names"),
        (lambda data: data[:-1], "shorter"),
        (lambda data: data + b"x", "longer"),
    ],
)
async def test_a_file_that_has_changed_never_arrives(server, size, change, words):
    data = random_bytes(size)
    file = Changing(change(data))
    async with pusher_of(f"{server.domain}/some/image") as pusher:
        with pytest.raises(DigestMismatch, match=words):
            await pusher.push_blob(describe(data), file.open)
    assert server.blobs == {}
    assert all(opened.closed for opened in file.opened)


async def test_a_file_that_cannot_be_read_is_our_own_trouble(server):
    def fail():
        raise PermissionError(13, os.strerror(13))

    async with pusher_of(f"{server.domain}/some/image") as pusher:
        with pytest.raises(LocalError, match="permission denied"):
            await pusher.push_blob(describe(DATA), fail)
    assert server.blobs == {}


async def test_a_push_that_is_cancelled_ends_at_once(server):
    begun = trio.Event()
    token = trio.lowlevel.current_trio_token()

    class Endless(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            token.run_sync_soon(begun.set)
            buffer[:] = bytes(len(buffer))
            return len(buffer)

    async with pusher_of(f"{server.domain}/some/image") as pusher:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                endless = dataclasses.replace(describe(b"x"), size=1 << 50)
                nursery.start_soon(pusher.push_blob, endless, Endless)
                await begun.wait()
                nursery.cancel_scope.cancel()
    assert server.blobs == {}


async def test_a_registry_that_takes_nothing_is_left():
    # Nobody reads what comes there: the buffers of both ends fill.
    with ScriptedServer() as registry, socket.create_server(("127.0.0.2", 0)) as full:
        place = f"http://127.0.0.2:{full.getsockname()[1]}/upload"
        registry.on("POST", "/v2/some/image/blobs/uploads/", respond(202, Location=place))
        bounds = dataclasses.replace(BOUNDS, read_timeout=0.3, stall_retries=0, push_chunk=1 << 30)
        with pytest.raises(RegistryUnavailable, match="stopped answering"):
            await push(registry, random_bytes(20_000_000), bounds=bounds)


async def test_an_answer_that_drips_has_an_end():
    head = b"HTTP/1.1 413 Too Large\r\nContent-Length: 60000\r\n\r\n"
    with ScriptedServer() as slow:
        slow.on("POST", "/v2/some/image/blobs/uploads/", respond(202, Location="/upload"))

        def drip(connection, _):
            connection.fire("drip")
            connection.send(head)
            while True:
                connection.send(b" ")
                connection.pause(0.05)

        slow.on("PUT", "/upload", drip)
        with trio.fail_after(4), pytest.raises(PushRefused):
            await push(slow, b"x", bounds=dataclasses.replace(BOUNDS, document_deadline=0.5))
        assert slow.fired == ["drip"]


# --- who is told what ---------------------------------------------------------------------------


async def test_login_is_sent_with_every_request(server):
    server.authorization = BASIC
    await push(server, credentials=LOGIN)
    assert server.blobs == {DIGEST: DATA}


@pytest.mark.parametrize("size", [1000, 3_500_000])
async def test_an_upload_elsewhere_gets_no_login(server, size):
    data = random_bytes(size)
    with UploadServer("127.0.0.2") as other:
        server.authorization = BASIC
        server.place = f"http://{other.domain}"
        other.uploads["1"] = bytearray()
        other.place = f"http://{other.domain}"
        await push(server, data, credentials=LOGIN)
        assert other.blobs == {sha256(data): data}
        assert other.seen
        assert not [seen for seen in other.seen if "authorization" in seen.headers]


async def test_a_faithful_redirect_gets_the_body_and_no_login(server):
    data = random_bytes(500_000)
    with UploadServer("127.0.0.2") as other:
        other.uploads["9"] = bytearray()
        target = f"http://{other.domain}/v2/x/blobs/uploads/9?digest={sha256(data)}"
        server.refusals.append(Refusal("PUT", 307, headers=(("Location", target),)))
        server.authorization = BASIC
        await push(server, data, credentials=LOGIN)
        assert server.fired == ["307"]
        assert other.blobs == {sha256(data): data}
        assert "authorization" not in other.seen[0].headers


@pytest.mark.parametrize("place", ["", "absolute"])
async def test_location_may_be_relative_or_absolute(server, place):
    server.place = place and f"http://{server.domain}"
    server.authorization = BASIC
    await push(server, credentials=LOGIN)
    assert server.blobs == {DIGEST: DATA}
    # What the registry had in its query has come back as it was.
    assert all("_state=a%3D" in seen.target for seen in server.seen if seen.method == "PATCH")


@pytest.mark.parametrize(
    "place", ["ftp://example.com", "http://user:secret@example.com", "http://[", "http://0"]
)
async def test_an_upload_goes_nowhere_odd(server, place):
    server.place = place
    with pytest.raises((ProtocolError, RegistryUnavailable)) as raised:
        await push(server)
    assert "secret" not in str(raised.value)


async def test_an_upload_is_not_sent_to_where_the_registry_has_no_business(server):
    server.place = "http://169.254.169.254"
    with pytest.raises(ProtocolError, match="no business"):
        await push(server)


# --- refusals -----------------------------------------------------------------------------------

REFUSALS = [
    (Refusal("POST", 401, "UNAUTHORIZED", "who are you"), Unauthorized, "does not let us push"),
    (Refusal("POST", 403, "DENIED", "not yours"), Unauthorized, "DENIED: not yours"),
    (Refusal("POST", 405, "UNSUPPORTED", "read only"), PushRefused, "takes no pushes"),
    (Refusal("POST", 400, "UNSUPPORTED", "a cache"), PushRefused, "takes no pushes"),
    (Refusal("POST", 404, "NAME_UNKNOWN", "no such"), NotFound, "NAME_UNKNOWN: no such"),
    (Refusal("POST", 400, "NAME_INVALID", "bad name"), PushRefused, "NAME_INVALID: bad name"),
    (Refusal("POST", 507), PushRefused, "no room"),
    (Refusal("POST", 500, "UNKNOWN", "oops"), RegistryUnavailable, "fails to take"),
    (Refusal("POST", 429, "TOOMANYREQUESTS", "slow down"), TooManyRequests, "how often"),
    (Refusal("PUT", 403, "DENIED", "quota"), Unauthorized, "quota"),
    (Refusal("PUT", 400, "SIZE_INVALID", "huge"), PushRefused, "larger than"),
    (Refusal("PATCH", 403, "DENIED", "quota"), Unauthorized, "quota"),
]


@pytest.mark.fault("F97")
@pytest.mark.parametrize(("refusal", "error", "words"), REFUSALS)
async def test_a_refusal_says_what_the_registry_says(server, refusal, error, words):
    server.refusals.append(refusal)
    with pytest.raises(error, match=words) as raised:
        await push(server)
    assert type(raised.value) is error
    assert Digest.parse(DIGEST).short in raised.value.message
    assert "some/image" in raised.value.message
    assert server.blobs == {}


async def test_a_refusal_quotes_no_login_and_is_short(server):
    echo = f"you sent hunter2-hunter2 and {BASIC.split()[1]} {'x' * 5000}"
    server.refusals += [
        Refusal("HEAD", 401, times=1, headers=(("WWW-Authenticate", 'Basic realm="x"'),)),
        Refusal("POST", 403, "DENIED", echo),
    ]
    with pytest.raises(Unauthorized) as raised:
        await push(server, credentials=LOGIN)
    assert "you sent *** and ***" in str(raised.value)
    assert len(raised.value.message) < 600
    assert "may push" in raised.value.hint


async def test_a_short_pause_is_kept_and_then_it_goes_on(server):
    server.refusals.append(Refusal("POST", 429, times=1, headers=(("Retry-After", "1"),)))
    started = trio.current_time()
    await push(server)
    assert trio.current_time() - started >= 1
    assert server.blobs == {DIGEST: DATA}


@pytest.mark.parametrize("status", [502, 503])
async def test_trouble_that_passes_is_waited_for(server, status):
    server.refusals += [Refusal(method, status, times=2) for method in ("POST", "PATCH", "PUT")]
    await push(server)
    assert server.fired == [str(status)] * 6
    assert server.blobs == {DIGEST: DATA}


async def test_a_redirect_that_would_drop_the_body_is_refused(server):
    server.refusals.append(Refusal("POST", 301, headers=(("Location", "/elsewhere"),)))
    with pytest.raises(ProtocolError, match="redirects blob"):
        await push(server)


async def test_who_may_not_look_may_push(server):
    server.refusals.append(Refusal("HEAD", 403))
    await push(server)
    assert server.blobs == {DIGEST: DATA}


# --- mounts -------------------------------------------------------------------------------------


async def mount(server, **how):
    async with pusher_of(f"{server.domain}/some/image", **how) as pusher:
        blob = blob_of(DATA)
        return await pusher.push_blob(blob.descriptor, blob.open_body, mount_from="other/image")


async def test_what_another_repository_has_is_mounted(server):
    server.mountable[DIGEST] = DATA
    assert await mount(server) is PushOutcome.MOUNTED
    assert server.methods() == ["HEAD", "POST"]
    assert f"mount={DIGEST}" in server.seen[-1].target.replace("%3A", ":")
    assert "from=other" in server.seen[-1].target


async def test_what_is_not_mounted_is_uploaded_where_the_registry_says(server):
    assert await mount(server) is PushOutcome.UPLOADED
    assert server.methods().count("POST") == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405])
async def test_a_mount_that_is_refused_is_an_upload(server, status):
    server.refusals.append(Refusal("POST", status, times=1))
    assert await mount(server) is PushOutcome.UPLOADED
    assert server.methods().count("POST") == 2
    assert server.blobs == {DIGEST: DATA}


# --- manifests and trees ------------------------------------------------------------------------


def tree(*children):
    """Blobs, and manifests of them below an index."""
    blobs = [blob_of(random_bytes(1000, seed)) for seed in range(5)]
    return blobs, [document_of(child) for child in children]


MANIFEST = referrer_of(b"nothing").replace(b'"subject"', b'"x-subject"')


async def test_a_tag_is_written_last(server):
    blobs, documents = tree(MANIFEST)
    index = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [documents[0].descriptor.to_json()],
        }
    ).encode()
    async with pusher_of(f"{server.domain}/some/image") as pusher:
        pushed = await push_tree(pusher, blobs, [*documents, document_of(index, OCI_INDEX)], "v1")
    assert pushed.name == f"{server.domain}/some/image:v1"
    assert pushed.digest == Digest.of(index)
    assert (pushed.uploaded, pushed.uploaded_bytes) == (5, 5000)
    written = [seen.path.rpartition("/")[2] for seen in server.seen if "manifests" in seen.path]
    assert written == [sha256(MANIFEST), "v1"]
    assert len(server.blobs) == 5


@pytest.mark.fault("F97")
@pytest.mark.parametrize("path", ["blobs/uploads", "manifests/sha256"])
async def test_a_push_that_fails_leaves_no_tag(server, path):
    server.refusals.append(Refusal("PUT", 403, "DENIED", path=path))
    blobs, documents = tree(MANIFEST, MANIFEST + b" ")
    async with pusher_of(f"{server.domain}/some/image") as pusher:
        with pytest.raises(Unauthorized):
            await push_tree(pusher, blobs, documents, "v1")
    assert "v1" not in server.manifests
    assert server.fired


async def test_a_document_that_is_not_what_its_descriptor_says_is_not_pushed(server):
    wrong = document_of(MANIFEST)
    wrong = type(wrong)(wrong.descriptor, MANIFEST + b" ")
    async with pusher_of(f"{server.domain}/some/image") as pusher:
        with pytest.raises(DigestMismatch):
            await push_tree(pusher, [blob_of(b"x")], [wrong], "v1")
    assert server.seen == []


async def test_another_digest_than_ours_is_an_error(server):
    server.refusals.append(
        Refusal("PUT", 201, headers=(("Docker-Content-Digest", f"sha256:{'0' * 64}"),))
    )
    async with pusher_of(f"{server.domain}/some/image") as pusher:
        with pytest.raises(DigestMismatch, match="something else"):
            await pusher.push_manifest(MANIFEST, OCI_MANIFEST, "v1")


@pytest.mark.parametrize(
    ("refusal", "error", "words"),
    [
        (Refusal("PUT", 400, "MANIFEST_INVALID", "no"), PushRefused, "MANIFEST_INVALID: no"),
        (Refusal("PUT", 400, "TOOBIG", "too big"), PushRefused, "larger than"),
        (Refusal("PUT", 409, "DENIED", "immutable"), PushRefused, "keeps what it has"),
    ],
)
async def test_a_manifest_that_is_refused(server, refusal, error, words):
    server.refusals.append(refusal)
    async with pusher_of(f"{server.domain}/some/image") as pusher:
        with pytest.raises(error, match=words) as raised:
            await pusher.push_manifest(MANIFEST, OCI_MANIFEST, "v1")
    assert "some/image:v1" in raised.value.message


# --- referrers ----------------------------------------------------------------------------------

SUBJECT = MANIFEST
TAG = sha256(SUBJECT).replace(":", "-")


def listed(server):
    return json.loads(server.manifests[TAG][1])["manifests"]


async def refer(server, *notes):
    async with pusher_of(f"{server.domain}/some/image") as pusher:
        for note in notes:
            await pusher.push_referrer(referrer_of(SUBJECT, note=note), OCI_MANIFEST)


async def test_a_registry_that_lists_referrers_gets_no_tag(server):
    server.lists_referrers = True
    await refer(server, "a")
    assert TAG not in server.manifests
    assert server.methods() == ["PUT"]


async def test_referrers_are_listed_under_a_tag_otherwise(server):
    await refer(server, "a", "b", "a")
    assert [entry["annotations"]["note"] for entry in listed(server)] == ["a", "b"]
    assert listed(server)[0]["artifactType"] == "application/vnd.example"
    assert listed(server)[0]["digest"] == sha256(referrer_of(SUBJECT, note="a"))
    assert server.manifests[TAG][0] == OCI_INDEX


async def test_what_is_in_the_list_stays_as_it_is(server):
    other = {
        "mediaType": OCI_MANIFEST,
        "digest": sha256(b"x"),
        "size": 1,
        "annotations": {"k": "v"},
        "x-unknown": [1],
    }
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [other], "x-more": "é"}
    server.put(TAG, json.dumps(index).encode(), OCI_INDEX)
    await refer(server, "a")
    document = json.loads(server.manifests[TAG][1])
    assert document["manifests"][0] == other
    assert len(document["manifests"]) == 2
    assert document["x-more"] == "é"


@pytest.mark.fault("F97")
async def test_an_entry_that_others_have_overwritten_is_added_again(server):
    lost = []

    def overwrite(name):
        # Another client has read the list before we wrote it, and writes after us.
        if name == TAG and not lost:
            lost.append(name)

            def later():
                other = {"mediaType": OCI_MANIFEST, "digest": sha256(b"other"), "size": 5}
                index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [other]}
                server.put(TAG, json.dumps(index).encode(), OCI_INDEX)

            threading.Timer(0.02, later).start()

    server.before_manifest = overwrite
    await refer(server, "a")
    assert [entry["digest"] for entry in listed(server)] == [
        sha256(b"other"),
        sha256(referrer_of(SUBJECT, note="a")),
    ]


async def test_a_list_that_never_stays_is_an_error(server):
    real = server.put

    def forgetful(name, raw, media_type):
        if name == TAG:
            return sha256(raw)
        return real(name, raw, media_type)

    server.put = forgetful
    with pytest.raises(Conflict, match="others change the list"):
        await refer(server, "a")


async def test_a_tag_that_is_something_else_is_not_overwritten(server):
    server.put(TAG, MANIFEST, OCI_MANIFEST)
    with pytest.raises(Conflict, match="something else"):
        await refer(server, "a")
    assert server.manifests[TAG] == (OCI_MANIFEST, MANIFEST)


async def test_a_referrer_is_taken_out_again(server):
    await refer(server, "a", "b")
    gone = Digest.of(referrer_of(SUBJECT, note="a"))
    async with pusher_of(f"{server.domain}/some/image") as pusher:
        assert await pusher.delete_referrer(Digest.of(SUBJECT), gone)
        assert not await pusher.delete_referrer(Digest.of(SUBJECT), gone)
    assert [entry["annotations"]["note"] for entry in listed(server)] == ["b"]
    assert str(gone) not in server.manifests


async def test_a_registry_that_deletes_nothing_loses_the_entry(server):
    await refer(server, "a")
    server.refusals.append(Refusal("DELETE", 405, "UNSUPPORTED"))
    gone = Digest.of(referrer_of(SUBJECT, note="a"))
    async with pusher_of(f"{server.domain}/some/image") as pusher:
        assert await pusher.delete_referrer(Digest.of(SUBJECT), gone)
        assert listed(server) == []
        with pytest.raises(PushRefused, match="takes no pushes"):
            await pusher.delete_referrer(Digest.of(SUBJECT), gone)
