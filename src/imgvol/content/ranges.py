"""A set of numbers, kept as ranges: which bytes of a file are there."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class Ranges:
    """Disjoint ranges [start, end), in order; ranges that touch become one.

    Attributes:
        size: How many numbers are in.
    """

    def __init__(self) -> None:
        self.size = 0
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        """Puts a range in."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._replace(first, last, [(start, end)])

    def discard(self, start: int, end: int) -> None:
        """Takes a range out."""
        if start >= end:
            return
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        if first >= last:
            return
        before = [(self._starts[first], start)] if self._starts[first] < start else []
        behind = [(end, self._ends[last - 1])] if end < self._ends[last - 1] else []
        self._replace(first, last, before + behind)

    def _replace(self, first: int, last: int, pieces: list[tuple[int, int]]) -> None:
        self.size += sum(end - start for start, end in pieces)
        self.size -= sum(self._ends[first:last]) - sum(self._starts[first:last])
        self._starts[first:last] = [start for start, _ in pieces]
        self._ends[first:last] = [end for _, end in pieces]

    def covers(self, start: int, end: int) -> bool:
        """Whether all of [start, end) is in."""
        place = bisect_right(self._starts, start) - 1
        return start >= end or (place >= 0 and end <= self._ends[place])

    def holes(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of [start, end) that are not in, in order."""
        for place in range(bisect_right(self._ends, start), len(self._starts)):
            if self._starts[place] >= end:
                break
            if start < self._starts[place]:
                yield start, self._starts[place]
            start = self._ends[place]
        if start < end:
            yield start, end

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)


def joined(ranges: Ranges, *, gap: int, budget: int) -> list[tuple[int, int]]:
    """Ranges, with those made one that are near to each other, the nearest first.

    Args:
        gap: What may lie between two of them, at most.
        budget: What may lie between them in all.
    """
    parts = list(ranges)
    gaps = sorted((parts[i + 1][0] - parts[i][1], i) for i in range(len(parts) - 1))
    bridged = set()
    for size, place in gaps:
        budget -= size
        if size > gap or budget < 0:
            break
        bridged.add(place)
    result: list[tuple[int, int]] = []
    for place, (start, end) in enumerate(parts):
        if place - 1 in bridged:
            start = result.pop()[0]  # noqa: PLW2901 - joined
        result.append((start, end))
    return result
