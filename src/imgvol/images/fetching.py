"""Fetches the spans of lazy layers: each once, whoever waits for it, and the rest behind.

Theory of operation. A reader names the spans that it misses (`LayerFetcher.ensure`). Those that
are under way already are waited for; the others are put together into ranges, one *flight* each:
neighbours in one, and a flight that would be small takes the spans behind it along, as far as
asking costs more than receiving. A flight belongs to the engine, not to the reader who caused it:
it ends early only when the last of its readers has gone. Bytes are shown to readers after their
span's digest has been checked.

A flight that failed because the registry did fails for all that wait; for a moment others then fail
at once, so that an outage does not become a storm of retries.

Background work asks for flights, too, one at a time, and waits until no reader has asked for
anything for a while.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import trio

from imgvol import limits
from imgvol.content.lazy_layer import DemandTally, FetchStatistics, LazyLayerStore
from imgvol.content.records import Origin
from imgvol.errors import (
    ImgvolError,
    InternalError,
    NotFound,
    ProtocolError,
    RegistryUnavailable,
    RemoteError,
)
from imgvol.oci.descriptor import Descriptor
from imgvol.registry.bounds import Bounds
from imgvol.registry.hosts import RegistryOptions
from imgvol.sources.base import BlobReader, ImageSource
from imgvol.sources.open import open_source
from imgvol.sources.parse import parse_image_argument
from imgvol.tallies import WAIT_BOUNDS, Distribution, Histogram, QueueLength, WaitCounts
from imgvol.threads import run_cancellable

log = logging.getLogger(__name__)


class Purpose(StrEnum):
    """Why a range is fetched."""

    READ = "read"
    PREFETCH = "prefetch"
    BACKGROUND = "background"


class Landing(StrEnum):
    """How a flight ended."""

    OK = "ok"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatistics:
    """What the engine has done since it was opened, and does at this moment.

    Attributes:
        flights: How many ended, by purpose and result.
        fetched: Bytes that they brought, by purpose.
        needed: Bytes of spans that readers asked for and that were not here.
        seconds: How long successful flights took.
        queue: Flights in the air, and those waiting for their turn.
        demand: Reads that waited for flights.
        demand_bytes: Bytes that these reads returned.
        sources: Sources that are open.
    """

    flights: Mapping[tuple[Purpose, Landing], int]
    fetched: Mapping[Purpose, int]
    needed: int
    seconds: Distribution
    queue: QueueLength
    demand: WaitCounts
    demand_bytes: int
    sources: int


@dataclass(slots=True)
class _EngineTallies:
    flights: Counter[tuple[Purpose, Landing]] = field(default_factory=Counter)
    fetched: Counter[Purpose] = field(default_factory=Counter)
    needed: int = 0
    seconds: Histogram = field(default_factory=lambda: Histogram(WAIT_BOUNDS))
    demand: DemandTally = field(default_factory=DemandTally)


@dataclass(eq=False, slots=True)
class _Flight:
    """A range of a blob on its way, with the spans in it."""

    start: int
    end: int
    spans: tuple[int, ...]
    purpose: Purpose
    waiters: int = 0
    error: ImgvolError | None = None
    landed: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    changed: trio.Event = field(default_factory=trio.Event)

    def note_change(self) -> None:
        """A span has come, or the flight has landed: whoever waits looks again."""
        changed, self.changed = self.changed, trio.Event()
        changed.set()


@dataclass(slots=True)
class _LineQuality:
    """What a registry's line is like, from the flights so far; seconds and bytes per second."""

    round_trip: float = 0.02
    bandwidth: float = 20e6

    def learn(self, first_byte: float, size: int, seconds: float) -> None:
        """Takes one flight into account; the latest weigh most."""
        self.round_trip += (first_byte - self.round_trip) / 4
        if size >= limits.FETCH_SMALLEST and seconds > first_byte:
            self.bandwidth += (size / (seconds - first_byte) - self.bandwidth) / 4

    @property
    def worthwhile(self) -> int:
        """Bytes that take about as long as asking for them."""
        size = int(self.round_trip * self.bandwidth)
        return max(limits.FETCH_SMALLEST, min(size, limits.FETCH_LARGEST))


