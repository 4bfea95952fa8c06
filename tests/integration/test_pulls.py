"""Pulls as runtimes ask for them: many at once, given up, cut short, and as somebody in particular.

The registry is a scripted one, the service the daemon's own, over real sockets.
"""

import json
import random
import time
from pathlib import Path

import pytest
import trio
import trio.testing

from imgvol import limits
from imgvol.content.layer_writer import LayerWriter
from imgvol.errors import (
    DigestMismatch,
    InvalidArgument,
    NoMatchingPlatform,
    RegistryUnavailable,
    RemoteError,
    Unauthorized,
)
from imgvol.images.handlers import RuntimeHandler, RuntimeHandlers
from imgvol.images.pull import PullProgress
from imgvol.images.readiness import Readiness
from imgvol.images.service import PullOptions
from imgvol.oci.digest import Digest
from support.images import Image, Layer, file, sha256
from support.lazy import decompress
from support.pulling import Crowd, Gate, Served, basic, login, open_service
from support.scripted_registry import ScriptedServer, break_off, respond, send_blob_head, serve

MIB = 1 << 20


def noise(size, seed):
    return random.Random(seed).randbytes(size)


def layer(seed, size=200_000):
    return Layer([file(f"file-{seed}", noise(size, seed))], "none")


@pytest.fixture(autouse=True)
def logins_file(tmp_path_factory, monkeypatch):
    """Where logins are looked for that did not come with a request; empty."""
    file = tmp_path_factory.mktemp("logins") / "auth.json"
    file.write_text("{}")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(file))
    return file


@pytest.fixture
def server():
    with ScriptedServer() as running:
        yield running


@pytest.fixture
def served(server):
    return Served(server, "some/image", Image([layer(1), layer(2)]))


def left_over(root):
    """Files of pulls that are not over."""
    return [path for path in (root / "ingest").rglob("*") if path.is_file()]


# --- sharing --------------------------------------------------------------------------------------


async def test_a_hundred_pulls_by_ten_callers_fetch_each_blob_once(tmp_path, server, served):
    """Ten users with a login each ask ten times: ten pulls, each let in by the registry itself."""
    passwords = [f"password-{number}" for number in range(10)]
    served.allowed = [basic(password) for password in passwords]
    gate = Gate()
    first = served.image.layers[0]
    served.on_blob(first.digest, gate.before(serve(first.blob)))
    records = []
    async with open_service(tmp_path) as service, trio.open_nursery() as nursery:

        async def pull(password):
            records.append(await service.pull(served.name, credentials=login(password)))

        for password in passwords * 10:
            nursery.start_soon(pull, password)
        await gate.wait_arrived()
        gate.opened.set()
    assert len(records) == 100
    assert len({record.manifest for record in records}) == 1
    assert [len(served.fetched(each.digest)) for each in served.image.layers] == [1, 1]
    heads = server.requests("HEAD", served.manifest_path())
    let_in = [seen.headers["authorization"] for seen in heads if "authorization" in seen.headers]
    assert sorted(let_in) == sorted(served.allowed)


async def test_who_joins_a_pull_sees_how_far_it_is(tmp_path, served):
    gate = Gate()
    first = served.image.layers[0]
    served.on_blob(first.digest, gate.before(serve(first.blob)))
    progresses = [PullProgress(), PullProgress()]
    async with open_service(tmp_path) as service, trio.open_nursery() as nursery:
        nursery.start_soon(service.pull, served.name, progresses[0])
        await gate.wait_arrived()
        nursery.start_soon(service.pull, served.name, progresses[1])
        await trio.testing.wait_all_tasks_blocked()
        assert [p.stage for p in progresses] == ["pulling", "pulling"]
        assert progresses[0].layers is progresses[1].layers
        assert service.images.pulls_under_way == 1
        gate.opened.set()
    assert [p.stage for p in progresses] == ["done", "done"]
    assert service.images.statistics().succeeded == 1


