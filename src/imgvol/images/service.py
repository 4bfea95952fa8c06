"""The image service: what users and the API ask of images. Local answers need no network."""

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from imgvol.content.records import ImageRecord, LayerFault, LayerRecord, Origin
from imgvol.content.store import Store, StoreUsage
from imgvol.errors import ImgvolError, RemoteError
from imgvol.images.collection import CollectionReport, Collector, Fate
from imgvol.images.leases import Leases
from imgvol.images.local import LocalImages
from imgvol.images.pull import Puller, PullProgress
from imgvol.images.readiness import Readiness
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.images.usage import FilesystemUsage, UsageMeter
from imgvol.images.views import OpenView, Views
from imgvol.registry.hosts import RegistryOptions
from imgvol.sources.open import open_source
from imgvol.sources.parse import RegistryImage, parse_image_argument
from imgvol.tallies import PULL_BOUNDS, Distribution, Histogram, QueueLength

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """How to reach a registry, for one pull."""

    plain_http: bool = False
    insecure: bool = False
    ca_file: str | None = None


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


class _PullTallies:
    """Counts pulls; those under way are asked how far they are."""

    def __init__(self) -> None:
        self.succeeded = self.failed = self.cancelled = 0
        self.seconds = Histogram(PULL_BOUNDS)
        self.under_way: list[PullProgress] = []
        self._received = self._unpacked = 0

    @contextmanager
    def pull(self, progress: PullProgress) -> Iterator[None]:
        """One pull, however it ends."""
        began = time.perf_counter()
        self.under_way.append(progress)
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
            # By identity: two pulls that have not begun look the same.
            self.under_way = [other for other in self.under_way if other is not progress]
            received, unpacked = _bytes_of([progress])
            self._received += received
            self._unpacked += unpacked

    @property
    def bytes(self) -> tuple[int, int]:
        """Received and unpacked, by pulls that have ended and by those under way."""
        received, unpacked = _bytes_of(self.under_way)
        return self._received + received, self._unpacked + unpacked


class ImageService(LocalImages):
    """Pull, find, list, remove and open images. One per daemon; used on the event loop.

    Args:
        store: Where images are kept.
        views: What is open of them.
        leases: What keeps images alive besides their names.
        collector: Removes what nobody needs; None: one of its own.
        soci_referrers: As `Puller` takes it.
    """

    def __init__(
        self,
        store: Store,
        views: Views,
        *,
        leases: Leases,
        collector: Collector | None = None,
        soci_referrers: bool = False,
    ) -> None:
        super().__init__(store, leases=leases, collector=collector or Collector(store))
        self._views = views
        # To be run in the background.
        self.meter = UsageMeter(store)
        self._puller = Puller(store, soci_referrers=soci_referrers)
        self._puller.make_room = self._collector.make_room
        self._pulls = _PullTallies()

    @property
    def pulls_under_way(self) -> int:
        """How many pulls have not ended."""
        return len(self._pulls.under_way)

    def statistics(self) -> PullStatistics:
        """What pulls have done and do; from memory."""
        pulls = self._pulls
        received, unpacked = pulls.bytes
        return PullStatistics(
            succeeded=pulls.succeeded,
            failed=pulls.failed,
            cancelled=pulls.cancelled,
            seconds=pulls.seconds.snapshot(),
            received=received,
            unpacked=unpacked,
            under_way=self.pulls_under_way,
            layers=self._puller.queue,
        )

    def call_to_adopt(self, adopt: Callable[[LayerRecord], Awaitable[LayerFault | None]]) -> None:
        """Whom to tell of layers that were lazy and have been pulled as a whole; see `Puller`."""
        self._puller.adopt = adopt

    async def pull(
        self,
        image: str,
        *,
        platform: str | None = None,
        options: PullOptions,
        progress: PullProgress,
        readiness: Readiness = Readiness.STORED,
    ) -> ImageRecord:
        """Makes an image ready in the store, fetching what is missing.

        Args:
            image: A reference, or a local source such as `oci:/directory:tag`.
            platform: For which platform; None: this machine's.
            readiness: How much of it has to be here.

        Raises:
            InvalidReference: `image` is malformed.
            NotFound: The source has no such image.
            NoMatchingPlatform: The image has no variant for the platform.
            ContentError: The image is damaged or hostile; nothing of it is kept.
            RemoteError: The registry failed; complete layers are kept for the next try.
            StoreFull: No room.
        """
        argument = parse_image_argument(image)
        matcher = wanted_platform(platform)
        before = self.catalog.manifests_named(str(argument))
        started = time.perf_counter()
        try:
            with self._pulls.pull(progress):
                async with open_source(
                    argument,
                    _registry_options(options),
                    spool_directory=self._store.spool_directory,
                ) as source:
                    resolved = await resolve_image(source, matcher, must_match=platform is not None)
                    progress.stats["resolve_seconds"] = time.perf_counter() - started
                    # Local bytes are at hand: tables of contents would gain nothing.
                    is_remote = isinstance(argument, RegistryImage)
                    is_lazy = is_remote and readiness is Readiness.LAZY
                    async with self._leases.pull(resolved.manifest.digest, resolved.digests):
                        record = await self._puller.pull(
                            source,
                            resolved,
                            str(argument),
                            progress,
                            _origin(str(argument), options) if is_lazy else None,
                            in_place=not is_remote and readiness is not Readiness.STORED,
                        )
        except ImgvolError as exc:
            if not isinstance(exc, RemoteError):
                await self._collector.collect()
            raise
        # The name may have meant another image until now, which then has no name.
        if before - {record.manifest}:
            await self._collector.collect()
        _sum_up(progress, time.perf_counter() - started)
        return record

    async def collect(self) -> CollectionReport:
        """Removes what nobody needs."""
        return await self._collector.collect()

    async def explain_collection(self) -> tuple[Fate, ...]:
        """What collecting would keep, and why, and what it would remove."""
        return await self._collector.explain()

    def open_view(self, image: ImageRecord) -> AbstractAsyncContextManager[OpenView]:
        """Holds an image's merged tree open inside the block."""
        return self._views.hold(image)

    def filesystem_usage(self) -> Sequence[FilesystemUsage]:
        """What the store takes of its filesystem, when it was measured last; from memory."""
        return self.meter.filesystem_usage()

    async def usage(self) -> StoreUsage:
        """Sizes of what is stored."""
        return await self._store.usage()


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


def _sum_up(progress: PullProgress, seconds: float) -> None:
    """Fills in the totals of a finished pull."""
    stats = progress.stats
    stats["total_seconds"] = seconds
    stats["received_bytes"] = sum(layer.received for layer in progress.layers)
    stats["unpacked_bytes"] = sum(layer.unpacked for layer in progress.layers)
    stats["entries"] = sum(layer.entries for layer in progress.layers)
    for layer in progress.layers:
        for stage, spent in layer.seconds.items():
            key = f"{stage}_seconds"
            stats[key] = stats.get(key, 0.0) + spent
    progress.stage = "done"
