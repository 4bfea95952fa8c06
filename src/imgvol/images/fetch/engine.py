"""What all layers share: the line and its turns, the sources, and what is counted."""

import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import trio

from imgvol import limits
from imgvol.content.fetching import DemandTally
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.records import Origin
from imgvol.images.fetch.copies import CopyStatistics, LocalCopies
from imgvol.images.fetch.flight import Flight, Landing, Purpose, Rank
from imgvol.images.fetch.layer import LayerFetcher
from imgvol.images.fetch.line import Line
from imgvol.images.fetch.pace import Pace
from imgvol.images.fetch.slots import FlightSlots
from imgvol.images.fetch.sources import SourcePool
from imgvol.oci.descriptor import Descriptor
from imgvol.registry.credentials import CredentialSource
from imgvol.registry.registries import Registries
from imgvol.tallies import WAIT_BOUNDS, Distribution, Histogram, QueueLength, WaitCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatistics:
    """What the engine has done since it was opened, and does at this moment.

    Attributes:
        flights: How many ended, by purpose and result.
        fetched: Bytes that they brought, by purpose.
        needed: Bytes of spans that readers wanted and that were not here before.
        seconds: How long successful flights took.
        queue: Flights in the air, and those waiting for their turn.
        demand: Reads that waited for flights.
        demand_bytes: Bytes that these reads returned.
        sources: Sources that are open.
        copies: What was copied from other layers instead.
    """

    flights: Mapping[tuple[Purpose, Landing], int]
    fetched: Mapping[Purpose, int]
    needed: int
    seconds: Distribution
    queue: QueueLength
    demand: WaitCounts
    demand_bytes: int
    sources: int
    copies: CopyStatistics = field(default_factory=CopyStatistics)


@dataclass(slots=True)
class EngineTallies:
    """What is counted over all layers."""

    flights: Counter[tuple[Purpose, Landing]] = field(default_factory=Counter)
    fetched: Counter[Purpose] = field(default_factory=Counter)
    needed: int = 0
    seconds: Histogram = field(default_factory=lambda: Histogram(WAIT_BOUNDS))
    demand: DemandTally = field(default_factory=DemandTally)


