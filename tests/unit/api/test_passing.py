"""Open files that come with requests: which one a handler gets, and that none stays open."""

import os
import socket

import pytest
import trio

from imgvol.api.http import json_response
from imgvol.api.server import ApiServer

HEAD = b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n"


def open_descriptors():
    return set(os.listdir("/proc/self/fd"))


async def exchange(path, send):
    """Serves one connection; returns what its handler got."""
    got = []

    async def handler(request):
        got.append(None if request.file is None else os.readlink(f"/proc/self/fd/{request.file}"))
        return json_response({})

    server = ApiServer(path, handler)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        client = socket.socket(socket.AF_UNIX)
        with client:
            client.connect(str(path))
            client.settimeout(5)
            await trio.to_thread.run_sync(send, client)
        nursery.cancel_scope.cancel()
    return got


@pytest.fixture
def path(short_path):
    (short_path / "run").mkdir(mode=0o700)
    return short_path / "run" / "imgvol.sock"


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / str(number) for number in range(6)]
    opened = [os.open(path, os.O_RDWR | os.O_CREAT) for path in paths]
    yield opened, list(map(str, paths))
    for descriptor in opened:
        os.close(descriptor)


async def test_a_file_belongs_to_one_request_and_is_closed_after_it(path, files):
    (first, second, *_), names = files

    def send(client):
        for descriptor in (first, None, second):
            if descriptor is None:
                client.sendall(HEAD)
            else:
                socket.send_fds(client, [HEAD], [descriptor])
            assert client.recv(65536).startswith(b"HTTP/1.1 200")

    before = open_descriptors()
    assert await exchange(path, send) == [names[0], None, names[1]]
    assert open_descriptors() == before


async def test_a_file_that_comes_while_another_request_is_answered_is_the_next_ones(path, files):
    (first, second, *_), names = files

    def send(client):
        socket.send_fds(client, [HEAD], [first])
        # At once: the answer to the first may not even have been begun.
        socket.send_fds(client, [HEAD], [second])
        answers = b""
        while answers.count(b"HTTP/1.1 200") < 2:
            answers += client.recv(65536)

    before = open_descriptors()
    got = await exchange(path, send)
    # Unless both had come before the first was read: one is kept.
    assert got in ([names[0], names[1]], [names[0], None])
    assert open_descriptors() == before


async def test_of_many_files_one_is_kept(path, files):
    opened, names = files

    def send(client):
        socket.send_fds(client, [HEAD[:10]], opened[:3])
        socket.send_fds(client, [HEAD[10:]], opened[3:])
        assert client.recv(65536).startswith(b"HTTP/1.1 200")

    before = open_descriptors()
    assert await exchange(path, send) == [names[0]]
    assert open_descriptors() == before


@pytest.mark.parametrize("data", [b"nonsense\r\n\r\n", HEAD[:20]])
async def test_a_request_that_is_none_leaves_no_file_open(path, files, data):
    (first, *_), _ = files

    def send(client):
        socket.send_fds(client, [data], [first])
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass

    before = open_descriptors()
    assert await exchange(path, send) == []
    assert open_descriptors() == before