async def test_the_last_one_to_leave_stops_the_download_within_a_second(tmp_path, served):
    blob = served.image.layers[0]
    served.on_blob(blob.digest, break_off(blob.blob, 100_000, how="stall"))
    async with open_service(tmp_path) as service, trio.open_nursery() as nursery:
        scopes = [trio.CancelScope() for _ in range(5)]
        ended = [trio.Event() for _ in scopes]

        async def pull(scope, event):
            with scope:
                await service.pull(served.name)
            event.set()

        for scope, event in zip(scopes, ended, strict=True):
            nursery.start_soon(pull, scope, event)
        with trio.fail_after(20):
            while "stall" not in served.server.fired:
                await trio.sleep(0.01)
        for scope in scopes[:-1]:
            scope.cancel()
        with trio.fail_after(1):
            for event in ended[:-1]:
                await event.wait()
        assert service.images.pulls_under_way == 1
        began = time.monotonic()
        scopes[-1].cancel()
        await ended[-1].wait()
        assert time.monotonic() - began < 1
        assert service.images.pulls_under_way == 0
        assert service.images.statistics().cancelled == 1
        assert left_over(tmp_path) == []
        assert await service.images.list() == []


async def test_a_failed_pull_fails_everybody_and_leaves_no_name(tmp_path, served):
    gate = Gate()
    bad = served.image.layers[1]
    served.on_blob(bad.digest, gate.before(serve(bytes(len(bad.blob)))))
    errors = []
    async with open_service(tmp_path) as service:
        async with trio.open_nursery() as nursery:

            async def pull():
                with pytest.raises(DigestMismatch) as raised:
                    await service.pull(served.name)
                errors.append(raised.value)

            for _ in range(3):
                nursery.start_soon(pull)
            await gate.wait_arrived()
            await trio.testing.wait_all_tasks_blocked()
            gate.opened.set()
        assert len({id(error) for error in errors}) == 3
        assert len(served.fetched(bad.digest)) == 1
        assert await service.images.list() == []
        assert left_over(tmp_path) == []
        assert not any(served.name in image.names for image in service.store.images)


async def test_twenty_images_at_once_share_layers_and_stay_inside_the_limits(tmp_path, server):
    """Whoever waits for a layer that another pull fetches holds no connection meanwhile."""
    shared, crowd, documents = [layer(1000), layer(1001)], Crowd(), Crowd()
    images = [
        Served(server, f"some/image-{number}", Image([*shared, layer(number)]))
        for number in range(20)
    ]
    for each in images:
        for part in each.image.layers:
            each.on_blob(part.digest, crowd.around(serve(part.blob), seconds=0.05))
        config = each.image.config_bytes()
        each.on_blob(Layer(config, "none").digest, documents.around(serve(config), seconds=0.02))
    async with (
        open_service(tmp_path, layers_at_once=3, pulls_at_once=5) as service,
        trio.open_nursery() as nursery,
    ):
        for each in images:
            nursery.start_soon(service.pull, each.name)
    assert crowd.most == 3
    assert 1 < documents.most <= 5
    for part in shared:
        assert sum(len(each.fetched(part.digest)) for each in images) == 1
    assert sum(len(each.fetched(each.image.layers[2].digest)) for each in images) == 20


async def test_an_image_that_is_here_costs_one_question(tmp_path, server, served):
    async with open_service(tmp_path) as service:
        first = await service.pull(served.name)
        before = len(server.seen)
        again = await service.pull(served.name)
    asked = [(seen.method, seen.path) for seen in server.seen[before:]]
    assert asked == [("HEAD", served.manifest_path())]
    assert again.manifest == first.manifest


# --- logins ---------------------------------------------------------------------------------------


async def test_what_somebody_else_has_pulled_lets_nobody_in(tmp_path, server, served):
    """Neither beside the other's pull nor after it, though everything is here by then."""
    served.allowed = [basic("right")]
    gate = Gate()
    first = served.image.layers[0]
    served.on_blob(first.digest, gate.before(serve(first.blob)))
    async with open_service(tmp_path) as service, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: service.pull(served.name, credentials=login("right")))
        await gate.wait_arrived()
        for wrong in (login("wrong"), None):
            with trio.fail_after(5), pytest.raises(Unauthorized):
                await service.pull(served.name, credentials=wrong)
        gate.opened.set()
        while service.images.pulls_under_way:
            await trio.sleep(0.01)
        assert len(await service.images.list()) == 1
        for wrong in (login("wrong"), None):
            with pytest.raises(Unauthorized) as raised:
                await service.pull(served.name, credentials=wrong)
            assert "wrong" not in f"{raised.value!r} {raised.value} {raised.value.hint}"
        # And the right one is let in still.
        assert await service.pull(served.name, credentials=login("right"))


