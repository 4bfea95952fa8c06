"""Gives disk space of one open lazy layer back; `giving_back` has the order and the reasons."""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from imgvol.content.durable import translate_os_errors
from imgvol.content.giving_back import (
    GivenBack,
    blob_holes,
    data_holes,
    everything_else,
    size_of,
)
from imgvol.content.holdings import Holdings
from imgvol.content.layer_locks import LayerLocks
from imgvol.content.punch import BLOCK, allocated, punch_hole
from imgvol.content.space import SpaceLedger
from imgvol.content.span_map import SpanMap
from imgvol.content.span_uses import SpanUses
from imgvol.layers.lazy.spans import SpanTable

# Bits that change in one go: the event loop waits for less than a millisecond.
_BATCH: Final = 500


class SpanReclaimer:
    """Knows what of a layer could be given back, and does it. For any thread.

    Args:
        holdings: What of the layer is here.
        uses: Which spans of it are read.
        locks: The layer's.
        space: What the store takes.
    """

    def __init__(
        self, holdings: Holdings, uses: SpanUses, locks: LayerLocks, space: SpaceLedger
    ) -> None:
        self._holdings = holdings
        self._present = holdings.present
        self._compressed = _KeptSpans(holdings.present)
        self._kept = holdings.kept
        self._uses = uses
        self._locks = locks
        self._space = space
        self._holders = 0
        self._is_tidy = False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Gives nothing back inside the block."""
        with self._locks.bookkeeping:
            self._holders += 1
        try:
            yield
        finally:
            with self._locks.bookkeeping:
                self._holders -= 1

    def windows(self) -> list[tuple[int, float, int]]:
        """What could be given back: window, when it was used last, about how many bytes. Blocks."""
        table = self._holdings.table
        if self._holdings.data is None or self._holders:
            return []
        return [
            (window, used_at, size)
            for window, used_at in self._uses.windows()
            if (size := sum(self._size_of(table, span) for span in self._idle([window])))
        ]

    def _size_of(self, table: SpanTable, span: int) -> int:
        return size_of(table, span, with_blob=self._present.is_kept(span))

    def _idle(self, windows: Collection[int]) -> list[int]:
        """The spans of some windows that are here and that nobody reads, in order."""
        return [
            span
            for window in sorted(windows)
            for span in self._uses.spans_in(window)
            if span in self._present and not self._uses.is_read(span)
        ]

    def give_back(self, windows: Collection[int]) -> GivenBack:
        """Gives back the spans of some windows that nobody reads now. Blocks.

        Raises:
            LocalError: The disk fails, or cannot give back parts of files.
        """
        locks, mark = self._locks, self._space.begin_giving()
        with locks.saving, locks.storing, self._kept.writing:
            with locks.bookkeeping:
                data, blob = self._holdings.data, self._kept.file
                if data is None or blob is None or self._holders:
                    return GivenBack()
                table = self._holdings.table
                gone = self._idle(windows)
                for span in gone:
                    self._holdings.discard(span)
                self._holdings.has_given_back |= bool(gone)
            if not gone:
                return GivenBack()
            before = allocated(data.fd, blob.fd)
            with translate_os_errors("give back a part of a layer"):
                try:
                    self._present.save_missing()
                except FileNotFoundError:
                    return GivenBack()  # completed or removed meanwhile: all of it has gone
                self._punch(table, gone, data.fd, blob.fd)
            size = max(0, before - allocated(data.fd, blob.fd))
        self._space.give(size, mark)
        return GivenBack(len(gone), size)

    @property
    def spare_blob(self) -> int:
        """Bytes of the kept blob that only the layer's final form would need. From memory."""
        holdings = self._holdings
        is_spare = holdings.is_proven and holdings.data is not None and not self._holders
        return self._kept.size if is_spare and _has_own_digests(holdings.table) else 0

    def give_back_blob(self) -> GivenBack:
        """Gives back the compressed bytes of a proven layer, whose content stays. Blocks.

        In the same order as spans: bits, map, hole.

        Raises:
            LocalError: The disk fails, or cannot give back parts of files.
        """
        locks, mark = self._locks, self._space.begin_giving()
        with locks.saving, locks.storing, self._kept.writing:
            with locks.bookkeeping:
                blob = self._kept.file
                if blob is None or not self.spare_blob:
                    return GivenBack()
                # Whoever wants to verify the whole does not find it from now on.
                self._kept.drop(0, self._holdings.table.blob_size)
            spans = list(self._present)
            for start in range(0, len(spans), _BATCH):
                with locks.bookkeeping:
                    for span in spans[start : start + _BATCH]:
                        self._holdings.give_up(span)
            before = allocated(blob.fd)
            with translate_os_errors("give back a part of a layer"):
                try:
                    self._present.save_missing()
                except FileNotFoundError:
                    return GivenBack()  # completed or removed meanwhile: all of it has gone
                punch_hole(blob.fd, 0, self._holdings.table.blob_size + BLOCK)
            size = max(0, before - allocated(blob.fd))
        self._space.give(size, mark)
        return GivenBack(0, size)

    def _punch(self, table: SpanTable, gone: Sequence[int], data: int, blob: int) -> None:
        present = self._present
        if self._is_tidy:
            holes = list(data_holes(table, gone, present))
            blob_parts = list(blob_holes(table, gone, self._compressed))
        else:
            holes, blob_parts = everything_else(table, present, self._compressed)
            self._is_tidy = True
        # Whoever fetches them again shall not believe that they are here.
        for span in gone:
            self._drop_kept(table, span)
        for start, end in blob_parts:
            self._kept.drop(start, end)
            punch_hole(blob, start, end)
        for start, end in holes:
            punch_hole(data, start, end)

    def _drop_kept(self, table: SpanTable, span: int) -> None:
        """Forgets the compressed bytes of a span, but for those that it shares with others."""
        start, end = table.compressed_range(span)
        if span and span - 1 in self._compressed:
            start = max(start, table.compressed_range(span - 1)[1])
        if span + 1 < table.span_count and span + 1 in self._compressed:
            end = min(end, table.compressed_range(span + 1)[0])
        self._kept.drop(start, end)


class _KeptSpans:
    """The present spans whose compressed bytes are here, too."""

    def __init__(self, present: SpanMap) -> None:
        self._present = present

    def __contains__(self, span: int) -> bool:
        return span in self._present and self._present.is_kept(span)


def _has_own_digests(table: SpanTable) -> bool:
    """Whether the content can be told to be right without its compressed form, for a scrub.

    Of a table that is pinned, either all spans have such digests or none: SOCI's have not.
    """
    return table.is_pinned and table.span_count > 0 and table.parts(0) is not None
