"""The server, by a gRPC client over its socket; behind it are fakes."""

import contextlib
import logging
import os
import socket
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc
import pytest
import trio

from imgvol import limits
from imgvol.api.cri.generated import runtime_pb2 as pb
from imgvol.api.cri.handlers import Handlers
from imgvol.api.cri.server import CriServer
from imgvol.errors import Conflict, InvalidArgument, PermissionDenied, RegistryUnavailable
from imgvol.images.readiness import Readiness
from support.cri import IMAGE_SERVICE, Client, client_of, digest, make_image, serving
from support.programs import wait_until

NAME = "registry.test/image-1:1"


async def asking(work, *arguments):
    """Blocking work of a client, in a thread of its own."""
    return await trio.to_thread.run_sync(work, *arguments, abandon_on_cancel=True)


@contextlib.contextmanager
def refused(code, text=""):
    with pytest.raises(grpc.RpcError) as caught:
        yield caught
    assert caught.value.code() is code, caught.value
    assert text in caught.value.details()


async def ask(path, work):
    """What `work` says of a client; the client is new."""

    def run():
        with client_of(path) as client:
            return work(client)

    with trio.fail_after(20):
        return await asking(run)


# --- the socket -----------------------------------------------------------------------------------


async def test_the_socket_is_private_and_goes_at_the_end(path, images):
    before = os.umask(0)
    try:
        async with serving(path, images):
            assert stat.S_IMODE(path.parent.lstat().st_mode) == 0o700
            # The second one is gRPC's, behind ours.
            modes = {
                each.name: stat.S_IMODE(each.lstat().st_mode) for each in path.parent.iterdir()
            }
            assert modes == {"cri.sock": 0o600, ".cri.sock.grpc": 0o600}
            await ask(path, Client.version)
    finally:
        os.umask(before)
    assert os.listdir(path.parent) == []


async def test_a_dead_daemons_socket_is_replaced(path, images):
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(path, images):
        await ask(path, Client.version)


async def test_a_living_daemon_keeps_its_socket(path, images):
    async with serving(path, images):
        with pytest.raises(Conflict, match="already running"):
            await CriServer(path, []).run()
        await ask(path, Client.version)
    assert os.listdir(path.parent) == []


async def test_a_socket_that_another_daemon_has_put_there_stays(path, images):
    with socket.socket(socket.AF_UNIX) as other:
        async with serving(path, images):
            path.unlink()
            other.bind(str(path))
        assert path.exists()


async def test_a_file_in_its_place_and_an_open_directory_are_refused(path, images):
    path.parent.mkdir(mode=0o700)
    path.write_text("precious")
    with pytest.raises(InvalidArgument, match="taken"):
        await CriServer(path, []).run()
    path.unlink()
    path.parent.chmod(0o755)
    with pytest.raises(PermissionDenied, match="open to other users"):
        await CriServer(path, []).run()


async def test_a_directory_may_be_deeper_than_a_sockets_address(short_path, images):
    path = short_path / ("d" * 120) / "cri.sock"
    async with serving(path, images):
        link = short_path / "cri.sock"
        link.symlink_to(path)
        await ask(link, Client.version)


# --- the gate -------------------------------------------------------------------------------------


async def test_nothing_is_answered_before_the_gate_is_open(path, images):
    server = CriServer(path, methods := Handlers(images).methods())
    calls = [(method.path, method.request().SerializeToString()) for method in methods]
    calls.append(("/runtime.v1.RuntimeService/ListPodSandbox", b""))

    def ask_everything(client):
        codes = []
        for name, request in calls:
            with refused(grpc.StatusCode.UNAVAILABLE, "server is not initialized yet"):
                client.raw(name)(request)
            codes.append(name)
        return codes

    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        assert len(await ask(path, ask_everything)) == 9
        server.open()
        assert (await ask(path, Client.version)).runtime_name == "imgvol"
        nursery.cancel_scope.cancel()
    assert not images.pulls
    assert not images.removed


# --- methods --------------------------------------------------------------------------------------


async def test_images_are_listed_streamed_and_filtered(path, images):
    images.known = [make_image(number) for number in range(limits.CRI_STREAM_BATCH + 1)]
    wanted = [image.id for image in images.known]
    async with serving(path, images):
        assert [image.id for image in await ask(path, Client.images)] == wanted
        batches = await ask(path, Client.stream)
        assert [image.id for batch in batches for image in batch] == wanted
        assert len(batches) == 2
        (found,) = await ask(path, lambda client: client.images(NAME))
        assert found.id == digest(1)
        assert not await ask(path, lambda client: client.images("registry.test/nothing"))
        assert not await ask(path, lambda client: client.stream("registry.test/nothing"))


