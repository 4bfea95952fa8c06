"""The client of one registry: what the rest of imgvol sees of this room.

All network traffic here blocks a thread. Documents are fetched in threads of the client's own, and
the methods that do it are coroutines: cancelling one shuts its connection down, and it returns only
when its thread has let go. Blobs are received in the thread that asks for them, so that no byte of
a layer ever passes through the event loop.
"""

import functools
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import TypeVar

import httpx
import trio

from imgvol import limits
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.reference import Reference
from imgvol.registry.body import BlobReader, RemoteBlobReader
from imgvol.registry.bounds import DEFAULT_BOUNDS, Bounds
from imgvol.registry.channel import Channel, ChannelPool
from imgvol.registry.credentials import CredentialSource
from imgvol.registry.documents import Documents
from imgvol.registry.fallback import FallbackReader
from imgvol.registry.foreign import Stranger, foreign_urls
from imgvol.registry.hops import Request
from imgvol.registry.hosts import Capability, Endpoint, RegistryOptions, TLSFiles, tls_context
from imgvol.registry.operation import Operation
from imgvol.registry.proxies import proxies_from
from imgvol.registry.registries import Registries
from imgvol.registry.stations import Station, Stations, make_station
from imgvol.threads import run_cancellable

T = TypeVar("T")


@asynccontextmanager
async def open_registry_client(
    reference_domain: str,
    options: RegistryOptions,
    credentials: CredentialSource | None,
    *,
    registries: Registries | None = None,
    kept_logins: CredentialSource | None = None,
    bounds: Bounds = DEFAULT_BOUNDS,
    environ: Mapping[str, str] = os.environ,
    random: Random | None = None,
) -> AsyncIterator["RegistryClient"]:
    """A client for one registry; leaving cancels what is still under way.

    Logins are asked for in a thread, and only if a server insists. Which one is used, the first
    that there is: for the registry itself `credentials`, what is configured for it, `kept_logins`;
    for a mirror what is configured for that server, `kept_logins` for it. So nobody sees a login
    that was given for another.

    Args:
        reference_domain: The domain of the references that it will be asked for.
        options: How to connect to the registry itself.
        credentials: The login that came with a request for this registry.
        registries: Where its images come from; None: from nobody else.
        kept_logins: What a user keeps, for whatever server.
        bounds: How long to wait and how often to try.
        environ: Where the proxy variables are.
        random: Spreads retries.

    Raises:
        InvalidArgument: The name, the options, or a proxy variable cannot be used.
        BadConfiguration: A file of `registries` cannot be used.
    """
    keep_quiet()
    registries = registries or Registries()
    proxies = proxies_from(environ)
    endpoints = await trio.to_thread.run_sync(registries.endpoints, reference_domain, options)
    # A certificate of ours is a login, and that the registry is not checked no word on others.
    others_tls = TLSFiles(authorities=_authority(endpoints).tls.authorities)
    others = ChannelPool(functools.cache(partial(tls_context, others_tls)), bounds, proxies)
    makes_station = partial(
        make_station,
        reference_domain,
        credentials=credentials,
        kept_logins=kept_logins,
        bounds=bounds,
        proxies=proxies,
        random=random or Random(),  # noqa: S311 - spreads retries
    )
    stations: list[Station] = []
    try:
        for endpoint in endpoints:
            station = await trio.to_thread.run_sync(makes_station, endpoint)
            stations.append(station)
        yield RegistryClient(Stations(reference_domain, stations, registries.health), others)
    finally:
        for station in stations:
            station.pool.close()
        others.close()


def _authority(endpoints: Sequence[Endpoint]) -> Endpoint:
    return next(endpoint for endpoint in reversed(endpoints) if endpoint.is_authority)


