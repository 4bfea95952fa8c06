"""One blob into one repository: looked for, mounted, or uploaded and taken up again.

The distribution specification, "Pushing Blobs". What is tried, in order:

1. HEAD: the repository may have it.
2. POST with `mount` and `from`: another repository of the registry may have it. A registry that
   does not do that begins an upload instead, whether it knows mounts or not.
3. A small blob goes with one PUT. A larger one goes in pieces, a PATCH each, and a PUT ends it.

What breaks off is taken up where the registry says that it has got to (GET of the upload, `Range`).
One that does not know any more, as docker-registry after a broken PATCH, gets all of it again in a
new upload; one that wants no pieces, all of it at once; one that finds it too large, smaller
pieces. An upload that was begun and is not ended leaves nothing that anybody sees.

The registry chooses where an upload goes (`Location`), within the rules for redirects: see
`redirects`. A login goes to the registry's own origin only.
"""

import logging
from typing import Final

import httpx

from imgvol import limits
from imgvol.errors import ImgvolError, ProtocolError, Unauthorized
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.registry.channel import Channel
from imgvol.registry.failures import NETWORK_ERRORS, translate
from imgvol.registry.hops import Content, Request, TryAgain, discard
from imgvol.registry.hosts import Endpoint
from imgvol.registry.push_failures import failure_of_push
from imgvol.registry.redaction import quote_remote, redact_url
from imgvol.registry.retry import Attempts, Failure, Kind
from imgvol.registry.sending import OutgoingBlob, OutgoingPiece
from imgvol.registry.session import Session
from imgvol.registry.upload_places import (
    UploadPlace,
    parse_kept,
    parse_smallest_piece,
    upload_location,
    with_digest,
)

log = logging.getLogger(__name__)

_CREATED: Final = frozenset((httpx.codes.CREATED, httpx.codes.NO_CONTENT))
_ACCEPTED: Final = frozenset((httpx.codes.ACCEPTED, httpx.codes.CREATED, httpx.codes.NO_CONTENT))
# A registry that takes no pieces says so in one of these ways.
_NO_PIECES: Final = frozenset((400, 405, 411, 501))
_GONE: Final = frozenset((404, 410))
# The registry knows nothing of an upload, or something else than we do.
_LOST: Final = frozenset((404, 410, 416))
# An upload that got no further than this before it broke has got nowhere.
_PROGRESS: Final = limits.BODY_PIECE


class _UploadLost(Exception):
    """The upload cannot go on, a new one may: says why, for when there is to be none."""

    def __init__(self, failure: Failure) -> None:
        super().__init__()
        self.failure = failure


class _OtherPieces(Exception):
    """The registry wants pieces of this many bytes, at most; the whole at once if that is more."""

    def __init__(self, largest: int, refusal: ImgvolError) -> None:
        super().__init__()
        self.largest = largest
        self.refusal = refusal


