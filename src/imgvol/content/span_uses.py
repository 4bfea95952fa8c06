"""Which spans of a lazy layer are being read now, and when each part of it was used last.

Spans are given back in *windows*, runs of neighbours that begin in the same stretch of the blob:
that frees whole blocks, and one clock per window is little memory however many spans there are. All
of it happens under the lock of the layer's bookkeeping: either whoever gives a span back sees that
it is read, or the reader sees that it is missing.
"""

import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence

from imgvol import limits
from imgvol.layers.lazy.spans import NoSpans, SpanTable


class SpanUses:
    """The uses of one layer's spans.

    Args:
        table: Its span table.
        clock: Seconds, for the order of uses.

    Attributes:
        table: The table; one without spans once the layer is complete.
    """

    def __init__(
        self,
        table: SpanTable,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.table: SpanTable = table
        self._clock = clock
        self._reading: dict[int, int] = {}
        self._stretch = max(limits.SPAN_WINDOW, -(-table.blob_size // limits.SPAN_WINDOWS))
        # Nothing used yet: what an earlier daemon has brought is the first to go.
        self._used = array("d", bytes(8 * (table.blob_size // self._stretch + 1)))

    def enter(self, spans: Collection[int]) -> None:
        """A reader begins with some spans; `leave` must follow. The lock is the caller's."""
        reading = self._reading
        for span in spans:
            reading[span] = reading.get(span, 0) + 1

    def leave(self, spans: Collection[int]) -> list[int]:
        """It has read them, or given up; returns those that nobody reads any more. Likewise."""
        reading, left = self._reading, []
        for span in spans:
            count = reading[span] - 1
            if count:
                reading[span] = count
            else:
                del reading[span]
                left.append(span)
        return left

    def note(self, spans: Collection[int]) -> None:
        """Some spans have been used, or have come."""
        now = self._clock()
        for span in spans:
            self._used[self._window_of(span)] = now

    def close(self) -> None:
        """There are no spans any more: what knows them is dropped."""
        self.table = NoSpans(0)

    def is_read(self, span: int) -> bool:
        """Whether somebody reads a span now: for certain, if the caller has the lock."""
        return span in self._reading

    def windows(self) -> Iterator[tuple[int, float]]:
        """Every window, with when it was used last."""
        return enumerate(self._used)

    def spans_in(self, window: int) -> Sequence[int]:
        """The spans of a window, in order."""
        table = self.table

        def start_of(span: int) -> int:
            return table.compressed_range(span)[0]

        spans = range(table.span_count)
        first = bisect_left(spans, window * self._stretch, key=start_of)
        return spans[first : bisect_left(spans, (window + 1) * self._stretch, first, key=start_of)]

    def _window_of(self, span: int) -> int:
        return self.table.compressed_range(span)[0] // self._stretch
