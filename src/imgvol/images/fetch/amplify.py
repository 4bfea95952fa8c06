"""What a layer's readers are given beside what they ask for, and how much of it. Pure.

Small reads are amplified: spans behind the wanted ones come along as far as asking for them later
would cost more than receiving them now. And whoever goes through files in the blob's order, as
tools do that read everything, *sweeps*: each time they take twice as much, and the next part is
brought before they get there.

All of this is a guess, so it has a budget: what was brought and then not wanted stays below a share
of what was.
"""

from collections.abc import Callable, Sequence

from imgvol import limits
from imgvol.content.lazy_layer import LazyLayerStore


class Amplification:
    """The guesses for one layer.

    Args:
        layer: Whose spans they are. It gives its table back once it is complete.
        is_missing: Whether a span is neither here nor under way.

    Attributes:
        needed: Bytes of spans that readers wanted.
        mark: The span that a sweep is about to reach: then it is time for `ahead`.
    """

    def __init__(self, layer: LazyLayerStore, is_missing: Callable[[int], bool]) -> None:
        self.needed = 0
        self.mark: int | None = None
        self._layer = layer
        self._is_missing = is_missing
        # Spans that were brought and that nobody has wanted so far: bytes of each, and of all.
        self._vain: dict[int, int] = {}
        self._vain_bytes = 0
        # Where the latest part ended: the span behind it, the byte, and how large the part was.
        self._next = 0
        self._reached = 0
        self._sweep = 0

    def want(self, span: int) -> int:
        """A reader wants a span for the first time. Returns its bytes."""
        start, end = self._layer.table.compressed_range(span)
        self._vain_bytes -= self._vain.pop(span, 0)
        self.needed += end - start
        return end - start

    def behind(self, group: Sequence[int], worthwhile: int, *, may_sweep: bool) -> list[int]:
        """The spans behind a group of wanted ones that are to come along.

        Args:
            group: Neighbours that are about to be fetched.
            worthwhile: Bytes that take as long as asking for them.
            may_sweep: Whether the line is fast enough to bring what nobody may want.
        """
        ranges = self._layer.table.compressed_range
        start, end = ranges(group[0])[0], ranges(group[-1])[1]
        is_next = 0 <= start - self._reached <= limits.FETCH_GAP
        is_sweeping = may_sweep and self._sweep > 0 and is_next
        self._sweep = min(2 * self._sweep, limits.FETCH_LARGEST) if is_sweeping else 0
        self._sweep = max(self._sweep, worthwhile)
        self.mark = group[0] if is_sweeping else None
        self._next, self._reached = group[-1] + 1, end
        return self._take(start, self._sweep)

    def ahead(self) -> list[int]:
        """The next part of a sweep that has reached its mark."""
        self.mark = None
        part = self._take(self._reached, self._sweep)
        if part:
            self.mark = part[0]
            self._sweep = min(2 * self._sweep, limits.FETCH_LARGEST)
        return part

    def _take(self, start: int, size: int) -> list[int]:
        """The missing spans that come next, until a range has a size; what the budget allows."""
        share = int(self.needed * limits.FETCH_ALONG_SHARE)
        budget = limits.FETCH_ALONG_FREE + share - self._vain_bytes
        limit = min(start + limits.FETCH_LARGEST, self._reached + budget)
        part: list[int] = []
        while self._reached < start + size and self._next < self._layer.table.span_count:
            first, end = self._layer.table.compressed_range(self._next)
            is_far = first - self._reached > limits.FETCH_GAP
            if is_far or end > limit or not self._is_missing(self._next):
                break
            part.append(self._next)
            self._vain[self._next] = end - first
            self._vain_bytes += end - first
            self._next, self._reached = self._next + 1, end
        return part
