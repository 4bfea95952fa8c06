"""Lazy layers from end to end: recognised, attached to their source, completed in the background.

A layer is made lazy only by a table of contents that the manifest pins. What is wrong with one
makes the layer an ordinary one, which is pulled as a whole, with one exception: annotations that
name two tables of contents are refused, because somebody means to show different readers different
files.

Once attached, a layer has one task that looks after it until its last view closes: it fetches what
the image's maker wants first, then, while readers are quiet, everything else; makes present spans
durable every few seconds; and at the end sends the whole blob through the same pipeline as any
pulled layer. Only that proves the blob's digest and the diff ID. The tar's files are then compared,
one by one, with what the table of contents had promised. A layer that fails this is condemned: its
readers get errors from then on, and the store remembers why, so that nobody is shown it again. If
only the table of contents lied, the next mount shows the tar; it has another slot, because the
kernel still knows other files under the old one.
"""

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Self

import trio

from imgvol import limits
from imgvol.content.layer_store import LayerStore
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.records import FaultKind, LayerFault, LayerRecord, Origin
from imgvol.content.store import Store
from imgvol.errors import (
    ContentError,
    DigestMismatch,
    ImgvolError,
    InvalidLayer,
    NotFound,
    StoreDamaged,
)
from imgvol.images.comparison import first_difference
from imgvol.images.fetching import FetchEngine, LayerFetcher, Purpose
from imgvol.images.ingest import LayerIngest, LayerProgress
from imgvol.layers.compression import Compression
from imgvol.layers.lazy.estargz import TOC_DIGEST
from imgvol.layers.lazy.locate import Format, NeedTail, TocRange, find_toc, open_layer
from imgvol.layers.lazy.reserved import as_stargz
from imgvol.layers.lazy.soci import SpanRange, open_ztoc
from imgvol.layers.lazy.soci_index import (
    SociIndex,
    SociLayer,
    parse_prefetch,
    parse_soci_index,
    pinned_index,
)
from imgvol.layers.lazy.spans import LazyLayer, SpanTable
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import Manifest
from imgvol.oci.media_types import layer_compression
from imgvol.sources.base import BlobReader, ImageSource
from imgvol.tallies import QueueLength
from imgvol.threads import run_cancellable

log = logging.getLogger(__name__)

# How the formats begin whose tables of contents stargz's tools make, in gzip and in zstd.
STARGZ: Final = Format.ESTARGZ.value


@dataclass(frozen=True, slots=True)
class FoundLayer:
    """A layer that can be read lazily, and the name of its format."""

    format: str
    layer: LazyLayer


class LazyFinder:
    """Finds tables of contents for the layers of one image. Made by `open_finder`.

    Attributes:
        origin: Where the rest of such layers can be fetched later.
    """

    def __init__(
        self,
        source: ImageSource,
        soci: SociIndex | None,
        origin: Origin,
        limiter: trio.CapacityLimiter,
    ) -> None:
        self.origin = origin
        self._source = source
        self._soci = soci
        self._limiter = limiter

    async def find(self, descriptor: Descriptor) -> FoundLayer | None:
        """A layer's table of contents; None when it has to be pulled as a whole.

        Raises:
            InvalidLayer: The manifest names two tables of contents.
            RemoteError: The registry failed.
        """
        need = find_toc(descriptor.annotations, descriptor.size)
        indexed = self._soci.layers.get(descriptor.digest) if self._soci else None
        try:
            if need is not None:
                return await self._find_inside(descriptor, need)
            if indexed is not None:
                return await self._find_indexed(descriptor, indexed)
        except (ContentError, NotFound) as exc:
            log.info("layer %s is not read lazily: %s", descriptor.digest, exc)
        return None

    async def _find_inside(
        self, descriptor: Descriptor, need: NeedTail | TocRange
    ) -> FoundLayer | None:
        fetch = _BlobFetch(self._source, descriptor)
        tail = b""
        if isinstance(need, NeedTail):
            tail = await fetch.fetch(descriptor.size - need.size, descriptor.size, self._limiter)
            found = find_toc(descriptor.annotations, descriptor.size, tail)
        else:
            found = need
        if not isinstance(found, TocRange):
            return None
        kept_from = descriptor.size - len(tail)
        if found.start >= kept_from:
            data = tail[found.start - kept_from : found.end - kept_from]
        else:
            data = await fetch.fetch(found.start, found.end, self._limiter)
        layer = await trio.to_thread.run_sync(open_layer, found, data, limiter=self._limiter)
        if TOC_DIGEST not in descriptor.annotations:
            return FoundLayer(found.format.value, layer)
        kind = "" if found.format is Format.ESTARGZ else f" ({found.format.value})"
        return FoundLayer(f"{STARGZ}{kind}", layer)

    async def _find_indexed(self, descriptor: Descriptor, indexed: SociLayer) -> FoundLayer:
        ztoc = await self._source.read_document(indexed.ztoc, max_size=limits.ZTOC_SIZE)
        prefetch: tuple[SpanRange, ...] = ()
        if indexed.prefetch is not None:
            wanted = indexed.prefetch
            raw = await self._source.read_document(wanted, max_size=limits.PREFETCH_SIZE)
            prefetch = parse_prefetch(raw, expected=wanted.digest)

        def read() -> LazyLayer:
            return open_ztoc(
                ztoc,
                expected=indexed.ztoc.digest,
                blob_size=descriptor.size,
                prefetch=prefetch,
            )

        return FoundLayer("SOCI", await trio.to_thread.run_sync(read, limiter=self._limiter))


