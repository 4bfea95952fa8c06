"""HTTP/1.1 on one connection: h11 does the grammar, this module the I/O, the limits, the deadlines.

Theory of operation. A connection is a loop: read a whole request (head and a small body) under
one deadline, run its handler, write the answer, start over. While the handler runs a second task
watches the peer: a peer that is gone cancels the handler, a peer that only closed its sending side
(`nc -N`) does not. Bytes that arrive meanwhile are pipelined requests and are kept, up to a bound,
for the next turn.

Rule 1: nothing that a peer sends or does raises out of `serve_connection`.
Rule 2: nothing that a handler raises does either; it becomes an answer, and a log line if it is a
defect.
Rule 3: once the head of a streamed answer is out, an error ends NDJSON with an error line; anything
else is cut without its last chunk, so that the client cannot take the part for the whole.
"""

import json
import logging
import select
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import h11
import trio

from imgvol import limits
from imgvol.api.passing import PassedFile, owning
from imgvol.api.problems import RequestError, as_imgvol_error, error_document, http_status
from imgvol.errors import ImgvolError, InternalError

log = logging.getLogger(__name__)

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
OCTETS: Final = "application/octet-stream"
PLAIN: Final = "text/plain"

_RECEIVE: Final = 16 * limits.KIB
_SEND: Final = 64 * limits.KIB
# Pipelined bytes that are kept while a handler runs; more wait in the socket.
_PIPELINED: Final = 64 * limits.KIB
# How often a half-closed connection is looked at: trio has no event for the other half.
_HALF_OPEN_POLL: Final = 0.25
# After an early answer the rest of the request is read away for so long, that the answer arrives.
_LINGER: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, whole; `file` came with it, open, and is closed after the answer."""

    method: str
    path: str
    query: str
    body: bytes
    file: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer that is known whole.

    Attributes:
        after: Called once the answer has been sent (or could not be): what must not overtake it.
    """

    status: int = 200
    media_type: str = JSON
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    after: Callable[[], None] | None = None


Send = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """An answer that is made while it is sent: `produce` gets the function that sends a piece.

    What `produce` raises before its first piece is answered as any error, with its status.
    """

    media_type: str
    produce: Callable[[Send], Awaitable[None]]


