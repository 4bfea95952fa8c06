"""Keeps the store within its size: evicts what was used longest ago, down to the low line.

A round measures, collects garbage, evicts whole layers of images that nobody uses, and then gives
back parts of lazy layers that are mounted: compressed bytes of those that are proven, then windows
of spans. Rounds begin when the count of what is written passes
the high line (`content/space.py`), when somebody waits for room, and when a measurement finds it
passed. What goes is chosen by pure functions over one picture (`content/eviction.py`); every
removal looks again, in the transaction or under the lock that readers meet.

Layers are removed in the two phases of a collection: records first, in one transaction, files
second. A crash in between leaves files without records, which the next start removes.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import trio

from imgvol import limits
from imgvol.config import SpaceLimits
from imgvol.content.eviction import (
    Eviction,
    LayerPicture,
    SpanWindow,
    choose_layers,
    choose_windows,
)
from imgvol.content.giving_back import GivenBack
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.space import SpaceLevel
from imgvol.content.store import Store
from imgvol.errors import ImgvolError
from imgvol.images.collection import Collector
from imgvol.images.events import IMAGE_EVICTED, Event
from imgvol.images.lazy import LazyLayers
from imgvol.images.usage import UsageMeter
from imgvol.oci.digest import Digest
from imgvol.oci.json import JSONValue

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvictionReport:
    """What a round has done, or would do.

    Attributes:
        used: What the store took before.
        collected: Bytes of garbage.
        evictions: Images that lost layers.
        windows: How many parts of mounted layers were given back.
        spans: How many spans those had.
        given_back: Bytes of them.
    """

    used: int = 0
    collected: int = 0
    evictions: tuple[Eviction, ...] = ()
    windows: int = 0
    spans: int = 0
    given_back: int = 0

    @property
    def evicted(self) -> int:
        """Bytes of whole layers."""
        return sum(eviction.size for eviction in self.evictions)

    @property
    def freed(self) -> int:
        """Bytes in all."""
        return self.collected + self.evicted + self.given_back


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceStatus:
    """How full the store is, what could go, and what could not.

    Attributes:
        level: What is taken, and the lines.
        limits: What was asked for.
        layers: Bytes of whole layers that could be evicted.
        spans: Bytes of mounted lazy layers that could be given back.
        kept: Bytes of layers that could not be evicted as a whole, by reason.
    """

    level: SpaceLevel
    limits: SpaceLimits
    layers: int
    spans: int
    kept: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceStatistics:
    """What eviction has done since the daemon started; and how full the store is.

    Attributes:
        rounds: How many rounds freed something.
        images: Images that lost layers.
        evicted: Bytes of whole layers.
        spans: Spans given back.
        given_back: Bytes of them.
    """

    level: SpaceLevel
    rounds: int = 0
    images: int = 0
    evicted: int = 0
    spans: int = 0
    given_back: int = 0


@dataclass(slots=True)
class _Done:
    """As `SpaceStatistics` has it."""

    rounds: int = 0
    images: int = 0
    evicted: int = 0
    spans: int = 0
    given_back: int = 0


@dataclass(eq=False)
class SpaceKeeper:
    """Keeps one store within its size. One per daemon; on the event loop.

    Attributes:
        publish: Told of images that are evicted; it must not block.
    """

    store: Store
    meter: UsageMeter
    collector: Collector
    lazy_layers: LazyLayers
    publish: Callable[[Event], None] = lambda _event: None
    _turn: trio.Lock = field(default_factory=trio.Lock)
    _pressure: trio.Event = field(default_factory=trio.Event)
    _limiter: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))
    # When collecting and whole layers are worth trying again.
    _layers_again_at: float = 0.0
    _pinned: frozenset[Digest] = frozenset()
    _pinned_until: float = 0.0
    _done: _Done = field(default_factory=_Done)

    async def begin(self, space_limits: SpaceLimits) -> None:
        """Sets what the store may take, and looks at what it takes."""
        self.store.space.limits = space_limits
        await self.meter.measure()

    # --- in the background ----------------------------------------------------------------------

    async def run(self) -> None:
        """Keeps the store within its limits, for ever."""
        token = trio.lowlevel.current_trio_token()
        wake = partial(token.run_sync_soon, self._wake, idempotent=True)
        self.store.space.on_pressure = wake
        try:
            while True:
                with trio.move_on_after(limits.USAGE_PERIOD):
                    await self._pressure.wait()
                self._pressure = trio.Event()
                report = await self._relieve()
                if report is None or self._is_hopeless(report):
                    # Writers go on telling that there is no room: nothing changes so soon.
                    await trio.sleep(limits.SPACE_HOPELESS)
        finally:
            # Who waits for room is told, so that nothing keeps the daemon from ending.
            self.store.space.on_pressure = None
            self.store.space.end_round()

    async def note_uses(self, *, interval: float = limits.USES_NOTE) -> None:
        """Writes down when images were used, for ever and at the end."""
        try:
            while True:
                await trio.sleep(interval)
                await self._note_uses()
        finally:
            with trio.CancelScope(shield=True):
                await self._note_uses()

    def _wake(self) -> None:
        self._pressure.set()

    async def _note_uses(self) -> None:
        uses = self.store.uses.take()
        try:
            if uses:
                await self.store.records.note_uses(uses)
        except ImgvolError as exc:
            log.warning("when images were used is not written down: %s", exc)

    async def _relieve(self) -> EvictionReport | None:
        try:
            return await self.relieve()
        except ImgvolError as exc:
            log.warning("nothing can be evicted: %s", exc)
        except Exception:  # in the daemon's nursery it would end every view
            log.exception("nothing is evicted: a defect")
        return None

    async def wait_room(self, size: int) -> None:
        """Waits until something fits below the high line, as long as it takes."""
        while not self.store.space.has_room(size):
            # What serves no reader makes room for what may serve one.
            async with self._turn:
                freed = await self._give_back_blobs(size)
            if not freed:
                await trio.sleep(limits.SPACE_CHECK)

    # --- rounds ---------------------------------------------------------------------------------

    async def relieve(self) -> EvictionReport:
        """One round, if the store is too full: down to the low line.

        Raises:
            LocalError: The store fails.
        """
        space = self.store.space
        async with self._turn:
            space.begin_round()
            report = EvictionReport()
            try:
                await self.meter.measure()
                report = EvictionReport(used=space.level.used)
                if space.excess:
                    report = await self._round(lambda: space.excess)
                return report
            finally:
                space.end_round(is_hopeless=self._is_hopeless(report))

    def _is_hopeless(self, report: EvictionReport) -> bool:
        """Whether something would have had to go, and nothing could."""
        return not report.freed and self.store.space.excess > 0

    async def evict_to(self, size: int) -> EvictionReport:
        """Evicts until the store takes no more than so many bytes, as far as that is possible.

        Raises:
            LocalError: The store fails.
        """
        space = self.store.space
        async with self._turn:
            await self.meter.measure()
            self._layers_again_at = self._pinned_until = 0.0
            return await self._round(lambda: max(0, space.level.used - size))

    async def plan(self, size: int) -> EvictionReport:
        """What `evict_to` would do now, but for garbage; changes nothing."""
        async with self._turn:
            await self.meter.measure()
            used = self.store.space.level.used
            picture = await self._picture()
            evictions = choose_layers(picture, used - size)
            left = used - size - sum(eviction.size for eviction in evictions)
            self._pinned_until = 0.0
            blobs = self._spare_blobs()
            spared = sum(layer.reclaimer.spare_blob for layer in _first(blobs, left))
            windows = choose_windows(await self._windows(), left - spared)
        return EvictionReport(
            used=used,
            evictions=tuple(evictions),
            windows=len(windows),
            given_back=spared + sum(window.size for window in windows),
        )

    async def _round(self, excess: Callable[[], int]) -> EvictionReport:
        used, collected = self.store.space.level.used, 0
        evictions: list[Eviction] = []
        if excess() and trio.current_time() >= self._layers_again_at:
            mark = self.store.space.begin_giving()
            collected = (await self.collector.collect()).freed
            self.store.space.give(collected, mark)
            if excess():
                evictions = await self._evict_layers(excess())
            if not evictions and not collected:
                self._layers_again_at = trio.current_time() + limits.EVICTION_PAUSE
        spared = await self._give_back_blobs(excess()) if excess() else 0
        back, windows = GivenBack(), 0
        if excess():
            back, windows = await self._give_back(excess())
        report = EvictionReport(
            used=used,
            collected=collected,
            evictions=tuple(evictions),
            windows=windows,
            spans=back.spans,
            given_back=spared + back.size,
        )
        self._count(report)
        return report

    def _count(self, report: EvictionReport) -> None:
        done = self._done
        done.images += len(report.evictions)
        done.evicted += report.evicted
        done.spans += report.spans
        done.given_back += report.given_back
        if report.freed:
            done.rounds += 1
            log.info(
                "the store took %d bytes: evicted %d of %d images, gave back %d of %d spans, "
                "collected %d",
                report.used,
                report.evicted,
                len(report.evictions),
                report.given_back,
                report.spans,
                report.collected,
            )

    # --- whole layers ---------------------------------------------------------------------------

    async def _picture(self) -> LayerPicture:
        await self._note_uses()
        uses = await self.store.records.layer_uses(self.store.pins.snapshot)
        sizes = await self.store.files.layer_sizes()
        return LayerPicture(images=uses.images, sizes=sizes, keepers=uses.keepers)

    async def _evict_layers(self, wanted: int) -> list[Eviction]:
        done = []
        for eviction in choose_layers(await self._picture(), wanted):
            names = self._name_of(eviction.manifest)
            gone = await self.store.records.evict_layers(eviction.layers, self.store.pins.snapshot)
            freed, mark = 0, self.store.space.begin_giving()
            for digest in sorted(gone):
                freed += await self.store.files.remove_strays(digest)
            await self.store.files.sweep_shared_files()
            self.store.space.give(freed, mark)
            if gone:
                done.append(Eviction(manifest=eviction.manifest, layers=gone, size=freed))
                self._tell(eviction.manifest, names, freed)
        if done:
            await self.store.files.let_go()
        return done

    def _name_of(self, manifest: Digest) -> str:
        image = self.store.images.get(manifest)
        return image.names[0] if image is not None and image.names else str(manifest)

    def _tell(self, manifest: Digest, name: str, freed: int) -> None:
        data: dict[str, JSONValue] = {"manifest": str(manifest), "freed": freed}
        self.publish(Event(kind=IMAGE_EVICTED, at=time.time(), image=name, id=None, data=data))

    # --- parts of mounted layers ----------------------------------------------------------------

    def _spare_blobs(self) -> list[LazyLayerStore]:
        """Proven layers whose compressed bytes are here: no reader needs these."""
        layers = [layer for layer, _ in self.lazy_layers.attached() if layer.failure is None]
        return [layer for layer in layers if layer.reclaimer.spare_blob]

    async def _give_back_blobs(self, wanted: int) -> int:
        freed = 0
        for layer in self._spare_blobs():
            if freed >= wanted:
                break
            give_back = layer.reclaimer.give_back_blob
            freed += (await trio.to_thread.run_sync(give_back, limiter=self._limiter)).size
        return freed

    async def _open_layers(self) -> list[LazyLayerStore]:
        """Those of which something can be fetched again, and may go."""
        if trio.current_time() >= self._pinned_until:
            uses = await self.store.records.layer_uses(self.store.pins.snapshot)
            self._pinned = uses.pinned
            self._pinned_until = trio.current_time() + limits.EVICTION_PAUSE
        return [
            layer
            for layer, record in self.lazy_layers.attached()
            if _can_be_fetched(layer) and record.digest not in self._pinned
        ]

    async def _windows(self) -> list[SpanWindow]:
        layers = await self._open_layers()
        return await trio.to_thread.run_sync(_windows_of, layers, limiter=self._limiter)

    async def _give_back(self, wanted: int) -> tuple[GivenBack, int]:
        layers = {layer.slot: layer for layer in await self._open_layers()}

        def give_back() -> tuple[GivenBack, int]:
            chosen = choose_windows(_windows_of(layers.values()), wanted)
            spans = size = 0
            for slot in sorted({each.slot for each in chosen}):
                windows = [each.window for each in chosen if each.slot == slot]
                back = layers[slot].reclaimer.give_back(windows)
                spans, size = spans + back.spans, size + back.size
            return GivenBack(spans, size), len(chosen)

        return await trio.to_thread.run_sync(give_back, limiter=self._limiter)

    # --- what there is to say -------------------------------------------------------------------

    def statistics(self) -> SpaceStatistics:
        """What was done, and how full the store is; from memory."""
        return SpaceStatistics(
            level=self.store.space.level,
            rounds=self._done.rounds,
            images=self._done.images,
            evicted=self._done.evicted,
            spans=self._done.spans,
            given_back=self._done.given_back,
        )

    async def status(self) -> SpaceStatus:
        """How full the store is, what could go, and what could not."""
        await self.meter.measure()
        picture = await self._picture()
        windows = await self._windows()
        return SpaceStatus(
            level=self.store.space.level,
            limits=self.store.space.limits,
            layers=picture.evictable,
            spans=sum(window.size for window in windows)
            + sum(layer.reclaimer.spare_blob for layer in self._spare_blobs()),
            kept=picture.kept,
        )


def _can_be_fetched(layer: LazyLayerStore) -> bool:
    is_good = layer.failure is None and not layer.is_complete
    return is_good and layer.fetcher is not None and layer.fetcher.failure is None


def _first(layers: Sequence[LazyLayerStore], wanted: int) -> Iterator[LazyLayerStore]:
    """As many layers as it takes to give back so many bytes of compressed ones."""
    for layer in layers:
        if wanted <= 0:
            break
        yield layer
        wanted -= layer.reclaimer.spare_blob


def _windows_of(layers: Collection[LazyLayerStore]) -> list[SpanWindow]:
    return [
        SpanWindow(slot=layer.slot, window=window, used_at=used_at, size=size)
        for layer in layers
        for window, used_at, size in layer.reclaimer.windows()
    ]
