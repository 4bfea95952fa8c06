"""Lets requests, and what is built on it, talk to a unix socket."""

import socket
from pathlib import Path

import requests
import urllib3
from requests.adapters import HTTPAdapter


class _Connection(urllib3.connection.HTTPConnection):
    def __init__(self, path: Path, timeout: object) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = str(path)

    def _new_conn(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self.timeout)
            connection.connect(self._path)
        except OSError as exc:
            connection.close()
            # What requests knows as a ConnectionError.
            raise urllib3.exceptions.NewConnectionError(self, str(exc)) from exc
        return connection


class _Pool(urllib3.HTTPConnectionPool):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def _new_conn(self) -> _Connection:
        self.num_connections += 1
        return _Connection(self._path, self.timeout.connect_timeout)


class _UnixAdapter(HTTPAdapter):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._pool = _Pool(path)

    def get_connection_with_tls_context(self, *_arguments: object, **_options: object) -> _Pool:
        return self._pool

    def close(self) -> None:
        self._pool.close()
        super().close()


def unix_session(path: Path) -> requests.Session:
    """A session whose every `http://` request goes to the socket; close it."""
    session = requests.Session()
    # No proxy, no netrc: what the environment says is for the network.
    session.trust_env = False
    session.mount("http://", _UnixAdapter(path))
    return session