async def test_a_status_is_the_same_by_whatever_name(path, images):
    image = images.known[1]
    async with serving(path, images):
        names = [image.id, *image.repo_tags, *image.repo_digests]
        found = [await ask(path, lambda client, name=name: client.find(name)) for name in names]
    assert len(found) == 3
    assert found[0].id == digest(1)
    assert all(other == found[0] for other in found)


async def test_a_status_of_nothing_is_empty(path, images):
    async with serving(path, images):
        answer = await ask(path, lambda client: client.status("nothing", verbose=True))
    assert answer == pb.ImageStatusResponse()


async def test_a_verbose_status_shows_the_config(path, images):
    images.config = {"config": {"User": "me"}}
    async with serving(path, images):
        answer = await ask(path, lambda client: client.status(NAME, verbose=True))
    assert '"User": "me"' in answer.info["info"]


async def test_a_pull_gives_the_id_and_passes_the_login_on(path, images, caplog):
    caplog.set_level(logging.DEBUG)

    def pull(client):
        return client.pull(
            "registry.test/image-1:1", username="me", password="hunter2", handler="kata"
        )

    async with serving(path, images):
        assert await ask(path, pull) == digest(1)
    ((name, options),) = images.pulls
    assert name == NAME
    assert options["credentials"].username == "me"
    assert options["credentials"].password.reveal() == "hunter2"
    assert options["handler"] == "kata"
    assert options["readiness"] is Readiness.LAZY
    assert "PullImage: OK" in caplog.text
    assert "hunter2" not in caplog.text


async def test_a_login_for_another_registry_is_not_passed_on(path, images):
    def pull(client):
        return client.pull(NAME, username="me", password="x", server_address="other.test")

    async with serving(path, images):
        await ask(path, pull)
    assert images.pulls[0][1]["credentials"] is None


async def test_a_name_is_normalised_before_it_is_pulled(path, images):
    images.known.append(make_image(9, repo_tags=("docker.io/library/alpine:latest",)))
    async with serving(path, images):
        assert await ask(path, lambda client: client.pull("alpine")) == digest(9)
    assert images.pulls[0][0] == "docker.io/library/alpine:latest"


@pytest.mark.parametrize(
    "name", ["oci:/etc:x", "docker-archive:/a.tar", "A", "", "a b", "x" * 5000]
)
async def test_what_no_registry_has_is_not_pulled(path, images, name):
    """Who writes a pod must not have files of the node read."""

    def pull(client):
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            client.pull(name)

    async with serving(path, images):
        await ask(path, pull)
    assert not images.pulls


async def test_an_unknown_runtime_handler_is_refused(path, images):
    def work(client):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "unknown runtime handler"):
            client.pull(NAME, handler="nothing")
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "unknown runtime handler"):
            client.status(NAME, handler="x" * 100_000)

    async with serving(path, images):
        await ask(path, work)
    assert not images.pulls


async def test_images_are_removed_and_disks_told(path, images):
    async with serving(path, images):
        await ask(path, lambda client: client.remove(NAME))
        disks = (await ask(path, Client.filesystems)).image_filesystems
    assert images.removed == [NAME]
    assert [disk.fs_id.mountpoint for disk in disks] == ["/store", "/other"]


async def test_a_runtime_says_who_it_is_and_what_it_is_not(path, images):
    async with serving(path, images):
        version = await ask(path, Client.version)
        status = await ask(path, Client.runtime_status)
    assert (version.runtime_name, version.runtime_api_version) == ("imgvol", "v1")
    assert [condition.status for condition in status.conditions] == [False, False]


# --- errors ---------------------------------------------------------------------------------------


async def test_an_unavailable_registry_is_what_kubelets_look_for(path, images):
    images.failure = RegistryUnavailable("it does not answer", registry="registry.test")

    def pull(client):
        with refused(grpc.StatusCode.UNKNOWN) as caught:
            client.pull(NAME)
        return caught.value.details()

    async with serving(path, images):
        assert (await ask(path, pull)).startswith("RegistryUnavailable: it does not answer")


async def test_a_long_text_of_any_script_arrives(path, images):
    images.failure = RegistryUnavailable("長い" * 10_000)

    def pull(client):
        with refused(grpc.StatusCode.UNKNOWN, "RegistryUnavailable: 長い長い"):
            client.pull(NAME)

    async with serving(path, images):
        await ask(path, pull)


