"""Listeners that outlive the process."""

import os
import socket

import pytest
import trio

from imgvol.api.keeping import Keeper
from imgvol.api.server import ApiServer, open_listener
from imgvol.cli.client import peer_process
from imgvol.errors import NotFound
from imgvol.service_manager import ServiceManager


@pytest.fixture
def manager(short_path):
    """One that listens, and what it was told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(short_path / "manager"))
        listening.settimeout(5)
        yield ServiceManager(address=str(short_path / "manager")), listening


@pytest.fixture
def path(short_path):
    (short_path / "run").mkdir(mode=0o700)
    return str(short_path / "run" / "s")


def receive(listening):
    data, descriptors, _, _ = socket.recv_fds(listening, 4096, 8)
    return data, descriptors


def is_answered(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(path)
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        return client.recv(5) == b"HTTP/"


async def know_nothing(_request):
    raise NotFound("there is nothing")


async def serve(path, keeper):
    async with trio.open_nursery() as nursery:
        await nursery.start(ApiServer(path, know_nothing, keeper=keeper).run)
        assert await trio.to_thread.run_sync(is_answered, path)
        nursery.cancel_scope.cancel()


async def test_from_process_to_process_until_the_service_ends(manager, path):
    manager, listening = manager
    await serve(path, Keeper(manager, "api", lambda: False))
    data, (descriptor,) = receive(listening)
    assert data == b"FDSTORE=1\nFDNAME=api"
    assert os.path.exists(path), "whoever asks now waits"

    manager.inherited["api"] = [os.dup(descriptor)]
    await serve(path, Keeper(manager, "api", lambda: True))
    assert manager.inherited == {}
    # Told of the end, and not to keep again what is kept.
    assert receive(listening) == (b"FDSTOREREMOVE=1\nFDNAME=api", [])
    assert not os.path.exists(path)
    os.close(descriptor)


async def test_without_a_manager_nothing_is_kept(path):
    await serve(path, Keeper(ServiceManager(), "api", lambda: False))
    assert not os.path.exists(path)


@pytest.mark.expects_log("the kept listener api is of no use")
@pytest.mark.parametrize("what", ["no name", "a file", "not listening", "closed", "a datagram"])
def test_what_cannot_be_taken_over_is_dropped(manager, path, what):
    manager, listening = manager
    kind = socket.SOCK_DGRAM if what == "a datagram" else socket.SOCK_STREAM
    with socket.socket(socket.AF_UNIX, kind) as kept:
        if what != "no name":
            kept.bind(path)
        if what not in {"not listening", "a datagram", "no name"}:
            kept.listen()
        descriptor = (
            os.open("/dev/null", os.O_RDONLY) if what == "a file" else os.dup(kept.fileno())
        )
        if what == "closed":
            os.close(descriptor)
        manager.inherited["api"] = [descriptor]
        keeper = Keeper(manager, "api", lambda: False)
        assert keeper.take(path) is None
        assert not keeper.is_kept
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
    assert receive(listening) == (b"FDSTOREREMOVE=1\nFDNAME=api", [])


def listening_process(path):
    """The process that a client of the socket takes for its server (SO_PEERCRED)."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        pid, _ = peer_process(client)
        return pid


def test_clients_see_the_process_that_has_taken_over(path):
    """`imgvol stop` waits for that one to end."""
    kept = socket.socket(socket.AF_UNIX)
    kept.bind(path)
    child = os.fork()
    if child == 0:
        kept.listen()
        os._exit(0)
    os.waitpid(child, 0)
    assert listening_process(path) == child
    with open_listener(path, kept):
        assert listening_process(path) == os.getpid()


def test_what_nobody_takes_goes(manager):
    manager, listening = manager
    descriptors = [os.dup(0), os.dup(0)]
    manager.inherited["old"] = list(descriptors)
    manager.drop_rest()
    assert receive(listening) == (b"FDSTOREREMOVE=1\nFDNAME=old", [])
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
