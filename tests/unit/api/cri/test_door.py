"""The CRI's listener, and what is carried from there to gRPC."""

import os
import socket
import subprocess
import sys

import pytest
import trio

from imgvol import limits
from imgvol.api.cri import server
from imgvol.api.cri.door import Door
from imgvol.api.keeping import Keeper
from imgvol.api.problems import as_imgvol_error
from imgvol.api.server import open_listener
from imgvol.service_manager import ServiceManager
from support.cri import Client, digest, serving

LONG = {"config": {"Env": ["x" * 100] * 30_000}}


@pytest.fixture
def client(path):
    made = Client(path)
    yield made
    made.close()


async def asking(work):
    with trio.fail_after(20):
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)


async def test_who_has_come_while_nobody_served_is_answered_when_all_is_there(path, images, client):
    answers = []

    async def ask():
        answers.append(await asking(client.images))

    path.parent.mkdir(mode=0o700)
    with open_listener(str(path)) as kept:
        manager = ServiceManager(inherited={"cri": [os.dup(kept.fileno())]})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await wait_for_client(kept)
            keeper = Keeper(manager, "cri", lambda: False)
            async with serving(path, images, is_open=False, keeper=keeper) as serves:
                await trio.sleep(0.2)
                assert not answers, "neither answered nor refused"
                serves.open()
                with trio.fail_after(20):
                    while not answers:
                        await trio.sleep(0.02)
        assert [image.id for image in answers[0]] == [digest(number) for number in range(3)]
        assert os.listdir(path.parent) == ["cri.sock"], "it stays for the next one"


async def wait_for_client(listener):
    """Until one waits in its backlog."""
    with trio.fail_after(10):
        await trio.lowlevel.wait_readable(listener)


async def test_a_listener_that_is_broken_ends_the_server(path, images, monkeypatch):
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.setblocking(False)
        monkeypatch.setattr(server, "Door", lambda _, address: Door(deaf, address))
        with trio.fail_after(20), pytest.raises(ExceptionGroup) as ended:
            async with serving(path, images):
                await trio.sleep_forever()
    assert "the CRI's socket is broken" in str(as_imgvol_error(ended.value))
    assert os.listdir(path.parent) == []


async def test_answers_and_requests_of_any_size_are_carried(path, images, client):
    images.config = LONG
    async with serving(path, images):
        shown = await asking(lambda: client.status("registry.test/image-1:1", verbose=True))
        assert len(shown.info["info"]) > 3_000_000
        # Fields that nobody knows are ignored.
        raw = client.raw("/runtime.v1.RuntimeService/Version")
        size = limits.CRI_REQUEST_SIZE - 100
        request = b"\xfa\x7f" + varint(size) + bytes(size)
        assert b"imgvol" in await asking(lambda: raw(request))


def varint(number):
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
@pytest.mark.expects_log("refused a connection of uid 65534 to the CRI")
async def test_another_user_is_refused_even_with_access_to_the_socket(path, images, client):
    """The first two locks are opened on purpose."""
    program = (
        "import os, socket, sys\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "sys.stdout.buffer.write(s.recv(65536))\n"
    )
    async with serving(path, images):
        path.parent.chmod(0o755)
        path.chmod(0o666)
        command = [sys.executable, "-c", program, str(path)]
        done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.DEVNULL)
        assert done.stdout == b"", "gRPC would have said its settings"
        assert (await asking(client.version)).runtime_name == "imgvol"


async def test_beyond_the_limit_connections_wait_until_others_end(
    path, images, client, monkeypatch
):
    monkeypatch.setattr(limits, "CRI_CONNECTIONS", 2)
    async with serving(path, images):
        held = [await trio.open_unix_socket(path) for _ in range(2)]
        for stream in held:
            assert await stream.receive_some(), "gRPC speaks first"
        call = client.start_pull("registry.test/image-1:1")
        await trio.sleep(0.3)
        assert not call.done()
        await held[0].aclose()
        assert (await asking(call.result)).image_ref == digest(1)
        await held[1].aclose()


async def test_connections_that_come_and_go_leave_nothing(path, images, client):
    async with serving(path, images):
        await asking(client.version)
        before = len(os.listdir("/proc/self/fd"))
        for number in range(50):
            with socket.socket(socket.AF_UNIX) as brief:
                brief.connect(str(path))
                if number % 2:
                    brief.sendall(b"no HTTP/2")
        with trio.fail_after(10):
            while len(os.listdir("/proc/self/fd")) > before:
                await trio.sleep(0.02)
        await asking(client.version)
