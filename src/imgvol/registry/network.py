"""Sockets for httpx that keep a deadline, can be cancelled, and look where they connect to.

httpcore lets us bring our own network backend; that is the one place where all of it can be done
right, whatever httpx does above it:

- Every wait, to connect, to shake hands, to read or to write, ends at the operation's deadline.
- `Operation.cancel` shuts the sockets down, which wakes a thread that waits on them.
- An address is checked after resolution, at the moment of connecting: no second lookup can differ.
- TLS decrypts all that one `recv` brought in one go. One record at a time, as `SSLSocket` does it,
  is a third of the speed.

Exceptions pass through httpcore and httpx unchanged, except that httpcore expects its own
WriteError (it then still reads an early answer). `failures.translate` knows them all.
"""

import contextlib
import math
import os
import select
import socket
import ssl
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any, Final, NamedTuple, NoReturn

import httpcore

from imgvol import limits
from imgvol.registry.addresses import Guard
from imgvol.registry.operation import OpenSockets, Operation

_RECEIVE: Final = 2 * limits.BODY_PIECE


class CannotConnect(Exception):
    """No address of a host could be connected to. httpcore clears causes, so here is the reason."""

    def __init__(self, reason: Exception | None) -> None:
        super().__init__()
        self.reason = reason


class Stalled(Exception):
    """Nothing came, or nothing was taken, for too long."""


class EndedEarly(Exception):
    """A body ended before the length that it was said to have."""


class NotTLS(Exception):
    """The server answers a TLS handshake in plain HTTP."""


class Line:
    """What the sockets of one channel obey at the moment. One thread uses it at a time."""

    def __init__(self) -> None:
        self.sockets = OpenSockets()
        self.operation = Operation()
        self.guard: Guard | None = None

    def wait(self, opened: socket.socket, events: int, timeout: float | None) -> None:
        """Wait until a socket is ready, or raise Stalled after `timeout` seconds."""
        allowed = self.operation.remaining()
        patience = math.inf if timeout is None else timeout
        poller = select.poll()
        poller.register(opened, events)
        seconds = min(allowed, patience)
        is_ready = poller.poll(None if math.isinf(seconds) else math.ceil(seconds * 1000))
        self.operation.remaining()
        if not is_ready:
            raise Stalled(f"nothing for {patience:g} seconds")


class Backend(httpcore.NetworkBackend):
    """Connects for httpcore.

    Args:
        line: What to obey.
        is_guarded: Whether addresses are those of servers; a proxy's is the user's own choice.
    """

    def __init__(self, line: Line, *, is_guarded: bool) -> None:
        self._line = line
        self._is_guarded = is_guarded

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002 - httpcore's interface
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002 - httpcore's interface
    ) -> httpcore.NetworkStream:
        """Connect to the first address of a host that answers."""
        patience = min(math.inf if timeout is None else timeout, self._line.operation.remaining())
        try:
            addresses = _look_up(host, port, self._line.operation, patience)
        except OSError as error:
            raise CannotConnect(error) from error
        return self._connect_any(addresses, patience)

    def connect_unix_socket(self, *_args: Any, **_keywords: Any) -> NoReturn:
        """Registries have no unix sockets."""
        raise NotImplementedError

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self._line.operation.sleep(seconds)

    def _connect_any(self, addresses: list["_Address"], patience: float) -> "PlainStream":
        """Try each address with a share of the time: the first may be a broken IPv6 route."""
        guard = self._line.guard if self._is_guarded else None
        last: Exception | None = None
        for position, address in enumerate(addresses):
            if guard is not None:
                guard.check(ip_address(address.socket_address[0].partition("%")[0]))
            share = patience / min(2, len(addresses) - position)
            try:
                return self._connect(address, share)
            except (OSError, Stalled) as error:
                last = error
        raise CannotConnect(last) from last

    def _connect(self, address: "_Address", patience: float) -> "PlainStream":
        opened = self._line.sockets.open(address.family)
        try:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(BlockingIOError):
                opened.connect(address.socket_address)
            self._line.wait(opened, select.POLLOUT, patience)
            if problem := opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(problem, os.strerror(problem))
        except BaseException:
            self._line.sockets.close(opened)
            raise
        return PlainStream(self._line, opened, address.socket_address)


