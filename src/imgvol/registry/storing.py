"""Manifests into a repository, and the lists of what refers to what.

A manifest with a `subject` is found from there: by the registry, which says so when it takes the
manifest (`OCI-Subject`), or else by an index under a tag that clients keep (distribution
specification, "Pushing Manifests with Subject"). Two clients that change that index at once lose
each other's entry, for there is no way to write it on a condition: so it is read again a moment
after it was written, and changed again if it has lost ours.
"""

import time
from collections.abc import Callable
from typing import Final, NamedTuple

import httpx

from imgvol import limits
from imgvol.errors import (
    Conflict,
    DigestMismatch,
    ImgvolError,
    InvalidDigest,
    InvalidDocument,
    NotFound,
)
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import Index, Manifest
from imgvol.oci.media_types import OCI_INDEX
from imgvol.oci.reference import Reference
from imgvol.registry.channel import Channel
from imgvol.registry.documents import Documents
from imgvol.registry.hops import Content, Request, discard
from imgvol.registry.hosts import Endpoint
from imgvol.registry.push_failures import failure_of_push
from imgvol.registry.referrers import referrers_tag, with_referrer, without_referrer
from imgvol.registry.session import Session

_STORED: Final = frozenset((200, 201, 202, 204))
_DELETED: Final = frozenset((200, 202, 204))
_GONE: Final = frozenset((404, 410))


class Stored(NamedTuple):
    """A manifest that a registry has taken; whether it keeps the list of its subject itself."""

    digest: Digest
    is_listed: bool


class Manifests:
    """Writes manifests of one repository; every method blocks. Safe in any thread, a channel each.

    Args:
        endpoint: The registry.
        session: With a login that may push.
        documents: Reads what is there.
        repository: The repository, without tag and digest.
    """

    def __init__(
        self, endpoint: Endpoint, session: Session, documents: Documents, repository: Reference
    ) -> None:
        self._endpoint = endpoint
        self._session = session
        self._documents = documents
        self._repository = repository
        self._path = endpoint.repository(repository.path)

    def get(self, channel: Channel, name: str | Digest) -> Manifest | Index | None:
        """What is under a tag or a digest."""
        base = self._repository
        reference = base.with_digest(name) if isinstance(name, Digest) else base.with_tag(name)
        try:
            return self._documents.read_manifest(channel, reference)
        except NotFound:
            return None

    def put(self, channel: Channel, raw: bytes, media_type: str, name: str | Digest) -> Stored:
        """Store a manifest under a tag, or its digest."""
        digest = Digest.of(raw, name.algorithm if isinstance(name, Digest) else "sha256")
        content = Content(size=len(raw), pieces=(raw,), media_type=media_type)
        request = self._request("PUT", name, content)
        response = self._ask(channel, request)
        if response.status_code not in _STORED:
            raise self._session.refusal(response, request, self._path)
        discard(response)
        _check_digest(response, digest, request.what)
        return Stored(digest, "oci-subject" in response.headers)

    def delete(self, channel: Channel, digest: Digest) -> bool:
        """Delete a manifest; whether it was there."""
        request = self._request("DELETE", digest)
        response = self._ask(channel, request)
        if response.status_code in _GONE:
            discard(response)
            return False
        if response.status_code not in _DELETED:
            raise self._session.refusal(response, request, self._path)
        discard(response)
        return True

    # --- referrers --------------------------------------------------------------------------------

    def has_referrers_api(self, channel: Channel, subject: Digest) -> bool:
        """Whether the registry lists what refers to a manifest by itself."""
        request = Request(
            method="GET",
            url=self._endpoint.referrers(self._path, subject, ""),
            what=f"referrers of {self._repository.repository}@{subject}",
            who=self._endpoint.who,
            trusted=self._endpoint.origin,
        )
        response = self._ask(channel, request)
        discard(response)
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        return response.status_code == httpx.codes.OK and media_type == OCI_INDEX

    def list_referrer(self, channel: Channel, subject: Digest, referrer: Descriptor) -> None:
        """Extend the list under the subject's tag."""

        def extend(known: Index | None) -> bytes | None:
            return with_referrer(known, referrer)

        self._change_list(channel, subject, extend)

    def unlist_referrer(self, channel: Channel, subject: Digest, referrer: Digest) -> bool:
        """Take one out of the list under the subject's tag; whether it was there."""

        def reduce(known: Index | None) -> bytes | None:
            return None if known is None else without_referrer(known, referrer)

        return self._change_list(channel, subject, reduce)

    def _change_list(
        self, channel: Channel, subject: Digest, change: Callable[[Index | None], bytes | None]
    ) -> bool:
        """Change it until nothing is left to be changed; whether there was anything."""
        tag = referrers_tag(subject)
        for count in range(limits.REFERRER_UPDATES):
            begun = time.monotonic()
            changed = change(self._read_list(channel, tag))
            if changed is None:
                return count > 0
            self.put(channel, changed, OCI_INDEX, tag)
            # Whoever read it before we wrote it, and is as quick as we are, has written by then.
            took = 2 * (time.monotonic() - begun)
            settle = min(max(took, limits.REFERRER_SETTLE), limits.REFERRER_LONGEST_SETTLE)
            channel.operation.sleep(settle)
        if change(self._read_list(channel, tag)) is None:
            return True
        raise Conflict(
            "others change the list of referrers all the time",
            hint="Try again when they are done.",
            repository=self._repository.repository,
            tag=tag,
        )

    def _read_list(self, channel: Channel, tag: str) -> Index | None:
        try:
            found = self.get(channel, tag)
        except InvalidDocument as error:
            raise self._no_list(tag) from error
        if isinstance(found, Manifest):
            raise self._no_list(tag)
        return found

    def _no_list(self, tag: str) -> ImgvolError:
        return Conflict(
            "the tag that lists referrers is something else",
            hint="Delete that tag, or give it another name.",
            repository=self._repository.repository,
            tag=tag,
        )

    # --- what they share --------------------------------------------------------------------------

    def _ask(self, channel: Channel, request: Request) -> httpx.Response:
        """The answer; storing and deleting may be asked for as often as it takes."""
        hops, operation = self._session.hops, channel.operation
        operation.allow_within(hops.bounds.document_deadline)
        return hops.insist(
            channel,
            request,
            hops.attempts(operation),
            lambda: self._session.send(channel, request, self._path),
        )

    def _request(self, method: str, name: str | Digest, content: Content | None = None) -> Request:
        separator = "@" if isinstance(name, Digest) else ":"
        return Request(
            method=method,
            url=self._endpoint.manifest(self._path, str(name)),
            what=f"manifest {self._repository.repository}{separator}{name}",
            who=self._endpoint.who,
            trusted=self._endpoint.origin,
            content=content,
            judge=failure_of_push,
        )


def _check_digest(response: httpx.Response, expected: Digest, what: str) -> None:
    """Refuse an answer that says that something else was stored."""
    text = response.headers.get("docker-content-digest")
    if not text:
        return
    try:
        actual = Digest.parse(text)
    except InvalidDigest:
        return  # of a kind that we do not know
    if actual.algorithm == expected.algorithm and actual != expected:
        raise DigestMismatch(
            f"the registry has stored something else than {what}",
            expected=expected,
            actual=actual,
        )