async def test_a_login_of_the_request_is_not_made_up_for_by_one_that_is_configured(
    tmp_path, served, logins_file
):
    served.allowed = [basic("configured")]
    auth = basic("configured").removeprefix("Basic ")
    logins_file.write_text(json.dumps({"auths": {served.server.domain: {"auth": auth}}}))
    async with open_service(tmp_path) as service:
        with pytest.raises(Unauthorized):
            await service.pull(served.name, credentials=login("wrong"))
        assert await service.pull(served.name)


async def test_a_login_can_come_with_the_options(tmp_path, served):
    served.allowed = [basic("right")]
    async with open_service(tmp_path) as service:
        options = PullOptions(credential=login("right"))
        assert await service.images.pull(
            served.name, platform="linux/amd64", options=options, progress=PullProgress()
        )
        assert service.logins.kept.repositories == frozenset()  # nothing is left to fetch


def lazy_layer():
    """One that other people's tools made: see tests/fixtures/lazy/README.md."""
    fixture = Path(__file__).parents[1] / "fixtures" / "lazy" / "estargz"
    blob = fixture.with_suffix(".blob").read_bytes()
    made = Layer(decompress(blob), "gzip")
    made.blob, made.size, made.digest = blob, len(blob), sha256(blob)
    made.annotations = json.loads(fixture.with_suffix(".json").read_text())
    return made


async def test_a_login_is_kept_while_something_has_to_be_fetched_with_it(tmp_path, server):
    served = Served(server, "some/image", Image([lazy_layer()]))
    repository = f"{server.domain}/some/image"
    served.allowed = [basic("old"), basic("new")]

    def known(service):
        found = service.logins.for_reads().find(server.domain, "some/image").credential
        return found and found.password.reveal()

    async with open_service(tmp_path) as service:

        async def pull(password, readiness=Readiness.LAZY):
            return await service.pull(served.name, credentials=login(password), readiness=readiness)

        record = await pull("old")
        assert not record.is_stored
        assert known(service) == "old"
        with pytest.raises(Unauthorized):
            await pull("wrong")
        assert known(service) == "old"
        await pull("new")
        assert known(service) == "new"
        await service.images.collect()
        assert known(service) == "new"
        await service.images.remove(served.name)
        assert known(service) is None
        assert service.logins.kept.repositories == frozenset()
        # Nothing is left to fetch: it is not kept in the first place, nor any longer.
        await pull("old")
        assert service.logins.kept.repositories == {repository}
        assert (await pull("old", Readiness.STORED)).is_stored
        await service.images.collect()
        assert service.logins.kept.repositories == frozenset()


# --- stalls: the three that containerd's own tests tell apart -------------------------------------


async def test_no_byte_for_too_long_ends_the_pull(tmp_path, served):
    blob = served.image.layers[1]
    served.on_blob(blob.digest, break_off(blob.blob, 100_000, how="stall"))
    async with open_service(tmp_path, progress_timeout=1.5) as service:
        began = time.monotonic()
        with pytest.raises(RegistryUnavailable, match=r"stalled: no byte for 1\.5 s") as raised:
            await service.pull(served.name)
        # Long before the registry's client gives this one connection up.
        assert 1.5 <= time.monotonic() - began < limits.READ_TIMEOUT / 2
        assert raised.value.fields["waiting_for"] == f"blob {blob.digest}"
        assert left_over(tmp_path) == []
        assert await service.images.list() == []
    assert served.server.fired == ["stall"]


