"""Plain counters, for the components to keep and for the metrics to show.

They know nothing of how they are shown. A component counts where things happen, for a few hundred
nanoseconds; whoever asks gets numbers from memory, without a lock and without waiting. Each tally
belongs to the event loop: nothing here is safe in other threads.
"""

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

# Upper bounds of buckets, seconds. Handlers answer from memory in 20 to 100 us; reads of the disk
# take milliseconds, those of the network anything up to the handlers' deadline.
REQUEST_BOUNDS: Final = (
    *(25e-6, 50e-6, 100e-6, 250e-6, 500e-6),
    *(1e-3, 2.5e-3, 10e-3, 50e-3, 0.25, 1.0, 5.0, 30.0),
)
WAIT_BOUNDS: Final = (
    *(1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
LOOP_BOUNDS: Final = (5.0, 10.0, 30.0, 60.0)
PULL_BOUNDS: Final = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a histogram had counted at one moment.

    Attributes:
        bounds: Upper bounds of the buckets; the last bucket has none.
        counts: How many were in each bucket: one more than there are bounds.
        total: Sum of everything observed.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


class Histogram:
    """Counts durations by size."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, seconds: float) -> None:
        """Takes one duration into account; a bucket includes its upper bound."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._total += seconds

    def snapshot(self) -> Distribution:
        """The counts so far."""
        return Distribution(self._bounds, tuple(self._counts), self._total)


class Result(IntEnum):
    """How a request of the kernel ended."""

    OK = 0
    # An error that answers the question: no such attribute, no such name, read-only.
    REFUSED = 1
    # Data that cannot be had: the registry, the content or the store failed.
    FAILED = 2
    # Not answered in time.
    LATE = 3
    # A defect of imgvol.
    DEFECT = 4
    # Given up with the session.
    CANCELLED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationCounts:
    """What there is to say of one kind of request at one moment."""

    operation: str
    in_progress: int
    results: tuple[int, ...]
    seconds: Distribution


class OperationTally:
    """Counts the requests of one kind. Hot: every request of the kernel goes through it."""

    __slots__ = ("_counts", "_in_progress", "_results", "_total")

    def __init__(self) -> None:
        self._in_progress = 0
        self._results = [0] * len(Result)
        # A histogram, laid out here: the call would cost as much as the counting.
        self._counts = [0] * (len(REQUEST_BOUNDS) + 1)
        self._total = 0.0

    def begin(self) -> float:
        """A request has come; what is returned goes to `end`."""
        self._in_progress += 1
        return time.perf_counter()

    def end(self, began: float, result: Result) -> None:
        """It has been answered."""
        seconds = time.perf_counter() - began
        self._in_progress -= 1
        self._results[result] += 1
        self._counts[bisect_left(REQUEST_BOUNDS, seconds)] += 1
        self._total += seconds

    def snapshot(self, operation: str) -> OperationCounts:
        """The counts so far."""
        return OperationCounts(
            operation=operation,
            in_progress=self._in_progress,
            results=tuple(self._results),
            seconds=Distribution(REQUEST_BOUNDS, tuple(self._counts), self._total),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCounts:
    """What the filesystem had been asked at one moment.

    Attributes:
        operations: Each kind that has been asked for.
        bytes_read: Bytes in answers to reads.
        passed_opens: Files that were opened, and are read by the kernel in the store.
        backing_files: Files of the store that the kernel holds for that.
    """

    operations: tuple[OperationCounts, ...] = ()
    bytes_read: int = 0
    passed_opens: int = 0
    backing_files: int = 0


class RequestTallies:
    """Counts what the kernel asks of the filesystem.

    Attributes:
        bytes_read: Bytes in answers to reads.
        passed_opens: Files that were opened, and are read by the kernel in the store.
        backing_files: Files of the store that the kernel holds for that.
    """

    __slots__ = ("_operations", "backing_files", "bytes_read", "passed_opens")

    def __init__(self) -> None:
        self._operations: dict[str, OperationTally] = {}
        self.bytes_read = 0
        self.passed_opens = 0
        self.backing_files = 0

    def of(self, operation: str) -> OperationTally:
        """The tally of one kind of request; the kinds are the handlers, so they are few."""
        tally = self._operations.get(operation)
        if tally is None:
            tally = self._operations[operation] = OperationTally()
        return tally

    def snapshot(self) -> RequestCounts:
        """The counts so far."""
        operations = tuple(t.snapshot(name) for name, t in sorted(self._operations.items()))
        return RequestCounts(
            operations=operations,
            bytes_read=self.bytes_read,
            passed_opens=self.passed_opens,
            backing_files=self.backing_files,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitCounts:
    """What there is to say of waits at one moment.

    Attributes:
        seconds: Of those that have ended.
        waiting: How many have not.
        oldest: Seconds since the first of these began; 0 if there is none.
    """

    seconds: Distribution
    waiting: int
    oldest: float


class WaitTally:
    """Counts and times what has to wait, and knows what is waiting still."""

    __slots__ = ("_began", "_seconds")

    def __init__(self) -> None:
        self._seconds = Histogram(WAIT_BOUNDS)
        # In the order in which they began: dictionaries keep it.
        self._began: dict[object, float] = {}

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """One wait, however it ends."""
        key = object()
        began = self._began[key] = time.perf_counter()
        try:
            yield
        finally:
            del self._began[key]
            self._seconds.observe(time.perf_counter() - began)

    def snapshot(self) -> WaitCounts:
        """The counts so far."""
        first = next(iter(self._began.values()), None)
        return WaitCounts(
            seconds=self._seconds.snapshot(),
            waiting=len(self._began),
            oldest=0.0 if first is None else time.perf_counter() - first,
        )


@dataclass(frozen=True, slots=True)
class QueueLength:
    """Work that few may do at once.

    Attributes:
        running: What is being done.
        waiting: What waits for its turn.
    """

    running: int = 0
    waiting: int = 0
