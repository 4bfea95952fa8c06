"""Gives the disk space of a lazy layer's spans back, while others of it are read and fetched.

In this order, so that a process that is killed at any instruction leaves a right store:

1. Bits are cleared in memory, of spans that nobody reads at that moment: who comes later fetches.
2. The map on disk forgets them, durably. It says nothing of spans that came since it was written.
3. Holes are punched into data and kept blob.

Meanwhile nothing is written into the two files: a span that a flight brings at once waits for the
hole where it belongs, and is not swallowed by it. Only whole blocks are freed. What else is in the
block at either end is another span's, which is present and keeps it, or nobody's.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from imgvol.content.punch import whole_blocks
from imgvol.content.ranges import Ranges
from imgvol.layers.lazy.spans import SpanTable


class Spans(Protocol):
    """Some spans, such as a map of those that are here."""

    def __contains__(self, span: int, /) -> bool:
        """Whether a span is one of them."""


@dataclass(frozen=True, slots=True)
class GivenBack:
    """What became of it.

    Attributes:
        spans: How many were given back; the others are read, or were not here.
        size: Bytes of disk that are free now.
    """

    spans: int = 0
    size: int = 0


def data_holes(
    table: SpanTable, gone: Collection[int], present: Spans
) -> Iterator[tuple[int, int]]:
    """What to punch into the data file for spans that have gone."""

    def is_free(start: int, end: int) -> bool:
        return not any(span in present for span in table.spans_of(start, end - start))

    ranges = Ranges()
    for span in gone:
        for start, end in table.positions(span):
            ranges.add(start, end)
    for start, end in ranges:
        yield whole_blocks(start, end, is_free)


def blob_holes(table: SpanTable, gone: Sequence[int], present: Spans) -> Iterator[tuple[int, int]]:
    """What to punch into the kept blob: whatever lies between spans goes along.

    Args:
        gone: In order.
    """
    for first, last in _runs(gone):
        start, end = _stretch(table, first, last, present)
        if start < end:
            yield whole_blocks(start, end, lambda a, b: not _has_any(table, a, b, present))


def _runs(spans: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Neighbours together: the first and the last of each run."""
    for place, span in enumerate(spans):
        if place == 0 or spans[place - 1] != span - 1:
            first = span
        if place == len(spans) - 1 or spans[place + 1] != span + 1:
            yield first, span


def _stretch(table: SpanTable, first: int, last: int, present: Spans) -> tuple[int, int]:
    """The part of the blob between the neighbours of a run; what it shares with them is theirs."""
    start, end = table.compressed_range(first)[0], table.compressed_range(last)[1]
    before = table.compressed_range(first - 1)[1] if first else 0
    start = before if first and first - 1 in present else min(start, before)
    following = last + 1
    is_last = following == table.span_count
    behind = table.blob_size if is_last else table.compressed_range(following)[0]
    end = behind if not is_last and following in present else max(end, behind)
    return start, end


def _has_any(table: SpanTable, start: int, end: int, present: Spans) -> bool:
    """Whether a present span has bytes in a range of the blob."""
    spans = range(table.span_count)
    span = bisect_left(spans, end, key=lambda span: table.compressed_range(span)[0]) - 1
    while span >= 0 and table.compressed_range(span)[1] > start:
        if span in present:
            return True
        span -= 1
    return False


def everything_else(
    table: SpanTable, present: Iterable[int], kept: Spans
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """What of data and blob belongs to no present span: an earlier process may have left it.

    Args:
        kept: Those of which the compressed bytes are here, too.
    """
    data, blob = Ranges(), Ranges()
    for span in sorted(present):
        for start, end in table.positions(span):
            data.add(start, end)
        if span in kept:
            blob.add(*table.compressed_range(span))

    def inner(ranges: Ranges, size: int) -> list[tuple[int, int]]:
        return [whole_blocks(*hole, lambda a, _: a >= size) for hole in ranges.holes(0, size)]

    return inner(data, table.data_size), inner(blob, table.blob_size)


def size_of(table: SpanTable, span: int, *, with_blob: bool = True) -> int:
    """About what a present span takes, with its compressed bytes or without."""
    start, end = table.compressed_range(span) if with_blob else (0, 0)
    return end - start + sum(last - first for first, last in table.positions(span))
