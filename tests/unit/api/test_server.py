"""The socket itself: who may connect, what is replaced, what is refused."""

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys

import pytest
import trio

from imgvol.api.http import json_response
from imgvol.api.server import (
    ApiServer,
    SocketPlace,
    ensure_private_directory,
    open_listener,
)
from imgvol.errors import Conflict, InvalidArgument, PermissionDenied

GET = b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n"


async def hello(_request):
    return json_response({"hello": True})


@contextlib.asynccontextmanager
async def serving(path, **habits):
    server = ApiServer(path, hello, **habits)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        yield server
        nursery.cancel_scope.cancel()


@pytest.fixture
def run(short_path):
    path = short_path / "run"
    path.mkdir(mode=0o700)
    return path


async def ask(path):
    stream = await trio.open_unix_socket(path)
    async with stream:
        await stream.send_all(GET)
        with trio.fail_after(5):
            return await stream.receive_some()


async def test_socket_is_private_in_a_private_directory_and_goes_at_the_end(short_path):
    path = short_path / "new" / "imgvol.sock"
    async with serving(path):
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.lstat().st_mode) == 0o700
        assert (await ask(path)).startswith(b"HTTP/1.1 200")
        assert os.listdir(path.parent) == ["imgvol.sock"]
    assert os.listdir(path.parent) == []


async def test_mode_does_not_depend_on_the_umask(run):
    before = os.umask(0)
    try:
        async with serving(run / "s"):
            assert stat.S_IMODE((run / "s").lstat().st_mode) == 0o600
    finally:
        os.umask(before)


@pytest.mark.fault("F95")
async def test_a_stale_socket_is_replaced_without_a_gap(run):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(run / "s"))
    before = (run / "s").lstat().st_ino
    async with serving(run / "s"):
        assert (run / "s").lstat().st_ino != before
        assert (await ask(run / "s")).startswith(b"HTTP/1.1 200")


@pytest.mark.fault("F95")
async def test_a_live_socket_is_refused_and_left_alone(run):
    async with serving(run / "s"):
        with pytest.raises(Conflict), open_listener(str(run / "s")):
            pass
        assert (await ask(run / "s")).startswith(b"HTTP/1.1 200")


async def test_a_live_socket_with_a_full_backlog_is_alive(run):
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as clients:
        busy.bind(str(run / "s"))
        busy.listen(0)
        for _ in range(2):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(str(run / "s"))
        with pytest.raises(Conflict), open_listener(str(run / "s")):
            pass


def test_a_file_in_the_place_of_the_socket_is_not_removed(run):
    (run / "s").write_text("mine")
    with pytest.raises(InvalidArgument), open_listener(str(run / "s")):
        pass
    assert (run / "s").read_text() == "mine"


def test_somebody_elses_new_socket_is_not_removed_at_the_end(run):
    with open_listener(str(run / "s")):
        (run / "s").unlink()
        (run / "s").write_text("another daemon's")
    assert (run / "s").exists()


@pytest.mark.fault("F95")
def test_an_open_directory_is_refused_and_not_changed(short_path):
    short_path.chmod(0o777)
    with pytest.raises(PermissionDenied) as caught:
        ensure_private_directory(str(short_path))
    assert "chmod 700" in caught.value.hint
    assert stat.S_IMODE(short_path.stat().st_mode) == 0o777


def test_a_link_in_the_place_of_the_directory_is_refused(short_path):
    (short_path / "real").mkdir(mode=0o700)
    (short_path / "link").symlink_to("real")
    with pytest.raises(PermissionDenied):
        ensure_private_directory(str(short_path / "link"))


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to make somebody else's directory")
def test_somebody_elses_directory_is_refused(run):
    os.chown(run, 65534, 65534)
    with pytest.raises(PermissionDenied):
        ensure_private_directory(str(run))


async def test_paths_longer_than_an_address_work(tmp_path):
    directory = tmp_path / ("d" * 120)
    async with serving(directory / "s"):
        with open_fd(directory) as fd:
            assert (await ask(f"/proc/self/fd/{fd}/s")).startswith(b"HTTP/1.1 200")
        with pytest.raises(Conflict), open_listener(str(directory / "s")):
            pass


@contextlib.contextmanager
def open_fd(path):
    fd = os.open(path, os.O_PATH)
    yield fd
    os.close(fd)


@pytest.mark.fault("F92")
@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
@pytest.mark.expects_log("refused a connection of uid 65534")
async def test_another_user_is_refused_even_with_access_to_the_socket(run, short_path):
    """SO_PEERCRED is the third lock: here the first two are opened on purpose."""
    program = (
        "import contextlib, os, socket, sys\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "with contextlib.suppress(BrokenPipeError):\n"
        "    s.sendall(b'GET /x HTTP/1.1\\r\\nhost: h\\r\\n\\r\\n')\n"
        "sys.stdout.buffer.write(s.recv(65536))\n"
    )
    async with serving(run / "s"):
        run.chmod(0o755)
        (run / "s").chmod(0o666)
        done = await trio.run_process(
            [sys.executable, "-c", program, str(run / "s")],
            capture_stdout=True,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 403")
        assert json.loads(body)["error"]["code"] == "permission-denied"
        assert (await ask(run / "s")).startswith(b"HTTP/1.1 200")


async def test_too_many_connections_are_told_so_and_room_comes_back(run):
    async with serving(run / "s", connections=2):
        held = [await trio.open_unix_socket(run / "s") for _ in range(2)]
        for stream in held:
            await stream.send_all(GET)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
        assert (await ask(run / "s")).startswith(b"HTTP/1.1 503")
        await held[0].aclose()
        with trio.fail_after(5):
            while not (await ask(run / "s")).startswith(b"HTTP/1.1 200"):
                await trio.sleep(0.02)
        await held[1].aclose()


async def test_idle_time_counts_from_the_last_request(run):
    async with serving(run / "s") as server:
        await trio.sleep(0.1)
        assert server.idle_seconds() >= 0.1
        await ask(run / "s")
        assert server.idle_seconds() < 0.1


def test_the_name_goes_before_the_socket_stops_listening(run, monkeypatch):
    withdraw, reached = SocketPlace.withdraw, []

    def look_and_withdraw(place):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(run / "s"))
            reached.append(place)
        withdraw(place)

    monkeypatch.setattr(SocketPlace, "withdraw", look_and_withdraw)
    with open_listener(str(run / "s")):
        pass
    assert len(reached) == 1
    assert not (run / "s").exists()