async def test_no_answer_at_all_ends_the_pull(tmp_path, served):
    gate = Gate()
    served.server.on("HEAD", served.manifest_path(), gate.before(serve(b"")))
    async with open_service(tmp_path, progress_timeout=0.3) as service:
        with pytest.raises(RegistryUnavailable, match="stalled") as raised:
            await service.pull(served.name)
        assert raised.value.fields["waiting_for"] == served.name
    await gate.wait_arrived()
    gate.opened.set()


async def test_slow_storing_is_no_stall(tmp_path, served, monkeypatch):
    publish, waited = LayerWriter.publish, []

    def slowly(self, *arguments):
        time.sleep(2)
        waited.append(True)
        return publish(self, *arguments)

    monkeypatch.setattr(LayerWriter, "publish", slowly)
    async with open_service(tmp_path, progress_timeout=1) as service:
        assert await service.pull(served.name)
    assert len(waited) == 2


def trickle(data, *, pieces, every):
    """The whole blob, in pieces with pauses between them."""

    def step(connection, request):
        send_blob_head(connection, request, data)
        size = -(-len(data) // pieces)
        for start in range(0, len(data), size):
            connection.pause(every)
            connection.send(data[start : start + size])

    return step


async def test_waiting_for_anothers_layer_is_no_stall(tmp_path, server, served):
    """One gets a few bytes now and then, the other none at all, and asks for none either."""
    shared = served.image.layers[0]
    served.on_blob(shared.digest, trickle(shared.blob, pieces=8, every=0.3))
    other = Served(server, "other/image", Image([shared]))
    async with open_service(tmp_path, progress_timeout=1.5) as service:
        began = time.monotonic()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.pull, served.name)
            await trio.testing.wait_all_tasks_blocked(0.1)
            nursery.start_soon(service.pull, other.name)
        assert time.monotonic() - began > 2.2
        assert len(await service.images.list()) == 2
    assert len(served.fetched(shared.digest)) == 1
    assert other.fetched(shared.digest) == []


# --- going on -------------------------------------------------------------------------------------


async def test_a_pull_that_was_cut_short_goes_on_with_the_layers_that_it_had(tmp_path, server):
    """A blob that was received in part is received anew: only within a pull it is gone on with."""
    image = Image([layer(1, 2 * MIB), layer(2, 2 * MIB)])
    served, gate = Served(server, "some/image", image), Gate()
    good, cut = image.layers
    # The second answer, to who asks for the rest, is final; it comes once the other layer is here.
    served.on_blob(cut.digest, break_off(cut.blob, MIB, how="reset"), gate.before(respond(403)))
    async with open_service(tmp_path) as service:

        async def fail():
            with pytest.raises(RemoteError):
                await service.pull(served.name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            with trio.fail_after(20):
                while await service.store.records.layer(Digest.parse(good.digest)) is None:
                    await trio.sleep(0.01)
            gate.opened.set()
        first, second = (seen.range for seen in served.fetched(cut.digest))
        assert first is None
        assert 0 < second[0] <= MIB
        assert left_over(tmp_path) == []
        # What is complete is leased for a day.
        await service.images.collect()
        served.on_blob(cut.digest, serve(cut.blob))
        before = len(served.fetched(cut.digest))
        assert await service.pull(served.name)
    assert [seen.range for seen in served.fetched(cut.digest)[before:]] == [None]
    assert len(served.fetched(good.digest)) == 1


# --- runtime handlers -----------------------------------------------------------------------------


async def test_a_handler_decides_on_platform_and_readiness(tmp_path, server):
    served = Served(server, "some/image", Image([layer(1)], architecture="arm64"))
    handlers = RuntimeHandlers(
        [
            RuntimeHandler(name="kata", platform="linux/arm64", readiness=Readiness.STORED),
            RuntimeHandler(name="runc", platform="linux/amd64"),
        ]
    )
    async with open_service(tmp_path, handlers=handlers) as service:

        async def pull(handler):
            return await service.images.pull(
                served.name,
                options=PullOptions(),
                progress=PullProgress(),
                readiness=Readiness.LAZY,
                handler=handler,
            )

        with pytest.raises(NoMatchingPlatform):
            await pull("runc")
        with pytest.raises(InvalidArgument, match="unknown runtime handler"):
            await pull("runsc")
        assert (await pull("kata")).platform == "linux/arm64"
