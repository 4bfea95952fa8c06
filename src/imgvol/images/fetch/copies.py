"""Bytes that other layers of this machine have are copied from there instead of being fetched.

Right after a lazy layer has been opened, the others are searched for what it lacks (`content.
copy_plan`), in a thread; then all that was found is copied, before anything else is fetched in the
background. Readers who come meanwhile have their spans copied first. That done, the plan is
dropped.

The layers that are copied from are held: whoever removes their image meanwhile removes it, but its
bytes stay until they have been copied.
"""

import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from imgvol import limits
from imgvol.content.copy_places import CopyCounts
from imgvol.content.copy_plan import CopyPlan, plan_copies
from imgvol.content.copy_sources import Candidate
from imgvol.content.giving_back import size_of
from imgvol.content.layer import Layer
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.reachability import Root, RootKind, Thing, ThingKind
from imgvol.content.records import LayerRecord, Saving
from imgvol.content.store import Store
from imgvol.errors import ImgvolError
from imgvol.layers.lazy.chunks import ChunkTable
from imgvol.oci.digest import Digest
from imgvol.threads import run_cancellable

log = logging.getLogger(__name__)

# Searches and copies in the background, and copies that readers wait for.
_BACKGROUND_THREADS: Final = 2
_READER_THREADS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyStatistics:
    """What was copied since the daemon started.

    Attributes:
        spans: Spans that were not fetched.
        size: Bytes that they have in their blobs.
        cloned: Bytes of their content whose blocks are shared with the layers they came from.
        unlike: Chunks for which a file of the same path and size had other bytes.
        damaged: Chunks for which the layer that had them has other bytes by now.
    """

    spans: int = 0
    size: int = 0
    cloned: int = 0
    unlike: int = 0
    damaged: int = 0


@dataclass(eq=False, slots=True)
class _Search:
    """What is known of one layer: nothing, until the search has ended.

    Attributes:
        deadline: Until then readers wait for that, by trio's clock.
    """

    deadline: float
    ended: trio.Event = field(default_factory=trio.Event)
    plan: CopyPlan | None = None


