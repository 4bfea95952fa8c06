"""Blobs, received in the thread that wants them.

A layer is long and connections are not: what breaks off is taken up again with a range request at
the byte where it broke off. A reader gives exactly the bytes that were asked for, in order, or
raises; it never gives a byte twice and never one from another place, whatever the server does with
ranges. Whether they are the right bytes only their digest can say: hashing is the caller's job.
"""

import dataclasses
import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Final, Protocol, Self

import httpx

from imgvol import limits
from imgvol.errors import DigestMismatch, ImgvolError, ProtocolError, RegistryUnavailable
from imgvol.oci.descriptor import Descriptor
from imgvol.registry.channel import Channel, ChannelPool
from imgvol.registry.failures import NETWORK_ERRORS, translate
from imgvol.registry.hops import Hops, Request, TryAgain, discard, public_errors, refuse_encoding
from imgvol.registry.network import EndedEarly
from imgvol.registry.operation import Operation
from imgvol.registry.redaction import quote_remote, redact_url
from imgvol.registry.redirects import Origin
from imgvol.registry.retry import Attempts

_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", re.ASCII)
# A connection that brought less than this before it broke has brought nothing: a server cannot make
# us ask for a blob byte by byte.
_PROGRESS: Final = limits.BODY_PIECE


class BlobReader(ABC):
    """Gives the bytes of a blob, or of a part of it, once and in order.

    It is used by one thread, `cancel` excepted, and as a context manager:

    >>> with client.open_blob(reference, descriptor) as reader:   # doctest: +SKIP
    ...     for piece in reader.iter_pieces():
    ...         hasher.update(piece)
    """

    @abstractmethod
    def iter_pieces(self) -> Iterator[bytes]:
        """The bytes, in pieces of at most limits.BODY_PIECE. Nothing is sent before the first.

        Raises:
            ImgvolError: There are no more, and there should be. What came before is good as far as
                it goes.
        """

    @abstractmethod
    def cancel(self) -> None:
        """Make `iter_pieces` raise RegistryUnavailable at once. From any thread, at any time."""

    @abstractmethod
    def close(self) -> None:
        """Give the connection back, or close it. Again does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Server(Protocol):
    """How to ask whoever has a blob: a `Session` with a registry, or a stranger."""

    @property
    def hops(self) -> Hops:
        """The way there."""
        ...

    def send(self, channel: Channel, request: Request, repository: str, /) -> httpx.Response:
        """One try, to be called by what `Hops.insist` calls."""
        ...

    def refusal(
        self, response: httpx.Response, request: Request, repository: str, /
    ) -> ImgvolError:
        """The error that an answer means which is not the one we want; the answer is closed."""
        ...


class RateGuard:
    """Refuses a body that trickles: no byte comes too late, yet the whole would take for ever.

    Only the time spent waiting for the network counts, not what the receiver does in between.
    """

    def __init__(self, *, rate: float, window: float) -> None:
        self._rate = rate
        self._window = window
        self._waited = 0.0
        self._received = 0

    def note(self, size: int, seconds: float) -> bool:
        """Note that so many bytes took so long; False when that is too slow."""
        self._waited += seconds
        self._received += size
        if self._waited < self._window:
            return True
        is_enough = self._received >= self._rate * self._waited
        self._waited, self._received = 0.0, 0
        return is_enough


class RemoteBlobReader(BlobReader):
    """A BlobReader over HTTP.

    Args:
        server: How to ask.
        pool: Where to get a connection.
        request: A GET for the whole blob.
        repository: The repository that it is in.
        descriptor: The blob.
        start: The first byte wanted.
        end: One past the last.
        has_alternative: Whether somebody else can be asked for it.
    """

    def __init__(
        self,
        server: Server,
        pool: ChannelPool,
        request: Request,
        repository: str,
        descriptor: Descriptor,
        *,
        start: int,
        end: int,
        has_alternative: bool = False,
    ) -> None:
        self._server = server
        self._bounds = server.hops.bounds
        self._pool = pool
        self._request = request
        self._repository = repository
        self._size = descriptor.size
        self._start = start
        self._end = end
        self._operation = Operation()
        self._operation.has_alternative = has_alternative
        # Where redirects led, us or another reader: asked directly, as long as it works.
        self._location = server.hops.locations.get(request.url)
        self._pieces = self._generate()

    @property
    def url(self) -> httpx.URL:
        """Where the blob is asked for."""
        return self._request.url

    @property
    def is_cancelled(self) -> bool:
        """Whether it was cancelled, by `cancel` or because its client was closed."""
        return self._operation.is_cancelled

    def iter_pieces(self) -> Iterator[bytes]:
        """See BlobReader."""
        return self._pieces

    def cancel(self) -> None:
        """See BlobReader."""
        self._operation.cancel()

    def close(self) -> None:
        """See BlobReader."""
        self._pieces.close()

    def _generate(self) -> Generator[bytes, None, None]:
        if self._start == self._end:
            return
        with public_errors(self._request.url), self._pool.lend(self._operation) as channel:
            attempts = self._server.hops.attempts(self._operation)
            position = mark = self._start
            while position < self._end:
                try:
                    for piece in self._receive(channel, position, attempts):
                        position += len(piece)
                        yield piece
                        if position - mark >= _PROGRESS:
                            attempts.progressed()
                            mark = position
                except NETWORK_ERRORS as error:
                    if position == self._end:
                        return  # only the end mark of the body is missing
                    self._pause(error, attempts)

    def _pause(self, error: Exception, attempts: Attempts) -> None:
        failure = translate(error, self._location or self._request.url)
        self._operation.allow_within(self._bounds.document_deadline)
        remaining = self._operation.remaining()
        self._operation.sleep(attempts.delay_after(failure, remaining=remaining))

    def _receive(self, channel: Channel, position: int, attempts: Attempts) -> Iterator[bytes]:
        """The bytes from `position` on, of one answer."""
        response = self._open(channel, position, attempts)
        is_whole = response.status_code == httpx.codes.OK
        unwanted = position if is_whole else 0
        left = self._end - position
        try:
            for received in self._watch(response):
                piece = received[unwanted:]
                unwanted -= len(received) - len(piece)
                if len(piece) > left and not (is_whole and self._end < self._size):
                    raise self._overrun()
                yield from _split(piece[:left])
                left -= min(left, len(piece))
                if not left and is_whole and self._end < self._size:
                    return  # the rest is not wanted, and costs the connection
        finally:
            response.close()
        if left:
            self._refuse_short_end(response)

    def _watch(self, response: httpx.Response) -> Iterator[bytes]:
        """The body as it comes, as long as it comes fast enough."""
        guard = RateGuard(rate=self._bounds.minimum_rate, window=self._bounds.rate_window)
        pieces = response.iter_raw()
        begun = time.monotonic()
        for piece in pieces:
            if not guard.note(len(piece), time.monotonic() - begun):
                raise RegistryUnavailable(
                    f"{self._request.what} comes too slowly",
                    url=redact_url(response.url),
                    minimum_rate=self._bounds.minimum_rate,
                )
            yield piece
            begun = time.monotonic()

    def _open(self, channel: Channel, position: int, attempts: Attempts) -> httpx.Response:
        """An answer that begins at `position`, or at 0 if the server knows no ranges."""
        self._operation.allow_within(self._bounds.document_deadline)
        hops = self._server.hops
        response = hops.insist(
            channel, self._request, attempts, lambda: self._send(channel, position)
        )
        if self._has_expired(response):
            discard(response)
            self._forget_location()
            response = hops.insist(
                channel, self._request, attempts, lambda: self._send(channel, position)
            )
        self._check(response, position)
        if self._is_elsewhere(response):
            self._location = response.url
            hops.locations.note(self._request.url, response.url)
        self._operation.allow_within(math.inf)
        return response

    def _forget_location(self) -> None:
        if self._location is not None:
            self._server.hops.locations.forget(self._request.url, self._location)
        self._location = None

    def _send(self, channel: Channel, position: int) -> httpx.Response:
        try:
            return self._server.send(channel, self._ask_for(position), self._repository)
        except (TryAgain, *NETWORK_ERRORS):
            # The registry may know a better place by now.
            self._forget_location()
            raise

    def _ask_for(self, position: int) -> Request:
        url = self._location or self._request.url
        headers = dict(self._request.headers)
        if self._is_part(position):
            headers["Range"] = f"bytes={position}-{self._end - 1}"
        return dataclasses.replace(self._request, url=url, headers=headers)

    def _is_part(self, position: int) -> bool:
        return position > 0 or self._end < self._size

    def _has_expired(self, response: httpx.Response) -> bool:
        """Whether whom we asked should be asked for a new place: signed URLs last minutes."""
        is_refusal = httpx.codes.is_client_error(response.status_code)
        return is_refusal and self._is_elsewhere(response)

    def _is_elsewhere(self, response: httpx.Response) -> bool:
        """Whether an answer comes from where whom we asked sent us."""
        return Origin.of(response.url) != Origin.of(self._request.url)

    def _check(self, response: httpx.Response, position: int) -> None:
        try:
            if response.status_code == httpx.codes.OK:
                self._check_length(response, self._size)
            elif response.status_code == httpx.codes.PARTIAL_CONTENT:
                self._check_range(response, position)
                self._check_length(response, self._end - position)
            else:
                raise self._server.refusal(response, self._request, self._repository)
            refuse_encoding(response)
        except BaseException:
            response.close()
            raise

    def _check_length(self, response: httpx.Response, expected: int) -> None:
        length = response.headers.get("content-length")
        if length is not None and length != str(expected):
            raise DigestMismatch(
                f"{self._request.what} is not as long as its descriptor says",
                expected=expected,
                actual=quote_remote(length),
            )

    def _check_range(self, response: httpx.Response, position: int) -> None:
        header = response.headers.get("content-range", "")
        match = _CONTENT_RANGE.fullmatch(header)
        first_and_last = (str(position), str(self._end - 1))
        if (
            match is None
            or not self._is_part(position)
            or match.groups()[:2] != first_and_last
            or match[3] not in {"*", str(self._size)}
        ):
            raise ProtocolError(
                "the server answers with another range than the one that was asked for",
                url=redact_url(response.url),
                expected=f"bytes {position}-{self._end - 1}/{self._size}",
                actual=quote_remote(header),
            )

    def _overrun(self) -> DigestMismatch:
        return DigestMismatch(
            f"{self._request.what} is longer than its descriptor says", expected=self._size
        )

    def _refuse_short_end(self, response: httpx.Response) -> None:
        if "content-length" in response.headers or "transfer-encoding" in response.headers:
            raise DigestMismatch(
                f"{self._request.what} is shorter than its descriptor says", expected=self._size
            )
        # Without a length, the end of the body and a broken connection look the same.
        raise EndedEarly


def _split(piece: bytes) -> Iterator[bytes]:
    if len(piece) <= limits.BODY_PIECE:
        if piece:
            yield piece
        return
    for start in range(0, len(piece), limits.BODY_PIECE):
        yield piece[start : start + limits.BODY_PIECE]
