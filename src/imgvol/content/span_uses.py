"""Which spans of a lazy layer are being read now, and when each part of it was used last.

A read keeps its spans: readers come and go under the lock of the layer's bookkeeping, which whoever
gives a span back has, too. Either that one sees that it is read, or the reader sees that it is
missing. Spans that are in memory only, for want of room, stay there as long.

Spans are given back in *windows*, runs of neighbours that begin in the same stretch of the blob:
that frees whole blocks, and one clock per window is little memory however many spans there are.
"""

import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence

from imgvol import limits
from imgvol.content.holdings import Holdings
from imgvol.content.layer_locks import LayerLocks


class SpanUses:
    """The uses of one layer's spans.

    Args:
        holdings: What of the layer is here.
        locks: The layer's.
        clock: Seconds, for the order of uses.
    """

    def __init__(
        self, holdings: Holdings, locks: LayerLocks, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._holdings = holdings
        self._lock = locks.bookkeeping
        self._clock = clock
        self._reading: dict[int, int] = {}
        blob_size = holdings.table.blob_size
        self._stretch = max(limits.SPAN_WINDOW, -(-blob_size // limits.SPAN_WINDOWS))
        # Nothing used yet: what an earlier daemon has brought is the first to go.
        self._used = array("d", bytes(8 * (blob_size // self._stretch + 1)))

    def enter(self, spans: Collection[int]) -> None:
        """A reader begins with some spans, which stay until it leaves; `leave` must follow."""
        reading = self._reading
        with self._lock:
            for span in spans:
                reading[span] = reading.get(span, 0) + 1

    def leave(self, spans: Collection[int]) -> None:
        """It has read them, or given up."""
        reading = self._reading
        with self._lock:
            for span in spans:
                count = reading[span] - 1
                if count:
                    reading[span] = count
                else:
                    del reading[span]
                    self._holdings.spare.drop(span)

    def note(self, spans: Collection[int]) -> None:
        """Some spans have been used, or have come."""
        now = self._clock()
        for span in spans:
            self._used[self._window_of(span)] = now

    def is_read(self, span: int) -> bool:
        """Whether somebody reads a span now: for certain, if the caller has the lock."""
        return span in self._reading

    def windows(self) -> Iterator[tuple[int, float]]:
        """Every window, with when it was used last."""
        return enumerate(self._used)

    def spans_in(self, window: int) -> Sequence[int]:
        """The spans of a window, in order."""
        table = self._holdings.table

        def start_of(span: int) -> int:
            return table.compressed_range(span)[0]

        spans = range(table.span_count)
        first = bisect_left(spans, window * self._stretch, key=start_of)
        return spans[first : bisect_left(spans, (window + 1) * self._stretch, first, key=start_of)]

    def _window_of(self, span: int) -> int:
        return self._holdings.table.compressed_range(span)[0] // self._stretch