class LocalCopies:
    """Copies for all lazy layers. One per daemon; used on the event loop.

    Args:
        store: Whose layers they are.
        opened: Tells a layer that views have open, by its slot.
    """

    def __init__(self, store: Store, opened: Callable[[int], Layer | None]) -> None:
        self._store = store
        self._opened = opened
        self._searches: dict[LazyLayerStore, _Search] = {}
        self._unfinished: set[LazyLayerStore] = set()
        self._background = trio.CapacityLimiter(_BACKGROUND_THREADS)
        self._readers = trio.CapacityLimiter(_READER_THREADS)
        self._spans = self._size = self._cloned = self._unlike = self._damaged = 0
        self._told: set[Digest] = set()
        # Spans, bytes and cloned bytes that the database does not know of.
        self._unsaved = (0, 0, 0)

    def statistics(self) -> CopyStatistics:
        """What was copied; from memory."""
        return CopyStatistics(
            spans=self._spans,
            size=self._size,
            cloned=self._cloned,
            unlike=self._unlike,
            damaged=self._damaged,
        )

    def expect(self, layer: LazyLayerStore) -> None:
        """A layer has been opened, and `fill` will follow: its readers wait for a moment."""
        if isinstance(layer.table, ChunkTable) and not layer.present.is_full:
            self._searches[layer] = _Search(trio.current_time() + limits.COPY_SEARCH_WAIT)

    def forget(self, layer: LazyLayerStore) -> None:
        """A layer has been closed: `fill` will not follow any more."""
        self._searches.pop(layer, None)
        self._unfinished.discard(layer)

    def has(self, layer: LazyLayerStore, span: int) -> bool:
        """Whether a span need not be fetched, as far as is known. In no time."""
        search = self._searches.get(layer)
        return search is not None and search.plan is not None and search.plan.can_copy(span)

    async def take(self, layer: LazyLayerStore, spans: Sequence[int]) -> None:
        """Copies those of some spans that are here; whoever reads waits for no others.

        Never fails: what is not there afterwards has to be fetched.
        """
        search = self._searches.get(layer)
        if search is None:
            return
        with trio.move_on_at(search.deadline):
            await search.ended.wait()
        plan = search.plan
        if plan is None:
            return
        wanted = [span for span in spans if plan.can_copy(span)]
        if wanted:
            try:
                await self._copy(layer, plan, wanted, self._readers)
            except ImgvolError as exc:
                # Whatever it is, fetching meets it, too, and tells it.
                log.debug("layer %s: not copied: %s", layer.digest, exc)

    async def fill(
        self, layer: LazyLayerStore, wait_room: Callable[[int], Awaitable[None]]
    ) -> None:
        """Copies everything that a layer lacks and that is here. Once, after `expect`.

        If it fails, the next time it tries again.

        Args:
            layer: Which.
            wait_room: Waits until so many bytes may be stored that nobody waits for.

        Raises:
            StoreFull: No room.
            LocalError: The store fails.
        """
        if layer in self._unfinished:
            self._unfinished.discard(layer)
            self.expect(layer)
        search = self._searches.get(layer)
        if search is None:
            return
        root = Root(RootKind.COPY, str(layer.digest))
        try:
            records = await self._sources_for(layer)
            things = [Thing(ThingKind.LAYER, record.digest) for record in records]
            # Held first, looked for second: what has gone meanwhile cannot be opened.
            with self._store.pins.holding(root, things):
                search.plan = await self._search(layer, records)
                search.ended.set()
                if search.plan is not None:
                    self._note(layer, search.plan.sampled)
                    await self._fill(layer, search.plan, wait_room)
        except ImgvolError:
            self._unfinished.add(layer)
            raise
        finally:
            search.plan = None
            search.ended.set()
            self._searches.pop(layer, None)

    async def _sources_for(self, layer: LazyLayerStore) -> list[LayerRecord]:
        """The newest first: what has just been there is likeliest to be like what comes now."""
        records = [
            record
            for record in reversed(await self._store.records.layers())
            if record.digest != layer.digest and not record.is_refused
        ]
        return records[: limits.COPY_SOURCES]

    async def _search(
        self, layer: LazyLayerStore, records: Sequence[LayerRecord]
    ) -> CopyPlan | None:
        candidates = []
        for record in records:
            place = await self._store.records.place(record) if record.is_in_place else None
            if place is not None or not record.is_in_place:
                opened = self._opened(record.slot)
                candidates.append(Candidate(record, place, opened))
        stopped = threading.Event()
        return await run_cancellable(
            partial(plan_copies, layer, candidates, self._store.layout, stopped),
            stopped.set,
            limiter=self._background,
        )

    async def _fill(
        self,
        layer: LazyLayerStore,
        plan: CopyPlan,
        wait_room: Callable[[int], Awaitable[None]],
    ) -> None:
        before = self._size
        try:
            for batch in _batches(layer, plan.spans):
                if layer.is_complete or layer.failure is not None:
                    return
                await wait_room(sum(size_of(layer.table, span) for span in batch))
                if layer.stays_lazy:
                    return
                await self._copy(layer, plan, batch, self._background)
        finally:
            saved = self._size - before
            log.info("layer %s: %d bytes were here and are not fetched", layer.digest, saved)
            with trio.CancelScope(shield=True):
                await self._save()

    async def _copy(
        self,
        layer: LazyLayerStore,
        plan: CopyPlan,
        spans: Sequence[int],
        limiter: trio.CapacityLimiter,
    ) -> None:
        self._note(layer, await trio.to_thread.run_sync(plan.copy, spans, limiter=limiter))

    def _note(self, layer: LazyLayerStore, counts: CopyCounts) -> None:
        self._spans += counts.spans
        self._size += counts.size
        self._cloned += counts.cloned
        self._unlike += counts.unlike
        self._damaged += len(counts.damaged)
        for digest in set(counts.damaged) - self._told:
            self._told.add(digest)
            log.warning(
                "layer %s is damaged: layer %s was not copied from it. Run: imgvol scrub",
                digest,
                layer.digest,
            )
        count, size, cloned = self._unsaved
        self._unsaved = (count + counts.spans, size + counts.size, cloned + counts.cloned)

    async def _save(self) -> None:
        """Writes down what was saved since the last time: not for each reader, who would wait."""
        count, size, cloned = self._unsaved
        self._unsaved = (0, 0, 0)
        if count:
            try:
                await self._store.records.add_saving(Saving.COPIED, count, size)
                if cloned:
                    await self._store.records.add_saving(Saving.CLONED, 0, cloned)
            except ImgvolError as exc:
                log.warning("what was saved is not written down: %s", exc)


def _batches(layer: LazyLayerStore, spans: Sequence[int]) -> Iterator[list[int]]:
    """The spans that are still missing, in the order given, in pieces for one thread each."""
    batch: list[int] = []
    size = 0
    for span in spans:
        if span in layer.present:
            continue
        batch.append(span)
        size += sum(part.size for part in layer.table.parts(span) or ())
        if size >= limits.COPY_BATCH or len(batch) >= limits.COPY_BATCH_SPANS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
