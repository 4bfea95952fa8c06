"""The client of one registry: what the rest of imgvol sees of this room.

All network traffic here blocks a thread. Documents are fetched in threads of the client's own, and
the methods that do it are coroutines: cancelling one shuts its connection down, and it returns only
when its thread has let go. Blobs are received in the thread that asks for them, so that no byte of
a layer ever passes through the event loop.
"""

import functools
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
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
from imgvol.registry.auth import Authorizer
from imgvol.registry.body import BlobReader, RemoteBlobReader, Server
from imgvol.registry.bounds import DEFAULT_BOUNDS, Bounds
from imgvol.registry.channel import Channel, ChannelPool
from imgvol.registry.credentials import CredentialSource
from imgvol.registry.documents import Documents
from imgvol.registry.foreign import FallbackReader, Stranger, foreign_urls
from imgvol.registry.hops import Hops, Request, public_errors
from imgvol.registry.hosts import Capability, Endpoint, RegistryOptions, endpoints_of, tls_context
from imgvol.registry.operation import Operation
from imgvol.registry.proxies import proxies_from
from imgvol.registry.session import Session
from imgvol.threads import run_cancellable

T = TypeVar("T")


@asynccontextmanager
async def open_registry_client(
    reference_domain: str,
    options: RegistryOptions,
    credentials: CredentialSource,
    *,
    bounds: Bounds = DEFAULT_BOUNDS,
    environ: Mapping[str, str] = os.environ,
    random: Random | None = None,
) -> AsyncIterator["RegistryClient"]:
    """A client for one registry; leaving cancels what is still under way.

    Args:
        reference_domain: The domain of the references that it will be asked for.
        options: How to connect.
        credentials: Where logins come from; asked in a thread, and only if the registry insists.
        bounds: How long to wait and how often to try.
        environ: Where the proxy variables are.
        random: Spreads retries.

    Raises:
        InvalidArgument: The name, the options, or a proxy variable cannot be used.
    """
    _keep_quiet()
    endpoints = endpoints_of(reference_domain, options)
    endpoint = next(each for each in endpoints if Capability.ALL in each.capabilities)
    proxies = proxies_from(environ)
    tls = functools.cache(partial(tls_context, options))
    if endpoint.origin.scheme == "https" or options.ca_file or options.client_cert:
        # Now rather than at the first request: options that cannot be used are an error here.
        await trio.to_thread.run_sync(tls)
    pool = ChannelPool(tls, bounds, proxies)
    # A certificate of ours is a login, and that the registry is not checked no word on others.
    others_tls = functools.cache(partial(tls_context, RegistryOptions(ca_file=options.ca_file)))
    others = ChannelPool(others_tls, bounds, proxies)
    hops = Hops(endpoint.origin, bounds, random or Random())  # noqa: S311 - spreads retries
    session = Session(hops, Authorizer(reference_domain, hops, credentials))
    try:
        yield RegistryClient(endpoint, session, pool, others)
    finally:
        pool.close()
        others.close()


class RegistryClient:
    """Asks one registry. Coroutines for trio; `open_blob` for worker threads.

    Every method raises, beside what it names:

    - Unauthorized: the registry refuses, with the login that there is;
    - NotFound: the registry does not have it;
    - RegistryUnavailable: it cannot be reached, fails, is too slow, or limits our rate;
    - ProtocolError, RemoteError: it breaks the rules, or cannot be trusted.
    """

    def __init__(
        self, endpoint: Endpoint, session: Session, pool: ChannelPool, others: ChannelPool
    ) -> None:
        self._endpoint = endpoint
        self._session = session
        self._pool = pool
        self._others = others
        self._documents = Documents(endpoint, session)
        self._threads = trio.CapacityLimiter(limits.DOCUMENT_THREADS)

    async def resolve(self, reference: Reference) -> Descriptor:
        """What a reference points at now: digest, size and media type of a manifest or an index.

        Raises:
            DigestMismatch: The reference has a digest, and the registry another document.
            LimitExceeded: The document is too large.
        """
        return await self._run(lambda channel: self._documents.resolve(channel, reference))

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
        return await self._run(
            lambda channel: self._documents.fetch_manifest(channel, reference, descriptor)
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
            lambda channel: self._documents.list_referrers(
                channel, reference, manifest, artifact_type
            )
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
            lambda channel: self._documents.fetch_blob(
                channel, reference, descriptor, max_size=max_size
            )
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

        A blob that the registry does not have is fetched from its `urls`: see `foreign`.

        Args:
            reference: Names the repository.
            descriptor: The blob.
            offset: The first byte wanted.
            end: One past the last byte wanted; None for all.
        """
        end = descriptor.size if end is None else end
        if not 0 <= offset <= end <= descriptor.size:
            raise ValueError(f"no bytes {offset} to {end} in a blob of {descriptor.size}")

        def read(server: Server, pool: ChannelPool, url: httpx.URL) -> RemoteBlobReader:
            request = Request(
                method="GET",
                url=url,
                what=f"blob {descriptor.digest} of {reference.repository}",
                trusted=self._endpoint.origin,
            )
            return RemoteBlobReader(
                server, pool, request, reference.path, descriptor, start=offset, end=end
            )

        blob = self._endpoint.blob(reference.path, descriptor.digest)
        here = read(self._session, self._pool, blob)
        urls = foreign_urls(descriptor, registry=self._endpoint.origin)
        if not urls:
            return here
        stranger = Stranger(self._session.hops)
        return FallbackReader(here, [read(stranger, self._others, url) for url in urls])

    async def _run(self, work: Callable[[Channel], T]) -> T:
        operation = Operation()
        return await run_cancellable(
            partial(self._work, operation, work), operation.cancel, limiter=self._threads
        )

    def _work(self, operation: Operation, work: Callable[[Channel], T]) -> T:
        # The deadline begins here: waiting for a thread is not the registry's fault.
        operation.allow_within(self._session.hops.bounds.document_deadline)
        with public_errors(self._endpoint.base), self._pool.lend(operation) as channel:
            return work(channel)


def _keep_quiet() -> None:
    """Keep URLs and headers of requests out of the log: signatures and tokens are in them."""
    for name in ("httpx", "httpcore"):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)
