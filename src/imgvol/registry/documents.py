"""Manifests, indexes, configs: small, whole, and verified before anybody sees them."""

import re
from typing import Final, NamedTuple

import httpx

from imgvol import limits
from imgvol.errors import (
    DigestMismatch,
    InvalidDigest,
    InvalidDocument,
    LimitExceeded,
    NotFound,
    ProtocolError,
)
from imgvol.oci import media_types
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import Index, Manifest, parse_manifest
from imgvol.oci.reference import DEFAULT_TAG, Reference
from imgvol.registry.channel import Channel
from imgvol.registry.hops import Request, discard, read_document
from imgvol.registry.hosts import Endpoint
from imgvol.registry.redaction import redact_url
from imgvol.registry.referrers import next_page, parse_referrers, referrers_tag
from imgvol.registry.session import Session

_ACCEPT: Final = {"Accept": ", ".join((*media_types.ACCEPTED, "*/*;q=0.1"))}
_LENGTH: Final = re.compile(r"[0-9]{1,18}", re.ASCII)


class _Answer(NamedTuple):
    """An answer that we wanted, closed, and its whole body."""

    response: httpx.Response
    body: bytes

    @property
    def media_type(self) -> str:
        return _media_type_of(self.response)


class Documents:
    """Fetches documents; every method blocks. Safe to use from any thread, a channel each."""

    def __init__(self, endpoint: Endpoint, session: Session) -> None:
        self._endpoint = endpoint
        self._session = session
        self._allowed = session.hops.bounds.manifest_size

    def resolve(self, channel: Channel, reference: Reference) -> Descriptor:
        """What a reference points at now.

        A HEAD is enough where the registry does as the specification asks. If it does not, or if
        it refuses, a GET brings the document, or the reason.
        """
        return self._head(channel, reference) or self._get(channel, reference, None).descriptor

    def fetch_manifest(
        self, channel: Channel, reference: Reference, descriptor: Descriptor | None
    ) -> bytes:
        """The bytes of a manifest or an index, checked against all that is known of it."""
        return self._get(channel, reference, descriptor).raw

    def read_manifest(self, channel: Channel, reference: Reference) -> Manifest | Index:
        """The same as a document; what a digest names is checked against it."""
        return self._get(channel, reference, None)

    def fetch_blob(
        self, channel: Channel, reference: Reference, descriptor: Descriptor, *, max_size: int
    ) -> bytes:
        """The bytes of a small blob."""
        if descriptor.size > max_size:
            raise LimitExceeded(
                "the blob is too large",
                limit="max_size",
                allowed=max_size,
                digest=descriptor.digest,
            )
        request = self._request(
            f"blob {descriptor.digest} of {reference.repository}",
            self._endpoint.blob(self._path(reference), descriptor.digest),
        )
        _, body = self._read(
            channel, request, self._path(reference), limit="max_size", allowed=max_size
        )
        _verify(body, descriptor, request)
        return body

    def list_referrers(
        self, channel: Channel, reference: Reference, manifest: Digest, artifact_type: str
    ) -> tuple[Descriptor, ...]:
        """What refers to a manifest of the reference's repository, of one type, in order."""
        what = f"referrers of {reference.repository}@{manifest}"
        path = self._path(reference)
        url = self._endpoint.referrers(path, manifest, artifact_type)
        found: list[Descriptor] = []
        for page in range(limits.REFERRER_PAGES):
            request = self._request(what, url)
            answer = self._ask(channel, request, path, limit="MANIFEST_SIZE", allowed=self._allowed)
            if isinstance(answer, httpx.Response):
                # A mirror that has no list knows nothing; that the registry has none, is an answer.
                is_answer = self._endpoint.is_authority and page == 0
                if is_answer and answer.status_code == httpx.codes.NOT_FOUND:
                    discard(answer)
                    return self._tagged_referrers(channel, reference, manifest, artifact_type)
                raise self._session.refusal(answer, request, path)
            found += parse_referrers(
                answer.body, media_type=answer.media_type, artifact_type=artifact_type
            )
            following = next_page(answer.response)
            if following is None:
                return tuple(found)
            url = following
        raise LimitExceeded(
            f"too many {what}", limit="REFERRER_PAGES", allowed=limits.REFERRER_PAGES
        )

    def _tagged_referrers(
        self, channel: Channel, reference: Reference, manifest: Digest, artifact_type: str
    ) -> tuple[Descriptor, ...]:
        """The same from a registry without the API: 404 says that it has none, or no such image."""
        listing = reference.with_digest(None).with_tag(referrers_tag(manifest))
        try:
            index = self._get(channel, listing, None)
        except NotFound:
            return ()
        return parse_referrers(index.raw, media_type=index.media_type, artifact_type=artifact_type)

    def _head(self, channel: Channel, reference: Reference) -> Descriptor | None:
        request = self._manifest_request(reference, _name_of(reference), method="HEAD")

        def once() -> httpx.Response:
            response = self._session.send(channel, request, self._path(reference))
            discard(response)
            return response

        hops = self._session.hops
        response = hops.insist(channel, request, hops.attempts(channel.operation), once)
        if response.status_code != httpx.codes.OK:
            return None
        descriptor = _descriptor_of(response)
        if descriptor is None:
            return None
        if descriptor.size > self._allowed:
            raise _too_large(request, self._allowed)
        expected = reference.digest
        if expected is not None and expected != descriptor.digest:
            if expected.algorithm != descriptor.digest.algorithm:
                return None  # the registry prefers another algorithm: the body will tell
            raise _mismatch(request, expected, descriptor.digest)
        return descriptor

    def _get(
        self, channel: Channel, reference: Reference, descriptor: Descriptor | None
    ) -> Manifest | Index:
        expected = descriptor.digest if descriptor else reference.digest
        request = self._manifest_request(reference, str(expected or _name_of(reference)))
        media_type, body = self._read(
            channel, request, self._path(reference), limit="MANIFEST_SIZE", allowed=self._allowed
        )
        if descriptor is not None:
            _verify(body, descriptor, request)
            _refuse_contradiction(media_type, descriptor.media_type)
            media_type = descriptor.media_type
        return parse_manifest(body, media_type=media_type, expected=expected)

    def _read(
        self, channel: Channel, request: Request, repository: str, *, limit: str, allowed: int
    ) -> tuple[str, bytes]:
        """A whole body and its media type."""
        answer = self._ask(channel, request, repository, limit=limit, allowed=allowed)
        if isinstance(answer, httpx.Response):
            raise self._session.refusal(answer, request, repository)
        return answer.media_type, answer.body

    def _ask(
        self, channel: Channel, request: Request, repository: str, *, limit: str, allowed: int
    ) -> _Answer | httpx.Response:
        """An answer, or a refusal, still open. A body that breaks off is asked for again."""

        def once() -> _Answer | httpx.Response:
            response = self._session.send(channel, request, repository)
            if response.status_code != httpx.codes.OK:
                return response
            _refuse_web_page(response)
            body = read_document(response, what=request.what, limit=limit, allowed=allowed)
            return _Answer(response, body)

        hops = self._session.hops
        return hops.insist(channel, request, hops.attempts(channel.operation), once)

    def _manifest_request(self, reference: Reference, name: str, method: str = "GET") -> Request:
        separator = "@" if ":" in name else ":"
        return self._request(
            f"manifest {reference.repository}{separator}{name}",
            self._endpoint.manifest(self._path(reference), name),
            method,
        )

    def _request(self, what: str, url: httpx.URL, method: str = "GET") -> Request:
        return Request(
            method=method,
            url=url,
            what=what,
            who=self._endpoint.who,
            trusted=self._endpoint.origin,
            headers=_ACCEPT,
        )

    def _path(self, reference: Reference) -> str:
        """What the endpoint calls the repository."""
        return self._endpoint.repository(reference.path)


