"""Fetches the rest of a lazy layer, while nobody waits for anything."""

from collections.abc import Iterator, Sequence

import trio

from imgvol import limits
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.ranges import Ranges, joined
from imgvol.images.fetch.flight import Purpose
from imgvol.images.fetch.layer import LayerFetcher
from imgvol.layers.lazy.spans import SpanTable


async def fetch_rest(layer: LazyLayerStore, fetcher: LayerFetcher) -> None:
    """Brings what the image's maker wants first, then everything else, in the blob's order.

    It waits while the store is too full for more, and ends early for a layer that stays lazy.

    Raises:
        RemoteError: The registry fails.
        ContentError: A span is not what it should be.
    """
    for start, end, spans in marked_windows(layer.table):
        await _fetch_spans(layer, fetcher, start, end, spans)
    for start, end, spans in windows(layer.table):
        # Looking at what is here takes time, too: filesystem requests come in between.
        await trio.lowlevel.checkpoint()
        while parts := lacking(layer, start, end, spans):
            first, last = parts[0]
            await fetcher.wait_room(last - first)
            if layer.stays_lazy:
                return
            within = _within(layer, first, last, spans)
            await fetcher.fetch_window(first, last, within, Purpose.BACKGROUND)


async def _fetch_spans(
    layer: LazyLayerStore, fetcher: LayerFetcher, start: int, end: int, spans: Sequence[int]
) -> None:
    while missing := layer.missing(spans):
        await trio.lowlevel.checkpoint()
        if layer.forgoes_proof:  # what lies between is nobody's
            start, end = lacking(layer, start, end, missing)[0]
        first = layer.table.compressed_range(missing[0])[0]
        await fetcher.wait_room(end - first)
        if layer.stays_lazy:
            return
        within = _within(layer, first, end, missing)
        await fetcher.fetch_window(max(start, first), end, within, Purpose.PREFETCH)


def lacking(
    layer: LazyLayerStore, start: int, end: int, spans: Sequence[int]
) -> list[tuple[int, int]]:
    """What of a range of the blob is still to be fetched to have all of it, and its spans.

    Missing spans are in one part each; parts that are near to each other are one. A layer that
    forgoes its proof lacks nothing but spans, and parts are joined sparingly.
    """
    wanted = Ranges()
    for span in layer.missing(spans):
        wanted.add(*layer.table.compressed_range(span))
    budget = int(wanted.size * limits.FETCH_ALONG_SHARE)
    if not layer.forgoes_proof:
        for hole in layer.kept.holes(start, end):
            wanted.add(*hole)
        budget = layer.table.blob_size
    return joined(wanted, gap=limits.FETCH_GAP, budget=budget)


def _within(layer: LazyLayerStore, start: int, end: int, spans: Sequence[int]) -> list[int]:
    """The missing spans that lie in a range as a whole."""
    ranges = layer.table.compressed_range
    return [s for s in layer.missing(spans) if start <= ranges(s)[0] and ranges(s)[1] <= end]


def marked_windows(table: SpanTable) -> Iterator[tuple[int, int, list[int]]]:
    """The spans that the image's maker marked, neighbours together: start, end, spans."""
    spans: list[int] = []
    start = end = 0
    for span in table.prefetch:
        first, last = table.compressed_range(span)
        is_near = 0 <= first - end <= limits.FETCH_GAP or first == end - 1
        if spans and not (is_near and last - start <= limits.FETCH_WINDOW):
            yield start, end, spans
            spans = []
        if not spans:
            start = first
        spans.append(span)
        end = last
    if spans:
        yield start, end, spans


def windows(table: SpanTable) -> Iterator[tuple[int, int, list[int]]]:
    """The blob in order, in pieces for the background: start, end, and the spans that end in each.

    What lies between spans goes with the window that it is in, or makes windows of its own if it is
    long: the blob must be whole in the end.
    """
    start = reached = 0
    spans: list[int] = []
    for span in range(table.span_count):
        first, end = table.compressed_range(span)
        while first - start >= limits.FETCH_WINDOW:
            yield start, start + limits.FETCH_WINDOW, spans
            start, spans = start + limits.FETCH_WINDOW, []
        # The first byte may be the last one of the window before.
        start = min(start, first)
        spans.append(span)
        reached = max(reached, end)
        if reached - start >= limits.FETCH_WINDOW:
            yield start, reached, spans
            start, spans = reached, []
    while start < table.blob_size:
        end = min(start + limits.FETCH_WINDOW, table.blob_size)
        yield start, end, spans
        start, spans = end, []
