"""The client, against a real socket with fakes and with peers that misbehave."""

import contextlib
import os
import socket
import threading

import pytest

from imgvol.cli.client import Client, NotRunning, error_from_document
from imgvol.errors import (
    DaemonUnavailable,
    DigestMismatch,
    ImgvolError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    RegistryUnavailable,
)
from support.api_fakes import FakeDaemon, broken_content, served_in_thread

ALPINE = {"image": "alpine:3.20"}


@pytest.fixture
def daemon(short_path):
    fake = FakeDaemon()
    with served_in_thread(short_path / "run" / "s", fake):
        yield fake


@pytest.fixture
def client(daemon, short_path):
    return Client(str(short_path / "run" / "s"), timeout=5)


@contextlib.contextmanager
def answering(path, *pieces, hold=None):
    """A server that reads once and then says this."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve():
            connected, _ = listener.accept()
            with connected:
                connected.recv(65536)
                for piece in pieces:
                    connected.sendall(piece)
                if hold is not None:
                    hold.wait(5)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            if hold is not None:
                hold.set()
            thread.join(5)


def test_calls_events_and_bytes(client):
    assert client.call("GET", "/version")["api"] == "v1"
    parameters = {**ALPINE, "path": "/etc/latin\udce9.conf", "recursive": True, "platform": None}
    with pytest.raises(NotFound):
        client.call("GET", "/files/usage", {"image": "nothing:1"})
    assert (
        b"".join(client.iter_bytes("GET", "/files/content", {**ALPINE, "path": "/etc/os-release"}))
        == b"NAME=alpine\nID=alpine\n"
    )
    events = list(client.iter_events("GET", "/files/list", parameters))
    assert events[0]["path"] == "/etc/latin\udce9.conf"


def test_bodies_leave_out_what_is_none(client, daemon):
    list(client.iter_events("POST", "/images/pull", body={"image": "b:1", "platform": None}))
    assert daemon.images.calls[0][:3] == ("pull", "b:1", None)


def test_errors_come_back_as_their_class(client, daemon):
    daemon.images.pull_error = RegistryUnavailable("cannot connect", hint="Wait.", host="h")
    daemon.images.pull_pause = 0.3
    for pause in (0.0, 0.3):  # before the stream has begun, and in it
        daemon.images.pull_pause = pause
        with pytest.raises(RegistryUnavailable) as caught:
            list(client.iter_events("POST", "/images/pull", body={"image": "b:1"}))
        assert (caught.value.hint, caught.value.fields["host"]) == ("Wait.", "h")


def test_content_that_breaks_off_is_an_error(client, daemon):
    daemon.inspection.content_error = broken_content()
    pieces = client.iter_bytes("GET", "/files/content", {**ALPINE, "path": "/etc/os-release"})
    with pytest.raises(DaemonUnavailable):
        list(pieces)


def test_nobody_there(short_path):
    with pytest.raises(NotRunning) as caught:
        Client(str(short_path / "s")).call("GET", "/version")
    assert caught.value.code == "daemon-unavailable"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(short_path / "s"))
    with pytest.raises(NotRunning):
        Client(str(short_path / "s")).call("GET", "/version")


def test_a_daemon_is_started_once_when_nobody_is_there(short_path):
    with contextlib.ExitStack() as stack:
        started = []

        def start():
            started.append(True)
            stack.enter_context(served_in_thread(short_path / "run" / "s", FakeDaemon()))

        client = Client(str(short_path / "run" / "s"), ensure_daemon=start)
        assert client.call("GET", "/version")["api"] == "v1"
        assert client.call("GET", "/volumes") == {"volumes": []}
        assert started == [True]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n???",
        b"HTTP/1.1 500 Oops\r\ncontent-length: 3\r\n\r\n???",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 100_000,
    ],
)
def test_nonsense_is_no_answer(short_path, answer):
    with answering(short_path / "s", answer), pytest.raises(DaemonUnavailable):
        Client(str(short_path / "s"), timeout=5).call("GET", "/version")


def test_a_stream_without_its_end_is_no_answer(short_path):
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 21\r\n\r\n"
    with (
        answering(short_path / "s", head, b'{"event":"progress"}\n'),
        pytest.raises(DaemonUnavailable),
    ):
        list(Client(str(short_path / "s"), timeout=5).iter_events("GET", "/x"))


def test_a_hung_daemon_is_told_of(short_path):
    with (
        answering(short_path / "s", hold=threading.Event()),
        pytest.raises(DaemonUnavailable, match=r"not answered for 0\.2 s"),
    ):
        Client(str(short_path / "s"), timeout=0.2).call("GET", "/version")


def test_leaving_early_cancels_the_pull(client, daemon):
    daemon.images.pull_steps, daemon.images.pull_pause = 1000, 0.05
    events = client.iter_events("POST", "/images/pull", body={"image": "b:1"})
    assert next(events)["event"] == "progress"
    events.close()
    assert daemon.images.pull_cancelled.wait(5)


def test_a_path_longer_than_an_address(tmp_path):
    path = tmp_path / ("d" * 120) / "s"
    with served_in_thread(path, FakeDaemon()):
        assert Client(str(path)).call("GET", "/version")["api"] == "v1"


def test_a_socket_of_another_user_is_not_talked_to(short_path, monkeypatch):
    client = Client(str(short_path / "run" / "s"))
    with served_in_thread(short_path / "run" / "s", FakeDaemon()):
        monkeypatch.setattr("imgvol.cli.client._UCRED", FakeUcred())
        for uid, is_refused in [(0, False), (999, False), (12345, True)]:
            monkeypatch.setattr(os, "getuid", lambda uid=uid: uid)
            if is_refused:
                with pytest.raises(PermissionDenied):
                    client.call("GET", "/version")
            else:
                assert client.call("GET", "/version")["api"] == "v1"


class FakeUcred:
    size = 12

    def unpack(self, _data):
        return 1, 999, 999


def test_unknown_codes_are_plain_errors():
    error = error_from_document({"error": {"code": "new-kind", "message": "m"}})
    assert type(error) is ImgvolError
    fields = {"message": "x", "hint": "y", "path": "/p"}
    document = {"code": "invalid-argument", "message": "m", "hint": "h", "fields": fields}
    error = error_from_document({"error": document})
    assert isinstance(error, InvalidArgument)
    assert (error.message, error.hint, error.fields) == ("m", "h", {"path": "/p"})
    assert isinstance(
        error_from_document({"error": {"code": "digest-mismatch", "message": ""}}), DigestMismatch
    )