async def open_finder(
    source: ImageSource, manifest: Manifest, origin: Origin, limiter: trio.CapacityLimiter
) -> LazyFinder:
    """A finder for an image's layers, with the SOCI index that its manifest pins, if it is there.

    A pinned index that is missing or damaged is as if it had not been pinned: registries copy
    images without what belongs to them.
    """
    soci: SociIndex | None = None
    try:
        digest = pinned_index(manifest)
        if digest is not None:
            soci = parse_soci_index(await source.read_pinned_manifest(digest), expected=digest)
    except (ContentError, NotFound) as exc:
        log.info("the SOCI index of %s is not used: %s", manifest.digest, exc)
    return LazyFinder(source, soci, origin, limiter)


class _BlobFetch:
    """Ranges of a blob, whole, in a thread that can be cancelled."""

    def __init__(self, source: ImageSource, descriptor: Descriptor) -> None:
        self._source = source
        self._descriptor = descriptor
        self._reader: BlobReader | None = None
        self._is_cancelled = False

    async def fetch(self, start: int, end: int, limiter: trio.CapacityLimiter) -> bytes:
        """The bytes [start, end)."""

        def receive() -> bytes:
            with self._source.open_blob(self._descriptor, offset=start, end=end) as reader:
                self._reader = reader
                if self._is_cancelled:
                    reader.cancel()
                return b"".join(reader.iter_pieces())

        return await run_cancellable(receive, self._cancel, limiter=limiter)

    def _cancel(self) -> None:
        self._is_cancelled = True
        if self._reader is not None:
            self._reader.cancel()


@dataclass(eq=False, slots=True)
class _Attached:
    layer: LazyLayerStore
    record: LayerRecord
    fetcher: LayerFetcher
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class LazyStatistics:
    """What has become of lazy layers since the daemon started.

    Attributes:
        verified: Completed in the background and found to be what they had promised.
        bad: Found not to be.
        completing: Being verified, and waiting for that.
    """

    verified: int
    bad: int
    completing: QueueLength


