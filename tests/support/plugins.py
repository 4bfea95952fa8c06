"""A client of Docker's plugin protocol, as plain as HTTP over a unix socket can be."""

import http.client
import json
import socket
from pathlib import Path


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Plugin:
    """One plugin's socket."""

    def __init__(self, path: Path):
        self._path = path

    def send(self, path: str, body: bytes, method: str = "POST") -> tuple[int, dict]:
        """One request; its status and its document."""
        connection = _UnixConnection(self._path, timeout=60)
        try:
            kind = "application/vnd.docker.plugins.v1.2+json"
            connection.request(method, path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def call(self, name: str, **members) -> dict:
        """A call that goes well."""
        status, answer = self.send(f"/VolumeDriver.{name}", json.dumps(members).encode())
        assert status == 200, answer
        assert answer.pop("Err", "") == ""
        return answer

    def refusal(self, name: str, **members) -> str:
        """Why a call fails."""
        status, answer = self.send(f"/VolumeDriver.{name}", json.dumps(members).encode())
        assert 400 <= status < 600, answer
        assert list(answer) == ["Err"]
        assert answer["Err"]
        return answer["Err"]
