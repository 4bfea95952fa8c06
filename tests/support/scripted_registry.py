"""An HTTP server that does wrong on purpose, over real sockets.

It speaks raw HTTP/1.1 from threads: nothing between a script and the wire corrects anything. For
each method and path a test scripts what happens the first time, the second time, and so on; the
last step repeats. A fault notes its name in `fired` at the moment when it does its wrong, so that a
test can tell a fault that was survived from one that never happened.

    with ScriptedServer() as server:
        server.on("GET", "/v2/x/blobs/sha256:…", reset_after(data, 1000), serve(data))
"""

import contextlib
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import parse_qs, urlsplit

REASONS = {200: "OK", 206: "Partial Content", 307: "Temporary Redirect", 401: "Unauthorized"}


@dataclass
class Seen:
    """A request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return self.target if self.method == "CONNECT" else urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)

    @property
    def form(self) -> dict[str, str]:
        return {key: values[0] for key, values in parse_qs(self.body.decode()).items()}

    @property
    def range(self) -> tuple[int, int] | None:
        """First byte and one past the last."""
        header = self.headers.get("range")
        if header is None:
            return None
        first, last = header.removeprefix("bytes=").split("-")
        return int(first), int(last) + 1


class Connection:
    """The server's end of a connection."""

    def __init__(self, server: "ScriptedServer", opened: socket.socket) -> None:
        self.server = server
        self.socket = opened
        self._buffer = b""

    def read_request(self) -> Seen | None:
        while b"\r\n\r\n" not in self._buffer:
            data = self.socket.recv(65536)
            if not data:
                return None
            self._buffer += data
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        request_line, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = request_line.split(" ")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        length = int(headers.get("content-length", 0))
        while len(self._buffer) < length:
            self._buffer += self.socket.recv(65536)
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Seen(method, target, headers, body)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_head(self, status: int, headers: Mapping[str, str | list[str]]) -> None:
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Whatever')}"]
        for name, values in headers.items():
            each = values if isinstance(values, list) else [values]
            lines += [f"{name}: {value}" for value in each]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    def reset(self) -> None:
        """End the connection with a RST, as a crashed peer or a firewall does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise Hangup

    def hang_up(self) -> None:
        raise Hangup

    def fire(self, fault: str) -> None:
        self.server.fired.append(fault)

    def linger(self) -> None:
        """Do nothing until the client has gone, or the server stops."""
        while not self.server.is_stopping.is_set():
            if select.select([self.socket], [], [], 0.02)[0]:
                with contextlib.suppress(OSError):
                    if self.socket.recv(1):
                        continue
                break
        raise Hangup

    def pause(self, seconds: float) -> None:
        if self.server.is_stopping.wait(seconds):
            raise Hangup


class Hangup(Exception):
    """Ends a connection."""


Step = Callable[[Connection, Seen], None]


@dataclass
class Script:
    steps: list[Step]
    position: int = 0

    def next(self) -> Step:
        step = self.steps[min(self.position, len(self.steps) - 1)]
        self.position += 1
        return step


@dataclass
class ScriptedServer:
    host: str = "127.0.0.1"
    tls: ssl.SSLContext | None = None
    # Sent to whoever connects, before anything was asked.
    greeting: bytes = b""
    seen: list[Seen] = field(default_factory=list)
    fired: list[str] = field(default_factory=list)
    is_stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._scripts: dict[tuple[str, str], Script] = {}
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self.connections = 0
        self._listener = socket.create_server((self.host, 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.scheme = "https" if self.tls else "http"

    @property
    def domain(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.domain}"

    def on(self, method: str, path: str, *steps: Step) -> None:
        """What happens to requests for a path, in order; the last step repeats."""
        self._scripts[method, path] = Script(list(steps))

    def requests(self, method: str, path: str) -> list[Seen]:
        return [seen for seen in self.seen if (seen.method, seen.path) == (method, path)]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.is_stopping.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for opened in self._open:
                with contextlib.suppress(OSError):
                    opened.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                opened, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._start(self._serve, opened)

    def _serve(self, raw: socket.socket) -> None:
        opened = raw
        try:
            opened.settimeout(10)
            if self.tls is not None:
                opened = self.tls.wrap_socket(raw, server_side=True)
            with self._lock:
                self._open.add(opened)
            connection = Connection(self, opened)
            connection.send(self.greeting)
            while not self.is_stopping.is_set():
                request = connection.read_request()
                if request is None:
                    return
                self._step_for(request)(connection, request)
        except (Hangup, OSError):
            pass
        finally:
            with self._lock:
                self._open.discard(opened)
            opened.close()

    def _step_for(self, request: Seen) -> Step:
        with self._lock:
            self.seen.append(request)
            script = self._scripts.get((request.method, request.path))
            return script.next() if script else respond(404)


# --- steps ----------------------------------------------------------------------------------------


def respond(status: int, body: bytes = b"", *, fault: str = "", **headers: str | list[str]) -> Step:
    """An answer of a few bytes; `content_type=` becomes `Content-Type:`."""

    def step(connection: Connection, request: Seen) -> None:
        if fault:
            connection.fire(fault)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.send_head(status, {"Content-Length": str(len(body)), **named})
        if request.method != "HEAD":
            connection.send(body)

    return step


def redirect(location: str | None, status: int = 307) -> Step:
    def step(connection: Connection, _: Seen) -> None:
        connection.fire("redirect")
        target = {} if location is None else {"Location": location}
        connection.send_head(status, {"Content-Length": "0", **target})

    return step


def serve(data: bytes, *, ranges: bool = True, **headers: str) -> Step:
    """A blob as it should be; without `ranges` as by a server that does not know them."""

    def step(connection: Connection, request: Seen) -> None:
        send_blob_head(connection, request, data, ranges=ranges, **headers)
        first, end = (ranges and request.range) or (0, len(data))
        connection.send(data[first:end])

    return step


def send_blob_head(
    connection: Connection, request: Seen, data: bytes, *, ranges: bool = True, **headers: str
) -> tuple[int, int]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if ranges and request.range:
        first, end = request.range
        named = {"Content-Range": f"bytes {first}-{end - 1}/{len(data)}", **named}
        connection.send_head(206, {"Content-Length": str(end - first), **named})
        return first, end
    connection.send_head(200, {"Content-Length": str(len(data)), **named})
    return 0, len(data)


def break_off(data: bytes, after: int, *, how: str) -> Step:
    """Send some bytes of what was asked for, then: "reset", "eof" or "stall"."""

    def step(connection: Connection, request: Seen) -> None:
        first, end = send_blob_head(connection, request, data)
        connection.send(data[first : min(first + after, end)])
        connection.fire(how)
        {"reset": connection.reset, "eof": connection.hang_up, "stall": connection.linger}[how]()

    return step


def drip(data: bytes, *, every: float, head: bool = False) -> Step:
    """A byte at a time: of the body, or already of the head."""

    def step(connection: Connection, _: Seen) -> None:
        connection.fire("drip")
        text = f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        if not head:
            connection.send(text)
            text = b""
        for byte in text + data:
            connection.send(bytes([byte]))
            connection.pause(every)

    return step


def raw(data: bytes, *, fault: str, then: str = "hang up") -> Step:
    """Exactly these bytes."""

    def step(connection: Connection, _: Seen) -> None:
        connection.fire(fault)
        connection.send(data)
        if then == "linger":
            connection.linger()
        if then == "hang up":
            connection.hang_up()

    return step


def endless(head: bytes, piece: bytes) -> Step:
    def step(connection: Connection, _: Seen) -> None:
        connection.fire("endless")
        connection.send(head)
        while True:
            connection.send(piece)

    return step


def chunked(pieces: list[bytes], *, is_ended: bool = True) -> bytes:
    body = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces)
    return body + (b"0\r\n\r\n" if is_ended else b"")


def demand_token(realm: str, tokens: "list[str]", then: Step, *, scope: str = "") -> Step:
    """401 with a Bearer challenge unless one of `tokens`, which may change, is presented."""

    def step(connection: Connection, request: Seen) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme == "Bearer" and token in tokens:
            then(connection, request)
            return
        connection.fire("401")
        challenge = f'Bearer realm="{realm}",service="registry"'
        challenge += f',scope="{scope}"' if scope else ""
        respond(
            401,
            b'{"errors":[{"code":"UNAUTHORIZED","message":"go away"}]}',
            WWW_Authenticate=challenge,
        )(connection, request)

    return step


def demand_basic(expected: str, then: Step) -> Step:
    def step(connection: Connection, request: Seen) -> None:
        if request.headers.get("authorization") == f"Basic {expected}":
            then(connection, request)
            return
        connection.fire("401")
        respond(401, WWW_Authenticate='Basic realm="here"')(connection, request)

    return step


def tunnel(port: int) -> Step:
    """What a proxy does for CONNECT."""

    def step(connection: Connection, _: Seen) -> None:
        connection.fire("tunnel")
        with socket.create_connection(("127.0.0.1", port)) as target:
            connection.send_head(200, {})
            target.setblocking(False)
            connection.socket.setblocking(False)
            while not connection.server.is_stopping.is_set():
                select.select([target, connection.socket], [], [], 0.02)
                if not (_copy(target, connection.socket) and _copy(connection.socket, target)):
                    break
        connection.hang_up()

    return step


def _copy(source: socket.socket, target: socket.socket) -> bool:
    """Move what is there; False at the end."""
    try:
        data = source.recv(65536)
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    while data:
        try:
            data = data[target.send(data) :]
        except (BlockingIOError, ssl.SSLWantWriteError):
            select.select([], [target], [], 0.02)
        else:
            if not data:
                return True
    return False


@contextlib.contextmanager
def two_servers() -> Iterator[tuple[ScriptedServer, ScriptedServer]]:
    """A registry, and a server at another address."""
    with ScriptedServer() as registry, ScriptedServer("127.0.0.2") as other:
        yield registry, other