@pytest.mark.expects_log("PullImage failed")
async def test_a_defect_is_told_without_its_text(path, images):
    images.failure = RuntimeError("secret")

    def pull(client):
        with refused(grpc.StatusCode.INTERNAL) as caught:
            client.pull(NAME)
        return caught.value.details()

    async with serving(path, images):
        assert "secret" not in await ask(path, pull)
        await ask(path, Client.version)


# --- deadlines and cancellation -------------------------------------------------------------------


@pytest.mark.fault("F93")
async def test_a_client_that_leaves_ends_its_pull_at_once(path, images):
    images.go_on = trio.Event()
    async with serving(path, images) as server:
        client = Client(path)
        call = client.start_pull(NAME)
        with trio.fail_after(10):
            await images.pulling.wait()
        began = time.perf_counter()
        await asking(call.cancel)
        assert await asking(images.cancelled.wait, 5)
        assert time.perf_counter() - began < 1
        client.close()
        await _until(lambda: _codes(server, "PullImage") == {"CANCELLED": 1})


async def test_a_deadline_ends_a_pull(path, images):
    images.go_on = trio.Event()

    def pull(client):
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
            client.pull(NAME, timeout=0.2)

    async with serving(path, images) as server:
        await ask(path, pull)
        assert await asking(images.cancelled.wait, 5)
        await _until(lambda: sum(_codes(server, "PullImage").values()) == 1)


async def test_a_deadline_of_a_millisecond_is_kept(path, images):
    images.go_on = trio.Event()

    def pull(client):
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
            client.pull(NAME, timeout=0.001)

    async with serving(path, images):
        await ask(path, pull)


async def test_pulls_hold_no_threads_and_nobody_up(path, images):
    images.go_on = trio.Event()
    async with serving(path, images) as server:
        await ask(path, Client.version)
        client = Client(path)
        pulls = [client.start_pull(NAME) for _ in range(100)]
        await _until(lambda: len(images.pulls) == 100)
        # gRPC's own threads are not Python's, and do not depend on the calls.
        names = [thread.name for thread in threading.enumerate()]
        assert len([name for name in names if name.startswith("Trio")]) < 10, names
        began = time.perf_counter()
        assert len(await ask(path, Client.images)) == 3
        assert time.perf_counter() - began < 2
        images.go_on.set()
        assert {await asking(lambda p=pull: p.result().image_ref) for pull in pulls} == {digest(1)}
        client.close()
    assert _codes(server, "PullImage") == {"OK": 100}


async def test_the_end_waits_for_calls_but_not_for_long(path, images, monkeypatch):
    monkeypatch.setattr(limits, "CRI_GRACE", 0.3)
    images.go_on = trio.Event()
    client = Client(path)
    async with serving(path, images):
        call = client.start_pull(NAME)
        with trio.fail_after(10):
            await images.pulling.wait()
        began = time.perf_counter()
    assert 0.25 < time.perf_counter() - began < 3
    assert images.cancelled.is_set()
    with refused(grpc.StatusCode.UNAVAILABLE, "the daemon is stopping"):
        await asking(call.result)
    client.close()


async def test_a_call_that_ends_within_the_grace_gets_its_answer(path, images):
    images.go_on = trio.Event()
    client = Client(path)
    server = CriServer(path, Handlers(images).methods())
    server.open()
    async with trio.open_nursery() as nursery:
        scope = await nursery.start(_run_in_scope, server)
        call = client.start_pull(NAME)
        with trio.fail_after(10):
            await images.pulling.wait()
        scope.cancel()
        images.go_on.set()
        assert (await asking(call.result)).image_ref == digest(1)
    client.close()


async def _run_in_scope(server, *, task_status):
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            task_status.started(scope)


async def test_more_calls_than_there_may_be_are_refused(path, images, monkeypatch):
    monkeypatch.setattr(limits, "CRI_CALLS", 5)
    images.go_on = trio.Event()
    async with serving(path, images):
        client = Client(path)
        pulls = [client.start_pull(NAME) for _ in range(5)]
        await _until(lambda: len(images.pulls) == 5)
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
            await asking(client.version)
        images.go_on.set()
        assert {await asking(lambda p=pull: p.result().image_ref) for pull in pulls} == {digest(1)}
        await asking(client.version)
        client.close()


# --- bad input ------------------------------------------------------------------------------------

_STATUS = f"{IMAGE_SERVICE}ImageStatus"


