"""Takes in what comes of one open lazy layer: stores it, shows it to readers, makes it durable.

In this order, so that neither readers nor the map on disk ever speak of bytes that are not here:

1. Bytes are written: compressed ones into the kept blob, content into the data file.
2. The span's bit is set in memory: readers see it.
3. Both files are made durable, and then the map: it speaks of nothing that came since.

Everything is counted before it is written (`SpaceLedger`), and a span is not stored by halves for
want of room: its content and its compressed bytes are counted in one piece.
"""

import contextlib
import os
from collections.abc import Callable, Sequence

from imgvol.content.durable import translate_os_errors, write_all
from imgvol.content.holdings import Holdings
from imgvol.content.layer_locks import LayerLocks
from imgvol.content.open_file import OpenFile
from imgvol.content.punch import BLOCK
from imgvol.content.space import SpaceLedger
from imgvol.content.span_uses import SpanUses
from imgvol.content.spare_spans import Spared
from imgvol.errors import StoreDamaged, StoreFull
from imgvol.layers.lazy.spans import Region


class SpanIntake:
    """Where spans and compressed bytes come in. Blocks; safe in any thread.

    Args:
        holdings: What of the layer is here.
        uses: Which spans of it are read.
        locks: The layer's.
        space: What the store takes.

    Attributes:
        loss: What to tell once the disk has failed to keep what it had taken: nothing of the layer
            may be shown then, and the map stays as it is.
    """

    def __init__(
        self, holdings: Holdings, uses: SpanUses, locks: LayerLocks, space: SpaceLedger
    ) -> None:
        self._holdings = holdings
        self._present = holdings.present
        self._kept = holdings.kept
        self._uses = uses
        self._locks = locks
        self._space = space
        self.loss: StoreDamaged | None = None

    def put_span(
        self, span: int, regions: Sequence[Region], compressed: bytes = b"", *, is_kept: bool = True
    ) -> None:
        """Stores a verified span and shows it to readers.

        Args:
            span: Its number.
            regions: What it decodes to.
            compressed: Its bytes in the blob, which are kept if they are not yet.
            is_kept: Whether these are here: not if it was copied.

        Raises:
            StoreFull: No room; the span stays missing.
        """
        if self._holdings.data is None:
            return  # all of it is here by now
        if self._drops_compressed:
            compressed, is_kept = b"", False
        start, end = self._holdings.table.compressed_range(span)
        is_new = bool(compressed) and not self._kept.covers(start, end)
        # With the blocks at its ends, which may be new.
        size = BLOCK + sum(len(region.data) for region in regions)
        if is_new:
            size += BLOCK + len(compressed)
        with self._space.writing(size), self._locks.storing:
            if is_new:
                self._kept.put(start, compressed)
            elif is_kept and not self._kept.covers(start, end):
                # They have gone with their neighbours' while this waited for room.
                is_kept = bool(compressed) and self._keep(start, compressed)
            if (data := self._holdings.data) is not None:
                _write(data, regions)
            with self._locks.bookkeeping:
                self._holdings.add(span, is_kept=is_kept)
        self._uses.note([span])

    def put_copy(self, span: int, regions: Sequence[Region], share: Callable[[int], bool]) -> bool:
        """As `put_span`, of a span that was copied, parts of which are not written.

        Args:
            span: Its number.
            regions: What of it was verified and is to be written.
            share: Puts the rest into the data file, which it is given, and says whether the file
                has the right bytes then. Nothing else writes there meanwhile.

        Returns:
            False: the span stays missing.
        """
        size = BLOCK + sum(last - first for first, last in self._holdings.table.positions(span))
        is_stored = False
        with self._space.writing(size), self._locks.storing:
            data = self._holdings.data
            # What is present stays as it is: it is verified, and what is shared not yet.
            is_here = data is None or span in self._present
            if data is not None and not is_here:
                _write(data, regions)
                with translate_os_errors("store a part of a layer"):
                    is_stored = share(data.fd)
                if is_stored:
                    with self._locks.bookkeeping:
                        self._holdings.add(span, is_kept=False)
        if is_stored:
            self._uses.note([span])
        else:
            self._space.give(size)
        return is_here or is_stored

    def put_spare(self, span: int, regions: Sequence[Region]) -> Spared:
        """Shows a verified span, for which there is no room, to those who wait for it."""
        with self._locks.bookkeeping:
            if not self._uses.is_read(span):
                return Spared.UNWANTED
            return Spared.KEPT if self._holdings.spare.put(span, regions) else Spared.REFUSED

    def keep(self, start: int, piece: bytes) -> bool:
        """Keeps bytes of the blob that have come, if there is room to spare.

        Returns:
            False: there is none. They come with their spans, or not at all.
        """
        if self._holdings.has_given_back:
            return False
        if self._drops_compressed:
            return self._space.has_room(len(piece))
        return self._keep(start, piece)

    @property
    def _drops_compressed(self) -> bool:
        """Whether the compressed bytes of what comes serve nothing: the others are not all here."""
        return self._holdings.is_proven and self._holdings.lacks_compressed

    def _keep(self, start: int, piece: bytes) -> bool:
        try:
            with self._space.writing_ahead(len(piece)) as has_room:
                if has_room:
                    self._kept.put(start, piece)
                return has_room
        except StoreFull:
            return False

    def flush(self) -> None:
        """Makes the present spans durable, so that they survive a crash.

        Raises:
            StoreFull: No room.
            LocalError: The disk failed: the map stays behind, for good, which is safe.
        """
        with self._locks.saving:
            # What the snapshot speaks of is in the files: see the order above.
            with self._locks.bookkeeping:
                bits = self._present.snapshot()
            data, blob = self._holdings.data, self._kept.file
            is_news = bits != self._present.saved
            if not is_news or self.loss is not None or data is None or blob is None:
                return
            with translate_os_errors("store a part of a layer"):
                self._sync(data, blob)
                # A layer that was completed, or turned out to be bad, has no map any more.
                with contextlib.suppress(FileNotFoundError):
                    self._present.save(bits)

    def close(self) -> None:
        """Waits for a flush that is under way; none makes anything durable from now on.

        For a layer that is bad: its files are to go.
        """
        with self._locks.saving:
            self._present.leave()

    def _sync(self, *files: OpenFile) -> None:
        try:
            for file in files:
                os.fdatasync(file.fd)
        except OSError as exc:
            # Told only once: the next call would succeed, with the bytes lost all the same. And
            # once the kernel drops the pages, the file has zeros in their place.
            self.loss = StoreDamaged(
                "what was fetched of a layer could not be written",
                hint="Unmount the image and mount it again: what was lost is fetched again.",
                digest=self._holdings.digest,
                reason=exc.strerror,
            )
            raise


def _write(data: OpenFile, regions: Sequence[Region]) -> None:
    with translate_os_errors("store a part of a layer"):
        for region in regions:
            write_all(data.fd, region.data, region.position)
