"""The daemon as the commands see it: calls over its unix socket, errors as our own exceptions.

h11 does the grammar here as in the daemon; `http.client` would bring `ssl` and `email` along, which
take longer to import than a command takes to run.
"""

import contextlib
import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import h11

from imgvol import errors, limits
from imgvol.cli.supervision import raise_if_down
from imgvol.errors import DaemonUnavailable, ImgvolError, PermissionDenied

# struct ucred of unix(7), and sizeof(sockaddr_un.sun_path).
_UCRED: Final = struct.Struct("=iII")
_SUN_PATH: Final = 108
# While it pulls, the daemon says something every 5 s; a removal or an unmount may work for a while.
SILENCE: Final = 120.0

Parameters = Mapping[str, str | bool | float | None]
Body = Mapping[str, object]


class NotRunning(DaemonUnavailable):
    """Nobody listens on the socket."""

    @property
    def code(self) -> str:
        """For scripts, this is the same as its parent."""
        return "daemon-unavailable"


class Client:
    """Calls one daemon.

    Args:
        path: Of the socket.
        ensure_daemon: Called when nobody listens there; returns when somebody does. Without it
            the calls raise NotRunning.
        timeout: Seconds without a byte from the daemon after which it counts as hung.

    Every call raises ImgvolError: the daemon's own errors come back as their class, and
    DaemonUnavailable tells that there was no answer. Each call is a connection of its own.
    """

    def __init__(
        self,
        path: str,
        *,
        ensure_daemon: Callable[[], None] | None = None,
        timeout: float = SILENCE,
    ) -> None:
        self._path = path
        self._ensure_daemon = ensure_daemon
        self._timeout = timeout

    def call(
        self,
        method: str,
        path: str,
        parameters: Parameters | None = None,
        body: Body | None = None,
    ) -> dict[str, Any]:
        """One request with a JSON answer."""
        return _parse(b"".join(self.iter_bytes(method, path, parameters, body)))

    def iter_events(
        self,
        method: str,
        path: str,
        parameters: Parameters | None = None,
        body: Body | None = None,
        *,
        file: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """The lines of an NDJSON answer; raises what an error line tells.

        A stream that ends without its last line (`done`) raises DaemonUnavailable.

        Args:
            method: HTTP method.
            path: Below the API's prefix.
            parameters: Of the query.
            body: Of the request.
            file: An open file that the daemon gets with the request.
        """
        rest = b""
        for piece in self.iter_bytes(method, path, parameters, body, file=file):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                event = _parse(line)
                if event["event"] == "error":
                    raise error_from_document(event)
                yield event
                if event["event"] == "done":
                    return
        raise _went_away()

    def iter_bytes(
        self,
        method: str,
        path: str,
        parameters: Parameters | None = None,
        body: Body | None = None,
        *,
        file: int | None = None,
    ) -> Iterator[bytes]:
        """The pieces of an answer's body; complete, or raises."""
        content = b"" if body is None else _dump({k: v for k, v in body.items() if v is not None})
        head = h11.Request(
            method=method,
            target=f"/v1{path}{_query(parameters or {})}",
            headers=[("host", "localhost"), ("content-length", str(len(content)))],
        )
        with self._connect() as connected:
            try:
                run = os.path.dirname(self._path)
                yield from _exchange(connected, head, content, file, run)
            except TimeoutError as error:
                raise DaemonUnavailable(
                    f"the daemon has not answered for {self._timeout:g} s",
                    hint="See what is wrong with: imgvol doctor",
                ) from error
            except (OSError, h11.ProtocolError) as error:
                raise _went_away() from error

    def _connect(self) -> socket.socket:
        try:
            return connect(self._path, self._timeout)
        except NotRunning:
            if self._ensure_daemon is None:
                raise
        self._ensure_daemon()
        return connect(self._path, self._timeout)


def connect(path: str, timeout: float) -> socket.socket:
    """A connection to the daemon at `path`.

    Raises:
        NotRunning: Nobody listens.
        PermissionDenied: The socket is not for us, or somebody else's.
    """
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.settimeout(timeout)
        _connect_long(connected, path)
        _check_peer(connected, path)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
        connected.close()
        hint = "Start it with: imgvol serve"
        raise NotRunning("no daemon is running", hint=hint, socket=path) from error
    except PermissionError as error:
        connected.close()
        raise PermissionDenied(
            "this daemon is not yours to use",
            hint="Use your own (leave --run out), or run the command as root.",
            socket=path,
        ) from error
    except OSError as error:
        connected.close()
        raise DaemonUnavailable(
            f"cannot reach the daemon: {error.strerror or error}", socket=path
        ) from error
    except BaseException:
        connected.close()
        raise
    return connected


def _connect_long(connected: socket.socket, path: str) -> None:
    if len(os.fsencode(path)) < _SUN_PATH:
        connected.connect(path)
        return
    # The address holds 107 bytes: a longer path goes through a descriptor of its directory.
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connected.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
    finally:
        os.close(directory)


def _check_peer(connected: socket.socket, path: str) -> None:
    """Refuse to talk to a socket that another user has put there."""
    _, uid = peer_process(connected)
    # Root may look after everybody's; others' answers cannot do more to root than lie.
    if os.getuid() != 0 and uid not in {0, os.getuid()}:
        raise PermissionDenied("the daemon there is another user's", socket=path, owner=uid)


def peer_process(connected: socket.socket) -> tuple[int, int]:
    """Process ID and uid of who listens at the other end; ID 0 when it cannot be seen from here."""
    data = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(data)
    return int(pid), int(uid)


def _exchange(
    connected: socket.socket, head: h11.Request, content: bytes, file: int | None, run: str
) -> Iterator[bytes]:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=limits.API_HEADER_SIZE)
    data = connection.send(head) or b""
    data += connection.send(h11.Data(data=content)) or b""
    data += connection.send(h11.EndOfMessage()) or b""
    # Refused before it was read: the answer may still be there to be read.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sent = 0 if file is None else socket.send_fds(connected, [data], [file])
        connected.sendall(data[sent:])
    _wait_for_answer(connected, run)
    response = _next_event(connection, connected)
    assert isinstance(response, h11.Response)
    pieces = _iter_body(connection, connected)
    if response.status_code >= 400:
        raise error_from_document(_parse(b"".join(pieces)))
    yield from pieces