class RegistryClient:
    """Asks whoever speaks for a registry. Coroutines for trio; `open_blob` for worker threads.

    Every method raises, beside what it names:

    - Unauthorized: the registry refuses, with the login that there is;
    - NotFound: the registry does not have it;
    - RegistryUnavailable: it cannot be reached, fails, is too slow, or limits our rate;
    - ProtocolError, RemoteError: it breaks the rules, or cannot be trusted.
    """

    def __init__(self, stations: Stations, others: ChannelPool) -> None:
        self._stations = stations
        self._others = others
        self._threads = trio.CapacityLimiter(limits.DOCUMENT_THREADS)

    async def resolve(self, reference: Reference) -> Descriptor:
        """What a reference points at now: digest, size and media type of a manifest or an index.

        Raises:
            DigestMismatch: The reference has a digest, and the registry another document.
            LimitExceeded: The document is too large.
        """
        # What a digest names, everybody may say; what a tag does, only who is trusted with it.
        wanted = Capability.RESOLVE if reference.digest is None else Capability.PULL
        return await self._run(wanted, lambda each, channel: each.resolve(channel, reference))

    async def fetch_manifest(self, reference: Reference, descriptor: Descriptor | None) -> bytes:
        """The very bytes of a manifest or an index.

        Args:
            reference: Names the repository; and the document, if there is no descriptor.
            descriptor: What to fetch. The bytes are what it says: digest, size and type.

        Raises:
            DigestMismatch: They are not.
            InvalidDocument: They are no manifest, or one that contradicts what it is said to be.
            LimitExceeded: There are too many.
        """
        is_pinned = descriptor is not None or reference.digest is not None
        return await self._run(
            Capability.PULL if is_pinned else Capability.PULL | Capability.RESOLVE,
            lambda each, channel: each.fetch_manifest(channel, reference, descriptor),
        )

    async def list_referrers(
        self, reference: Reference, manifest: Digest, artifact_type: str
    ) -> tuple[Descriptor, ...]:
        """What refers to a manifest, of one type, in the registry's order; perhaps nothing.

        Nothing pins the answer. A registry that has no API for it is asked for the tag instead.

        Args:
            reference: Names the repository.
            manifest: What is referred to; an image of it.
            artifact_type: The type that is wanted.

        Raises:
            InvalidDocument: The answer is no list of referrers.
            LimitExceeded: It is too long, or has more than limits.REFERRER_PAGES pages.
        """
        return await self._run(
            Capability.REFERRERS,
            lambda each, channel: each.list_referrers(channel, reference, manifest, artifact_type),
        )

    async def fetch_blob(
        self, reference: Reference, descriptor: Descriptor, *, max_size: int
    ) -> bytes:
        """The very bytes of a small blob, such as a config.

        Raises:
            DigestMismatch: The registry has others.
            LimitExceeded: There are more than `max_size`.
        """
        return await self._run(
            Capability.PULL,
            lambda each, channel: each.fetch_blob(
                channel, reference, descriptor, max_size=max_size
            ),
        )

    def open_blob(
        self,
        reference: Reference,
        descriptor: Descriptor,
        *,
        offset: int = 0,
        end: int | None = None,
    ) -> BlobReader:
        """A reader of a blob, for a worker thread. Nothing is sent before its first piece is taken.

        What one endpoint does not deliver, the next is asked for, from the same byte on. A blob
        that the registry does not have is fetched from its `urls`: see `foreign`.

        Args:
            reference: Names the repository.
            descriptor: The blob.
            offset: The first byte wanted.
            end: One past the last byte wanted; None for all.
        """
        end = descriptor.size if end is None else end
        if not 0 <= offset <= end <= descriptor.size:
            raise ValueError(f"no bytes {offset} to {end} in a blob of {descriptor.size}")

        what = f"blob {descriptor.digest} of {reference.repository}"

        def at_station(station: Station, position: int, has_alternative: bool) -> RemoteBlobReader:
            endpoint = station.endpoint
            path = endpoint.repository(reference.path)
            request = Request(
                method="GET",
                url=endpoint.blob(path, descriptor.digest),
                what=what,
                who=endpoint.who,
                trusted=endpoint.origin,
            )
            return RemoteBlobReader(
                station.session,
                station.pool,
                request,
                path,
                descriptor,
                start=position,
                end=end,
                has_alternative=has_alternative,
            )

        authority = self._stations.authority
        stranger = Stranger(authority.session.hops)

        def elsewhere(url: httpx.URL, position: int) -> RemoteBlobReader:
            request = Request(method="GET", url=url, what=what, trusted=authority.endpoint.origin)
            return RemoteBlobReader(
                stranger, self._others, request, "", descriptor, start=position, end=end
            )

        urls = foreign_urls(descriptor, registry=authority.endpoint.origin)
        others = [(url, partial(elsewhere, url)) for url in urls]
        return FallbackReader(self._stations, at_station, others, start=offset)

    async def _run(self, wanted: Capability, ask: Callable[[Documents, Channel], T]) -> T:
        operation = Operation()

        def work() -> T:
            return self._stations.ask(
                operation, wanted, lambda station, channel: ask(station.documents, channel)
            )

        return await run_cancellable(work, operation.cancel, limiter=self._threads)


def keep_quiet() -> None:
    """Keep URLs and headers of requests out of the log: signatures and tokens are in them."""
    for name in ("httpx", "httpcore"):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)