class BlobUpload:
    """Brings one blob to a repository. Blocks; for one thread, with one channel.

    Args:
        endpoint: The registry.
        session: With a login that may push.
        repository: What the endpoint calls the repository.
        descriptor: The blob.
        what: What is pushed, for messages.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        session: Session,
        repository: str,
        descriptor: Descriptor,
        *,
        what: str,
    ) -> None:
        self._endpoint = endpoint
        self._session = session
        self._hops = session.hops
        self._bounds = session.hops.bounds
        self._repository = repository
        self._digest: Digest = descriptor.digest
        self._size = descriptor.size
        self._blob: OutgoingBlob | None = None
        self._what = what
        # The largest piece; a blob that is no larger is sent whole.
        self._piece = self._bounds.push_chunk
        self._tried = {min(self._piece, self._size)}
        # The furthest that any upload of it has got.
        self._furthest = 0

    def has(self, channel: Channel) -> bool:
        """Whether the repository has the blob."""
        is_there = self._look(channel)
        if isinstance(is_there, bool):
            return is_there
        raise self._refusal(*is_there)

    def exists(self, channel: Channel) -> bool:
        """The same, as far as the registry tells us: somebody may push who may not read."""
        is_there = self._look(channel)
        if isinstance(is_there, bool):
            return is_there
        discard(is_there[0])
        return False

    def _look(self, channel: Channel) -> bool | tuple[httpx.Response, Request]:
        """Whether it is there, or an answer that does not say it."""
        request = self._request("HEAD", self._endpoint.blob(self._repository, self._digest))
        response = self._ask(channel, request)
        if response.status_code not in {httpx.codes.OK, *_GONE}:
            return response, request
        discard(response)
        return response.status_code == httpx.codes.OK

    def mount(self, channel: Channel, source: str, session: Session) -> httpx.URL | None:
        """Ask for the blob of another repository.

        Args:
            channel: The caller's.
            source: The other repository.
            session: With a login that may read there.

        Returns:
            Where to upload it, if it was not mounted; None when it was.
        """
        url = self._endpoint.uploads(self._repository).copy_merge_params(
            {"mount": str(self._digest), "from": source}
        )
        try:
            response = self._ask(channel, self._request("POST", url), session)
        except Unauthorized:  # to read there, or to do both with one token
            return self.begin(channel)
        if response.status_code == httpx.codes.ACCEPTED:
            return self._begun(response)
        discard(response)
        # If there is anything wrong with it, that may be the mount.
        is_mounted = response.status_code == httpx.codes.CREATED
        return None if is_mounted else self.begin(channel)

    def begin(self, channel: Channel) -> httpx.URL:
        """Begin an upload; returns where it goes."""
        request = self._request("POST", self._endpoint.uploads(self._repository))
        response = self._ask(channel, request)
        if response.status_code != httpx.codes.ACCEPTED:
            raise self._refusal(response, request)
        return self._begun(response)

    def _begun(self, response: httpx.Response) -> httpx.URL:
        discard(response)
        smallest = parse_smallest_piece(response.headers.get("oci-chunk-min-length"))
        self._piece = max(self._piece, smallest)
        return self._location(response)

    def upload(self, channel: Channel, blob: OutgoingBlob, location: httpx.URL | None) -> None:
        """Send the blob, again and again if need be.

        Args:
            channel: The caller's.
            blob: Its bytes.
            location: Of an upload that was begun; None: begin one.
        """
        self._blob = blob
        attempts = self._hops.attempts(channel.operation)
        while True:
            try:
                self._try(channel, location or self.begin(channel), attempts)
            except _OtherPieces as other:
                self._change_pieces(other)
            except _UploadLost as lost:
                self._pause(channel, lost.failure, attempts)
            except TryAgain as again:
                self._pause(channel, again.failure, attempts)
            except NETWORK_ERRORS as error:
                self._pause(channel, translate(error, self._endpoint.base), attempts)
            else:
                return
            location = None
            # It may be only the answer that has not come through.
            if self.exists(channel):
                return

    # --- one upload -------------------------------------------------------------------------------

    def _try(self, channel: Channel, location: httpx.URL, attempts: Attempts) -> None:
        if self._size <= self._piece:
            self._finish(channel, location, self._content(0, self._size))
        else:
            location = self._send_pieces(channel, location, attempts)
            self._finish(channel, location, None)

    def _send_pieces(self, channel: Channel, location: httpx.URL, attempts: Attempts) -> httpx.URL:
        place = UploadPlace(location, 0)
        while place.position < self._size:
            end = min(self._size, place.position + self._piece)
            try:
                place = self._send_piece(channel, place, end)
            except TryAgain as again:
                failure = again.failure
            except NETWORK_ERRORS as error:
                failure = translate(error, place.url)
            else:
                self._note_progress(place, attempts)
                if place.position < end:
                    self._pause(channel, _partly(place), attempts)
                continue
            self._pause(channel, failure, attempts)
            place = self._status(channel, place, failure)
            self._note_progress(place, attempts)
            log.info("%s goes on at byte %d: %s", self._what, place.position, failure.error.message)
        return place.url

    def _note_progress(self, place: UploadPlace, attempts: Attempts) -> None:
        """What got further than ever may break again, as often as at first."""
        if place.position - self._furthest >= _PROGRESS:
            attempts.progressed()
            self._furthest = place.position

    def _send_piece(self, channel: Channel, place: UploadPlace, end: int) -> UploadPlace:
        request = self._request(
            "PATCH",
            place.url,
            content=self._content(place.position, end),
            headers={"Content-Range": f"{place.position}-{end - 1}"},
        )
        response = self._session.send(channel, request, self._repository)
        if response.status_code not in _ACCEPTED:
            raise self._piece_refused(response, request, place.position, end)
        discard(response)
        kept = parse_kept(response.headers.get("range"))
        kept = end if kept is None else kept
        if not place.position < kept <= end:
            raise ProtocolError(
                "the registry says that it has other bytes of an upload than it was sent",
                expected=f"0-{end - 1}",
                actual=quote_remote(response.headers.get("range", "")),
                url=redact_url(place.url),
            )
        return UploadPlace(self._location(response, place.url), kept)

    def _piece_refused(
        self, response: httpx.Response, request: Request, start: int, end: int
    ) -> Exception:
        status = response.status_code
        refusal = self._refusal(response, request)
        if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
            return _OtherPieces((end - start) // 8, refusal)
        # One that has forgotten what it had just taken does not know pieces either.
        is_first = start == 0
        if status in _NO_PIECES or (status in _LOST and not is_first):
            return _OtherPieces(self._size, refusal)
        return _UploadLost(Failure(refusal, Kind.TRANSIENT)) if status in _LOST else refusal

    def _status(self, channel: Channel, place: UploadPlace, failure: Failure) -> UploadPlace:
        """How far the registry has got with an upload that broke."""
        channel.operation.allow_within(self._bounds.document_deadline)
        response = self._ask(channel, self._request("GET", place.url))
        discard(response)
        if response.status_code not in {httpx.codes.NO_CONTENT, httpx.codes.OK}:
            raise _UploadLost(failure)
        kept = parse_kept(response.headers.get("range")) or 0
        if kept > self._size:
            raise _UploadLost(failure)
        return UploadPlace(self._location(response, place.url), kept)

    def _finish(self, channel: Channel, location: httpx.URL, content: Content | None) -> None:
        channel.operation.allow_within(self._bounds.push_answer)
        request = self._request(
            "PUT", with_digest(location, self._digest), content=content, waits_long=True
        )

        def once() -> httpx.Response:
            return self._session.send(channel, request, self._repository)

        if content is None:
            # Again after it was heard, it finds no upload: and then the blob, see `upload`.
            attempts = self._hops.attempts(channel.operation)
            response = self._hops.insist(channel, request, attempts, once)
        else:
            response = once()
        status = response.status_code
        if status in _CREATED:
            discard(response)
            return
        refusal = self._refusal(response, request)
        if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE and content is not None:
            raise _OtherPieces(content.size // 8, refusal)
        if status in _LOST or "DIGEST_INVALID" in refusal.message:
            # What left here was verified: it has been forgotten, or changed on its way.
            raise _UploadLost(Failure(refusal, Kind.TRANSIENT))
        raise refusal

    # --- what they share --------------------------------------------------------------------------

    def _change_pieces(self, other: _OtherPieces) -> None:
        """Go on with another size, unless it has been tried, too."""
        piece = min(self._size, max(other.largest, limits.PUSH_CHUNK_SMALLEST))
        if piece in self._tried:
            raise other.refusal
        self._piece = piece
        self._tried.add(piece)
        log.info("%s is sent in pieces of %d bytes: %s", self._what, self._piece, other.refusal)

    def _pause(self, channel: Channel, failure: Failure, attempts: Attempts) -> None:
        operation = channel.operation
        operation.allow_within(self._bounds.document_deadline)
        operation.sleep(attempts.delay_after(failure, remaining=operation.remaining()))

    def _ask(
        self, channel: Channel, request: Request, session: Session | None = None
    ) -> httpx.Response:
        """The answer to a request without a body, which may be asked as often as it takes."""
        asked = session or self._session
        operation = channel.operation
        operation.allow_within(self._bounds.document_deadline)
        return self._hops.insist(
            channel,
            request,
            self._hops.attempts(operation),
            lambda: asked.send(channel, request, self._repository),
        )

    def _request(
        self,
        method: str,
        url: httpx.URL,
        *,
        content: Content | None = None,
        headers: dict[str, str] | None = None,
        waits_long: bool = False,
    ) -> Request:
        return Request(
            method=method,
            url=url,
            what=self._what,
            who=self._endpoint.who,
            trusted=self._endpoint.origin,
            headers=headers or {},
            content=content,
            patience=self._bounds.push_answer if waits_long or content else None,
            judge=failure_of_push,
        )

    def _content(self, start: int, end: int) -> Content:
        assert self._blob is not None
        return Content(size=end - start, pieces=OutgoingPiece(self._blob, start, end))

    def _refusal(self, response: httpx.Response, request: Request) -> ImgvolError:
        return self._session.refusal(response, request, self._repository)

    def _location(self, response: httpx.Response, otherwise: httpx.URL | None = None) -> httpx.URL:
        """Where an upload goes on."""
        location = response.headers.get("location")
        if not location and otherwise is not None:
            return otherwise
        return upload_location(response.url, location)


def _partly(place: UploadPlace) -> Failure:
    """A piece of which the registry has kept a part, and said that all is well."""
    error = ProtocolError(
        "the registry keeps only a part of what it is sent", url=redact_url(place.url)
    )
    return Failure(error, Kind.TRANSIENT)
