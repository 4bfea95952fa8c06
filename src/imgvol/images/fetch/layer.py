"""Plans and flies what one layer lacks."""

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from imgvol import limits
from imgvol.content.fetching import FetchStatistics
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.records import Origin
from imgvol.errors import (
    ImgvolError,
    InternalError,
    NotFound,
    RegistryUnavailable,
    RemoteError,
    StoreFull,
)
from imgvol.images.fetch.amplify import Amplification
from imgvol.images.fetch.flight import Flight, Landing, Purpose
from imgvol.images.fetch.range_fetch import RangeFetch
from imgvol.oci.descriptor import Descriptor
from imgvol.sources.parse import RegistryImage, parse_image_argument
from imgvol.threads import run_cancellable

if TYPE_CHECKING:
    from imgvol.images.fetch.engine import FetchEngine

log = logging.getLogger(__name__)

# What a range takes, about, with what its spans decode to.
_EXPANSION: Final = 3


class LayerFetcher:
    """Brings the spans of one layer. Used on the event loop. Made by `FetchEngine.attach`.

    Attributes:
        statistics: What has been fetched.
        failure: Why the latest flight failed, if it did.
        patience: Seconds that readers wait for a registry that fails, before they are told.
        line: What is known of the line to its registry.
        runs: Traces that are being followed, which say what comes next.
    """

    def __init__(
        self, engine: "FetchEngine", layer: LazyLayerStore, descriptor: Descriptor, origin: Origin
    ) -> None:
        self.statistics = FetchStatistics()
        self.descriptor = descriptor
        self.failure: ImgvolError | None = None
        self.patience = 0.0
        self.runs = 0
        self._engine = engine
        self._layer = layer
        self._origin = origin
        self._host = _host_of(origin)
        self.line = engine.line(origin)
        self._flights: dict[int, Flight] = {}
        self._failed_until = -math.inf
        self._recovered = trio.Event()
        # Spans that readers have wanted, and those that nobody has to fetch any more.
        self._wanted = set(layer.present)
        self._is_missing = partial(_is_missing, engine, layer, self._flights)
        self._amplification = Amplification(layer, self._is_missing)

    @property
    def is_slow(self) -> bool:
        """Whether the line is too slow to bring more than what is asked for, or not known."""
        return self.line.is_slow

    @property
    def is_streaming(self) -> bool:
        """Whether the background need not keep silent: all of the rest will be here very soon."""
        remaining = self._layer.table.blob_size - self._layer.present_size
        return self.line.is_worth_streaming(remaining)

    # --- for readers -----------------------------------------------------------------------------

    def note_wanted(self, spans: Collection[int]) -> None:
        """Readers want these spans: those that were not here from the start count as needed."""
        for span in spans:
            if span not in self._wanted:
                self._wanted.add(span)
                size = self._amplification.want(span)
                self.statistics.needed += size
                self._engine.tallies.needed += size
                self._engine.note_reader()
                if span == self._amplification.mark:
                    self._launch_ahead(self._amplification.ahead())

    async def ensure(self, spans: Collection[int]) -> None:
        """Returns when all of these spans are present.

        Raises:
            RemoteError: The registry does not deliver, and has not for as long as readers are
                patient.
            ContentError: What it delivers is not what was promised.
        """
        self.note_wanted(spans)
        give_up_at = trio.current_time() + self.patience
        pause = limits.FETCH_FAILURE_REST
        while True:
            try:
                await self._bring(spans)
                return
            except RemoteError:
                left = give_up_at - trio.current_time()
                if left <= 0:
                    raise
                await trio.sleep(min(pause, left))
                pause = min(2 * pause, limits.FETCH_BLOCKED_PAUSE)

    async def _bring(self, spans: Collection[int]) -> None:
        with self._engine.reading():
            if self.failure is not None and trio.current_time() < self._failed_until:
                raise self.failure.anew()
            if self._engine.copies is not None:
                grounded = [span for span in spans if span not in self._flights]
                await self._engine.copies.take(self._layer, self._layer.missing(grounded))
            # More than once only if a flight that was joined ended without its spans.
            while missing := self._layer.missing(sorted(set(spans))):
                flights: list[Flight] = []
                fresh: list[int] = []
                for span in missing:
                    flight = self._joinable(span)
                    if flight is None:
                        fresh.append(span)
                    elif flight not in flights:
                        # From now on: it shall not make way for what we launch ourselves.
                        flight.waiters += 1
                        flights.append(flight)
                flights += [self._launch_read(group) for group in self._grouped(fresh)]
                await self._wait(flights, frozenset(missing))

    def _joinable(self, span: int) -> Flight | None:
        """The flight that brings a span, if waiting for it is quicker than asking again."""
        flight = self._flights.get(span)
        if flight is None or flight.waiters or flight.purpose is Purpose.TRACE:
            return flight
        _, end = self._layer.table.compressed_range(span)
        least = max(limits.LINE_JUDGED_AFTER, 2 * self.line.round_trip)
        rate = flight.rate(trio.current_time(), least)
        ahead = end - flight.reached
        if self.line.is_worth_asking(self._size(span), ahead=ahead, rate=rate):
            if not self.is_streaming:
                self.end(flight)
            return None
        return flight

    def read_ahead(self, spans: Collection[int]) -> None:
        """A sequential reader will want these spans: begins to bring them, if there is room."""
        for group in self._grouped([span for span in spans if self._is_missing(span)]):
            self._launch_ahead(group)

    def _launch_ahead(self, spans: Sequence[int]) -> None:
        is_failing = trio.current_time() < self._failed_until
        is_busy = self._count(Purpose.READAHEAD) >= limits.READAHEAD_FLIGHTS
        # A trace knows better than to guess.
        if spans and not is_failing and not is_busy and not self.runs:
            self._launch(Flight(*self._extent(spans), tuple(spans), Purpose.READAHEAD))

    def _count(self, purpose: Purpose) -> int:
        return len({id(f) for f in self._flights.values() if f.purpose is purpose})

    # --- for whoever fetches the rest ------------------------------------------------------------

    async def fetch_window(
        self, start: int, end: int, spans: Sequence[int], purpose: Purpose
    ) -> None:
        """Brings a range of the blob with all spans in it, and what lies between them.

        It waits for its turn, is never amplified, and gives way as soon as a reader needs the line.
        So it may return before it has brought everything.
        """
        async with self._engine.turn(purpose, may_hurry=lambda: self.is_streaming):
            await self._fly_unasked(Flight(start, end, tuple(spans), purpose))

    def size(self, spans: Sequence[int]) -> int:
        """Bytes of the range from the first of some spans to the last."""
        start, end = self._extent(spans)
        return end - start

    async def bring_traced(self, spans: Sequence[int]) -> None:
        """Brings spans that lie near to each other because a trace says that they are wanted next.

        It is never amplified, takes missing spans between them along, and waits for no turn; see
        `traces.run`.

        Raises:
            RemoteError: The registry does not deliver.
            ContentError: What it delivers is not what was promised.
        """
        if self._engine.copies is not None:
            await self._engine.copies.take(self._layer, self.unclaimed(spans))
        between = self.unclaimed(range(spans[0], spans[-1] + 1))
        if between:
            await self._fly_unasked(Flight(*self._extent(between), tuple(between), Purpose.TRACE))

    async def _fly_unasked(self, flight: Flight) -> None:
        self._launch(flight)
        try:
            await flight.landed.wait()
        finally:
            if not flight.waiters:
                self.end(flight)
        if flight.error is not None:
            raise flight.error.anew()

    def unclaimed(self, spans: Sequence[int]) -> list[int]:
        """Those of some spans that are neither here nor under way."""
        return [span for span in spans if self._is_missing(span)]

    @contextmanager
    def following_trace(self) -> Iterator[None]:
        """Around the time that a trace says what comes next."""
        self.runs += 1
        try:
            with self._engine.following_trace():
                yield
        finally:
            self.runs -= 1

    async def wait_room(self, size: int) -> None:
        """Waits until so many bytes of the blob, and what they decode to, may be brought ahead."""
        await self._engine.wait_room(_EXPANSION * size)

    async def wait_recovered(self, longest: float) -> None:
        """Waits until the registry has answered somebody again, at most so many seconds."""
        with trio.move_on_after(longest):
            await self._recovered.wait()

    # --- planning --------------------------------------------------------------------------------

    def _size(self, span: int) -> int:
        start, end = self._layer.table.compressed_range(span)
        return end - start

    def _extent(self, group: Sequence[int]) -> tuple[int, int]:
        ranges = self._layer.table.compressed_range
        return ranges(group[0])[0], ranges(group[-1])[1]

    def _grouped(self, spans: Sequence[int]) -> Iterator[list[int]]:
        """Neighbours together, up to the largest range that is fetched at once."""
        group: list[int] = []
        for span in spans:
            start, end = self._layer.table.compressed_range(span)
            if group:
                first, reached = self._extent(group)
                if start - reached > limits.FETCH_GAP or end - first > limits.FETCH_LARGEST:
                    yield group
                    group = []
            group.append(span)
        if group:
            yield group

    def _launch_read(self, group: list[int]) -> Flight:
        along: list[int] = []
        if not self.runs:
            worthwhile, is_fast = self.line.worthwhile, not self.is_slow
            along = self._amplification.behind(group, worthwhile, may_sweep=is_fast)
        spans = [*group, *along]
        flight = Flight(*self._extent(spans), tuple(spans), Purpose.READ, waiters=1)
        self._engine.make_way()
        self._launch(flight)
        if self._amplification.mark is not None:
            self._launch_ahead(self._amplification.ahead())
        return flight

    # --- flying ----------------------------------------------------------------------------------

    def _launch(self, flight: Flight) -> None:
        for span in flight.spans:
            if flight.purpose is Purpose.READ:
                # Beside a stream that will bring it later, too: the next reader joins this one.
                self._flights[span] = flight
            else:
                self._flights.setdefault(span, flight)
        self._engine.launch(self, flight)

    async def _wait(self, flights: Collection[Flight], wanted: Collection[int]) -> None:
        """Waits for the wanted spans of some flights, which go on with what they bring besides.

        The caller counts as a waiter of each already: none may end because somebody else has
        stopped waiting for it. A flight ends early when somebody stops waiting before the time, and
        nobody else waits.
        """
        is_served = False
        try:
            for flight in flights:
                spans = [span for span in flight.spans if span in wanted]
                while not flight.landed.is_set() and self._layer.missing(spans):
                    await flight.changed.wait()
                # What it did not store because nobody waited then is asked for again.
                is_passed_over = isinstance(flight.error, StoreFull) and not flight.is_short
                if flight.error and not is_passed_over and self._layer.missing(spans):
                    raise flight.error.anew()
            is_served = True
        finally:
            for flight in flights:
                flight.waiters -= 1
                if not is_served and flight.waiters == 0:
                    self.end(flight)

    def end(self, flight: Flight) -> None:
        """Ends a flight before its time; what it has brought is kept, and nobody joins it now."""
        if not flight.landed.is_set():
            flight.scope.cancel()
            self._forget(flight)

    def _forget(self, flight: Flight) -> None:
        for span in flight.spans:
            if self._flights.get(span) is flight:
                del self._flights[span]

    async def fly(self, flight: Flight) -> None:
        """Runs one flight to its end, whatever that is; the engine calls this."""
        landing = Landing.CANCELLED
        try:
            with flight.scope as scope:
                await self._receive(flight)
            if not scope.cancelled_caught:
                landing = Landing.OK
                self.statistics.requests += 1
                self._note_recovery()
        except ImgvolError as exc:
            landing = Landing.FAILED
            # Where it came from may keep it for a while, and by it this call, and us.
            flight.error = exc.with_traceback(None)
            if isinstance(exc, RemoteError):
                self._note_failure(exc)
            elif isinstance(exc, StoreFull):
                # Nothing is read ahead for a while: it could not be stored either.
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
            self._engine.tallies.flights[flight.purpose, landing] += 1
            self._forget(flight)
            flight.landed.set()
            flight.note_change()

    def _note_recovery(self) -> None:
        if self.failure is not None:
            log.info("layer %s: its registry answers again", self._layer.digest)
            recovered, self._recovered = self._recovered, trio.Event()
            recovered.set()
        self.failure = None

    def _note_failure(self, failure: RemoteError) -> None:
        if self.failure is None:
            log.warning("layer %s: its registry fails: %s", self._layer.digest, failure)
        self.failure = failure
        self._failed_until = trio.current_time() + limits.FETCH_FAILURE_REST

    async def _receive(self, flight: Flight) -> None:
        engine = self._engine
        async with (
            engine.slots.slot(flight, self._host),
            engine.sources.use(self._origin) as source,
        ):
            flight.began = trio.current_time()
            fetch = RangeFetch(self._layer, source, self.descriptor, flight, engine.pace)
            try:
                await run_cancellable(fetch.run, fetch.cancel, limiter=engine.limiter)
                if fetch.received:
                    self.line.learn(
                        fetch.first_byte,
                        fetch.received - fetch.first_size,
                        fetch.seconds - fetch.first_byte,
                        fetch.waited,
                    )
                    engine.tallies.seconds.observe(fetch.seconds)
            except NotFound as exc:
                # The file exists, it is the registry that has lost its bytes: readers must not be
                # told ENOENT.
                raise RegistryUnavailable(
                    "the registry does not have a mounted layer any more",
                    hint="Push the image again.",
                    digest=self.descriptor.digest,
                ) from exc
            finally:
                self.statistics.fetched += fetch.received
                engine.tallies.fetched[flight.purpose] += fetch.received


def _is_missing(
    engine: "FetchEngine", layer: LazyLayerStore, flights: Mapping[int, Flight], span: int
) -> bool:
    """Whether a span is neither here nor under way."""
    if span in layer.present or span in flights:
        return False
    return engine.copies is None or not engine.copies.has(layer, span)


def _host_of(origin: Origin) -> str:
    """Whom flights from an origin ask: all images of a registry share its places."""
    source = parse_image_argument(origin.argument)
    return source.reference.domain if isinstance(source, RegistryImage) else origin.argument