Dispatch = Callable[[Request], Awaitable[Response | Stream]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds.

    Attributes:
        idle: Without a byte between two requests.
        request: From the first byte of a request to its last.
        write: For one piece (64 KiB) to be taken by the client.
    """

    idle: float = limits.API_IDLE_DEADLINE
    request: float = limits.API_REQUEST_DEADLINE
    write: float = limits.API_WRITE_DEADLINE


@dataclass(slots=True)
class Activity:
    """Counts what goes on, over all connections; the daemon leaves when nothing does."""

    connections: int = 0
    requests: int = 0
    last: float = field(default_factory=trio.current_time)


class _PeerGone(Exception):
    """The peer has closed, or does not take what we send."""


def json_response(
    document: object, *, status: int = 200, headers: tuple[tuple[str, str], ...] = ()
) -> Response:
    """A JSON answer."""
    return Response(status=status, body=json_bytes(document), headers=headers)


def json_bytes(document: object) -> bytes:
    """One line of JSON, in ASCII: names that are not UTF-8 travel as escaped lone surrogates."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def error_response(error: ImgvolError) -> Response:
    """The answer that tells of an error."""
    headers = error.headers if isinstance(error, RequestError) else ()
    return json_response(error_document(error), status=http_status(error), headers=headers)


async def serve_connection(
    stream: trio.SocketStream, dispatch: Dispatch, deadlines: Deadlines, activity: Activity
) -> None:
    """Serve requests until the peer or a limit ends the connection; closes the stream."""
    connection = _Connection(stream, dispatch, deadlines, activity)
    async with stream:
        try:
            while await connection.serve_one():
                pass
            await connection.linger()
        except (_PeerGone, trio.BrokenResourceError):
            log.debug("a client went away")
        finally:
            connection.close()


class _Connection:
    def __init__(
        self,
        stream: trio.SocketStream,
        dispatch: Dispatch,
        deadlines: Deadlines,
        activity: Activity,
    ) -> None:
        self._stream = stream
        self._dispatch = dispatch
        self._deadlines = deadlines
        self._activity = activity
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.API_HEADER_SIZE)
        self._is_read_out = False  # end-of-file seen
        self._is_head = False  # the answer has no body
        self._passed = PassedFile()

    async def serve_one(self) -> bool:
        """One request and its answer; False when the connection has served its time."""
        if not await self._wait_for_request():
            return False
        self._activity.requests += 1
        try:
            await self._answer()
        finally:
            self._activity.requests -= 1
            self._activity.last = trio.current_time()
        if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
            return False
        self._h11.start_next_cycle()
        return True

    def close(self) -> None:
        """Close what came along and belongs to no request."""
        self._passed.close()

    async def linger(self) -> None:
        """Let the peer read our answer before unread bytes of its own make the kernel reset."""
        if self._is_read_out:
            return
        with trio.move_on_after(_LINGER):
            await self._stream.send_eof()
            left = limits.API_BODY_SIZE
            while left > 0 and (data := await self._stream.receive_some(_RECEIVE)):
                left -= len(data)

    # --- reading ---------------------------------------------------------------------------

    async def _wait_for_request(self) -> bool:
        if self._h11.trailing_data[0]:
            return True
        if self._is_read_out:
            return False
        with trio.move_on_after(self._deadlines.idle):
            await self._receive()
            return not self._is_read_out
        return False

    async def _receive(self) -> None:
        data = await self._passed.receive(self._stream, _RECEIVE)
        self._is_read_out = not data
        self._h11.receive_data(data)

    async def _next_event(self) -> object:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            if self._h11.they_are_waiting_for_100_continue:
                await self._write(
                    self._h11.send(h11.InformationalResponse(status_code=100, headers=[]))
                )
            await self._receive()
        return event

    async def _read_request(self) -> Request:
        with trio.move_on_after(self._deadlines.request):
            try:
                head = await self._next_event()
                if not isinstance(head, h11.Request):
                    raise _PeerGone
                self._is_head = head.method == b"HEAD"
                body = await self._read_body(head)
            except h11.RemoteProtocolError as error:
                if self._is_read_out:
                    raise _PeerGone from error
                raise RequestError(error.error_status_hint, f"not HTTP/1.1: {error}") from error
            if head.method == b"CONNECT":
                # A tunnel that is granted is the end of HTTP on the connection: it never is.
                raise RequestError(405, "this is no proxy", headers=(("allow", ""),))
            path, _, query = head.target.decode("ascii").partition("?")
            method, file = head.method.decode("ascii"), self._passed.take()
            return Request(method=method, path=path, query=query, body=body, file=file)
        raise RequestError(408, "the request took too long to arrive")

    async def _read_body(self, head: h11.Request) -> bytes:
        declared = next((int(v) for k, v in head.headers if k == b"content-length"), 0)
        body = bytearray()
        while declared <= limits.API_BODY_SIZE:
            event = await self._next_event()
            if not isinstance(event, h11.Data):
                return bytes(body)
            body += event.data
            declared = max(declared, len(body))
        raise RequestError(413, f"the request body is larger than {limits.API_BODY_SIZE} bytes")

    # --- answering -------------------------------------------------------------------------

    async def _answer(self) -> None:
        try:
            request = await self._read_request()
        except RequestError as error:
            await self._send_response(error_response(error))
            return
        is_alive = False  # unless the handler gets to its end before the peer goes
        with owning(request.file):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_peer, nursery.cancel_scope)
                is_alive = await self._respond(request)
                nursery.cancel_scope.cancel()
        if not is_alive:
            raise _PeerGone

    async def _respond(self, request: Request) -> bool:
        """Run the handler, send what it gives; False when the connection is of no more use."""
        try:
            answer = await self._call(request)
            if isinstance(answer, Stream):
                return await self._send_stream(request, answer)
            await self._send_response(answer)
        except _PeerGone:
            return False
        return True

    async def _call(self, request: Request) -> Response | Stream:
        try:
            return await self._dispatch(request)
        except Exception as error:  # noqa: BLE001 - rule 2
            return error_response(_reported(request, error))

    async def _send_response(self, response: Response) -> None:
        if self._h11.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            raise _PeerGone
        headers = [
            ("content-type", response.media_type),
            ("content-length", str(len(response.body))),
            *response.headers,
        ]
        if self._h11.their_state is not h11.DONE:
            headers.append(("connection", "close"))
        data = self._h11.send(h11.Response(status_code=response.status, headers=headers)) or b""
        body = b"" if self._is_head else response.body
        data += self._h11.send(h11.Data(data=body)) or b""
        data += self._h11.send(h11.EndOfMessage()) or b""
        try:
            await self._write(data)
        finally:
            if response.after is not None:
                response.after()

    async def _send_stream(self, request: Request, answer: Stream) -> bool:
        writer = _StreamWriter(self._h11, self._write, answer.media_type)
        try:
            await answer.produce(writer.send)
            await writer.finish()
        except Exception as error:  # noqa: BLE001 - rule 2
            if _is_peer_gone(error):
                return False
            known = _reported(request, error)
            if not writer.has_started:
                await self._send_response(error_response(known))
            elif answer.media_type == NDJSON:
                await writer.send(json_bytes({"event": "error", **error_document(known)}))
                await writer.finish()
            else:
                return False
        return True

    async def _write(self, data: bytes | None) -> None:
        view = memoryview(data or b"")
        for start in range(0, len(view), _SEND):
            with trio.move_on_after(self._deadlines.write) as scope:
                try:
                    await self._stream.send_all(view[start : start + _SEND])
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    raise _PeerGone from error
            if scope.cancelled_caught:
                raise _PeerGone

    # --- watching ------------------------------------------------------------------------

    async def _watch_peer(self, handler: trio.CancelScope) -> None:
        """Cancel the handler once the peer is gone."""
        try:
            while not self._is_read_out:
                if len(self._h11.trailing_data[0]) >= _PIPELINED:
                    return
                await self._receive()
            while not _has_hung_up(self._stream.socket.fileno()):  # noqa: ASYNC110 - no event tells of it
                await trio.sleep(_HALF_OPEN_POLL)
        except trio.BrokenResourceError:
            self._is_read_out = True
        handler.cancel()


