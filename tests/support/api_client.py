"""The control API as it is on the wire: any method, any target, any bytes."""

import contextlib
import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEADLINE = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        media_type: As it is announced.
        is_whole: Whether the body came to its end.
    """

    status: int
    media_type: str
    body: bytes
    is_whole: bool

    @property
    def documents(self) -> list[Any]:
        """The body's JSON: one document, or one per line."""
        parts = self.body.splitlines() if self.media_type.endswith("ndjson") else [self.body]
        return [json.loads(part) for part in parts]


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def _validate_path(self, url: str) -> None:
        """Anything may be asked for."""

    def _encode_request(self, request: str) -> bytes:
        return request.encode("latin-1")


def ask(
    path: Path,
    method: str,
    target: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = DEADLINE,
    is_endless: bool = False,
) -> Answer:
    """Sends one request over a connection of its own.

    Args:
        is_endless: Of a good answer the first line is enough.

    Raises:
        TimeoutError: No answer in time.
        OSError: The server closed the connection without one.
    """
    connection = _Connection(path, timeout)
    try:
        # What refuses a large body need not read it.
        with contextlib.suppress(BrokenPipeError):
            connection.request(method, target, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        is_whole = True
        try:
            is_cut = is_endless and response.status == 200
            content = response.readline() if is_cut else response.read()
        except http.client.IncompleteRead as exc:
            content, is_whole = exc.partial, False
        media_type = (response.headers["content-type"] or "").partition(";")[0]
        return Answer(response.status, media_type, content, is_whole)
    finally:
        connection.close()
