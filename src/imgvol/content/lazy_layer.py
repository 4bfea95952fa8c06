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

The parts of an open layer share what is here of it, and its locks. None of them has the layer.

    flights, copies ──> SpanIntake ────┐
                                       │     Holdings    spans, compressed bytes, the data file
    scrubs ───────────> SpanScrubber ──┤
                                       ├──>  SpanUses    which spans are being read, and were
    eviction ─────────> SpanReclaimer ─┤
                                       │     LayerLocks
    readers ──────────> LazyLayerStore ┘
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from imgvol.content.fetching import DemandTally, Fetcher
from imgvol.content.gathering import Piece, gather, pieces_of
from imgvol.content.holdings import Holdings
from imgvol.content.kept_blob import KeptBlob
from imgvol.content.layer_locks import LayerLocks
from imgvol.content.layer_store import LayerStore
from imgvol.content.layout import DATA_NAME, INDEX_NAME
from imgvol.content.lazy_directory import BLOB_NAME, SPANS_NAME, TABLE_NAME
from imgvol.content.open_file import OpenFile, read_whole
from imgvol.content.proof import read_proof, write_proof
from imgvol.content.readahead import ReadaheadTracker
from imgvol.content.reading import pread_exact, pread_nowait
from imgvol.content.reclaiming import SpanReclaimer
from imgvol.content.space import SpaceLedger
from imgvol.content.span_intake import SpanIntake
from imgvol.content.span_map import SpanMap
from imgvol.content.span_scrub import SpanScrubber
from imgvol.content.span_uses import SpanUses
from imgvol.content.spare_spans import SpareSpans
from imgvol.errors import ImgvolError, InternalError, LocalError, StoreDamaged, StoreFull
from imgvol.layers.index import LayerIndex
from imgvol.layers.lazy.open import open_span_table
from imgvol.layers.lazy.spans import SpanTable
from imgvol.oci.digest import DiffID, Digest


