"""From a request to an image: shared with whoever asks for the same, watched, counted.

A request is first looked for among the pulls under way (`sharing`): same image, platform, way to
the registry, readiness and login. What remains takes its turn, asks the registry what the name
means now, with the login of this very request, and pulls what is missing (`pull`).
"""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol, Self

import trio

from imgvol import limits
from imgvol.config import PINNED_ONLY, Config, LazyTrust
from imgvol.content.records import ImageRecord, Origin
from imgvol.content.store import Store
from imgvol.errors import ImgvolError, RemoteError
from imgvol.images.catalog import Catalog
from imgvol.images.collection import Collector
from imgvol.images.credentials import Logins
from imgvol.images.events import PULL_FAILED, PULL_PROGRESS, Event
from imgvol.images.handlers import RuntimeHandler, RuntimeHandlers
from imgvol.images.leases import Leases
from imgvol.images.pull import LAYERS_AT_ONCE, Puller, PullProgress, PullStream, sum_up
from imgvol.images.pull_source import PullSource
from imgvol.images.readiness import Readiness
from imgvol.images.resolve import ResolvedImage, resolve_image, wanted_platform
from imgvol.images.sharing import SharedPulls
from imgvol.images.stalling import PullWatch
from imgvol.oci.digest import Digest
from imgvol.oci.json import JSONValue
from imgvol.registry.credentials import Credential
from imgvol.registry.hosts import RegistryOptions
from imgvol.registry.registries import Registries
from imgvol.sources.base import ImageSource
from imgvol.sources.open import open_source
from imgvol.sources.parse import ImageArgument, RegistryImage, parse_image_argument
from imgvol.tallies import PULL_BOUNDS, Distribution, Histogram, QueueLength


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """How to reach a registry, for one pull; `credential` is the login that came with it."""

    plain_http: bool = False
    insecure: bool = False
    ca_file: str | None = None
    credential: Credential | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PullSettings:
    """The habits of all pulls.

    Attributes:
        trust: As `Puller` takes it.
        layers_at_once: Layers of all images that are received and unpacked at once.
        pulls_at_once: Images that are pulled at once.
        progress_timeout: Seconds without a byte after which a pull has stalled; None: never.
        handlers: What runtime handlers mean.
    """

    trust: LazyTrust = PINNED_ONLY
    layers_at_once: int = LAYERS_AT_ONCE
    pulls_at_once: int = limits.PULLS_AT_ONCE
    progress_timeout: float | None = limits.PULL_PROGRESS_TIMEOUT
    handlers: RuntimeHandlers = field(default_factory=RuntimeHandlers)

    @classmethod
    def of(cls, config: Config) -> Self:
        """Those of a daemon.

        Raises:
            InvalidArgument: A runtime handler is malformed.
        """
        return cls(
            trust=config.trust,
            layers_at_once=config.max_downloads or LAYERS_AT_ONCE,
            progress_timeout=config.pull_progress_timeout,
            handlers=RuntimeHandlers(map(RuntimeHandler.parse, config.runtime_handlers)),
        )


