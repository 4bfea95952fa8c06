"""The image service: what users and the API ask of images. Local answers need no network."""

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from imgvol import limits
from imgvol.content.records import ImageRecord, LayerFault, LayerRecord, Origin
from imgvol.content.records.pins import CONFIG, REBUILD, USER
from imgvol.content.store import Store, StoreUsage
from imgvol.errors import Conflict, ImgvolError, NotFound, RemoteError
from imgvol.images.catalog import ID, Catalog, best_for, choose
from imgvol.images.collection import CollectionReport, Collector, Fate
from imgvol.images.leases import Leases
from imgvol.images.pull import Puller, PullProgress
from imgvol.images.readiness import Readiness
from imgvol.images.resolve import resolve_image, wanted_platform
from imgvol.images.views import OpenView, Views
from imgvol.oci.digest import Digest
from imgvol.oci.json import JSONValue, parse_json
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
        soci_referrers: As `Puller` takes it.

    Attributes:
        catalog: Which images are here, and what they are called.
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
        self._store = store
        self.catalog = Catalog(store.images)
        self._leases = leases
        self._views = views
        self._collector = collector or Collector(store)
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

    async def find(self, image: str, *, platform: str | None = None) -> ImageRecord:
        """The local image of a name, or of an image ID or its first digits: see `Catalog`.

        Also of a manifest's digest, and also one that only a volume or a lease keeps.

        Raises:
            NotFound: Not in the store.
            Conflict: An abbreviated ID fits several images.
        """
        found = self.catalog.search(image, is_listed=False)
        if not found.images and not ID.fullmatch(image):
            parse_image_argument(image)  # says what is wrong with it
        if not found.images or not found.is_name:
            fitting = next(iter(found.images), None)
        elif platform is None:
            fitting = choose(found.images, wanted_platform(None))
        else:
            fitting = best_for(found.images, wanted_platform(platform))
        if fitting is None:
            raise NotFound(
                "image is not in the store",
                hint=f"Pull it first: imgvol pull {image}",
                image=image,
                platform=platform,
            )
        return fitting

    async def find_by_id(self, image: str) -> ImageRecord | None:
        """The local image of an ID or its first digits; None when there is none.

        Raises:
            Conflict: An abbreviated ID fits several images.
        """
        found = self.catalog.search(image, is_listed=False)
        return None if found.is_name else next(iter(found.images), None)

    async def is_current(self, image: str, record: ImageRecord) -> bool:
        """Whether what a name was found to mean can be read as it is.

        False: a file that it is read from has changed, and the name has to be asked for again.
        """
        if ID.fullmatch(image):
            return True  # no name: there is nobody to ask
        for layer in record.layers:
            if not await self._store.is_intact(layer):
                return False
        return True

    async def list(self) -> list[ImageRecord]:
        """Every complete image, the latest pulled first, also those that have lost their names."""
        return self._store.images.latest()

    async def remove(self, image: str) -> RemovalReport:
        """Removes a name; with an image's last name, or by ID, the image and what only it needed.

        Layers of mounted images stay until they are unmounted. The pins on what is removed go
        with it.

        Raises:
            NotFound: Not in the store.
            Conflict: The image is mounted, or held by a lease, and this was its last name.
        """
        async with self._store.naming:
            found = self.catalog.search(image, is_listed=False)
            if found.is_name:
                untagged = self.catalog.names_meant(image)
                await self._refuse_in_use([i for i in found.images if set(i.names) <= {*untagged}])
                await self._store.records.remove_names(untagged)
            elif found.images:
                untagged = tuple(sorted({name for i in found.images for name in i.names}))
                await self._refuse_in_use(found.images)
                for record in found.images:
                    await self._store.records.remove_image(record.manifest)
            else:
                if not ID.fullmatch(image):
                    parse_image_argument(image)  # says what is wrong with it
                raise NotFound("image is not in the store", image=image)
            manifests = [record.manifest for record in found.images]
            gone = [manifest for manifest in manifests if not self._is_wanted(manifest)]
        collected = await self._forget(gone)
        return RemovalReport(
            untagged=untagged, deleted=tuple(map(str, gone)), freed=collected.freed
        )

    async def remove_image(self, text: str) -> RemovalReport:
        """Removes an image with all its names and pins, whatever uses it; not here is fine.

        It is gone from the catalog at once. What volumes and leases hold of it stays until they
        end, and volumes are mounted again after a restart.

        Args:
            text: As `Catalog.resolve` takes it.

        Raises:
            Conflict: The beginning of several image IDs.
        """
        # A pull names its image in here, too: before, or after.
        async with self._store.naming:
            try:
                image = self.catalog.resolve(text)
            except NotFound:
                return RemovalReport(untagged=(), deleted=(), freed=0)
            names = self.catalog.names_of(image)
            await self._store.records.remove_names(names, image.manifests)
        try:
            freed = (await self._forget(image.manifests)).freed
        except ImgvolError as exc:
            log.warning("what %s has left is not collected yet: %s", image.name, exc)
            freed = 0
        return RemovalReport(untagged=names, deleted=tuple(map(str, image.manifests)), freed=freed)

    async def _forget(self, manifests: Collection[Digest]) -> CollectionReport:
        """Collects what images have left that nobody wants any more."""
        for manifest in manifests:
            await self._leases.forget_pull(manifest)
        return await self._collector.collect()

    def _is_wanted(self, manifest: Digest) -> bool:
        """Whether an image has a name or a pin."""
        image = self._store.images.get(manifest)
        return image is not None and (bool(image.names) or image.is_pinned)

    async def pin(self, image: str, *, owner: str = USER) -> ImageRecord:
        """Pins a name, whatever it comes to mean, or, by ID, an image.

        Raises:
            NotFound: Not in the store.
            Conflict: An abbreviated ID fits several images.
        """
        async with self._store.naming:
            record = await self.find(image)
            found = self.catalog.search(image, is_listed=False)
            manifests = [str(other.manifest) for other in found.images]
            subjects = self.catalog.names_meant(image) if found.is_name else manifests
            await self._store.records.pin(subjects, owner)
        return self._store.images.get(record.manifest) or record

    async def unpin(self, image: str) -> ImageRecord:
        """Ends what users have pinned of an image, by whatever name; what a rebuild has, too.

        What the configuration pins stays pinned.

        Raises:
            NotFound: Not in the store.
            Conflict: An abbreviated ID fits several images.
        """
        async with self._store.naming:
            record = await self.find(image)
            found = self.catalog.search(image, is_listed=False)
            subjects = {str(other.manifest) for other in found.images}
            subjects |= {name for other in found.images for name in other.names}
            for owner in (USER, REBUILD):
                await self._store.records.unpin(subjects, owner)
        return self._store.images.get(record.manifest) or record

    async def pin_configured(self, images: Collection[str]) -> None:
        """Makes these names, here or not yet, all that the configuration pins.

        Raises:
            InvalidReference: One is no name.
        """
        names = [str(parse_image_argument(image)) for image in images]
        await self._store.records.pin_only(names, CONFIG)

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
