"""One request, wherever its answer is: redirects followed, failures tried again.

Shared by everything that talks to a registry and to its token service. It holds what both need to
know of the registry: its origin, and the address that it was last reached at.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Final, TypeVar

import httpx

from imgvol import limits
from imgvol.errors import LimitExceeded, ProtocolError, RegistryUnavailable
from imgvol.registry.addresses import Guard, IPAddress
from imgvol.registry.bounds import Bounds
from imgvol.registry.channel import Channel, peer_of
from imgvol.registry.failures import (
    NETWORK_ERRORS,
    Judge,
    failure_of_status,
    registry_words,
    translate,
)
from imgvol.registry.locations import Locations
from imgvol.registry.operation import Operation, OperationCancelled
from imgvol.registry.redaction import Secret, quote_remote, redact_url
from imgvol.registry.redirects import FAITHFUL_REDIRECTS, REDIRECT_STATUSES, Origin, next_hop
from imgvol.registry.retry import RETRIED_STATUSES, Attempts, Failure, RetryBudget

T = TypeVar("T")

# What asks for something, and changes nothing.
_READING: Final = frozenset(("GET", "HEAD"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A body to send.

    Attributes:
        size: Its bytes.
        pieces: Gives them, from the beginning, each time that it is iterated over.
        media_type: What they are.
    """

    size: int
    pieces: Iterable[bytes]
    media_type: str = "application/octet-stream"

    @property
    def headers(self) -> dict[str, str]:
        """What describes it."""
        return {"Content-Length": str(self.size), "Content-Type": self.media_type}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to ask for.

    Attributes:
        method: GET, HEAD, POST, and to push PUT, PATCH and DELETE.
        url: Where to begin; redirects may lead elsewhere.
        what: In words, for messages: `manifest docker.io/library/alpine:3`.
        who: Who is asked, for messages.
        headers: Sent on every hop, to every host.
        form: A body to post; such a request is never redirected.
        content: Another body; sent again to where a redirect leads that keeps the method.
        patience: Seconds until the answer begins, if that may be long; None: as usual. What
            comes after its head is short, and has the deadline of documents.
        judge: What an answer means that is not the one we want.
        authorization: Sent to `trusted` only.
        private: Headers that are sent to `trusted` only, too.
        trusted: The one origin that may see `authorization` and `private`.
        secrets: What whoever answers may know of us, and is not to be quoted with.
    """

    method: str
    url: httpx.URL
    what: str
    trusted: Origin
    who: str = "the registry"
    headers: Mapping[str, str] = field(default_factory=dict)
    form: Mapping[str, str] | None = field(default=None, repr=False)
    content: Content | None = None
    patience: float | None = None
    judge: Judge = failure_of_status
    authorization: Secret | None = None
    private: tuple[tuple[str, Secret], ...] = ()
    secrets: tuple[Secret, ...] = ()


class TryAgain(Exception):
    """An answer that may be another one in a moment. Internal to this room."""

    def __init__(self, failure: Failure) -> None:
        super().__init__()
        self.failure = failure


class Hops:
    """Sends requests and follows where they lead. Safe to use from any thread.

    Args:
        registry: The origin of the registry, or of what stands for it.
        bounds: How far to go, and how often to try.
        random: Spreads retries.

    Attributes:
        locations: Where blobs were found.
    """

    def __init__(self, registry: Origin, bounds: Bounds, random: Random) -> None:
        self.registry = registry
        self.bounds = bounds
        self._hasty_bounds = dataclasses.replace(
            bounds,
            connect_retries=0,
            stall_retries=0,
            retries=min(bounds.retries, limits.ALTERNATIVE_RETRIES),
            retry_after=min(bounds.retry_after, limits.ALTERNATIVE_RETRY_AFTER),
        )
        self.locations = Locations()
        self._random = random
        self._budget = RetryBudget(bounds.retry_budget)
        self._registry_address: IPAddress | None = None

    def attempts(self, operation: Operation) -> Attempts:
        """The tries of one piece of work: few where somebody else can be asked instead."""
        bounds = self._hasty_bounds if operation.has_alternative else self.bounds
        return Attempts(bounds, self._budget, self._random)

    def follow(self, channel: Channel, request: Request) -> httpx.Response:
        """The answer at the end of the redirects: open, to be read and closed by the caller.

        To be called by what `insist` calls.

        Raises:
            TryAgain: The answer is one of those that pass.
            ProtocolError: A redirect leads where we do not go, or there are too many.
        """
        url = request.url
        for _ in range(self.bounds.redirects + 1):
            response = self._send(channel, request, url)
            if response.status_code in RETRIED_STATUSES:
                words = words_of(response, request)
                raise TryAgain(
                    request.judge(response, what=request.what, who=request.who, words=words)
                )
            if response.status_code not in REDIRECT_STATUSES:
                return response
            discard(response)
            if request.form is not None:
                raise ProtocolError("refused to be redirected with a login", url=redact_url(url))
            if request.method not in _READING and response.status_code not in FAITHFUL_REDIRECTS:
                raise ProtocolError(
                    f"{request.who} redirects {request.what} in a way that would drop it",
                    hint="Is this the registry's own address, with the right scheme and port?",
                    status=response.status_code,
                    url=redact_url(url),
                )
            url = next_hop(url, response.headers.get("location"))
        raise ProtocolError(
            "too many redirects", url=redact_url(request.url), allowed=self.bounds.redirects
        )

    def insist(
        self, channel: Channel, request: Request, attempts: Attempts, once: Callable[[], T]
    ) -> T:
        """Call `once` until it succeeds, or patience has ended.

        Args:
            channel: Over which `once` works.
            request: What it asks for, for messages.
            attempts: How often to try.
            once: One try. Network errors and TryAgain lead to another; other errors end it.

        Raises:
            RegistryUnavailable: It has ended.
        """
        operation = channel.operation
        while True:
            try:
                result = once()
            except TryAgain as again:
                failure = again.failure
            except NETWORK_ERRORS as error:
                failure = translate(error, request.url)
            else:
                self._budget.refund()
                return result
            operation.sleep(attempts.delay_after(failure, remaining=operation.remaining()))

    def is_registry(self, response: httpx.Response) -> bool:
        """Whether an answer comes from the registry itself, and not from where it sent us."""
        return Origin.of(response.url) == self.registry

    def _send(self, channel: Channel, request: Request, url: httpx.URL) -> httpx.Response:
        origin = Origin.of(url)
        headers = httpx.Headers()
        if origin == request.trusted:
            headers = httpx.Headers([(name, value.reveal()) for name, value in request.private])
        headers.update(request.headers)
        if request.authorization is not None and origin == request.trusted:
            headers["Authorization"] = request.authorization.reveal()
        if origin == self.registry:
            response = self._transmit(channel, request, url, headers, None)
            self._registry_address = peer_of(response)
            return response
        guard = Guard(self._registry_address)
        if url.host != self.registry.host:
            guard.check_host(url.host)
        return self._transmit(channel, request, url, headers, guard)

    def _transmit(
        self,
        channel: Channel,
        request: Request,
        url: httpx.URL,
        headers: httpx.Headers,
        guard: Guard | None,
    ) -> httpx.Response:
        content = request.content
        if content is not None:
            headers.update(content.headers)
        response = channel.send(
            request.method,
            url,
            headers=headers,
            form=request.form,
            content=content.pieces if content is not None else None,
            patience=request.patience,
            guard=guard,
        )
        if request.patience is not None:
            channel.operation.allow_within(self.bounds.document_deadline)
        return response


@contextlib.contextmanager
def public_errors(url: httpx.URL) -> Iterator[None]:
    """At the edge of this room: what ended an operation becomes an error of the tree."""
    try:
        yield
    except OperationCancelled as error:
        raise RegistryUnavailable("the transfer was cancelled", url=redact_url(url)) from error
    except NETWORK_ERRORS as error:
        raise translate(error, url).error from error


# --- small bodies ---------------------------------------------------------------------------------


def read_document(response: httpx.Response, *, what: str, limit: str, allowed: int) -> bytes:
    """A whole small body; the answer is closed.

    Args:
        response: The answer.
        what: What it is, for messages.
        limit: The name of the limit.
        allowed: The most bytes.

    Raises:
        LimitExceeded: There is more.
        ProtocolError: The body is encoded, though we asked that it should not be.
    """
    try:
        refuse_encoding(response)
        body = bytearray()
        for piece in response.iter_raw():
            body += piece
            if len(body) > allowed:
                raise LimitExceeded(f"{what} is too large", limit=limit, allowed=allowed)
        return bytes(body)
    finally:
        response.close()


def read_error(response: httpx.Response) -> bytes:
    """What a refusal says, or nothing; the answer is closed."""
    try:
        return read_document(
            response, what="error", limit="ERROR_BODY_SIZE", allowed=limits.ERROR_BODY_SIZE
        )
    except (LimitExceeded, ProtocolError, *NETWORK_ERRORS):
        return b""


def words_of(response: httpx.Response, request: Request) -> str:
    """What a refusal says, fit for a message; the answer is closed."""
    return quote_remote(registry_words(read_error(response)), secrets=request.secrets)


def discard(response: httpx.Response) -> None:
    """Close an answer; a short one is read first, so that its connection can be used again."""
    read_error(response)


def refuse_encoding(response: httpx.Response) -> None:
    """Refuse a body that is encoded for the way: what is to be verified is what is sent.

    Raises:
        ProtocolError: There is a Content-Encoding.
    """
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise ProtocolError(
            "the answer is encoded, though identity was asked for",
            encoding=quote_remote(encoding),
            url=redact_url(response.url),
        )