class _StreamWriter:
    """Sends the head with the first piece, then chunks."""

    def __init__(
        self,
        connection: h11.Connection,
        write: Callable[[bytes | None], Awaitable[None]],
        media_type: str,
    ) -> None:
        self._h11 = connection
        self._write = write
        self._media_type = media_type
        self.has_started = False

    def _head(self) -> bytes:
        if self.has_started:
            return b""
        self.has_started = True
        headers = [("content-type", self._media_type)]
        return self._h11.send(h11.Response(status_code=200, headers=headers)) or b""

    async def send(self, piece: bytes) -> None:
        await self._write(self._head() + (self._h11.send(h11.Data(data=piece)) or b""))

    async def finish(self) -> None:
        await self._write(self._head() + (self._h11.send(h11.EndOfMessage()) or b""))


def _reported(request: Request, error: Exception) -> ImgvolError:
    known = as_imgvol_error(error)
    if isinstance(known, InternalError):
        # The query may hold names of private images: method and path say enough.
        log.error("%s %r failed", request.method, request.path, exc_info=error)
    return known


def _is_peer_gone(error: Exception) -> bool:
    # A producer with a nursery of its own gives our signal back in a group.
    if isinstance(error, ExceptionGroup):
        return error.subgroup(_PeerGone) is not None
    return isinstance(error, _PeerGone)


def _has_hung_up(descriptor: int) -> bool:
    """Whether the peer has closed both directions: only then does Linux report POLLHUP."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))