class LayerFetcher:
    """Brings the spans of one layer. Used on the event loop.

    Attributes:
        statistics: What has been fetched.
        failure: Why the latest flight failed, if it did.
    """

    def __init__(
        self, engine: "FetchEngine", layer: LazyLayerStore, descriptor: Descriptor, origin: Origin
    ) -> None:
        self.statistics = FetchStatistics()
        self.descriptor = descriptor
        self._engine = engine
        self._layer = layer
        self._origin = origin
        self._flights: dict[int, _Flight] = {}
        self._line = _LineQuality()
        self.failure: ImgvolError | None = None
        self._failed_until = -math.inf

    async def ensure(self, spans: Collection[int], *, purpose: Purpose = Purpose.READ) -> None:
        """Returns when all of these spans are present.

        Raises:
            RemoteError: The registry does not deliver.
            ContentError: What it delivers is not what was promised.
        """
        with self._engine.reading():
            if self.failure is not None and trio.current_time() < self._failed_until:
                raise self.failure.with_traceback(None)
            # More than once only if a flight that was joined ended without its spans.
            while missing := [s for s in sorted(set(spans)) if s not in self._layer.present]:
                flights = [f for s in missing if (f := self._flights.get(s)) is not None]
                fresh = [s for s in missing if s not in self._flights]
                flights += [self._launch(group, purpose) for group in self._grouped(fresh)]
                await self._wait(list(dict.fromkeys(flights)), frozenset(missing))

    async def fetch_window(self, start: int, end: int, spans: Sequence[int]) -> None:
        """Brings a range of the blob with all spans in it, and what lies between them.

        For the background: it is never amplified, one at a time of all layers, and gives way as
        soon as a reader needs the line. So it may return before it has brought everything.
        """
        flight = _Flight(start, end, tuple(spans), Purpose.BACKGROUND)
        async with self._engine.background_turn:
            for span in spans:
                self._flights.setdefault(span, flight)
            self._engine.background = flight
            self._engine.launch(self.fly, flight)
            await self._wait([flight], None)

    async def wait_quiet(self) -> None:
        """Waits until no reader has waited for anything for a while."""
        while (  # noqa: ASYNC110 - readers move the goal
            until := self._engine.last_reading + limits.FETCH_QUIET
        ) > trio.current_time():
            await trio.sleep_until(until)

    def _grouped(self, spans: Sequence[int]) -> Iterator[list[int]]:
        """Neighbours together, up to the largest range that is fetched at once."""
        group: list[int] = []
        for span in spans:
            start, end = self._layer.table.compressed_range(span)
            if group:
                first, _ = self._layer.table.compressed_range(group[0])
                _, reached = self._layer.table.compressed_range(group[-1])
                if start - reached > limits.FETCH_GAP or end - first > limits.FETCH_LARGEST:
                    yield group
                    group = []
            group.append(span)
        if group:
            yield group

    def _launch(self, group: list[int], purpose: Purpose) -> _Flight:
        ranges = self._layer.table.compressed_range
        start, end = ranges(group[0])[0], ranges(group[-1])[1]
        if purpose is Purpose.READ:
            needed = sum(ranges(s)[1] - ranges(s)[0] for s in group)
            self.statistics.needed += needed
            self._engine.tallies.needed += needed
        # A small flight takes its missing neighbours along.
        following = group[-1] + 1
        while following < self._layer.table.span_count and end - start < self._line.worthwhile:
            next_start, next_end = ranges(following)
            is_far = next_start - end > limits.FETCH_GAP
            is_known = following in self._layer.present or following in self._flights
            if is_far or is_known or next_end - start > limits.FETCH_LARGEST:
                break
            group.append(following)
            end = next_end
            following += 1
        flight = _Flight(start, end, tuple(group), purpose)
        for span in group:
            self._flights[span] = flight
        self._engine.make_way()
        self._engine.launch(self.fly, flight)
        return flight

    async def _wait(self, flights: Collection[_Flight], wanted: Collection[int] | None) -> None:
        """Waits for what flights bring: the wanted spans, or all that is in them.

        A flight goes on with what it was to bring besides. It ends early when somebody stops
        waiting before the time, and nobody else waits.
        """
        # Of all from the start: none may end because somebody else has stopped waiting for it.
        for flight in flights:
            flight.waiters += 1
        is_served = False
        try:
            for flight in flights:
                while not (flight.landed.is_set() or self._has_brought(flight, wanted)):
                    await flight.changed.wait()
                if flight.error is not None and not self._has_brought(flight, wanted):
                    raise flight.error.with_traceback(None)
            is_served = True
        finally:
            for flight in flights:
                flight.waiters -= 1
                if not is_served and flight.waiters == 0 and not flight.landed.is_set():
                    flight.scope.cancel()
                    self._forget(flight)

    def _has_brought(self, flight: _Flight, wanted: Collection[int] | None) -> bool:
        if wanted is None:
            return False
        return all(span in self._layer.present for span in flight.spans if span in wanted)

    async def fly(self, flight: _Flight) -> None:
        """Runs one flight to its end, whatever that is; the engine calls this."""
        tallies = self._engine.tallies
        landing = Landing.CANCELLED
        try:
            with flight.scope as scope:
                async with self._engine.source(self._origin) as source:
                    fetch = _RangeFetch(self._layer, source, self.descriptor, flight)
                    await self._receive(fetch)
                    self._line.learn(fetch.first_byte, flight.end - flight.start, fetch.seconds)
            if not scope.cancelled_caught:
                self.statistics.requests += 1
                self.statistics.fetched += flight.end - flight.start
                tallies.fetched[flight.purpose] += flight.end - flight.start
                tallies.seconds.observe(fetch.seconds)
                landing = Landing.OK
                self.failure = None
        except ImgvolError as exc:
            landing = Landing.FAILED
            flight.error = exc
            if isinstance(exc, RemoteError):
                self.failure = exc
                self._failed_until = trio.current_time() + limits.FETCH_FAILURE_REST
        except Exception as exc:  # in the engine's nursery it would end every view
            log.exception("layer %s: a defect of imgvol", self._layer.digest)
            landing = Landing.FAILED
            flight.error = InternalError(
                "a part of a layer cannot be fetched",
                digest=self._layer.digest,
                kind=type(exc).__name__,
            )
        finally:
            tallies.flights[flight.purpose, landing] += 1
            self._forget(flight)
            flight.landed.set()
            flight.note_change()

    async def _receive(self, fetch: "_RangeFetch") -> None:
        try:
            await run_cancellable(fetch.run, fetch.cancel, limiter=self._engine.limiter)
        except NotFound as exc:
            # The file exists, it is the registry that has lost its bytes: readers must not be told
            # ENOENT.
            raise RegistryUnavailable(
                "the registry does not have a mounted layer any more",
                hint="Push the image again.",
                digest=self.descriptor.digest,
            ) from exc

    def _forget(self, flight: _Flight) -> None:
        for span in flight.spans:
            if self._flights.get(span) is flight:
                del self._flights[span]