class LazyLayers:
    """Looks after the lazy layers of open views. One per daemon."""

    def __init__(self, store: Store, engine: FetchEngine, nursery: trio.Nursery) -> None:
        self._store = store
        self._engine = engine
        self._nursery = nursery
        self._attached: dict[LazyLayerStore, _Attached] = {}
        self._completing = trio.CapacityLimiter(1)
        self._verified = self._bad = 0

    def statistics(self) -> LazyStatistics:
        """What has become of lazy layers; from memory."""
        completing = self._completing.statistics()
        return LazyStatistics(
            verified=self._verified,
            bad=self._bad,
            completing=QueueLength(completing.borrowed_tokens, completing.tasks_waiting),
        )

    async def attach(self, layer: LazyLayerStore, record: LayerRecord) -> None:
        """Gives a layer its fetcher, and begins to complete it.

        Raises:
            StoreDamaged: It is not known any more where the rest of the layer is.
        """
        origin = await self._store.records.origin(record.digest)
        if origin is None:
            raise StoreDamaged(
                "the source of a lazy layer is not known",
                hint="Pull the image again.",
                digest=record.digest,
            )
        descriptor = Descriptor(
            media_type=record.media_type, digest=record.digest, size=record.size
        )
        fetcher = self._engine.attach(layer, descriptor, origin)
        attached = _Attached(layer, record, fetcher)
        self._attached[layer] = attached
        self._nursery.start_soon(self._look_after, attached)

    def detach(self, layer: LazyLayerStore) -> None:
        """The last view of a layer has closed: its task ends, with what is present made durable."""
        attached = self._attached.get(layer)
        if attached is not None:
            attached.scope.cancel()

    def fetcher(self, layer: LazyLayerStore) -> LayerFetcher | None:
        """What brings a layer's spans, for whoever wants to show how far it is."""
        attached = self._attached.get(layer)
        return attached.fetcher if attached else None

    def closing_of(self, digest: Digest) -> trio.Event | None:
        """What to wait for before a layer's directory is opened again; None: for nothing.

        Whoever had it open may still be making durable what was fetched.
        """
        for attached in self._attached.values():
            if attached.record.digest == digest and attached.scope.cancel_called:
                return attached.ended
        return None

    async def adopt(self, record: LayerRecord) -> LayerFault | None:
        """A layer has been pulled as a whole meanwhile: its lazy form is served from there.

        Returns:
            What was wrong with what had been shown of it. That is no failure of the pull: what it
            brought has been verified.
        """
        fault: LayerFault | None = None
        for attached in list(self._attached.values()):
            layer = attached.layer
            is_open = layer.failure is None and not layer.is_complete
            if is_open and layer.digest == record.digest:
                attached.scope.cancel()
                complete = await self._store.open_layer(record)
                lie = await self._find_lie(layer, complete)
                if lie is None:
                    layer.complete(complete)
                else:
                    self._condemn(layer, lie)
                    fault = LayerFault(kind=FaultKind.TOC, reason=str(lie))
        return fault

    async def _look_after(self, attached: _Attached) -> None:
        layer = attached.layer
        try:
            with attached.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._flush_regularly, layer)
                    await self._complete(attached)
                    nursery.cancel_scope.cancel()
        finally:
            # Also when the daemon stops: what is present serves the next one.
            with trio.CancelScope(shield=True):
                await self._flush(layer)
            del self._attached[layer]
            attached.ended.set()

    async def _flush_regularly(self, layer: LazyLayerStore) -> None:
        while True:
            await trio.sleep(limits.FETCH_FLUSH)
            await self._flush(layer)

    async def _flush(self, layer: LazyLayerStore) -> None:
        if layer.is_complete or layer.failure is not None:
            return
        try:
            await trio.to_thread.run_sync(layer.flush)
        except ImgvolError as exc:
            # What is not made durable is fetched again after a crash: no more than that.
            log.warning("layer %s: %s", layer.digest, exc)
        except Exception:  # in the daemon's nursery it would end every view
            log.exception("layer %s is not made durable: a defect", layer.digest)

    async def _complete(self, attached: _Attached) -> None:
        """Fetches the rest and verifies the whole, for as long as it takes."""
        was_told = False
        while True:
            try:
                # A span that arrives damaged says something of the line: it is asked for again.
                await self._fetch_rest(attached)
                await self._verify(attached)
                return
            except ImgvolError as exc:
                if not was_told:
                    log.warning("layer %s waits to be completed: %s", attached.layer.digest, exc)
                was_told = True
                await trio.sleep(limits.FETCH_RETRY)
            except Exception:  # in the daemon's nursery it would end every view
                log.exception("layer %s is not completed: a defect", attached.layer.digest)
                return

    async def _fetch_rest(self, attached: _Attached) -> None:
        layer, fetcher = attached.layer, attached.fetcher
        ranges = layer.table.compressed_range
        if layer.table.prefetch:
            await fetcher.ensure(layer.table.prefetch, purpose=Purpose.PREFETCH)
        for start, end, spans in _windows(layer.table):
            # Looking at what is here takes time, too: filesystem requests come in between.
            await trio.lowlevel.checkpoint()
            while lacking := layer.lacking(start, end, spans):
                await fetcher.wait_quiet()
                first, last = lacking[0]
                within = [
                    span
                    for span in layer.missing(spans)
                    if first <= ranges(span)[0] and ranges(span)[1] <= last
                ]
                await fetcher.fetch_window(first, last, within)

    async def _verify(self, attached: _Attached) -> None:
        layer, record = attached.layer, attached.record
        compression = layer_compression(record.media_type)
        ingest = LayerIngest(
            open_blob=partial(_KeptBlob, layer),
            store=self._store,
            descriptor=attached.fetcher.descriptor,
            compression=Compression(compression) if compression else None,
            diff_id=record.diff_id,
            progress=LayerProgress(digest=str(record.digest), size=record.size),
            adapt=as_stargz if record.format.startswith(STARGZ) else None,
        )
        try:
            verified = await run_cancellable(ingest.run, ingest.cancel, limiter=self._completing)
        except ContentError as exc:
            # If the disk has lost what was fetched, its bytes say nothing of the layer.
            if layer.failure is None:
                self._condemn(layer, exc)
                await self._remember(replace(record, fault=_fault_of(record, exc)))
            return
        # Under this number until now; a layer that is recorded with a fault gets another one.
        verified = replace(verified, slot=record.slot)
        complete = await self._store.open_layer(verified)
        lie = await self._find_lie(layer, complete)
        if lie is not None:
            self._condemn(layer, lie)
            fault = LayerFault(kind=FaultKind.TOC, reason=str(lie))
            await self._remember(replace(verified, fault=fault))
            return
        await self._record(verified)
        layer.complete(complete)
        self._verified += 1

    async def _record(self, layer: LayerRecord) -> None:
        """Records what has become of a layer: complete, or bad, or both."""
        async with self._store.layer_lock(layer.digest):
            stored = await self._store.records.layer(layer.digest)
            # Removed meanwhile, or pulled as a whole: then this is no news.
            if stored is None or stored.slot != layer.slot or stored.is_complete:
                return
            if layer.is_complete:
                await self._store.complete_layer(layer)
            else:
                await self._store.condemn_layer(layer)

    async def _remember(self, bad: LayerRecord) -> None:
        # Whoever has seen the errors may unmount at once, and must not find the same layer again.
        with trio.CancelScope(shield=True):
            try:
                await self._record(bad)
            except ImgvolError as exc:
                log.error("layer %s: the next daemon will not know it is bad: %s", bad.digest, exc)

    def _condemn(self, layer: LazyLayerStore, reason: ContentError) -> None:
        layer.failure = reason
        self._bad += 1
        log.error("layer %s is bad, its readers get errors: %s", layer.digest, reason)

    async def _find_lie(self, layer: LazyLayerStore, complete: LayerStore) -> ContentError | None:
        """What readers have been shown, or can be, and is not in the verified form."""
        stopped = threading.Event()
        difference = await run_cancellable(
            partial(first_difference, layer, complete, stopped),
            stopped.set,
            limiter=self._completing,
        )
        if difference is None:
            return None
        return InvalidLayer(
            "a table of contents does not tell what the layer holds",
            hint="Unmount the image and mount it again: the layer is then served from its tar.",
            layer=layer.digest,
            path=difference,
        )


