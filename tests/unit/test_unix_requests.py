"""The adapter by which requests reaches a unix socket."""

import contextlib
import socket
import threading

import pytest
import requests

from support.unix_requests import unix_session


@contextlib.contextmanager
def listening(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(10)
        yield listener


def test_requests_go_to_the_socket_whatever_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    seen = []

    def answer(listener):
        connection, _ = listener.accept()
        with connection:
            seen.append(connection.recv(65_536))
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")

    with listening(tmp_path / "s") as listener, unix_session(tmp_path / "s") as session:
        server = threading.Thread(target=answer, args=(listener,))
        server.start()
        assert session.get("http://localhost/a?b=c", timeout=10).text == "hi"
        server.join()
    assert seen[0].startswith(b"GET /a?b=c HTTP/1.1\r\nHost: localhost\r\n")


def test_who_does_not_answer_in_time_is_given_up(tmp_path):
    with (
        listening(tmp_path / "s"),
        unix_session(tmp_path / "s") as session,
        pytest.raises(requests.ReadTimeout),
    ):
        session.get("http://localhost/", timeout=0.1)


def test_who_is_not_there_is_told(tmp_path):
    with unix_session(tmp_path / "s") as session, pytest.raises(requests.ConnectionError):
        session.get("http://localhost/", timeout=1)