class _RangeFetch:
    """The blocking part of a flight: receive, verify, store."""

    def __init__(
        self, layer: LazyLayerStore, source: ImageSource, descriptor: Descriptor, flight: _Flight
    ) -> None:
        self._layer = layer
        self._source = source
        self._descriptor = descriptor
        self._flight = flight
        self._reader: BlobReader | None = None
        self._is_cancelled = False
        self._loop = trio.lowlevel.current_trio_token()
        self._kept = 0
        self.first_byte = 0.0
        self.seconds = 0.0

    def cancel(self) -> None:
        """Ends `run` soon."""
        self._is_cancelled = True
        if self._reader is not None:
            self._reader.cancel()

    def run(self) -> None:
        """Receives the range and stores its spans, each as soon as it is whole."""
        flight, ranges = self._flight, self._layer.table.compressed_range
        began = time.perf_counter()
        received = bytearray()
        waiting = list(reversed(flight.spans))
        with self._source.open_blob(
            self._descriptor, offset=flight.start, end=flight.end
        ) as reader:
            self._reader = reader
            if self._is_cancelled:
                reader.cancel()
            for piece in reader.iter_pieces():
                self.first_byte = self.first_byte or time.perf_counter() - began
                received += piece
                while waiting and ranges(waiting[-1])[1] <= flight.start + len(received):
                    self._store(waiting.pop(), received)
        self.seconds = time.perf_counter() - began
        if len(received) != flight.end - flight.start:
            raise ProtocolError(
                "a source sent a range of another size than was asked for",
                digest=self._descriptor.digest,
                expected=flight.end - flight.start,
                actual=len(received),
            )
        self._keep(received, len(received))

    def _store(self, span: int, received: bytearray) -> None:
        if span in self._layer.present:
            return
        start, end = self._layer.table.compressed_range(span)
        base = self._flight.start
        compressed = bytes(received[start - base : end - base])
        regions = self._layer.table.decode(span, compressed)
        # First: after a restart a present span is taken to have its part of the blob, too.
        self._keep(received, end - base)
        self._layer.put_span(span, regions)
        self._loop.run_sync_soon(self._flight.note_change)

    def _keep(self, received: bytearray, end: int) -> None:
        """Keeps what has been received up to a place in the range."""
        if end > self._kept:
            self._layer.put_compressed(
                self._flight.start + self._kept, bytes(received[self._kept : end])
            )
            self._kept = end