def _wait_for_answer(connected: socket.socket, run: str) -> None:
    """Until something can be read; looks now and then whether anybody is there who could answer.

    Raises:
        DaemonUnavailable: Nobody is, and that will not change soon.
        TimeoutError: Too long.
    """
    deadline = time.monotonic() + (connected.gettimeout() or SILENCE)
    waiting = select.poll()
    waiting.register(connected, select.POLLIN)
    while not waiting.poll(limits.SUPERVISOR_LOOK * 1000):
        raise_if_down(run)
        if time.monotonic() > deadline:
            raise TimeoutError


def _iter_body(connection: h11.Connection, connected: socket.socket) -> Iterator[bytes]:
    while isinstance(event := _next_event(connection, connected), h11.Data):
        yield bytes(event.data)


def _next_event(connection: h11.Connection, connected: socket.socket) -> object:
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(connected.recv(64 * limits.KIB))
    if isinstance(event, h11.ConnectionClosed):
        raise _went_away()
    return event


def _parse(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise _went_away() from error
    assert isinstance(document, dict)
    return document


def _went_away() -> DaemonUnavailable:
    return DaemonUnavailable(
        "the daemon went away before it had answered",
        hint="Its log tells why: see where with imgvol doctor",
    )


def error_from_document(document: Mapping[str, Any]) -> ImgvolError:
    """The exception that a `Problem` or an `ErrorEvent` stands for."""
    problem = document["error"]
    fields = {k: v for k, v in problem.get("fields", {}).items() if k not in {"message", "hint"}}
    found = _classes().get(problem["code"], ImgvolError)
    return found(problem["message"], hint=problem.get("hint", ""), **fields)


def _classes() -> dict[str, type[ImgvolError]]:
    found = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, ImgvolError)]
    return {c("").code: c for c in found}


def _query(parameters: Parameters) -> str:
    given = {name: value for name, value in parameters.items() if value not in {None, False}}
    if not given:
        return ""
    from urllib.parse import quote

    texts = {name: "true" if value is True else str(value) for name, value in given.items()}
    return "?" + "&".join(
        f"{name}={quote(value, safe='/:@', errors='surrogateescape')}"
        for name, value in texts.items()
    )


def _dump(document: Body) -> bytes:
    return json.dumps(document).encode("ascii")