def _name_of(reference: Reference) -> str:
    return reference.object or DEFAULT_TAG


def _descriptor_of(response: httpx.Response) -> Descriptor | None:
    """What the headers of an answer to HEAD say; None if they do not say it all."""
    media_type, length = _media_type_of(response), response.headers.get("content-length", "")
    if not (media_types.is_index(media_type) or media_types.is_manifest(media_type)):
        return None
    try:
        digest = Digest.parse(response.headers.get("docker-content-digest", ""))
    except InvalidDigest:
        return None
    if not _LENGTH.fullmatch(length):
        return None
    return Descriptor(media_type=media_type, digest=digest, size=int(length))


def _media_type_of(response: httpx.Response) -> str:
    header: str = response.headers.get("content-type", "")
    return header.partition(";")[0].strip().lower()


def _refuse_web_page(response: httpx.Response) -> None:
    # Captive portals and proxies that want a login answer 200, for whatever was asked.
    if _media_type_of(response) in {"text/html", "application/xhtml+xml"}:
        response.close()
        raise ProtocolError(
            "the server answered with a web page",
            hint="Is this a registry, and is the network one that wants a login first?",
            url=redact_url(response.url),
        )


def _refuse_contradiction(stated: str, expected: str) -> None:
    is_statement = media_types.is_index(stated) or media_types.is_manifest(stated)
    if is_statement and stated != expected:
        raise InvalidDocument(
            "the registry says that the manifest is of another type than its descriptor",
            expected=expected,
            actual=stated,
        )


def _verify(body: bytes, descriptor: Descriptor, request: Request) -> None:
    actual = Digest.of(body, descriptor.digest.algorithm)
    if len(body) != descriptor.size:
        raise DigestMismatch(
            f"{request.what} is not as long as its descriptor says",
            expected=descriptor.size,
            actual=len(body),
        )
    if actual != descriptor.digest:
        raise _mismatch(request, descriptor.digest, actual)


def _mismatch(request: Request, expected: Digest, actual: Digest) -> DigestMismatch:
    return DigestMismatch(
        f"{request.what} is not what its digest names", expected=expected, actual=actual
    )


def _too_large(request: Request, allowed: int) -> LimitExceeded:
    return LimitExceeded(f"{request.what} is too large", limit="MANIFEST_SIZE", allowed=allowed)
