"""Counts of CRI calls. They are kept in the thread that serves gRPC and shown in trio's."""

import threading
import time
from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

from imgvol.tallies import Distribution

# Lists come from memory, in a millisecond or two; pulls take as long as their network does.
CALL_BOUNDS: Final = (
    *(0.5e-3, 1e-3, 2.5e-3, 5e-3, 10e-3, 50e-3),
    *(0.25, 1.0, 5.0, 30.0, 120.0, 600.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodCounts:
    """What there is to say of one method at one moment.

    Attributes:
        method: Its name, without its service.
        in_progress: Calls that have not ended.
        codes: How many ended with each code, by the code's name; only those that occurred.
        seconds: How long they took.
    """

    method: str
    in_progress: int
    codes: tuple[tuple[str, int], ...]
    seconds: Distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCounts:
    """What clients of the CRI had asked for at one moment."""

    methods: tuple[MethodCounts, ...] = ()


class _Method:
    __slots__ = ("codes", "in_progress", "sizes", "total")

    def __init__(self) -> None:
        self.in_progress = 0
        self.codes: dict[str, int] = {}
        self.sizes = [0] * (len(CALL_BOUNDS) + 1)
        self.total = 0.0


class CallTallies:
    """Counts calls; safe in any thread. The methods are those that a server knows: few."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._methods: dict[str, _Method] = {}
        self._in_progress = 0
        self._last = time.monotonic()

    def begin(self, method: str) -> float:
        """A call has come; what is returned goes to `end`."""
        with self._lock:
            self._methods.setdefault(method, _Method()).in_progress += 1
            self._in_progress += 1
        return time.perf_counter()

    def end(self, method: str, began: float, code: str) -> float:
        """It has ended with this code; returns how long it took."""
        seconds = time.perf_counter() - began
        with self._lock:
            tally = self._methods[method]
            tally.in_progress -= 1
            tally.codes[code] = tally.codes.get(code, 0) + 1
            tally.sizes[bisect_left(CALL_BOUNDS, seconds)] += 1
            tally.total += seconds
            self._in_progress -= 1
            self._last = time.monotonic()
        return seconds

    def idle_seconds(self) -> float:
        """How long no call has been in progress; 0 while one is."""
        with self._lock:
            return 0.0 if self._in_progress else time.monotonic() - self._last

    def snapshot(self) -> CallCounts:
        """The counts so far."""
        with self._lock:
            return CallCounts(
                methods=tuple(
                    MethodCounts(
                        method=name,
                        in_progress=tally.in_progress,
                        codes=tuple(sorted(tally.codes.items())),
                        seconds=Distribution(CALL_BOUNDS, tuple(tally.sizes), tally.total),
                    )
                    for name, tally in sorted(self._methods.items())
                )
            )
