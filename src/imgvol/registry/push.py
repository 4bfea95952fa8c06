"""Pushing to one repository of one registry: what the rest of imgvol sees of it.

The registry itself is pushed to, never a mirror or whatever else stands for it: what is pushed has
to be where everybody looks for it. All network traffic blocks threads: bodies leave from there, so
that no byte of a blob passes through the event loop, and cancelling a coroutine shuts its
connection down.
"""

import enum
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TypeVar

import trio

from imgvol import limits
from imgvol.errors import (
    DigestMismatch,
    InvalidDocument,
    LimitExceeded,
    PushRefused,
)
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import Index, Manifest, parse_manifest
from imgvol.oci.reference import Reference
from imgvol.registry.auth import Scopes, pull_scopes, push_scopes
from imgvol.registry.bounds import DEFAULT_BOUNDS, Bounds
from imgvol.registry.channel import Channel
from imgvol.registry.client import keep_quiet
from imgvol.registry.credentials import CredentialSource
from imgvol.registry.hosts import Endpoint, RegistryOptions
from imgvol.registry.origin import first_that_answers, in_thread, own_endpoints
from imgvol.registry.proxies import proxies_from
from imgvol.registry.registries import Registries
from imgvol.registry.sending import OpenBody, OutgoingBlob, SentBytes
from imgvol.registry.session import Session
from imgvol.registry.stations import Station, make_station
from imgvol.registry.storing import Manifests
from imgvol.registry.uploads import BlobUpload

__all__ = ["OpenBody", "PushOutcome", "Pusher", "SentBytes", "open_pusher"]

T = TypeVar("T")


class PushOutcome(enum.Enum):
    """What it took to have a blob in the repository."""

    EXISTS = "exists"
    MOUNTED = "mounted"
    UPLOADED = "uploaded"


@asynccontextmanager
async def open_pusher(
    repository: Reference,
    options: RegistryOptions,
    credentials: CredentialSource | None,
    *,
    registries: Registries | None = None,
    kept_logins: CredentialSource | None = None,
    bounds: Bounds = DEFAULT_BOUNDS,
    environ: Mapping[str, str] = os.environ,
    random: Random | None = None,
) -> AsyncIterator["Pusher"]:
    """Something that pushes to one repository; leaving cancels what is still under way.

    Args:
        repository: Names the repository; its tag and digest do not matter.
        options: How to connect to the registry.
        credentials: The login that came with a request.
        registries: The configuration of registries; of it, what is said of the registry itself.
        kept_logins: What a user keeps, for whatever server.
        bounds: How long to wait and how often to try.
        environ: Where the proxy variables are.
        random: Spreads retries.

    Raises:
        InvalidArgument: The name, the options, or a proxy variable cannot be used.
        BadConfiguration: A file of `registries` cannot be used, or has another server in the
            registry's place.
    """
    keep_quiet()
    registries = registries or Registries()
    proxies = proxies_from(environ)
    random = random or Random()  # noqa: S311 - spreads retries
    configured = await trio.to_thread.run_sync(registries.endpoints, repository.domain, options)
    endpoints = own_endpoints(repository.domain, configured)

    def make(endpoint: Endpoint, scopes: Scopes) -> Station:
        return make_station(
            repository.domain,
            endpoint,
            credentials=credentials,
            kept_logins=kept_logins,
            bounds=bounds,
            proxies=proxies,
            random=random,
            scopes=scopes,
        )

    stations: list[Station] = []
    try:
        for endpoint in endpoints:
            station = await trio.to_thread.run_sync(make, endpoint, push_scopes)
            stations.append(station)
        station = await first_that_answers(stations)
        yield Pusher(repository, station, partial(make, station.endpoint))
    finally:
        for station in stations:
            station.pool.close()


@dataclass(frozen=True, slots=True)
class _Job:
    """A blob to push."""

    descriptor: Descriptor
    open_body: OpenBody
    mount_from: str | None
    sent: SentBytes


