"""A layer that is only partly here: its index and span table complete, its content span by span.

    lazy/<hex>/
      index    the LayerIndex that its table of contents gave
      table    the SpanTable: where each byte of the content comes from
      data     the content, sparse, in the address space of the span table
      blob     the compressed spans that have been fetched, at their places in the blob, sparse
      spans    which of them are present, and of which the compressed bytes are not
      chunks   where each digest of its table is, for other layers (chunk_catalogue.py); a hint
      proof    that the whole was verified while it stayed lazy (proof.py), if it was

Readers see bytes of a span only after it has been verified and written. The compressed bytes are
kept until the whole layer has been verified, so that this fetches nothing twice; then the layer
moves to `layers/` in its final form, and readers of this object are served from there: the two
indexes number the same files alike.

A span may also come from another layer of this machine that has the same bytes. It is checked
against the same digests; but its compressed bytes are not here then, and without all of them the
whole cannot be verified. Such a layer *forgoes its proof*: nothing is fetched for the sake of that
alone, and it stays as it is, each part covered by a digest of its table, until it is pulled.

Where the store must stay within a size, a layer that is open is proven where it lies, and stays
lazy: its table knows how to fetch again what has to go for want of room. The compressed bytes serve
nothing then but its final form, and go first; while they are all here, it is given that form when
its last view closes.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import trio

from imgvol import limits
from imgvol.content.durable import translate_os_errors, write_all
from imgvol.content.fetching import DemandTally, Fetcher
from imgvol.content.giving_back import GivenBack
from imgvol.content.holdings import Holdings
from imgvol.content.kept_blob import KeptBlob
from imgvol.content.layer_store import LayerStore
from imgvol.content.layout import DATA_NAME, INDEX_NAME
from imgvol.content.lazy_directory import BLOB_NAME, SPANS_NAME, TABLE_NAME
from imgvol.content.open_file import OpenFile, read_whole
from imgvol.content.proof import read_proof, write_proof
from imgvol.content.punch import BLOCK
from imgvol.content.ranges import Ranges, joined
from imgvol.content.readahead import ReadaheadTracker
from imgvol.content.reading import pread_exact, pread_nowait
from imgvol.content.reclaiming import LayerLocks, SpanReclaimer
from imgvol.content.space import SpaceLedger
from imgvol.content.span_map import SpanMap
from imgvol.content.span_uses import SpanUses
from imgvol.content.spare_spans import Spared, SpareSpans
from imgvol.errors import (
    ContentError,
    ImgvolError,
    InternalError,
    LocalError,
    StoreDamaged,
    StoreFull,
)
from imgvol.layers.index import LayerIndex
from imgvol.layers.lazy.open import open_span_table
from imgvol.layers.lazy.spans import NoSpans, Region, SpanTable
from imgvol.oci.digest import DiffID, Digest


class LazyLayerStore:
    """A lazy `Layer`. Its digest has not been verified as a whole before it is complete.

    Attributes:
        table: Its span table.
        present: Which spans are here.
        kept: Which compressed bytes are here.
        fetcher: Brings the others, from when its first view is opened until its last one closes.
        demand: Counts the reads that waited; shared by the layers of one engine.
        on_complete: Called with the layer when the final form has taken over, `index` included.
        uses: Which spans are read, and were.
        reclaimer: Gives spans back for which there is no room.
    """

    def __init__(
        self,
        directory: Path,
        digest: Digest,
        slot: int,
        disk_reads: trio.CapacityLimiter,
        space: SpaceLedger | None = None,
    ) -> None:
        self.digest = digest
        self.slot = slot
        self.fetcher: Fetcher | None = None
        self.demand = DemandTally()
        self.failure: ImgvolError | None = None
        self.on_complete: Callable[[LazyLayerStore], None] = lambda _layer: None
        self._directory = directory
        self._disk_reads = disk_reads
        self._complete: LayerStore | None = None
        self._has_lost_writes = False
        self._readahead = ReadaheadTracker()
        self._locks = LayerLocks()
        self._lock = self._locks.bookkeeping
        self._space = space or SpaceLedger()
        self._spare = SpareSpans(self._space)
        try:
            self.index = LayerIndex(read_whole(directory / INDEX_NAME))
            self.table: SpanTable = open_span_table(read_whole(directory / TABLE_NAME))
            data = OpenFile(directory / DATA_NAME, os.O_RDWR)
            blob = OpenFile(directory / BLOB_NAME, os.O_RDWR)
        except OSError as exc:
            raise StoreDamaged(
                "a stored layer cannot be opened", digest=digest, reason=exc.strerror
            ) from exc
        self.present = SpanMap(directory / SPANS_NAME, self.table.span_count)
        self.kept = KeptBlob(blob, digest)
        self._holdings = Holdings(self.table, self.present, self.kept, data)
        self.uses = SpanUses(self.table)
        self.reclaimer = SpanReclaimer(self._holdings, self.uses, self._locks, self._space)
        self.reclaimer.is_proven = self._is_proven = read_proof(directory) is not None

    @property
    def directory(self) -> Path:
        """Where its files are, unless it is complete."""
        return self._directory

    @property
    def is_proven(self) -> bool:
        """Whether the whole was verified while it stayed lazy; spans may have gone since."""
        return self._is_proven

    @property
    def is_whole(self) -> bool:
        """Whether all of it is at hand, and was verified as a whole."""
        return self.is_complete or (self._is_proven and self.present.is_full)

    @property
    def has_blob(self) -> bool:
        """Whether it can be verified as a whole with what is here."""
        return self.present.is_full and self.kept.covers(0, self.table.blob_size)

    @property
    def _drops_compressed(self) -> bool:
        """Whether the compressed bytes of what comes serve nothing: the others are not all here."""
        return self._is_proven and self.forgoes_proof

    @property
    def forgoes_proof(self) -> bool:
        """Whether the background leaves the blob as it is, with compressed bytes missing.

        So it is once content of it was copied from elsewhere, or compressed bytes were given back,
        and until these come over the line after all.
        """
        return self.present.unkept_count > 0 and not self.is_complete

    @property
    def is_settled(self) -> bool:
        """Whether all content is here, by digests of the table, and no proof is to come."""
        return self.forgoes_proof and self.present.is_full

    @property
    def present_size(self) -> int:
        """Bytes of the blob of which the content is here, or will not be fetched. From memory."""
        return (
            self.table.blob_size if self.is_settled else self.kept.size + self._holdings.unkept_size
        )

    @property
    def is_complete(self) -> bool:
        """Whether the layer has been verified as a whole and is served from its final form."""
        return self._complete is not None

    @property
    def final(self) -> LayerStore | None:
        """What it is read from since it is complete."""
        return self._complete

    @property
    def stays_lazy(self) -> bool:
        """Whether it is not completed while it is open.

        Spans were given back: fetching all of it for the sake of the proof would push out what is
        read.
        """
        return self.reclaimer.has_given_back

    @property
    def has_lost_writes(self) -> bool:
        """Whether the disk failed to keep what it had taken."""
        return self._has_lost_writes

    def missing(self, spans: Sequence[int]) -> list[int]:
        """Those of some spans that are not here, nor in memory for want of room."""
        return [span for span in spans if span not in self.present and span not in self._spare]

    def has(self, node: int, offset: int, size: int) -> bool:
        """Whether a range of a file can be read without fetching anything."""
        size = min(size, self.index.record(node).size - offset)
        return not any(
            self.missing(self.table.spans_of(position, length))
            for _, position, length in self._pieces(node, offset, size)
        )

    def spans_of(self, node: int, offset: int, size: int) -> list[int]:
        """The spans that hold a range of a file; none once the layer is complete."""
        return self._spans_of(self._pieces(node, offset, size))

    async def read(self, node: int, offset: int, size: int) -> bytes | bytearray:
        """See `Layer.read`; what is missing is fetched.

        Raises:
            RemoteError: A span cannot be fetched.
            ContentError: A span is not what its digest names, or the layer turned out to be bad.
        """
        if self.failure is not None:
            raise self.failure.anew()
        # Ours while we need it, whatever becomes of the layer meanwhile.
        data = self._holdings.data
        if data is None:
            return await self._read_complete(node, offset, size)
        size = min(size, self.index.record(node).size - offset)
        if size <= 0:
            return b""
        pieces = self._pieces(node, offset, size)
        spans = self._spans_of(pieces)
        # From here on they stay, until this has read them.
        with self._lock:
            self.uses.enter(spans)
        self.uses.note(spans)
        try:
            return await self._read_spans(node, offset, size, pieces, spans, data)
        finally:
            self._leave(spans)

    def _leave(self, spans: Sequence[int]) -> None:
        with self._lock:
            for span in self.uses.leave(spans):
                self._spare.drop(span)

    async def _read_spans(
        self,
        node: int,
        offset: int,
        size: int,
        pieces: list[tuple[int, int, int]],
        spans: Sequence[int],
        data: OpenFile,
    ) -> bytes | bytearray:
        wanted = self.missing(spans)
        fetcher = self.fetcher
        if fetcher is not None:
            fetcher.note_wanted(spans)
        if wanted:
            assert fetcher is not None, "attached when the view was opened"
            with self.demand.waits.waiting():
                try:
                    await fetcher.ensure(wanted)
                except StoreFull as exc:
                    # Programs that read know nothing of rooms.
                    raise LocalError(
                        "no room for a part of a layer, nor memory",
                        hint=exc.hint,
                        digest=self.digest,
                    ) from exc
            if self.failure is not None:
                raise self.failure.anew()
            if self._holdings.data is None:
                return await self._read_complete(node, offset, size)
            if self.missing(wanted):
                raise InternalError("a fetched span is missing", digest=self.digest)
            self.demand.bytes += size
        if fetcher is not None:
            self._read_ahead(fetcher, node, offset, size)
        if self._spare and any(span in self._spare for span in spans):
            return await trio.to_thread.run_sync(
                self._gather_spare, data, pieces, size, spans, limiter=self._disk_reads
            )
        if len(pieces) == 1 and pieces[0][2] == size:
            cached = pread_nowait(data.fd, pieces[0][1], size)
            if cached is not None:
                return cached
            return await trio.to_thread.run_sync(
                self._pread, data, pieces[0][1], size, limiter=self._disk_reads
            )
        return await trio.to_thread.run_sync(
            self._gather, data, pieces, size, limiter=self._disk_reads
        )

    def _spans_of(self, pieces: Sequence[tuple[int, int, int]]) -> list[int]:
        return [
            span for _, position, length in pieces for span in self.table.spans_of(position, length)
        ]

    def _read_ahead(self, fetcher: Fetcher, node: int, offset: int, size: int) -> None:
        window = self._readahead.note(node, offset, size)
        if window:
            following = self._spans_of(self._pieces(node, offset + size, window))
            if self.missing(following):
                fetcher.read_ahead(following)

    async def _read_complete(self, node: int, offset: int, size: int) -> bytes | bytearray:
        assert self._complete is not None, "what is not lazy any more is complete"
        return await self._complete.read(node, offset, size)

    def read_blocking(self, node: int, offset: int, size: int) -> bytearray:
        """As `read`, of what is present, before it is complete: the rest are zeros. Blocks."""
        size = min(size, self.index.record(node).size - offset)
        return self._gather(self._holdings.data, self._pieces(node, offset, size), size)

    def _pieces(self, node: int, offset: int, size: int) -> list[tuple[int, int, int]]:
        """What a range of a file is made of: place in the answer, position, length; no holes."""
        pieces = []
        for extent in self.index.extents(node):
            begin = max(extent.offset, offset)
            end = min(extent.offset + extent.size, offset + size)
            if begin < end:
                pieces.append(
                    (begin - offset, extent.position + begin - extent.offset, end - begin)
                )
        return pieces

    def _gather(
        self, file: OpenFile | None, pieces: list[tuple[int, int, int]], size: int
    ) -> bytearray:
        out = bytearray(size)
        for place, position, length in pieces:
            out[place : place + length] = self._pread(file, position, length)
        return out

    def _gather_spare(
        self,
        file: OpenFile,
        pieces: list[tuple[int, int, int]],
        size: int,
        spans: Sequence[int],
    ) -> bytearray:
        """As `_gather`, with those spans that are only in memory."""
        out = self._gather(file, pieces, size)
        for place, position, length in pieces:
            piece = memoryview(out)[place : place + length]
            with self._lock:
                self._spare.fill(position, piece, spans)
        return out

    def _pread(self, file: OpenFile | None, position: int, size: int) -> bytes:
        if file is None:
            raise InternalError("a lazy layer is complete already", digest=self.digest)
        return pread_exact(file.fd, position, size, self.digest)

    def damaged_spans(self, progress: Callable[[int], None]) -> list[int]:
        """The present spans whose bytes are not what the table of contents pins. Blocks, long.

        A span counts as damaged, too, if only its compressed form is: the whole could not be
        verified with it.

        Args:
            progress: Told of the size of each; may raise to end it all.
        """
        damaged = []
        for span in list(self.present):
            start, end = self.table.compressed_range(span)
            progress(end - start)
            # Not given back before we have looked.
            with self._lock:
                self.uses.enter([span])
            try:
                if span in self.present and not self._is_sound(span):
                    damaged.append(span)
            finally:
                self._leave([span])
        return damaged

    def _is_sound(self, span: int) -> bool:
        data = self._holdings.data
        if data is None:
            return True  # completed meanwhile, hence verified as a whole
        start, end = self.table.compressed_range(span)
        is_kept = self.present.is_kept(span)
        try:
            if not is_kept:
                return self._has_parts(data, span)
            regions = self.table.decode(span, self.kept.read(start, end - start))
            return all(
                self._pread(data, region.position, len(region.data)) == region.data
                for region in regions
            )
        except (ContentError, StoreDamaged):
            # The compressed bytes may have been given back in this moment.
            is_dropped = is_kept and not self.present.is_kept(span)
            return is_dropped and self._is_sound(span)
        except InternalError:
            return True  # completed in this moment

    def _has_parts(self, data: OpenFile, span: int) -> bool:
        """Whether a span's content is what its digests say; there is nothing to decode it from."""
        parts = self.table.parts(span)
        if parts is None:
            return self.is_complete  # in this moment: its table has gone
        return all(
            hashlib.sha256(self._pread(data, part.position, part.size)).digest() == part.digest
            for part in parts
        )

    def forget_spans(self, spans: Collection[int]) -> None:
        """Counts damaged spans as missing: they are fetched again. Blocks; durable on return.

        Raises:
            StoreFull: No room; a restart believes the spans again.
        """
        with self._lock:
            for span in spans:
                self._holdings.discard(span)
                self.kept.drop(*self.table.compressed_range(span))
        with self._locks.saving, translate_os_errors("mark what is damaged of a layer"):
            self.present.save_missing()

    def put_span(
        self, span: int, regions: Sequence[Region], compressed: bytes = b"", *, is_kept: bool = True
    ) -> None:
        """Stores a verified span and shows it to readers. Blocks; safe in any thread.

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
        start, end = self.table.compressed_range(span)
        # With the blocks at its ends, which may be new.
        size = BLOCK + sum(len(region.data) for region in regions)
        if compressed and not self.kept.covers(start, end):
            size += BLOCK + len(compressed)
        self._space.take(size)
        try:
            with self._locks.storing:
                if compressed:
                    self.kept.put(start, compressed)
                data = self._holdings.data
                if data is not None:
                    with translate_os_errors("store a part of a layer"):
                        for region in regions:
                            write_all(data.fd, region.data, region.position)
                with self._lock:
                    self._holdings.add(span, is_kept=is_kept)
        except ImgvolError:
            self._space.give(size)
            raise
        self.uses.note([span])

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
        size = BLOCK + sum(last - first for first, last in self.table.positions(span))
        is_stored = False
        self._space.take(size)
        try:
            with self._locks.storing:
                data = self._holdings.data
                # What is present stays as it is: it is verified, and what is shared not yet.
                if data is None or span in self.present:
                    return True
                with translate_os_errors("store a part of a layer"):
                    for region in regions:
                        write_all(data.fd, region.data, region.position)
                    is_stored = share(data.fd)
                with self._lock:
                    if is_stored:
                        self._holdings.add(span, is_kept=False)
        finally:
            if not is_stored:
                self._space.give(size)
        self.uses.note([span])
        return is_stored

    def keep(self, start: int, piece: bytes) -> bool:
        """Keeps bytes of the blob that have come, if there is room to spare. Blocks.

        Returns:
            False: there is none. They come with their spans, or not at all.
        """
        if self.stays_lazy:
            return False
        if self._drops_compressed:
            return self._space.has_room(len(piece))
        if not self._space.take_spare_room(len(piece)):
            return False
        try:
            self.kept.put(start, piece)
        except StoreFull:
            self._space.give(len(piece))
            return False
        return True

    def put_spare(self, span: int, regions: Sequence[Region]) -> Spared:
        """Shows a verified span, for which there is no room, to those who wait for it."""
        with self._lock:
            if not self.uses.is_read(span):
                return Spared.UNWANTED
            return Spared.KEPT if self._spare.put(span, regions) else Spared.REFUSED

    def give_back(self, windows: Collection[int]) -> GivenBack:
        """Gives back the spans of some windows that nobody reads now; see `giving_back`. Blocks.

        Raises:
            LocalError: The disk fails, or cannot give back parts of files.
        """
        return self.reclaimer.give_back(windows)

    def prove(self, diff_id: DiffID) -> None:
        """Notes durably that the whole has been verified, and stays lazy. Blocks.

        Raises:
            StoreFull: No room.
            LocalError: The disk failed.
        """
        write_proof(self._directory, diff_id)
        self.reclaimer.is_proven = self._is_proven = True

    def lacking(self, start: int, end: int, spans: Sequence[int]) -> list[tuple[int, int]]:
        """What of a range of the blob is still to be fetched to have all of it, and its spans.

        Missing spans are in one part each; parts that are near to each other are one. A layer that
        forgoes its proof lacks nothing but spans, and parts are joined sparingly.
        """
        wanted = Ranges()
        if self.forgoes_proof:
            for span in self.missing(spans):
                wanted.add(*self.table.compressed_range(span))
            budget = int(wanted.size * limits.FETCH_ALONG_SHARE)
            return joined(wanted, gap=limits.FETCH_GAP, budget=budget)
        for hole in self.kept.holes(start, end):
            wanted.add(*hole)
        for span in self.missing(spans):
            wanted.add(*self.table.compressed_range(span))
        parts: list[tuple[int, int]] = []
        for part_start, part_end in wanted:
            if parts and part_start - parts[-1][1] <= limits.FETCH_GAP:
                part_start = parts.pop()[0]  # noqa: PLW2901 - joined
            parts.append((part_start, part_end))
        return parts

    def flush(self) -> None:
        """Makes the present spans durable, so that they survive a crash. Blocks.

        Raises:
            StoreFull: No room.
            LocalError: The disk failed: the map stays behind, for good, which is safe.
        """
        with self._locks.saving:
            self._flush()

    def _flush(self) -> None:
        # Bytes are written before their bit is set: what the snapshot speaks of is in the files.
        with self._lock:
            bits = self.present.snapshot()
        data, blob = self._holdings.data, self.kept.file
        if bits == self.present.saved or self._has_lost_writes or data is None or blob is None:
            return
        with translate_os_errors("store a part of a layer"):
            try:
                os.fdatasync(data.fd)
                os.fdatasync(blob.fd)
            except OSError as exc:
                # Told only once: the next call would succeed, with the bytes lost all the same. And
                # once the kernel drops the pages, the file has zeros in their place.
                self._has_lost_writes = True
                self.failure = StoreDamaged(
                    "what was fetched of a layer could not be written",
                    hint="Unmount the image and mount it again: what was lost is fetched again.",
                    digest=self.digest,
                    reason=exc.strerror,
                )
                raise
            # A layer that was completed meanwhile has no lazy form any more.
            with contextlib.suppress(FileNotFoundError):
                self.present.save(bits)

    def complete(self, store: LayerStore) -> None:
        """From now on reads are answered by the layer's final form.

        What only the lazy form needs is dropped. The index is the final form's: it numbers the same
        files alike, and only the positions of their content differ.
        """
        with self._lock:
            self._complete = store
            self._holdings.data = None
        self.index = store.index
        self.table = NoSpans(self.table.blob_size)
        self._holdings.close()
        self.uses.close()
        # Whoever waits for a span that is still on its way need not any more.
        with self._lock:
            self.present.fill()
        self.on_complete(self)