def _fault_of(record: LayerRecord, reason: ContentError) -> LayerFault:
    if not isinstance(reason, DigestMismatch):
        kind = FaultKind.FORMAT
    elif reason.fields.get("expected") == record.digest:
        kind = FaultKind.BLOB
    else:
        kind = FaultKind.DIFF_ID
    return LayerFault(kind=kind, reason=str(reason))


def _windows(table: SpanTable) -> Iterator[tuple[int, int, list[int]]]:
    """The blob in order, in pieces for the background: start, end, and the spans that end in each.

    What lies between spans goes with the window that it is in, or makes windows of its own if it is
    long: the blob must be whole in the end, and each window is held in memory.
    """
    start = reached = 0
    spans: list[int] = []
    for span in range(table.span_count):
        first, end = table.compressed_range(span)
        while first - start >= limits.FETCH_LARGEST:
            yield start, start + limits.FETCH_LARGEST, spans
            start, spans = start + limits.FETCH_LARGEST, []
        # The first byte may be the last one of the window before.
        start = min(start, first)
        spans.append(span)
        reached = max(reached, end)
        if reached - start >= limits.FETCH_LARGEST:
            yield start, reached, spans
            start, spans = reached, []
    while start < table.blob_size:
        end = min(start + limits.FETCH_LARGEST, table.blob_size)
        yield start, end, spans
        start, spans = end, []


class _KeptBlob:
    """Reads the blob of a lazy layer for the pipeline, once all of it has been fetched."""

    def __init__(self, layer: LazyLayerStore) -> None:
        self._layer = layer
        self._is_cancelled = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def iter_pieces(self) -> Iterator[bytes]:
        """Its bytes, in order."""
        size = self._layer.table.blob_size
        for position in range(0, size, limits.BODY_PIECE):
            if self._is_cancelled:
                raise StoreDamaged("verifying a layer was cancelled", digest=self._layer.digest)
            piece = min(limits.BODY_PIECE, size - position)
            yield self._layer.read_compressed(position, piece)

    def cancel(self) -> None:
        """Ends `iter_pieces`."""
        self._is_cancelled = True

    def close(self) -> None:
        """Nothing to let go of."""