class Pusher:
    """Pushes to one repository. Coroutines for trio, several at once.

    Every method raises, beside what it names:

    - Unauthorized: the registry does not let us push, with the login that there is;
    - PushRefused: it does not take it from anybody: it is read-only, finds it too large or wrong;
    - NotFound: it has no such repository, and makes none;
    - RegistryUnavailable: it cannot be reached, fails, is too slow, or limits our rate;
    - ProtocolError, RemoteError: it breaks the rules, or cannot be trusted.

    Attributes:
        repository: What it pushes to, without tag and digest.
    """

    def __init__(
        self, repository: Reference, station: Station, make: Callable[[Scopes], Station]
    ) -> None:
        self.repository = repository.with_tag(None).with_digest(None)
        self._station = station
        self._make = make
        self._path = station.endpoint.repository(repository.path)
        self._manifests = Manifests(
            station.endpoint, station.session, station.documents, self.repository
        )
        self._threads = trio.CapacityLimiter(limits.DOCUMENT_THREADS)
        self._senders = trio.CapacityLimiter(limits.PUSH_AT_ONCE)
        self._mounters: dict[str, Session] = {}

    def mount_source(self, reference: Reference) -> str | None:
        """What to pass as `mount_from`, for blobs that another image has.

        None where there is nothing to mount: on another registry, or in this very repository.
        """
        is_here = reference.domain == self.repository.domain
        return reference.path if is_here and reference.path != self.repository.path else None

    async def has_blob(self, digest: Digest) -> bool:
        """Whether the repository has a blob."""
        descriptor = Descriptor(media_type="application/octet-stream", digest=digest, size=0)

        def work(channel: Channel) -> bool:
            return self._upload(descriptor).has(channel)

        return await self._run(work)

    async def push_blob(
        self,
        descriptor: Descriptor,
        open_body: OpenBody,
        *,
        mount_from: str | None = None,
        sent: SentBytes | None = None,
    ) -> PushOutcome:
        """Makes sure that the repository has a blob.

        Args:
            descriptor: The blob: its digest and its size.
            open_body: Opens its bytes at the beginning; called in a thread, perhaps several times,
                and perhaps never. What it opens is closed here.
            mount_from: A repository of the same registry that may have it; see `mount_source`.
            sent: Told of progress; what it is told falls when something has to be sent again.

        Raises:
            DigestMismatch: The bytes are not those of the descriptor; the registry keeps none.
            LocalError: They cannot be read.
        """
        job = _Job(descriptor, open_body, mount_from, sent or (lambda _: None))
        return await in_thread(self._station, partial(self._push, job), self._senders)

    async def push_manifest(self, raw: bytes, media_type: str, reference: str | Digest) -> Digest:
        """Stores a manifest or an index, under a tag or under its digest.

        Returns:
            Its digest, of the kind that `reference` is, or else sha256.

        Raises:
            DigestMismatch: The bytes are not those of the digest; or the registry says that it has
                stored something else.
            InvalidReference: It is no tag.
            LimitExceeded: It is larger than registries take.
        """
        if isinstance(reference, Digest):
            if not reference.matches(raw):
                raise DigestMismatch(
                    "a manifest to push is not what its digest names",
                    expected=reference,
                    actual=Digest.of(raw, reference.algorithm),
                )
        else:
            self.repository.with_tag(reference)
        if len(raw) > limits.MANIFEST_SIZE:
            raise LimitExceeded(
                "a manifest to push is too large",
                limit="MANIFEST_SIZE",
                allowed=limits.MANIFEST_SIZE,
            )
        stored = await self._run(
            lambda channel: self._manifests.put(channel, raw, media_type, reference)
        )
        return stored.digest

    async def push_referrer(self, raw: bytes, media_type: str) -> Digest:
        """Stores a manifest with a `subject` under its digest, so that it is found from there.

        Where the registry has no API for referrers, the tag that lists them is extended.

        Raises:
            InvalidDocument: It is no manifest, or has no subject.
            Conflict: Others have changed the list each time that we did; or that tag is in use for
                something else.
        """
        manifest = parse_manifest(raw, media_type=media_type)
        subject = manifest.subject
        if subject is None:
            raise InvalidDocument("a manifest that refers to nothing", path="subject")
        entry = referrer_entry(manifest)

        def work(channel: Channel) -> Digest:
            stored = self._manifests.put(channel, raw, media_type, manifest.digest)
            if not stored.is_listed and not self._manifests.has_referrers_api(
                channel, subject.digest
            ):
                self._manifests.list_referrer(channel, subject.digest, entry)
            return stored.digest

        return await self._run(work)

    async def delete_referrer(self, subject: Digest, referrer: Digest) -> bool:
        """Takes a referrer out of the registry, and out of the list of its subject.

        A registry that deletes nothing keeps the manifest; with a list under a tag it is not found
        any more all the same.

        Returns:
            Whether it was there.

        Raises:
            PushRefused: The registry lists it itself, and deletes nothing.
        """

        def work(channel: Channel) -> bool:
            was_listed = self._manifests.unlist_referrer(channel, subject, referrer)
            try:
                return self._manifests.delete(channel, referrer) or was_listed
            except PushRefused:
                if was_listed:
                    return True
                raise

        return await self._run(work)

    async def read_manifest(self, reference: str | Digest) -> Manifest | Index | None:
        """What the repository has under a tag or a digest; None: nothing.

        Raises:
            ContentError: It is no manifest, or not what its digest names.
        """
        return await self._run(lambda channel: self._manifests.get(channel, reference))

    async def list_referrers(self, subject: Digest, artifact_type: str) -> tuple[Descriptor, ...]:
        """What refers to a manifest of the repository, of one type; see `RegistryClient`."""
        documents = self._station.documents
        return await self._run(
            lambda channel: documents.list_referrers(
                channel, self.repository, subject, artifact_type
            )
        )

    async def _run(self, work: Callable[[Channel], T]) -> T:
        return await in_thread(self._station, work, self._threads)

    # --- in threads -------------------------------------------------------------------------------

    def _push(self, job: _Job, channel: Channel) -> PushOutcome:
        with OutgoingBlob(
            job.descriptor,
            job.open_body,
            operation=channel.operation,
            bounds=self._station.session.hops.bounds,
            sent=job.sent,
        ) as blob:
            upload = self._upload(job.descriptor)
            if upload.exists(channel):
                return PushOutcome.EXISTS
            location = None
            if job.mount_from:
                session = self._mounter(job.mount_from)
                location = upload.mount(channel, job.mount_from, session)
                if location is None:
                    return PushOutcome.MOUNTED
            upload.upload(channel, blob, location)
            return PushOutcome.UPLOADED

    def _upload(self, descriptor: Descriptor) -> BlobUpload:
        return BlobUpload(
            self._station.endpoint,
            self._station.session,
            self._path,
            descriptor,
            what=f"blob {descriptor.digest.short} to {self.repository.repository}",
        )

    def _mounter(self, source: str) -> Session:
        """A session whose tokens are good for both repositories."""
        if source not in self._mounters:

            def scopes(repository: str) -> tuple[str, ...]:
                return (*push_scopes(repository), *pull_scopes(source))

            self._mounters[source] = self._make(scopes).session
        return self._mounters[source]


def referrer_entry(manifest: Manifest | Index) -> Descriptor:
    """What a list of referrers says of one (distribution specification, "Listing Referrers")."""
    artifact_type = manifest.artifact_type
    if not artifact_type and isinstance(manifest, Manifest):
        artifact_type = manifest.config.media_type
    return Descriptor(
        media_type=manifest.media_type,
        digest=manifest.digest,
        size=len(manifest.raw),
        annotations=manifest.annotations,
        artifact_type=artifact_type,
    )
