"""The life of lazy layers: attached to their source, completed in the background, verified.

Which layers are lazy, `finding` decides. Once attached, a layer has one task that looks after it
until its last view closes: it fetches what the image's maker wants first, then, while readers are
quiet, everything else; makes present spans durable every few seconds; and at the end sends the
whole blob through the same pipeline as any pulled layer, unless content was copied from other
layers (`fetch.copies`) and the blob is not whole. Only that proves the blob's digest and the
diff ID. The tar's files are then compared, one by one, with what the table of contents had
promised. Where the store must stay within a size, all this happens where the layer lies
(`proving`), and it stays lazy until its last view closes, so that parts of it can still be given
back. A layer that fails this is condemned: its readers get errors from then on, and the store
remembers why, so that nobody is shown it again. If only the table of contents lied, the next mount
shows the tar; it has another slot, because the kernel still knows other files under the old one.
"""

import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import trio

from imgvol import limits
from imgvol.config import PINNED_ONLY, LazyTrust
from imgvol.content.layer_store import LayerStore
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.reachability import Root, RootKind, Thing, ThingKind
from imgvol.content.records import FaultKind, LayerFault, LayerRecord
from imgvol.content.store import Store
from imgvol.errors import (
    ContentError,
    DigestMismatch,
    ImgvolError,
    InvalidLayer,
    LocalError,
    RemoteError,
    StoreDamaged,
    Unsupported,
)
from imgvol.images.comparison import first_difference
from imgvol.images.fetch.engine import FetchEngine
from imgvol.images.fetch.layer import LayerFetcher
from imgvol.images.fetch.rest import fetch_rest
from imgvol.images.ingest import LayerIngest, LayerProgress
from imgvol.images.proving import InPlaceProof
from imgvol.images.service import ImageService
from imgvol.images.views import Views
from imgvol.layers.compression import Compression
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.media_types import layer_compression
from imgvol.sources.base import BlobReader
from imgvol.tallies import QueueLength
from imgvol.threads import run_cancellable

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Attached:
    layer: LazyLayerStore
    record: LayerRecord
    fetcher: LayerFetcher
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    finishing: trio.CancelScope = field(default_factory=trio.CancelScope)
    is_closed: bool = False
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

    def __init__(
        self,
        store: Store,
        engine: FetchEngine,
        nursery: trio.Nursery,
        trust: LazyTrust = PINNED_ONLY,
    ) -> None:
        self._store = store
        self._trust = trust
        self._engine = engine
        self._nursery = nursery
        self._attached: dict[LazyLayerStore, _Attached] = {}
        self._completing = trio.CapacityLimiter(1)
        self._verified = self._bad = 0
        # What could not be written, and was told.
        self._not_durable: set[LazyLayerStore] = set()
        # Called with each layer whose readers get errors from then on.
        self.on_condemned: Callable[[LazyLayerStore], None] = lambda _layer: None

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
            Unsupported: It is from a time when the operator trusted more.
        """
        if not layer.table.is_pinned and not self._trust.missing_digests:
            raise Unsupported(
                "no digests cover the content of a lazy layer",
                hint="Pull the image again, which checks it as a whole, "
                "or run the daemon with --missing-digests.",
                digest=record.digest,
            )
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
        layer.fetcher = None  # they would keep each other, and all files of the layer
        attached = self._attached.get(layer)
        if attached is not None:
            attached.is_closed = True
            attached.scope.cancel()

    def attached(self) -> list[tuple[LazyLayerStore, LayerRecord]]:
        """The lazy layers of open views."""
        return [(each.layer, each.record) for each in self._attached.values()]

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
                # Somebody uses it again: its final form can wait.
                attached.finishing.cancel()
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
                attached.finishing.cancel()
                complete = await self._store.open_layer(record)
                with layer.reclaimer.paused():
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
            if attached.is_closed:
                await self._finish(attached)
        finally:
            # Also when the daemon stops: what is present serves the next one.
            with trio.CancelScope(shield=True):
                await self._flush(layer)
            if self._engine.copies is not None:
                self._engine.copies.forget(layer)
            del self._attached[layer]
            self._not_durable.discard(layer)
            attached.ended.set()

    async def _flush_regularly(self, layer: LazyLayerStore) -> None:
        while True:
            await trio.sleep(limits.FETCH_FLUSH)
            await self._flush(layer)

    async def _flush(self, layer: LazyLayerStore) -> None:
        if layer.is_complete or layer.failure is not None:
            return
        try:
            await trio.to_thread.run_sync(layer.intake.flush)
            self._not_durable.discard(layer)
        except ImgvolError as exc:
            # What is not made durable is fetched again after a crash: no more than that.
            if layer not in self._not_durable:
                log.warning("layer %s: %s", layer.digest, exc)
            self._not_durable.add(layer)
        except Exception:  # in the daemon's nursery it would end every view
            log.exception("layer %s is not made durable: a defect", layer.digest)

    async def _complete(self, attached: _Attached) -> None:
        """Fetches the rest and verifies the whole, for as long as it takes."""
        was_told = False
        layer = attached.layer
        while True:
            if attached.layer.stays_lazy:
                await trio.sleep_forever()
            try:
                if self._engine.copies is not None:
                    await self._engine.copies.fill(layer, self._engine.wait_room)
                # A span that arrives damaged says something of the line: it is asked for again.
                await fetch_rest(layer, attached.fetcher)
                stays = self._store.space.limits.is_any and layer.table.is_pinned
                if layer.forgoes_proof or (stays and layer.is_proven):
                    # As it is until a pull brings it whole, or its last view closes.
                    await trio.sleep_forever()
                if stays:
                    is_verified = await self._prove(attached)
                else:
                    await self._engine.wait_room(attached.record.unpacked_size)
                    is_verified = await self._verify(attached)
                if is_verified and not layer.is_proven:
                    return  # complete, or bad
            except ImgvolError as exc:
                # What the registry does is told by whoever fetches.
                if not (was_told or isinstance(exc, RemoteError)):
                    log.warning("layer %s waits to be completed: %s", layer.digest, exc)
                was_told = True
                if not attached.layer.stays_lazy:
                    await attached.fetcher.wait_recovered(limits.FETCH_RETRY)
            except Exception:  # in the daemon's nursery it would end every view
                log.exception("layer %s is not completed: a defect", layer.digest)
                return

    async def _verify(self, attached: _Attached) -> bool:
        """Verifies the whole; False: not all of it is here any more."""
        layer = attached.layer
        with layer.reclaimer.paused():
            # Asked after it has been paused: spans that were being given back are missing by now.
            if not layer.has_blob:
                return False
            await self._verify_whole(attached)
            return True

    async def _prove(self, attached: _Attached) -> bool:
        """Verifies the whole where it lies, which stays lazy; False: not all of it is here."""
        layer = attached.layer
        # Paused no longer than need be: not while it waits for its turn.
        async with self._completing:
            with layer.reclaimer.paused():
                if not layer.has_blob:
                    return False
                proof = InPlaceProof(layer, attached.record)
                try:
                    difference = await run_cancellable(
                        proof.run, proof.cancel, limiter=trio.CapacityLimiter(1)
                    )
                except ContentError as exc:
                    await self._condemn_whole(attached, exc)
                    return True
                if difference is None:
                    await self._note_proof(attached)
                    return True
        await self._keep_tar(attached, _lie(layer, difference))
        return True

    async def _note_proof(self, attached: _Attached) -> None:
        layer, record = attached.layer, attached.record
        async with self._store.layer_lock(record.digest):
            stored = await self._store.records.layer(record.digest)
            if stored is None or stored.slot != record.slot or stored.is_complete:
                return  # removed meanwhile, or pulled as a whole: then this is no news
            await trio.to_thread.run_sync(layer.prove, record.diff_id)
        self._verified += 1

    async def _keep_tar(self, attached: _Attached, lie: ContentError) -> None:
        """A table of contents has lied: what the next mount shows is the tar, if there is room."""
        try:
            if await self._verify(attached):
                return
        except LocalError as exc:
            log.warning("layer %s: its tar is not kept: %s", attached.record.digest, exc)
        self._condemn(attached.layer, lie)
        fault = LayerFault(kind=FaultKind.TOC, reason=str(lie))
        await self._remember(attached.layer, replace(attached.record, fault=fault))

    async def _finish(self, attached: _Attached) -> None:
        """Gives a proven layer that nobody uses any more its final form, if there is room."""
        layer, record = attached.layer, attached.record
        is_open = layer.failure is None and not layer.is_complete
        if not (layer.is_proven and is_open and self._store.space.has_room(record.unpacked_size)):
            return
        root = Root(RootKind.COMPLETION, str(record.digest))
        # Held first, looked for second: what has gone meanwhile must not come again.
        things = [Thing(ThingKind.LAYER, record.digest)]
        with attached.finishing, self._store.pins.holding(root, things):
            try:
                await self._flush(layer)
                if await self._store.records.layer(record.digest) is not None:
                    await self._verify(attached)
            except ImgvolError as exc:
                log.warning("layer %s stays as it is: %s", record.digest, exc)
            except Exception:  # in the daemon's nursery it would end every view
                log.exception("layer %s is not completed: a defect", record.digest)

    async def _verify_whole(self, attached: _Attached) -> None:
        layer, record = attached.layer, attached.record
        compression = layer_compression(record.media_type)
        ingest = LayerIngest(
            open_blob=partial(_KeptReader, layer),
            store=self._store,
            descriptor=attached.fetcher.descriptor,
            compression=Compression(compression) if compression else None,
            diff_id=record.diff_id,
            progress=LayerProgress(digest=str(record.digest), size=record.size),
            twin=await self._store.records.stored_layer(record.diff_id),
        )
        try:
            verified = await run_cancellable(ingest.run, ingest.cancel, limiter=self._completing)
        except ContentError as exc:
            await self._condemn_whole(attached, exc)
            return
        # Under this number until now; a layer that is recorded with a fault gets another one.
        verified = replace(verified, slot=record.slot)
        complete = await self._store.open_layer(verified)
        lie = await self._find_lie(layer, complete)
        if lie is not None:
            self._condemn(layer, lie)
            fault = LayerFault(kind=FaultKind.TOC, reason=str(lie))
            await self._remember(layer, replace(verified, fault=fault))
            return
        await self._record(verified)
        layer.complete(complete)
        self._verified += 1

    async def _condemn_whole(self, attached: _Attached, reason: ContentError) -> None:
        layer, record = attached.layer, attached.record
        # If the disk has lost what was fetched, its bytes say nothing of the layer.
        if layer.failure is None:
            self._condemn(layer, reason)
            await self._remember(layer, replace(record, fault=_fault_of(record, reason)))

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

    async def _remember(self, layer: LazyLayerStore, bad: LayerRecord) -> None:
        # Whoever has seen the errors may unmount at once, and must not find the same layer again.
        with trio.CancelScope(shield=True):
            # A map that is just being saved would be there again after it has been removed.
            await trio.to_thread.run_sync(layer.intake.close)
            try:
                await self._record(bad)
            except ImgvolError as exc:
                log.error("layer %s: the next daemon will not know it is bad: %s", bad.digest, exc)

    def _condemn(self, layer: LazyLayerStore, reason: ContentError) -> None:
        layer.failure = reason.anew()
        self._bad += 1
        log.error("layer %s is bad, its readers get errors: %s", layer.digest, reason)
        self.on_condemned(layer)

    async def _find_lie(self, layer: LazyLayerStore, complete: LayerStore) -> ContentError | None:
        """What readers have been shown, or can be, and is not in the verified form."""
        stopped = threading.Event()
        difference = await run_cancellable(
            partial(first_difference, layer, complete, stopped),
            stopped.set,
            limiter=self._completing,
        )
        return None if difference is None else _lie(layer, difference)


def _lie(layer: LazyLayerStore, path: bytes) -> InvalidLayer:
    return InvalidLayer(
        "a table of contents does not tell what the layer holds",
        hint="Unmount the image and mount it again: the layer is then served from its tar.",
        layer=layer.digest,
        path=path,
    )


def _fault_of(record: LayerRecord, reason: ContentError) -> LayerFault:
    if not isinstance(reason, DigestMismatch):
        kind = FaultKind.FORMAT
    elif reason.fields.get("expected") == record.digest:
        kind = FaultKind.BLOB
    else:
        kind = FaultKind.DIFF_ID
    return LayerFault(kind=kind, reason=str(reason))


class _KeptReader(BlobReader):
    """Reads the blob of a lazy layer for the pipeline, once all of it has been fetched."""

    def __init__(self, layer: LazyLayerStore) -> None:
        self._layer = layer
        self._is_cancelled = False

    def iter_pieces(self) -> Iterator[bytes]:
        """Its bytes, in order."""
        size = self._layer.table.blob_size
        for position in range(0, size, limits.BODY_PIECE):
            if self._is_cancelled:
                raise StoreDamaged("verifying a layer was cancelled", digest=self._layer.digest)
            piece = min(limits.BODY_PIECE, size - position)
            yield self._layer.kept.read(position, piece)

    def cancel(self) -> None:
        """Ends `iter_pieces`."""
        self._is_cancelled = True

    def close(self) -> None:
        """Nothing to let go of."""


@asynccontextmanager
async def open_lazy_layers(
    store: Store,
    engine: FetchEngine,
    views: Views,
    images: ImageService,
    trust: LazyTrust = PINNED_ONLY,
) -> AsyncIterator[LazyLayers]:
    """Looks after the lazy layers of views inside the block; leaving it gives up their work."""
    async with trio.open_nursery() as nursery:
        lazy_layers = LazyLayers(store, engine, nursery, trust)
        lazy_layers.on_condemned = views.condemn
        views.layers.on_lazy = lazy_layers.attach
        views.layers.on_lazy_closed = lazy_layers.detach
        views.layers.closing_of = lazy_layers.closing_of
        images.call_to_adopt(lazy_layers.adopt)
        yield lazy_layers
        nursery.cancel_scope.cancel()