class LazyLayerStore:
    """A lazy `Layer`. Its digest has not been verified as a whole before it is complete.

    Attributes:
        present: Which spans are here.
        kept: Which compressed bytes are here.
        intake: Takes in what comes.
        scrubber: Finds what is not what it was any more.
        reclaimer: Gives spans back for which there is no room.
        uses: Which spans are read, and were.
        fetcher: Brings the others, from when its first view is opened until its last one closes.
        demand: Counts the reads that waited; shared by the layers of one engine.
        on_complete: Called with the layer when the final form has taken over, `index` included.
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
        self.on_complete: Callable[[LazyLayerStore], None] = lambda _layer: None
        self._directory = directory
        self._disk_reads = disk_reads
        self._failure: ImgvolError | None = None
        self._complete: LayerStore | None = None
        self._readahead = ReadaheadTracker()
        space = space or SpaceLedger()
        try:
            self.index = LayerIndex(read_whole(directory / INDEX_NAME))
            table = open_span_table(read_whole(directory / TABLE_NAME))
            data = OpenFile(directory / DATA_NAME, os.O_RDWR)
            blob = OpenFile(directory / BLOB_NAME, os.O_RDWR)
        except OSError as exc:
            raise StoreDamaged(
                "a stored layer cannot be opened", digest=digest, reason=exc.strerror
            ) from exc
        self.present = SpanMap(directory / SPANS_NAME, table.span_count)
        self.kept = KeptBlob(blob, digest)
        self._holdings = holdings = Holdings(
            digest=digest,
            table=table,
            present=self.present,
            kept=self.kept,
            data=data,
            spare=SpareSpans(space),
            is_proven=read_proof(directory) is not None,
        )
        self._locks = locks = LayerLocks()
        self.uses = SpanUses(holdings, locks)
        self.intake = SpanIntake(holdings, self.uses, locks, space)
        self.scrubber = SpanScrubber(holdings, self.uses, locks)
        self.reclaimer = SpanReclaimer(holdings, self.uses, locks, space)

    # --- what is here of it ---------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        """Where its files are, unless it is complete."""
        return self._directory

    @property
    def table(self) -> SpanTable:
        """Its span table; one without spans once it is complete."""
        return self._holdings.table

    @property
    def failure(self) -> ImgvolError | None:
        """See `Layer`: what was found out of it, or what the disk has lost."""
        return self._failure or self.intake.loss

    @failure.setter
    def failure(self, failure: ImgvolError | None) -> None:
        self._failure = failure

    @property
    def is_complete(self) -> bool:
        """Whether the layer has been verified as a whole and is served from its final form."""
        return self._complete is not None

    @property
    def final(self) -> LayerStore | None:
        """What it is read from since it is complete."""
        return self._complete

    @property
    def is_proven(self) -> bool:
        """Whether the whole was verified while it stayed lazy; spans may have gone since."""
        return self._holdings.is_proven

    @property
    def is_whole(self) -> bool:
        """Whether all of it is at hand, and was verified as a whole."""
        return self.is_complete or (self.is_proven and self.present.is_full)

    @property
    def has_blob(self) -> bool:
        """Whether it can be verified as a whole with what is here."""
        return self.present.is_full and self.kept.covers(0, self.table.blob_size)

    @property
    def forgoes_proof(self) -> bool:
        """Whether the background leaves the blob as it is, with compressed bytes missing.

        So it is once content of it was copied from elsewhere, or compressed bytes were given back,
        and until these come over the line after all.
        """
        return self._holdings.lacks_compressed

    @property
    def is_settled(self) -> bool:
        """Whether all content is here, by digests of the table, and no proof is to come."""
        return self.forgoes_proof and self.present.is_full

    @property
    def stays_lazy(self) -> bool:
        """Whether it is not completed while it is open.

        Spans were given back: fetching all of it for the sake of the proof would push out what is
        read.
        """
        return self._holdings.has_given_back

    @property
    def present_size(self) -> int:
        """Bytes of the blob of which the content is here, or will not be fetched. From memory."""
        return (
            self.table.blob_size if self.is_settled else self.kept.size + self._holdings.unkept_size
        )

    def missing(self, spans: Sequence[int]) -> list[int]:
        """Those of some spans that are not here, nor in memory for want of room."""
        present, spare = self.present, self._holdings.spare
        return [span for span in spans if span not in present and span not in spare]

    def has(self, node: int, offset: int, size: int) -> bool:
        """Whether a range of a file can be read without fetching anything."""
        size = min(size, self.index.record(node).size - offset)
        return not self.missing(self.spans_of(node, offset, size))

    def spans_of(self, node: int, offset: int, size: int) -> list[int]:
        """The spans that hold a range of a file; none once the layer is complete."""
        return self._spans_of(pieces_of(self.index, node, offset, size))

    def _spans_of(self, pieces: Sequence[Piece]) -> list[int]:
        spans_of = self.table.spans_of
        return [span for _, position, size in pieces for span in spans_of(position, size)]

    # --- reading --------------------------------------------------------------------------------

    async def read(self, node: int, offset: int, size: int) -> bytes | bytearray:
        """See `Layer.read`; what is missing is fetched.

        Raises:
            RemoteError: A span cannot be fetched.
            ContentError: A span is not what its digest names, or the layer turned out to be bad.
        """
        self._refuse_failed()
        # Ours while we need it, whatever becomes of the layer meanwhile.
        data = self._holdings.data
        if data is None:
            return await self._read_complete(node, offset, size)
        size = min(size, self.index.record(node).size - offset)
        if size <= 0:
            return b""
        pieces = pieces_of(self.index, node, offset, size)
        spans = self._spans_of(pieces)
        # From here on they stay, until this has read them.
        self.uses.enter(spans)
        self.uses.note(spans)
        try:
            wanted = self.missing(spans)
            if self.fetcher is not None:
                self.fetcher.note_wanted(spans)
            if wanted:
                await self._fetch(wanted)
                if self._holdings.data is None:
                    return await self._read_complete(node, offset, size)
                self.demand.bytes += size
            self._read_ahead(node, offset, size)
            return await self._read_pieces(data, pieces, size, spans)
        finally:
            self.uses.leave(spans)

    def read_now(self, node: int, offset: int, size: int) -> bytes | bytearray | None:
        """See `Layer.read_now`: only of what is complete, else the fetcher has to know of it."""
        self._refuse_failed()
        return None if self._complete is None else self._complete.read_now(node, offset, size)

    def read_blocking(self, node: int, offset: int, size: int) -> bytearray:
        """As `read`, of what is present, before it is complete: the rest are zeros. Blocks."""
        size = min(size, self.index.record(node).size - offset)
        data = self._holdings.data
        if data is None:
            raise InternalError("a lazy layer is complete already", digest=self.digest)
        return gather(data, pieces_of(self.index, node, offset, size), size, self.digest)

    def has_backing_file(self, node: int) -> bool:
        """See `Layer.has_backing_file`: the final form alone has such files."""
        final = self._complete
        return self.failure is None and final is not None and final.has_backing_file(node)

    def is_sound(self, node: int) -> bool:
        """See `Layer.is_sound`."""
        final = self._complete
        return self.failure is None and (final is None or final.is_sound(node))

    async def backing_file(self, node: int) -> OpenFile | None:
        """See `Layer.backing_file`."""
        return None if self._complete is None else await self._complete.backing_file(node)

    def _refuse_failed(self) -> None:
        if (failure := self.failure) is not None:
            raise failure.anew()

    async def _fetch(self, wanted: Sequence[int]) -> None:
        """Has spans brought that are missing; all are here then, or the layer is complete."""
        assert self.fetcher is not None, "attached when the view was opened"
        with self.demand.waits.waiting():
            try:
                await self.fetcher.ensure(wanted)
            except StoreFull as exc:
                # Programs that read know nothing of rooms.
                raise LocalError(
                    "no room for a part of a layer, nor memory", hint=exc.hint, digest=self.digest
                ) from exc
        self._refuse_failed()
        if self._holdings.data is not None and self.missing(wanted):
            raise InternalError("a fetched span is missing", digest=self.digest)

    def _read_ahead(self, node: int, offset: int, size: int) -> None:
        fetcher = self.fetcher
        if fetcher is None:
            return
        window = self._readahead.note(node, offset, size)
        if window:
            following = self.spans_of(node, offset + size, window)
            if self.missing(following):
                fetcher.read_ahead(following)

    async def _read_pieces(
        self, data: OpenFile, pieces: Sequence[Piece], size: int, spans: Sequence[int]
    ) -> bytes | bytearray:
        in_thread, spare = trio.to_thread.run_sync, self._holdings.spare
        if spare and any(span in spare for span in spans):
            return await in_thread(
                self._gather_with_spare, data, pieces, size, spans, limiter=self._disk_reads
            )
        if len(pieces) != 1 or pieces[0].size != size:
            return await in_thread(
                gather, data, pieces, size, self.digest, limiter=self._disk_reads
            )
        position = pieces[0].position
        cached = pread_nowait(data.fd, position, size)
        if cached is not None:
            return cached
        return await in_thread(
            pread_exact, data.fd, position, size, self.digest, limiter=self._disk_reads
        )

    def _gather_with_spare(
        self, data: OpenFile, pieces: Sequence[Piece], size: int, spans: Sequence[int]
    ) -> bytearray:
        """Puts those spans that are only in memory where the file has nothing of them."""
        out = gather(data, pieces, size, self.digest)
        for place, position, length in pieces:
            piece = memoryview(out)[place : place + length]
            with self._locks.bookkeeping:
                self._holdings.spare.fill(position, piece, spans)
        return out

    async def _read_complete(self, node: int, offset: int, size: int) -> bytes | bytearray:
        assert self._complete is not None, "what is not lazy any more is complete"
        return await self._complete.read(node, offset, size)

    # --- proven, and complete -------------------------------------------------------------------

    def prove(self, diff_id: DiffID) -> None:
        """Notes durably that the whole has been verified, and stays lazy. Blocks.

        Raises:
            StoreFull: No room.
            LocalError: The disk failed.
        """
        write_proof(self._directory, diff_id)
        self._holdings.is_proven = True

    def complete(self, store: LayerStore) -> None:
        """From now on reads are answered by the layer's final form.

        What only the lazy form needs is dropped. The index is the final form's: it numbers the same
        files alike, and only the positions of their content differ.
        """
        with self._locks.bookkeeping:
            self._complete = store
            self._holdings.data = None
        self.index = store.index
        self._holdings.close()
        # Whoever waits for a span that is still on its way need not any more.
        with self._locks.bookkeeping:
            self.present.fill()
        self.on_complete(self)