class Stream(PullStream, Protocol):
    """What shows an image while it is pulled."""

    async def open(self, resolved: ResolvedImage) -> None:
        """The image's layers are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest:
    """What is asked for; requests that are equal can be answered by one pull.

    The login is part of what has to be equal: nobody shall be let in by somebody else's.
    """

    argument: ImageArgument
    platform: str | None
    options: PullOptions
    readiness: Readiness


@dataclass(frozen=True, slots=True, kw_only=True)
class PullStatistics:
    """What pulls have done since the daemon started, and do at this moment.

    Attributes:
        succeeded: How many made an image ready.
        failed: How many did not.
        cancelled: How many were given up by whoever asked.
        seconds: How long those that succeeded took.
        received: Bytes of blobs received, by all of them, so far.
        unpacked: Bytes of uncompressed layers stored by all of them, so far.
        under_way: How many have not ended.
        shared_layers: Layers that were not received: they were here under another blob's digest.
        shared_bytes: Of these blobs.
        layers: Layers that are being pulled, and those waiting for their turn.
    """

    succeeded: int
    failed: int
    cancelled: int
    seconds: Distribution
    received: int
    unpacked: int
    under_way: int
    layers: QueueLength
    shared_layers: int = 0
    shared_bytes: int = 0


class Pulls:
    """The pulls of one daemon; used on the event loop.

    Args:
        store: Where images go.
        catalog: What names mean.
        leases: Keep what a pull has brought.
        collector: Makes room, and removes what a failed pull leaves.
        logins: Who requests have said to be.
        shared: Where pulls are shared; None: each is its caller's own.
        settings: Their habits.

    Attributes:
        puller: Brings the layers.
        publish: Told of pulls that begin, go on and end; it must not block.
    """

    def __init__(
        self,
        store: Store,
        *,
        catalog: Catalog,
        leases: Leases,
        collector: Collector,
        logins: Logins,
        registries: Registries | None,
        shared: SharedPulls | None,
        settings: PullSettings,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._leases = leases
        self._collector = collector
        self._logins = logins
        self._registries = registries
        self._shared = shared
        self._settings = settings
        self._turns = trio.CapacityLimiter(settings.pulls_at_once)
        self._tallies = _PullTallies()
        self.publish: Callable[[Event], None] = lambda _event: None
        self.puller = Puller(
            store,
            trust=settings.trust,
            layers_at_once=settings.layers_at_once,
        )
        self.puller.make_room = collector.make_room
        collector.after = self._forget_logins

    @property
    def under_way(self) -> int:
        """How many pulls have not ended."""
        return len(self._tallies.under_way)

    def statistics(self) -> PullStatistics:
        """What pulls have done and do; from memory."""
        tallies = self._tallies
        received, unpacked = tallies.bytes
        return PullStatistics(
            succeeded=tallies.succeeded,
            failed=tallies.failed,
            cancelled=tallies.cancelled,
            seconds=tallies.seconds.snapshot(),
            received=received,
            unpacked=unpacked,
            under_way=self.under_way,
            layers=self.puller.queue,
            shared_layers=self.puller.shared_layers,
            shared_bytes=self.puller.shared_bytes,
        )

    async def pull(self, request: PullRequest, progress: PullProgress) -> ImageRecord:
        """The image of a request; see `ImageService.pull`."""
        wanted_platform(request.platform)  # refused now rather than after a turn
        work = partial(self._pull, request)
        if self._shared is None:
            return await work(progress)
        return await self._shared.join(request, progress, work)

    async def pull_streaming(
        self, request: PullRequest, progress: PullProgress, stream: Stream
    ) -> ImageRecord:
        """As `pull`, for a caller who shows the image meanwhile; so it is shared with nobody."""
        return await self._pull(request, progress, stream)

    async def _pull(
        self, request: PullRequest, progress: PullProgress, stream: Stream | None = None
    ) -> ImageRecord:
        name = str(request.argument)
        before = self._catalog.manifests_named(name)
        watch = PullWatch(self._settings.progress_timeout)
        try:
            with self._tallies.pull(progress, name), self._told(name):
                async with self._turns:
                    started = time.perf_counter()
                    record = await watch.guard(
                        partial(self._bring, request, progress, watch, started, stream)
                    )
        except ImgvolError as exc:
            if not isinstance(exc, RemoteError):
                await self._collector.collect()
            raise
        self._keep_login(request, record)
        # The name may have meant another image until now, which then has no name.
        if before - {record.manifest}:
            await self._collector.collect()
        sum_up(progress, time.perf_counter() - started)
        self._tell(PULL_PROGRESS, name, record.id, stage=progress.stage)
        return record

    @contextmanager
    def _told(self, image: str) -> Iterator[None]:
        """Tells of a pull that begins, and that fails or is given up."""
        self._tell(PULL_PROGRESS, image, stage="started")
        try:
            yield
        except ImgvolError as exc:
            self._tell(PULL_FAILED, image, code=exc.code, reason=str(exc))
            raise
        except BaseException:
            self._tell(PULL_FAILED, image, code="cancelled", reason="nobody waits for it any more")
            raise

    async def tell_progress(self) -> None:
        """Tells now and then how far the pulls under way are, for ever."""
        while True:
            await trio.sleep(limits.PULL_EVENTS)
            for progress, image in self._tallies.under_way.items():
                received, unpacked = _bytes_of([progress])
                self._tell(
                    PULL_PROGRESS,
                    image,
                    stage=progress.stage,
                    size=sum(layer.size for layer in progress.layers),
                    received=received,
                    unpacked=unpacked,
                )

    def _tell(self, kind: str, image: str, id_: Digest | None = None, **data: JSONValue) -> None:
        self.publish(Event(kind=kind, at=time.time(), image=image, id=id_, data=data))

    async def _bring(
        self,
        request: PullRequest,
        progress: PullProgress,
        watch: PullWatch,
        started: float,
        stream: Stream | None,
    ) -> ImageRecord:
        argument, options = request.argument, request.options
        async with open_source(
            argument,
            _registry_options(options),
            credentials=self._logins.for_pull(request.options.credential),
            registries=self._registries,
            spool_directory=self._store.spool_directory,
        ) as opened:
            # Local bytes are at hand: nothing stalls, and tables of contents would gain nothing.
            is_remote = isinstance(argument, RegistryImage)
            source: ImageSource = PullSource(opened, watch, self._store) if is_remote else opened
            matcher = wanted_platform(request.platform)
            resolved = await resolve_image(source, matcher, must_match=request.platform is not None)
            progress.stats["resolve_seconds"] = time.perf_counter() - started
            is_lazy = is_remote and request.readiness is Readiness.LAZY
            if stream is not None:
                await stream.open(resolved)
            async with self._leases.pull(resolved.manifest.digest, resolved.digests):
                record = await self.puller.pull(
                    source,
                    resolved,
                    str(argument),
                    progress,
                    _origin(str(argument), options) if is_lazy else None,
                    in_place=not is_remote and request.readiness is not Readiness.STORED,
                    stream=stream,
                )
                # Other servers' layers may not be there the next time.
                if is_remote and not any(layer.urls for layer in resolved.layers):
                    await self._store.records.note_pulled(str(argument), record)
                return record

    def _keep_login(self, request: PullRequest, record: ImageRecord) -> None:
        """Keeps the login if something has yet to be fetched with it."""
        argument, kept = request.argument, self._logins.kept
        if not isinstance(argument, RegistryImage):
            return
        repository = argument.reference.repository
        if repository in kept or not record.is_stored:
            kept.keep(repository, request.options.credential)

    async def _forget_logins(self) -> None:
        """Forgets those that came with pulls of which nothing has to be fetched any more."""
        candidates = self._logins.kept.repositories
        if not candidates:
            return
        arguments = map(parse_image_argument, await self._store.records.needed_origins())
        needed = {a.reference.repository for a in arguments if isinstance(a, RegistryImage)}
        self._logins.kept.forget(candidates - needed)


class _PullTallies:
    """Counts pulls; those under way are asked how far they are."""

    def __init__(self) -> None:
        self.succeeded = self.failed = self.cancelled = 0
        self.seconds = Histogram(PULL_BOUNDS)
        self.under_way: dict[PullProgress, str] = {}  # and the image's name
        self._received = self._unpacked = 0

    @contextmanager
    def pull(self, progress: PullProgress, image: str) -> Iterator[None]:
        """One pull, however it ends."""
        began = time.perf_counter()
        self.under_way[progress] = image
        try:
            yield
        except Exception:
            self.failed += 1
            raise
        except BaseException:
            self.cancelled += 1
            raise
        else:
            self.succeeded += 1
            self.seconds.observe(time.perf_counter() - began)
        finally:
            del self.under_way[progress]
            received, unpacked = _bytes_of([progress])
            self._received += received
            self._unpacked += unpacked

    @property
    def bytes(self) -> tuple[int, int]:
        """Received and unpacked, by pulls that have ended and by those under way."""
        received, unpacked = _bytes_of(self.under_way)
        return self._received + received, self._unpacked + unpacked


def _registry_options(options: PullOptions) -> RegistryOptions:
    return RegistryOptions(
        plain_http=options.plain_http,
        insecure=options.insecure,
        ca_file=Path(options.ca_file) if options.ca_file else None,
    )


def _origin(argument: str, options: PullOptions) -> Origin:
    return Origin(
        argument=argument,
        plain_http=options.plain_http,
        insecure=options.insecure,
        ca_file=options.ca_file,
    )


def _bytes_of(pulls: Collection[PullProgress]) -> tuple[int, int]:
    layers = [layer for progress in pulls for layer in progress.layers]
    return sum(layer.received for layer in layers), sum(layer.unpacked for layer in layers)