class FetchEngine:
    """Runs flights and keeps their sources open. Made by `open_fetch_engine`.

    Args:
        nursery: Where flights and sources live.
        background_rate: Bytes per second that the background may receive; None: any.
        logins: As `SourcePool` takes them.
        registries: Where images of registries come from.

    Attributes:
        copies: Has what other layers of this machine have; None: it is fetched.
        sources: Sources that are open.
        slots: Admits flights.
        limiter: Threads for them.
        pace: Of the background.
        tallies: What is counted over all layers, for `statistics`.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        background_rate: float | None = None,
        logins: CredentialSource | None = None,
        registries: Registries | None = None,
    ) -> None:
        self.copies: LocalCopies | None = None
        self.sources = SourcePool(nursery, logins, registries)
        self.slots = FlightSlots(limits.FETCH_AT_ONCE, limits.FETCH_PER_HOST)
        self.limiter = trio.CapacityLimiter(limits.FETCH_AT_ONCE)
        self.pace = Pace(background_rate)
        self.tallies = EngineTallies()
        # Waits until the store has room for what nobody waits for.
        self.wait_room: Callable[[int], Awaitable[None]] = _wait_for_nothing
        self._nursery = nursery
        self._lines: dict[Origin, Line] = {}
        self._in_air: dict[Flight, LayerFetcher] = {}
        self._turns = {purpose: trio.Lock() for purpose in (Purpose.PREFETCH, Purpose.BACKGROUND)}
        self._traces = 0
        self._readers = 0
        self._readers_gone = trio.Event()
        self._last_reader = -math.inf

    def statistics(self) -> EngineStatistics:
        """What it has done and does; from memory."""
        tallies = self.tallies
        return EngineStatistics(
            flights=dict(tallies.flights),
            fetched=dict(tallies.fetched),
            needed=tallies.needed,
            seconds=tallies.seconds.snapshot(),
            queue=self.slots.queue,
            demand=tallies.demand.waits.snapshot(),
            demand_bytes=tallies.demand.bytes,
            sources=len(self.sources),
            copies=CopyStatistics() if self.copies is None else self.copies.statistics(),
        )

    def attach(self, layer: LazyLayerStore, descriptor: Descriptor, origin: Origin) -> LayerFetcher:
        """Gives a layer what brings its spans."""
        # Whoever opens a view is about to read: the background gives them a start.
        self._last_reader = trio.current_time()
        fetcher = LayerFetcher(self, layer, descriptor, origin)
        layer.fetcher = fetcher
        layer.demand = self.tallies.demand
        if self.copies is not None:
            self.copies.expect(layer)
        return fetcher

    def line(self, origin: Origin) -> Line:
        """What is known of the line to an origin; shared by its layers."""
        return self._lines.setdefault(origin, Line())

    # --- for the fetchers of layers --------------------------------------------------------------

    def note_reader(self) -> None:
        """A reader is at work, though it may not have to wait for anything."""
        self._last_reader = trio.current_time()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around the time that a reader waits, of whatever layer."""
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            self._last_reader = trio.current_time()
            self._note_free()

    @contextmanager
    def following_trace(self) -> Iterator[None]:
        """Around the time that a trace is followed: nothing else is begun in the background."""
        self._traces += 1
        try:
            yield
        finally:
            self._traces -= 1
            self._note_free()

    def _note_free(self) -> None:
        """Lets whoever waits for readers, or for a trace, look again."""
        if not self._readers or not self._traces:
            gone, self._readers_gone = self._readers_gone, trio.Event()
            gone.set()

    @asynccontextmanager
    async def turn(self, purpose: Purpose, *, may_hurry: Callable[[], bool]) -> AsyncIterator[None]:
        """One flight at a time that nobody waits for, of all layers, once the line is free for it.

        What the image's maker marked comes while no reader waits; the rest once readers have been
        quiet for a while.

        Args:
            purpose: PREFETCH or BACKGROUND.
            may_hurry: Whether readers are served best if it does not wait.
        """
        async with self._turns[purpose]:
            if purpose is Purpose.PREFETCH:
                while self._traces or (self._readers and not may_hurry()):
                    await self._readers_gone.wait()
            else:
                await self.wait_quiet(may_hurry)
            yield

    async def wait_quiet(self, may_hurry: Callable[[], bool] = lambda: False) -> None:
        """Waits until nothing more urgent has been under way for a while, or need not."""
        # Readers move the goal, and tell what the line is like.
        while self._traces or not may_hurry():
            left = self._last_activity() + limits.FETCH_QUIET - trio.current_time()
            if left <= 0:
                return
            await trio.sleep(min(left, limits.FETCH_QUIET_CHECK))

    def _last_activity(self) -> float:
        is_busy = self._readers or self._traces or self._turns[Purpose.PREFETCH].locked()
        return trio.current_time() if is_busy else self._last_reader

    def make_way(self) -> None:
        """Ends what nobody waits for, where it costs a reader more than going on later will."""
        for flight, fetcher in list(self._in_air.items()):
            is_costly = fetcher.line.is_worth_stopping(flight.remaining)
            # What a trace brings is small, and this very reader's next wish.
            is_next = flight.purpose is Purpose.TRACE or fetcher.is_streaming
            if flight.rank > Rank.READ and is_costly and not is_next:
                fetcher.end(flight)

    def launch(self, fetcher: LayerFetcher, flight: Flight) -> None:
        """Starts a flight: it is the engine's task, not that of whoever caused it."""
        self._in_air[flight] = fetcher
        self._nursery.start_soon(self._fly, fetcher, flight)

    async def _fly(self, fetcher: LayerFetcher, flight: Flight) -> None:
        try:
            await fetcher.fly(flight)
        finally:
            del self._in_air[flight]


async def _wait_for_nothing(_size: int) -> None:
    """For stores that may be as full as they like."""


@asynccontextmanager
async def open_fetch_engine(
    background_rate: float | None = None,
    *,
    logins: CredentialSource | None = None,
    registries: Registries | None = None,
) -> AsyncIterator[FetchEngine]:
    """An engine; leaving the block cancels every flight.

    Args:
        background_rate: Bytes per second that the background may receive; None: any.
        logins: As `SourcePool` takes them.
        registries: Where images of registries come from; None: from the registries themselves.
    """
    async with trio.open_nursery() as nursery:
        yield FetchEngine(nursery, background_rate, logins, registries)
        nursery.cancel_scope.cancel()
