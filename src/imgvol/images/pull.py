"""Pulls one image: documents first, then its layers side by side, then the record.

The name comes last. Whatever is already in the store is not fetched again. A layer that two pulls
want at once is fetched by one of them; the other waits and finds it. A pull that is cancelled or
fails leaves no name; layers that it completed stay only when trying again makes sense (see
`ImageService.pull`).
"""

import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Protocol

import trio

from imgvol.config import PINNED_ONLY, LazyTrust
from imgvol.content.reachability import Root, RootKind, Thing, ThingKind
from imgvol.content.records import ImageRecord, LayerFault, LayerRecord, Origin
from imgvol.content.store import Store
from imgvol.errors import ImgvolError, StoreFull
from imgvol.images.artifact_reader import ArtifactReader
from imgvol.images.finding import FoundLayer, LazyFinder, NotLazy, open_finder
from imgvol.images.in_place import InPlaceIngest
from imgvol.images.ingest import IngestWatcher, LayerIngest, LayerProgress
from imgvol.images.resolve import ResolvedImage
from imgvol.images.twins import Twins
from imgvol.layers.artifact import Artifact
from imgvol.layers.compression import Compression
from imgvol.layers.index import LayerIndex
from imgvol.oci.chain import chain_id
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import DiffID
from imgvol.oci.media_types import layer_compression
from imgvol.sources.base import ImageSource
from imgvol.tallies import QueueLength
from imgvol.threads import run_cancellable

# Two threads each: enough to fill the cores, and to overlap one layer's disk with another's
# network.
LAYERS_AT_ONCE: Final = max(2, min(4, os.cpu_count() or 2))


@dataclass(slots=True)
class _Account:
    stage: str = "resolving"
    layers: list[LayerProgress] = field(default_factory=list)
    stats: dict[str, float | int] = field(default_factory=dict)


class PullStream(Protocol):
    """Shows an image while it is pulled; see `images.streams`."""

    def watch(self, position: int, progress: LayerProgress) -> IngestWatcher:
        """Who follows a layer that is pulled as a whole."""

    async def take(self, position: int, record: LayerRecord) -> None:
        """A layer is here; raises InvalidLayer if it is not what was shown of it."""


class PullProgress:
    """How far a pull is; a plain object that the pull changes and others read."""

    def __init__(self) -> None:
        self._account = _Account()

    def follow(self, other: "PullProgress") -> None:
        """Shows what another one shows, from now on."""
        self._account = other._account  # noqa: SLF001 - one of us

    @property
    def stage(self) -> str:
        """What is being done: "resolving", "pulling" or "done"."""
        return self._account.stage

    @stage.setter
    def stage(self, stage: str) -> None:
        self._account.stage = stage

    @property
    def layers(self) -> list[LayerProgress]:
        """Bottom first; empty until the manifest is known."""
        return self._account.layers

    @layers.setter
    def layers(self, layers: list[LayerProgress]) -> None:
        self._account.layers = layers

    @property
    def stats(self) -> dict[str, float | int]:
        """Seconds and bytes of each stage, filled as the pull goes."""
        return self._account.stats


@dataclass(frozen=True, slots=True, kw_only=True)
class _Laziness:
    """What a pull may leave for later, or where it is.

    Attributes:
        finder: Finds the tables of contents of layers; None: they are not wanted.
        in_place: Whether uncompressed layers in files of this machine may stay where they are.
        twins: Finds layers that are here under other blobs' digests; None: every blob is read.
        stream: Shows the image meanwhile; None: nobody sees it before it is here.
    """

    finder: LazyFinder | None
    in_place: bool
    twins: Twins | None = None
    stream: PullStream | None = None

    @property
    def is_any(self) -> bool:
        """Whether not all layers have to be in the store in the end."""
        return self.in_place or self.finder is not None


