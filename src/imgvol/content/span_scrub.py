"""Looks whether the spans of an open lazy layer are still what was verified when they came."""

import hashlib
from collections.abc import Callable, Collection

from imgvol.content.durable import translate_os_errors
from imgvol.content.holdings import Holdings
from imgvol.content.layer_locks import LayerLocks
from imgvol.content.open_file import OpenFile
from imgvol.content.reading import pread_exact
from imgvol.content.span_uses import SpanUses
from imgvol.errors import ContentError, InternalError, StoreDamaged
from imgvol.layers.lazy.spans import SpanTable


class SpanScrubber:
    """Finds damaged spans, and has them fetched again. Blocks; for any thread.

    Args:
        holdings: What of the layer is here.
        uses: Which spans of it are read.
        locks: The layer's.
    """

    def __init__(self, holdings: Holdings, uses: SpanUses, locks: LayerLocks) -> None:
        self._holdings = holdings
        self._present = holdings.present
        self._kept = holdings.kept
        self._uses = uses
        self._locks = locks

    def damaged_spans(self, progress: Callable[[int], None]) -> list[int]:
        """The present spans whose bytes are not what the table of contents pins. Takes long.

        A span counts as damaged, too, if only its compressed form is: the whole could not be
        verified with it.

        Args:
            progress: Told of the size of each; may raise to end it all.
        """
        damaged = []
        for span in list(self._present):
            start, end = self._holdings.table.compressed_range(span)
            progress(end - start)
            # Not given back before we have looked.
            self._uses.enter([span])
            try:
                if span in self._present and not self._is_sound(span):
                    damaged.append(span)
            finally:
                self._uses.leave([span])
        return damaged

    def _is_sound(self, span: int) -> bool:
        # The table first: it goes after the data, so that it is the real one if there are data.
        table, data = self._holdings.table, self._holdings.data
        if data is None:
            return True  # completed meanwhile, hence verified as a whole
        is_kept = self._present.is_kept(span)
        try:
            if is_kept:
                return self._is_what_it_decodes_to(table, data, span)
            return self._is_what_its_digests_say(table, data, span)
        except (ContentError, StoreDamaged):
            # The compressed bytes may have been given back in this moment.
            is_dropped = is_kept and not self._present.is_kept(span)
            return is_dropped and self._is_sound(span)
        except InternalError:
            return True  # completed in this moment

    def _is_what_it_decodes_to(self, table: SpanTable, data: OpenFile, span: int) -> bool:
        start, end = table.compressed_range(span)
        return all(
            self._read(data, region.position, len(region.data)) == region.data
            for region in table.decode(span, self._kept.read(start, end - start))
        )

    def _is_what_its_digests_say(self, table: SpanTable, data: OpenFile, span: int) -> bool:
        """Of a span that there is nothing to decode from."""
        parts = table.parts(span)
        return parts is not None and all(
            hashlib.sha256(self._read(data, part.position, part.size)).digest() == part.digest
            for part in parts
        )

    def _read(self, data: OpenFile, position: int, size: int) -> bytes:
        return pread_exact(data.fd, position, size, self._holdings.digest)

    def forget(self, spans: Collection[int]) -> None:
        """Counts damaged spans as missing: they are fetched again. Durable on return.

        Raises:
            StoreFull: No room; a restart believes the spans again.
        """
        holdings = self._holdings
        with self._locks.bookkeeping:
            for span in spans:
                holdings.discard(span)
                holdings.kept.drop(*holdings.table.compressed_range(span))
        with self._locks.saving, translate_os_errors("mark what is damaged of a layer"):
            self._present.save_missing()
