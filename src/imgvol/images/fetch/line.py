"""What a registry's line is like, and what follows from it for planning. Pure; times in seconds."""

import math
from collections import deque
from statistics import median

from imgvol import limits


class Line:
    """The line to one origin, known from the flights so far.

    The latest few count, and the best round trip of them: a pause before a retry, or a new
    connection, says nothing of the next request.
    """

    def __init__(self) -> None:
        self._round_trips: deque[float] = deque(maxlen=limits.LINE_SAMPLES)
        self._bandwidths: deque[float] = deque(maxlen=limits.LINE_SAMPLES)
        self._is_slow: deque[bool] = deque(maxlen=limits.LINE_SAMPLES)

    def learn(self, first_byte: float, size: int, seconds: float, waited: float) -> None:
        """Takes one flight into account.

        Args:
            first_byte: Until the first bytes came.
            size: Bytes that came after these.
            seconds: How long they took, with what was done with them.
            waited: How much of this was spent on waiting for more of them.
        """
        self._round_trips.append(first_byte)
        if size >= limits.LINE_MEASURABLE and seconds > 0:
            self._bandwidths.append(size / seconds)
            self._is_slow.append(size < limits.FAST_LINE * waited)

    @property
    def is_known(self) -> bool:
        """Whether the bandwidth has been measured."""
        return bool(self._bandwidths)

    @property
    def is_slow(self) -> bool:
        """Whether it brings less than limits.FAST_LINE, or is not known."""
        return sum(self._is_slow) >= len(self._is_slow) / 2

    @property
    def round_trip(self) -> float:
        """Seconds until an answer begins."""
        return min(self._round_trips, default=limits.LINE_ROUND_TRIP)

    @property
    def bandwidth(self) -> float:
        """Bytes per second that are received, verified and stored."""
        return median(self._bandwidths) if self._bandwidths else limits.LINE_BANDWIDTH

    @property
    def worthwhile(self) -> int:
        """Bytes that take about as long as asking for them."""
        size = int(self.round_trip * self.bandwidth) if self.is_known else 0
        return max(limits.FETCH_SMALLEST, min(size, limits.FETCH_LARGEST))

    @property
    def window(self) -> int:
        """Bytes that hold up another reader for a moment only."""
        size = int(self.bandwidth * limits.TRACE_WINDOW_SECONDS)
        return max(limits.TRACE_WINDOW_SMALLEST, min(size, limits.FETCH_LARGEST))

    def depth(self, size: int) -> int:
        """How many ranges of a size must be in the air so that the line is never idle."""
        waiting = self.round_trip * self.bandwidth / size
        return min(limits.TRACE_DEPTH, 2 + math.ceil(waiting))

    def is_worth_streaming(self, remaining: int) -> bool:
        """Whether so many bytes come sooner than all the answers that a program's start asks for.

        Then readers are served best by a stream of everything beside what they ask for.
        """
        return self.is_known and remaining / self.bandwidth < limits.STREAM_ROUND_TRIPS * (
            self.round_trip
        )

    def is_worth_stopping(self, remaining: int) -> bool:
        """Whether a range costs whoever needs the line more than asking for its rest again will."""
        return remaining / self.bandwidth > self.round_trip

    def is_worth_asking(self, size: int, *, ahead: int, rate: float | None) -> bool:
        """Whether a range is here sooner if it is asked for than if one waits for a stream.

        Args:
            size: Bytes of the range.
            ahead: Bytes that the stream has to bring first, the range itself included.
            rate: Bytes per second that the stream has brought so far; None: it has just begun.
        """
        waiting = ahead / (self.bandwidth if rate is None else max(rate, 1.0))
        return waiting > self.round_trip + size / self.bandwidth