@dataclass(eq=False, slots=True)
class _OpenSource:
    source: ImageSource
    users: int = 0
    idle_since: float = 0.0


class FetchEngine:
    """Runs flights and keeps their sources open. Made by `open_fetch_engine`.

    Attributes:
        limiter: Ranges that are received at once.
        background_turn: Held by the one background flight there is.
        background: The latest background flight.
        tallies: What is counted over all layers, for `statistics`.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._sources: dict[Origin, _OpenSource] = {}
        self._opening = trio.Lock()
        self._readers = 0
        self._last_reader = -math.inf
        self.background_turn = trio.Lock()
        self.background: _Flight | None = None
        self.limiter = trio.CapacityLimiter(limits.FETCH_AT_ONCE)
        self.tallies = _EngineTallies()

    def statistics(self) -> EngineStatistics:
        """What it has done and does; from memory."""
        tallies, limiter = self.tallies, self.limiter.statistics()
        return EngineStatistics(
            flights=dict(tallies.flights),
            fetched=dict(tallies.fetched),
            needed=tallies.needed,
            seconds=tallies.seconds.snapshot(),
            queue=QueueLength(limiter.borrowed_tokens, limiter.tasks_waiting),
            demand=tallies.demand.waits.snapshot(),
            demand_bytes=tallies.demand.bytes,
            sources=len(self._sources),
        )

    def attach(self, layer: LazyLayerStore, descriptor: Descriptor, origin: Origin) -> LayerFetcher:
        """Gives a layer what brings its spans."""
        # Whoever opens a view is about to read: the background gives them a start.
        self._last_reader = trio.current_time()
        fetcher = LayerFetcher(self, layer, descriptor, origin)
        layer.fetcher = fetcher
        layer.demand = self.tallies.demand
        return fetcher

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around the time that a reader waits, of whatever layer."""
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            self._last_reader = trio.current_time()

    @property
    def last_reading(self) -> float:
        """When a reader has last waited for anything: now, while one does."""
        return trio.current_time() if self._readers else self._last_reader

    def make_way(self) -> None:
        """Ends the background flight, unless a reader waits for it; what has come is kept."""
        flight = self.background
        if flight is not None and flight.waiters <= 1:
            flight.scope.cancel()

    def launch(self, fly: Callable[[_Flight], Awaitable[None]], flight: _Flight) -> None:
        """Starts a flight: it is the engine's task, not that of whoever caused it."""
        self._nursery.start_soon(fly, flight)

    @asynccontextmanager
    async def source(self, origin: Origin) -> AsyncIterator[ImageSource]:
        """An open source; it stays open for a while for the next one."""
        async with self._opening:
            opened = self._sources.get(origin)
            if opened is None:
                opened = await self._nursery.start(self._keep_open, origin)
        opened.users += 1
        try:
            yield opened.source
        finally:
            opened.users -= 1
            opened.idle_since = trio.current_time()

    async def _keep_open(self, origin: Origin, task_status: trio.TaskStatus[_OpenSource]) -> None:
        options = RegistryOptions(
            plain_http=origin.plain_http,
            insecure=origin.insecure,
            ca_file=Path(origin.ca_file) if origin.ca_file else None,
        )
        # A reader waits: a line that stalls is given up in time for another try.
        bounds = Bounds(read_timeout=limits.FETCH_STALL)
        opened: _OpenSource | None = None
        try:
            async with open_source(
                parse_image_argument(origin.argument), options, bounds=bounds
            ) as source:
                opened = _OpenSource(source, idle_since=trio.current_time())
                self._sources[origin] = opened
                try:
                    task_status.started(opened)
                    while (  # noqa: ASYNC110 - users come and go
                        opened.users or trio.current_time() < opened.idle_since + limits.FETCH_IDLE
                    ):
                        await trio.sleep(limits.FETCH_IDLE)
                finally:
                    del self._sources[origin]
        except Exception:
            if opened is None:
                raise  # to whoever wants the source
            log.exception("a source could not be closed: %s", origin.argument)


@asynccontextmanager
async def open_fetch_engine() -> AsyncIterator[FetchEngine]:
    """An engine; leaving the block cancels every flight."""
    async with trio.open_nursery() as nursery:
        yield FetchEngine(nursery)
        nursery.cancel_scope.cancel()
