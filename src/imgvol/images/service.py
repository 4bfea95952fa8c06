"""The image service: what users and the API ask of images. Local answers need no network."""

import re
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from imgvol import limits
from imgvol.config import PINNED_ONLY, LazyTrust
from imgvol.content.records import ImageRecord, LayerFault, LayerRecord, Origin
from imgvol.content.store import Store, StoreUsage
from imgvol.errors import Conflict, ImgvolError, NotFound, RemoteError
from imgvol.images.collection import CollectionReport, Collector, Fate
from imgvol.images.exporting import Exporter
from imgvol.images.importing import Importer
from imgvol.images.leases import Leases
from imgvol.images.pull import Puller, PullProgress, sum_up
from imgvol.images.readiness import Readiness
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.images.views import OpenView, Views
from imgvol.oci.digest import Digest
from imgvol.oci.json import JSONValue, parse_json
from imgvol.oci.platform import Matcher, Platform
from imgvol.registry.hosts import RegistryOptions
from imgvol.sources.open import open_source
from imgvol.sources.parse import RegistryImage, parse_image_argument
from imgvol.tallies import PULL_BOUNDS, Distribution, Histogram, QueueLength

# As many hex digits of an image ID as tools print; fewer are taken for a name.
SHORT_ID: Final = re.compile(r"(?:sha256:)?([0-9a-f]{12,64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """How to reach a registry, for one pull."""

    plain_http: bool = False
    insecure: bool = False
    ca_file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalReport:
    """What a removal did.

    Attributes:
        untagged: Names that are gone.
        deleted: Manifest digests of images that are gone.
        freed: Bytes given back to the disk.
    """

    untagged: tuple[str, ...]
    deleted: tuple[str, ...]
    freed: int


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


class ImageService:
    """Pull, find, list, remove and open images. One per daemon; used on the event loop.

    Args:
        store: Where images are kept.
        views: What is open of them.
        leases: What keeps images alive besides their names.
        collector: Removes what nobody needs; None: one of its own.
        trust: As `Puller` takes it.

    Attributes:
        importer: Imports archives into the same store.
        exporter: Writes archives of what is in it.
    """

    def __init__(
        self,
        store: Store,
        views: Views,
        *,
        leases: Leases,
        collector: Collector | None = None,
        trust: LazyTrust = PINNED_ONLY,
    ) -> None:
        self._store = store
        self._leases = leases
        self._views = views
        self._collector = collector or Collector(store)
        self._puller = Puller(store, trust=trust)
        self._puller.make_room = self._collector.make_room
        self.importer = Importer(store, self._puller, self._collector)
        self.exporter = Exporter(store, self)
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
        named = await self._store.records.images_named(str(argument))
        before = {record.manifest for record, _ in named}
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
        sum_up(progress, time.perf_counter() - started)
        return record

    async def find(self, image: str, *, platform: str | None = None) -> ImageRecord:
        """The local image of a name, an image ID or its first 12 or more digits.

        Raises:
            NotFound: Not in the store.
            Conflict: An abbreviated ID fits several images.
        """
        by_id = await self.find_by_id(image)
        if by_id is not None:
            return by_id
        name = str(parse_image_argument(image))
        matcher = wanted_platform(platform)
        images = [record for record, _ in await self._store.records.images_named(name)]
        fitting = _best(images, matcher)
        if fitting is None and platform is None and len(images) == 1:
            # Pulled for another platform on purpose, and the only one of this name.
            return images[0]
        if fitting is None:
            raise NotFound(
                "image is not in the store",
                hint=f"Pull it first: imgvol pull {image}",
                image=image,
                platform=platform,
            )
        return fitting

    async def find_by_id(self, image: str) -> ImageRecord | None:
        """The local image of an ID or its first 12 or more digits; None when there is none.

        Raises:
            Conflict: An abbreviated ID fits several images.
        """
        match = SHORT_ID.fullmatch(image)
        if match is None:
            return None
        images = [
            record
            for record in await self._store.records.images()
            if record.id.encoded.startswith(match[1])
            or record.manifest.encoded.startswith(match[1])
        ]
        if len({record.manifest for record in images}) > 1:
            raise Conflict(
                "several images have an ID that begins so",
                hint="Give more digits; imgvol images --json shows them all.",
                image=image,
            )
        return images[0] if images else None

    async def is_current(self, image: str, record: ImageRecord) -> bool:
        """Whether what a name was found to mean can be read as it is.

        False: a file that it is read from has changed, and the name has to be asked for again.
        """
        if SHORT_ID.fullmatch(image):
            return True  # no name: there is nobody to ask
        for layer in record.layers:
            if not await self._store.is_intact(layer):
                return False
        return True

    async def list(self) -> list[ImageRecord]:
        """Every complete image, the latest pulled first."""
        return await self._store.records.images()

    async def remove(self, image: str) -> RemovalReport:
        """Removes a name; with an image's last name, or by ID, the image and what only it needed.

        Layers of mounted images stay until they are unmounted.

        Raises:
            NotFound: Not in the store.
            Conflict: The image is mounted, or held by a lease, and this was its last name.
        """
        records = self._store.records
        by_id = await self.find_by_id(image)
        if by_id is not None:
            await self._refuse_in_use([by_id])
            await records.remove_image(by_id.manifest)
            untagged, gone = by_id.names, [by_id]
        else:
            name = str(parse_image_argument(image))
            named = [record for record, _ in await records.images_named(name)]
            if not named:
                raise NotFound("image is not in the store", image=image)
            last = [record for record in named if record.names == (name,)]
            await self._refuse_in_use(last)
            await records.remove_name(name)
            untagged, gone = (name,), last
        for image_record in gone:
            await self._leases.forget_pull(image_record.manifest)
        deleted = tuple(str(record.manifest) for record in gone)
        collected = await self._collector.collect()
        return RemovalReport(untagged=untagged, deleted=deleted, freed=collected.freed)

    async def _refuse_in_use(self, images: Collection[ImageRecord]) -> None:
        manifests = {image.manifest for image in images}
        users = [v for v in await self._store.records.volumes() if v.manifest in manifests]
        if users:
            raise Conflict(
                "image is mounted",
                hint=f"Unmount it first: imgvol unmount {users[0].target or users[0].id}",
                image=users[0].image,
                volumes=len(users),
            )
        leases = await self._leases.holders(manifests)
        if leases:
            raise Conflict(
                "image is held by a lease",
                hint=f"End it first: imgvol lease rm {leases[0]}",
                lease=leases[0],
                leases=len(leases),
            )

    async def documents(self, image: ImageRecord) -> tuple[JSONValue, JSONValue]:
        """An image's manifest and config, as they are stored; no config for an artifact."""
        manifest = await self._document(image.manifest, "manifest", limits.MANIFEST_SIZE)
        if image.is_artifact:
            return manifest, None
        return manifest, await self._document(image.id, "config", limits.CONFIG_SIZE)

    async def _document(self, digest: Digest, what: str, max_size: int) -> JSONValue:
        raw = await self._store.read_blob(digest)
        # The largest one allowed takes 0.2 s, in which no view would answer.
        return await trio.to_thread.run_sync(partial(parse_json, raw, what=what, max_size=max_size))

    async def collect(self) -> CollectionReport:
        """Removes what nobody needs."""
        return await self._collector.collect()

    async def explain_collection(self) -> tuple[Fate, ...]:
        """What collecting would keep, and why, and what it would remove."""
        return await self._collector.explain()

    def open_view(self, image: ImageRecord) -> AbstractAsyncContextManager[OpenView]:
        """Holds an image's merged tree open inside the block."""
        return self._views.hold(image)

    async def usage(self) -> StoreUsage:
        """Sizes of what is stored."""
        return await self._store.usage()


def _best(images: Collection[ImageRecord], matcher: Matcher) -> ImageRecord | None:
    ranked = [
        (rank, index, image)
        for index, image in enumerate(images)
        if (rank := _rank(image, matcher)) is not None
    ]
    return min(ranked)[2] if ranked else None


def _rank(image: ImageRecord, matcher: Matcher) -> int | None:
    return 0 if image.is_artifact else matcher.rank(Platform.parse(image.platform))


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