class Puller:
    """Brings images into the store. One per daemon.

    Args:
        store: Where they go.
        trust: What layers may be read by before they are here, beside what is pinned.
        layers_at_once: How many layers are received and unpacked at once, of all images.
    """

    def __init__(
        self,
        store: Store,
        *,
        trust: LazyTrust = PINNED_ONLY,
        layers_at_once: int = LAYERS_AT_ONCE,
    ) -> None:
        self._store = store
        self._trust = trust
        self._layers_at_once = layers_at_once
        self._limiter = trio.CapacityLimiter(layers_at_once)
        # Layers that were here under other digests, and their bytes, since the daemon started.
        self.shared_layers = self.shared_bytes = 0
        # Asked, before a layer that was lazy is recorded as complete, whether what was shown of it
        # meanwhile was right; serves open views from the complete form, if so.
        self.adopt: Callable[[LayerRecord], Awaitable[LayerFault | None]] = _nothing_to_do
        # Called when there is no room, before what failed is tried once more.
        self.make_room: Callable[[], Awaitable[None]] = _make_no_room

    @property
    def queue(self) -> QueueLength:
        """Layers that are being pulled, and those waiting for their turn."""
        limiter = self._limiter.statistics()
        return QueueLength(limiter.borrowed_tokens, limiter.tasks_waiting)

    async def pull(
        self,
        source: ImageSource,
        resolved: ResolvedImage,
        name: str,
        progress: PullProgress,
        lazy_origin: Origin | None = None,
        in_place: bool = False,
        stream: PullStream | None = None,
    ) -> ImageRecord:
        """Fetches what is missing and records the image; the name comes last.

        Args:
            source: Where the image is.
            resolved: Its documents.
            name: What it is called from now on.
            progress: Told how far the pull is.
            lazy_origin: Where the rest of lazy layers can be fetched later; None: every layer is
                pulled as a whole.
            in_place: Whether uncompressed layers in files of this machine may stay where they are.
            stream: Shows the image meanwhile; None: nobody does. Upper layers come first then.

        Raises:
            ImgvolError: The first failure of any layer; the others have then been cancelled.
        """
        manifest = resolved.manifest
        root = Root(RootKind.PULL, name)
        is_new = self._store.images.get(manifest.digest) is None
        with (
            self._store.pins.holding(root, things_of(resolved)),
            Twins(self._store, root) as twins,
        ):
            finder = None
            # Without a diff ID nothing could tell, later, whether the layer was right.
            if lazy_origin is not None and resolved.diff_ids:
                finder = await open_finder(
                    source, manifest, lazy_origin, self._limiter, self._trust
                )
            laziness = _Laziness(finder=finder, in_place=in_place, twins=twins, stream=stream)
            try:
                image = await self._bring(source, resolved, name, progress, laziness)
            except StoreFull:
                if stream is not None:
                    raise  # what it has shown has gone
                await self.make_room()
                image = await self._bring(source, resolved, name, progress, laziness)
            if is_new:
                self.shared_layers += twins.count
                self.shared_bytes += twins.size
                await twins.note()
            return image

    async def _bring(
        self,
        source: ImageSource,
        resolved: ResolvedImage,
        name: str,
        progress: PullProgress,
        laziness: _Laziness,
    ) -> ImageRecord:
        progress.layers = [
            LayerProgress(digest=str(layer.digest), size=layer.size) for layer in resolved.layers
        ]
        progress.stage = "pulling"
        image = await self._obtain(source, resolved, progress.layers, laziness)
        async with self._store.naming:
            for digest, raw in resolved.documents:
                await self._store.put_blob(digest, raw)
            return await self._store.records.add_image(image, name, resolved.target)

    async def obtain(
        self,
        source: ImageSource,
        resolved: ResolvedImage,
        progress: Sequence[LayerProgress],
        *,
        in_place: bool,
    ) -> ImageRecord:
        """Brings the layers of an image into the store, and no more.

        Whoever calls holds `things_of` the image, and records it.

        Args:
            source: Where the image is.
            resolved: Its documents.
            progress: Of its layers, bottom first.
            in_place: Whether uncompressed layers in files of this machine may stay where they are.

        Raises:
            ImgvolError: The first failure of any layer; the others have then been cancelled.
        """
        laziness = _Laziness(finder=None, in_place=in_place)
        try:
            return await self._obtain(source, resolved, progress, laziness)
        except StoreFull:
            await self.make_room()
        return await self._obtain(source, resolved, progress, laziness)

    async def _obtain(
        self,
        source: ImageSource,
        resolved: ResolvedImage,
        progress: Sequence[LayerProgress],
        laziness: _Laziness,
    ) -> ImageRecord:
        manifest = resolved.manifest
        layers = await self._ensure_layers(source, resolved, progress, laziness)
        return ImageRecord(
            id=resolved.id,
            manifest=manifest.digest,
            media_type=manifest.media_type,
            platform=resolved.platform,
            chain_id=chain_id(resolved.diff_ids or [layer.diff_id for layer in layers]),
            layers=tuple(layers),
            size=resolved.size,
            created=resolved.content.created or None,
            user=resolved.user,
            pulled_at=time.time(),
        )

    async def _ensure_layers(
        self,
        source: ImageSource,
        resolved: ResolvedImage,
        progress: Sequence[LayerProgress],
        laziness: _Laziness,
    ) -> list[LayerRecord]:
        records: dict[int, LayerRecord] = {}
        failures: list[ImgvolError] = []

        async def ensure(position: int) -> None:
            try:
                records[position] = await self._ensure_layer(
                    source,
                    resolved.layers[position],
                    resolved.diff_ids[position] if resolved.diff_ids else None,
                    progress[position],
                    laziness,
                    resolved.artifact,
                    position,
                )
                if laziness.stream is not None:
                    await laziness.stream.take(position, records[position])
            except ImgvolError as exc:
                failures.append(exc.anew())
                nursery.cancel_scope.cancel()

        async def ensure_some(positions: Iterator[int]) -> None:
            for position in positions:
                await ensure(position)

        count = len(resolved.layers)
        async with trio.open_nursery() as nursery:
            if laziness.stream is None:
                for position in range(count):
                    nursery.start_soon(ensure, position)
            else:
                # What is below a layer is not seen before the layer has ended.
                from_the_top = reversed(range(count))
                for _ in range(self._layers_at_once):
                    nursery.start_soon(ensure_some, from_the_top)
        if failures:
            raise failures[0].anew()
        return [records[position] for position in sorted(records)]

    async def _ensure_layer(
        self,
        source: ImageSource,
        descriptor: Descriptor,
        diff_id: DiffID | None,
        progress: LayerProgress,
        laziness: _Laziness,
        artifact: Artifact | None,
        position: int,
    ) -> LayerRecord:
        async with self._store.layer_lock(descriptor.digest):
            stored = await self._store.records.layer(descriptor.digest)
            if (
                stored is not None
                and diff_id in {None, stored.diff_id}
                and await self._is_enough(stored, descriptor, laziness)
            ):
                progress.state = "exists"
                return stored
            if artifact is not None:
                ingest = self._artifact_ingest(source, artifact, progress)
                return await self._run(ingest, stored)
            if laziness.twins is not None and stored is None and diff_id is not None:
                twin = await laziness.twins.find(descriptor, diff_id)
                if twin is not None:
                    progress.state = "exists"
                    return twin
            obstacle = ""
            if laziness.finder is not None and stored is None and diff_id is not None:
                lazy = await self._try_lazy(laziness.finder, descriptor, diff_id)
                if isinstance(lazy, LayerRecord):
                    progress.state = "lazy"
                    return lazy
                obstacle = lazy.reason
            # A type that says "plain" is no promise: real images have gzip under it. The bytes
            # tell, and the diff ID is checked in any case.
            compression = layer_compression(descriptor.media_type)
            may_stay = laziness.in_place and (stored is None or stored.is_in_place)
            if may_stay and not compression and diff_id is not None:
                placed = await self._try_in_place(source, descriptor, diff_id, progress)
                if placed is not None:
                    return placed
            ingest = LayerIngest(
                open_blob=partial(source.open_blob, descriptor),
                store=self._store,
                descriptor=descriptor,
                compression=Compression(compression) if compression else None,
                diff_id=diff_id,
                progress=progress,
                twin=await self._store.records.stored_layer(diff_id) if diff_id else None,
                watcher=laziness.stream.watch(position, progress) if laziness.stream else None,
            )
            return await self._run(ingest, stored, obstacle)

    def _artifact_ingest(
        self, source: ImageSource, artifact: Artifact, progress: LayerProgress
    ) -> LayerIngest:
        return LayerIngest(
            open_blob=lambda: ArtifactReader(artifact, source.open_blob),
            store=self._store,
            descriptor=artifact.layer,
            compression=Compression.NONE,
            diff_id=None,
            progress=progress,
            is_verified=True,
        )

    async def _run(
        self, ingest: LayerIngest, stored: LayerRecord | None, obstacle: str = ""
    ) -> LayerRecord:
        """Pulls a layer and records it, in the place of what was known of it."""
        record = await run_cancellable(ingest.run, ingest.cancel, limiter=self._limiter)
        record = replace(record, obstacle=obstacle)
        if stored is None or stored.is_stored:
            return await self._store.records.add_layer(record)
        if not stored.is_complete:
            record = replace(record, fault=await self.adopt(record))
        return await self._store.complete_layer(record)

    async def _is_enough(
        self, stored: LayerRecord, descriptor: Descriptor, laziness: _Laziness
    ) -> bool:
        """Whether a layer can stay as the store has it."""
        if stored.is_refused or stored.is_damaged:
            return False
        if stored.is_in_place:
            return laziness.is_any and await self._store.is_intact(stored)
        if stored.is_complete or laziness.finder is None:
            return stored.is_complete
        # Until it is proven, a lazy layer is what some image, of whatever repository, has claimed:
        # this one has to claim the very same of it.
        found = await laziness.finder.find(descriptor)
        return isinstance(found, FoundLayer) and await self._store.has_lazy_layer(
            stored.digest, found.layer
        )

    async def _try_lazy(
        self, finder: LazyFinder, descriptor: Descriptor, diff_id: DiffID
    ) -> LayerRecord | NotLazy:
        """Makes a layer known by its table of contents, if it has one."""
        found = await finder.find(descriptor)
        if isinstance(found, NotLazy):
            return found
        index = await trio.to_thread.run_sync(LayerIndex, found.layer.index, limiter=self._limiter)
        record = LayerRecord(
            digest=descriptor.digest,
            diff_id=diff_id,
            media_type=descriptor.media_type,
            size=descriptor.size,
            unpacked_size=index.file_bytes,
            entries=index.entry_count,
            format=found.format,
            is_complete=False,
        )
        return await self._store.add_lazy_layer(record, found.layer, finder.origin)

    async def _try_in_place(
        self,
        source: ImageSource,
        descriptor: Descriptor,
        diff_id: DiffID,
        progress: LayerProgress,
    ) -> LayerRecord | None:
        """Verifies a layer where it lies, if it is an uncompressed tar in a file."""
        ingest = InPlaceIngest(
            source=source, descriptor=descriptor, diff_id=diff_id, progress=progress
        )
        found = await run_cancellable(ingest.run, ingest.cancel, limiter=self._limiter)
        if found is None:
            return None
        return await self._store.add_in_place_layer(found.record, found.place, found.index)


def things_of(resolved: ResolvedImage) -> list[Thing]:
    """What of an image may be complete, but not yet part of an image that is recorded."""
    layers = [Thing(ThingKind.LAYER, layer.digest) for layer in resolved.layers]
    return [*layers, Thing(ThingKind.IMAGE, resolved.manifest.digest)]


def sum_up(progress: PullProgress, seconds: float) -> None:
    """Fills in the totals of a pull that has ended well."""
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


async def _nothing_to_do(_record: LayerRecord) -> None:
    """For stores without open lazy layers: nothing was shown."""


async def _make_no_room() -> None:
    """For stores without a collector."""