@pytest.mark.fault("F93")
@pytest.mark.parametrize(
    ("name", "request_", "code"),
    [
        (_STATUS, b"", grpc.StatusCode.INVALID_ARGUMENT),
        (_STATUS, b"\xff\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        (_STATUS, b"\x0a\xff\xff\xff\xff\x0f", grpc.StatusCode.INVALID_ARGUMENT),
        (_STATUS, b"\x0a\x03\x0a\x01\xff", grpc.StatusCode.INVALID_ARGUMENT),
        # A group in a group in a group ...
        (_STATUS, b"\xab\x06" * 1000, grpc.StatusCode.INVALID_ARGUMENT),
        (_STATUS, bytes(limits.CRI_REQUEST_SIZE + 1), grpc.StatusCode.RESOURCE_EXHAUSTED),
        ("/runtime.v1.ImageService/", b"", grpc.StatusCode.UNIMPLEMENTED),
        ("/runtime.v1.ImageService/listimages", b"", grpc.StatusCode.UNIMPLEMENTED),
        ("/runtime.v1alpha2.ImageService/ListImages", b"", grpc.StatusCode.UNIMPLEMENTED),
        ("/runtime.v1.RuntimeService/RunPodSandbox", b"x", grpc.StatusCode.UNIMPLEMENTED),
        ("/x" * 500, b"", grpc.StatusCode.UNIMPLEMENTED),
    ],
)
async def test_bad_requests_have_an_answer(path, images, name, request_, code):
    def send(client):
        with refused(code):
            client.raw(name)(request_)
        return client.version()

    async with serving(path, images):
        assert (await ask(path, send)).runtime_name == "imgvol"


async def test_fields_that_we_do_not_know_are_ignored(path, images):
    known = pb.ImageStatusRequest(image=pb.ImageSpec(image=NAME)).SerializeToString()
    unknown = b"\xc2\x3e\x05hello" + b"\xc8\x3e\x01"  # fields 1000 and 1001

    async with serving(path, images):
        answer = await ask(path, lambda client: client.raw(_STATUS)(known + unknown))
    assert pb.ImageStatusResponse.FromString(answer).image.id == digest(1)


async def test_methods_that_clients_make_up_do_not_grow_the_metrics(path, images):
    def send(client):
        for number in range(50):
            with refused(grpc.StatusCode.UNIMPLEMENTED):
                client.raw(f"/made.up/Method{number}")(b"")

    async with serving(path, images) as server:
        await ask(path, send)
        (counts,) = server.statistics().methods
    assert (counts.method, counts.codes) == ("other", (("UNIMPLEMENTED", 50),))


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", bytes(100_000), b"", b"PRI * HTTP"])
async def test_what_is_not_grpc_harms_nobody(path, images, garbage):
    async with serving(path, images):
        stream = await trio.open_unix_socket(path)
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(garbage)
            await ask(path, Client.version)
        await ask(path, Client.version)


@pytest.mark.fault("F93")
async def test_a_thousand_calls_at_once_leave_nothing_behind(path, images):
    def call_often(client, times=1000):
        call = client.channel.unary_unary(_STATUS)
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=NAME)).SerializeToString()
        futures = [call.future(request, timeout=20) for _ in range(times)]
        return [future.code() for future in futures]

    async with serving(path, images) as server:
        # gRPC makes its own threads and pipes at first use.
        assert set(await ask(path, call_often)) == {grpc.StatusCode.OK}
        await _until(lambda: _in_progress(server) == 0)
        before = len(os.listdir("/proc/self/fd"))
        threads = len(os.listdir("/proc/self/task"))
        with ThreadPoolExecutor(4) as pool:
            work = partial(call_often, times=250)
            asked = [pool.submit(_with_client, path, work) for _ in range(4)]
            codes = [code for one in asked for code in await asking(one.result)]
        assert set(codes) == {grpc.StatusCode.OK}
        assert len(await ask(path, Client.images)) == 3
        await _until(lambda: _in_progress(server) == 0)
        await _until(lambda: len(os.listdir("/proc/self/fd")) <= before + 4)
        await _until(lambda: len(os.listdir("/proc/self/task")) <= threads + 10)


def _with_client(path, work):
    with client_of(path) as client:
        return work(client)


def _codes(server, method):
    found = [m for m in server.statistics().methods if m.method == method]
    return dict(found[0].codes) if found else {}


def _in_progress(server):
    return sum(method.in_progress for method in server.statistics().methods)


async def _until(condition):
    await asking(lambda: wait_until(condition, seconds=10))