class PlainStream(httpcore.NetworkStream):
    """A TCP connection."""

    def __init__(self, line: Line, opened: socket.socket, peer: tuple[Any, ...]) -> None:
        self._line = line
        self._socket = opened
        self._peer = peer

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Some bytes; none at the end of the stream."""
        while True:
            # Also after a shutdown of our own, which reads as the end of the stream.
            self._line.operation.remaining()
            try:
                data = self._socket.recv(max_bytes)
            except BlockingIOError:
                self._line.wait(self._socket, select.POLLIN, timeout)
                continue
            if not data:
                self._line.operation.remaining()
            return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all of it."""
        left = memoryview(buffer)
        while left:
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                self._line.wait(self._socket, select.POLLOUT, timeout)
            except OSError as error:
                self._line.operation.remaining()
                raise httpcore.WriteError(error) from error

    def close(self) -> None:
        """Close the connection."""
        self._line.sockets.close(self._socket)

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """Shake hands."""
        return _shake_hands(self, ssl_context, server_hostname, timeout)

    def get_extra_info(self, info: str) -> Any:
        """What httpcore asks for, and the address of the other end."""
        match info:
            case "server_addr":
                return self._peer
            case "is_readable":
                return _is_readable(self._socket)
            case _:
                return None


class TLSStream(httpcore.NetworkStream):
    """TLS over another stream, which may be TLS itself, to a proxy."""

    def __init__(
        self, inner: httpcore.NetworkStream, context: ssl.SSLContext, server_hostname: str | None
    ) -> None:
        self._inner = inner
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=server_hostname
        )
        self._has_ended = False

    def handshake(self, timeout: float | None) -> None:
        """Agree on keys, and check whom we talk to."""
        is_first = True
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush(timeout)
                data = self._receive(timeout)
                if is_first and data.startswith(b"HTTP/"):
                    raise NotTLS from None
                is_first = False
            except ssl.SSLError:
                with contextlib.suppress(Exception):  # the alert is a courtesy
                    self._flush(timeout)
                raise
            else:
                self._flush(timeout)
                return

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Some bytes; none at the end of the stream."""
        while True:
            data = self._decrypt(max_bytes)
            if data or self._has_ended:
                return data
            self._flush(timeout)
            self._receive(timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all of it."""
        self._tls.write(buffer)
        self._flush(timeout)

    def close(self) -> None:
        """Close the connection."""
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """Shake hands with whoever is behind the other end."""
        return _shake_hands(self, ssl_context, server_hostname, timeout)

    def get_extra_info(self, info: str) -> Any:
        """As the stream below."""
        return self._tls if info == "ssl_object" else self._inner.get_extra_info(info)

    def _decrypt(self, max_bytes: int) -> bytes:
        """All that is here, up to a limit: many records at once."""
        pieces: list[bytes] = []
        room = max_bytes
        while room:
            try:
                piece = self._tls.read(room)
            except ssl.SSLWantReadError:
                break
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                # With or without a goodbye: lengths and digests tell whether something is missing.
                self._has_ended = True
                break
            if not piece:
                self._has_ended = True
                break
            pieces.append(piece)
            room -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _receive(self, timeout: float | None) -> bytes:
        data = self._inner.read(_RECEIVE, timeout)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        return data

    def _flush(self, timeout: float | None) -> None:
        if self._outgoing.pending:
            self._inner.write(self._outgoing.read(), timeout)


class _Address(NamedTuple):
    family: socket.AddressFamily
    socket_address: tuple[Any, ...]


def _look_up(host: str, port: int, operation: Operation, patience: float) -> list[_Address]:
    """Resolve a name: getaddrinfo has no timeout, and nothing interrupts it."""

    def resolve() -> list[_Address]:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [_Address(entry[0], entry[4]) for entry in found]

    try:
        return operation.call(resolve, name="look-up", seconds=patience)
    except TimeoutError as error:
        raise socket.gaierror(socket.EAI_AGAIN, "the name service does not answer") from error
    except UnicodeError as error:  # a label that IDNA does not allow
        raise socket.gaierror(socket.EAI_NONAME, "not a host name") from error


def _shake_hands(
    inner: httpcore.NetworkStream,
    context: ssl.SSLContext,
    server_hostname: str | None,
    timeout: float | None,
) -> TLSStream:
    try:
        stream = TLSStream(inner, context, server_hostname)
        stream.handshake(timeout)
    except BaseException:
        inner.close()
        raise
    return stream


def _is_readable(opened: socket.socket) -> bool:
    if opened.fileno() < 0:
        return True  # httpcore's way to learn that an idle connection is over
    poller = select.poll()
    poller.register(opened, select.POLLIN)
    return bool(poller.poll(0))
