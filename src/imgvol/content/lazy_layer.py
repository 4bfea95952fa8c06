"""A layer that is only partly here: its index and span table complete, its content span by span.

    lazy/<hex>/
      index    the LayerIndex that its table of contents gave
      table    the SpanTable: where each byte of the content comes from
      data     the content, sparse, in the address space of the span table
      blob     the compressed spans that have been fetched, at their places in the blob, sparse
      spans    which of them are present

Readers see bytes of a span only after it has been verified and written. The compressed bytes are
kept until the whole layer has been verified, so that this fetches nothing twice; then the layer
moves to `layers/` in its final form, and readers of this object are served from there: the two
indexes number the same files alike.
"""

import contextlib
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import trio

from imgvol import limits
from imgvol.content.durable import (
    sync_directory,
    translate_os_errors,
    write_all,
    write_file,
)
from imgvol.content.kept_blob import KeptBlob
from imgvol.content.layer_store import LayerStore
from imgvol.content.layout import DATA_NAME, INDEX_NAME, StoreLayout
from imgvol.content.open_file import OpenFile, read_whole
from imgvol.content.ranges import Ranges
from imgvol.content.readahead import ReadaheadTracker
from imgvol.content.reading import pread_exact, pread_nowait
from imgvol.content.span_map import SpanMap
from imgvol.errors import ContentError, ImgvolError, InternalError, StoreDamaged
from imgvol.layers.index import LayerIndex
from imgvol.layers.lazy.open import open_span_table
from imgvol.layers.lazy.spans import NoSpans, Region, SpanTable
from imgvol.oci.digest import Digest
from imgvol.tallies import WaitTally

TABLE_NAME: Final = "table"
BLOB_NAME: Final = "blob"
SPANS_NAME: Final = "spans"

_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


@dataclass(slots=True)
class FetchStatistics:
    """What has been fetched for one layer since it was opened.

    Attributes:
        fetched: Bytes, whatever for.
        needed: Bytes of spans that readers wanted and that were not here before.
        requests: Ranges asked for.
    """

    fetched: int = 0
    needed: int = 0
    requests: int = 0


class Fetcher(Protocol):
    """Brings spans of one layer.

    Attributes:
        statistics: What it has done.
        failure: Why it cannot, if the latest try failed.
        patience: Seconds that `ensure` goes on trying while the registry fails.
    """

    statistics: FetchStatistics
    failure: ImgvolError | None
    patience: float

    @property
    def is_slow(self) -> bool:
        """Whether the line is too slow to bring more than what is asked for, or not known."""

    def note_wanted(self, spans: Collection[int]) -> None:
        """Readers want these spans: those that were not here from the start count as needed."""

    async def ensure(self, spans: Collection[int]) -> None:
        """Returns when all of these spans are present, or raises why one cannot be had."""

    def read_ahead(self, spans: Collection[int]) -> None:
        """Readers will soon want these spans: begins to bring them."""


@dataclass(slots=True)
class DemandTally:
    """Reads that had to wait until something was fetched.

    Attributes:
        waits: How many, and for how long.
        bytes: Bytes that they returned.
    """

    waits: WaitTally = field(default_factory=WaitTally)
    bytes: int = 0


class LazyLayerStore:
    """A lazy `Layer`. Its digest has not been verified as a whole before it is complete.

    Attributes:
        table: Its span table.
        present: Which spans are here.
        kept: Which compressed bytes are here.
        fetcher: Brings the others.
        demand: Counts the reads that waited; shared by the layers of one engine.
        on_complete: Called when the final form has taken over, `index` included.
    """

    def __init__(
        self, directory: Path, digest: Digest, slot: int, disk_reads: trio.CapacityLimiter
    ) -> None:
        self.digest = digest
        self.slot = slot
        self.fetcher: Fetcher | None = None
        self.demand = DemandTally()
        self.failure: ImgvolError | None = None
        self.on_complete: Callable[[], None] = lambda: None
        self._directory = directory
        self._disk_reads = disk_reads
        self._complete: LayerStore | None = None
        self._has_lost_writes = False
        self._readahead = ReadaheadTracker()
        # Held for bookkeeping only, never while the disk works: the event loop takes it, too.
        self._lock = threading.Lock()
        try:
            self.index = LayerIndex(read_whole(directory / INDEX_NAME))
            self.table: SpanTable = open_span_table(read_whole(directory / TABLE_NAME))
            # None once the layer is complete: what it takes on disk is given back.
            self._data: OpenFile | None = OpenFile(directory / DATA_NAME, os.O_RDWR)
            blob = OpenFile(directory / BLOB_NAME, os.O_RDWR)
        except OSError as exc:
            raise StoreDamaged(
                "a stored layer cannot be opened", digest=digest, reason=exc.strerror
            ) from exc
        self.present = SpanMap(directory / SPANS_NAME, self.table.span_count)
        self._saved_count = self.present.present_count
        self.kept = KeptBlob(blob, digest)
        for span in self.present:
            self.kept.note(*self.table.compressed_range(span))

    @property
    def is_complete(self) -> bool:
        """Whether the layer has been verified as a whole and is served from its final form."""
        return self._complete is not None

    @property
    def final(self) -> LayerStore | None:
        """What it is read from since it is complete."""
        return self._complete

    @property
    def has_lost_writes(self) -> bool:
        """Whether the disk failed to keep what it had taken."""
        return self._has_lost_writes

    def missing(self, spans: Sequence[int]) -> list[int]:
        """Those of some spans that are not here."""
        return [span for span in spans if span not in self.present]

    def has(self, node: int, offset: int, size: int) -> bool:
        """Whether a range of a file can be read without fetching anything."""
        size = min(size, self.index.record(node).size - offset)
        return not any(
            self.missing(self.table.spans_of(position, length))
            for _, position, length in self._pieces(node, offset, size)
        )

    async def read(self, node: int, offset: int, size: int) -> bytes | bytearray:
        """See `Layer.read`; what is missing is fetched.

        Raises:
            RemoteError: A span cannot be fetched.
            ContentError: A span is not what its digest names, or the layer turned out to be bad.
        """
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        # Ours while we need it, whatever becomes of the layer meanwhile.
        data = self._data
        if data is None:
            return await self._read_complete(node, offset, size)
        size = min(size, self.index.record(node).size - offset)
        if size <= 0:
            return b""
        pieces = self._pieces(node, offset, size)
        spans = self._spans_of(pieces)
        wanted = self.missing(spans)
        if self.fetcher is not None:
            self.fetcher.note_wanted(spans)
        if wanted:
            assert self.fetcher is not None, "attached when the view was opened"
            with self.demand.waits.waiting():
                await self.fetcher.ensure(wanted)
            if self.failure is not None:
                raise self.failure.with_traceback(None)
            if self._data is None:
                return await self._read_complete(node, offset, size)
            if self.missing(wanted):
                raise InternalError("a fetched span is missing", digest=self.digest)
            self.demand.bytes += size
        if self.fetcher is not None:
            self._read_ahead(self.fetcher, node, offset, size)
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
        return self._gather(self._data, self._pieces(node, offset, size), size)

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
            if not self._is_sound(span):
                damaged.append(span)
        return damaged

    def _is_sound(self, span: int) -> bool:
        data = self._data
        if data is None:
            return True  # completed meanwhile, hence verified as a whole
        start, end = self.table.compressed_range(span)
        try:
            regions = self.table.decode(span, self.kept.read(start, end - start))
            return all(
                self._pread(data, region.position, len(region.data)) == region.data
                for region in regions
            )
        except (ContentError, StoreDamaged):
            return False
        except InternalError:
            return True  # completed in this moment

    def forget_spans(self, spans: Collection[int]) -> None:
        """Counts damaged spans as missing: they are fetched again. Blocks; durable on return.

        Raises:
            StoreFull: No room; a restart believes the spans again.
        """
        with self._lock:
            for span in spans:
                self.present.discard(span)
                self.kept.drop(*self.table.compressed_range(span))
        with translate_os_errors("mark what is damaged of a layer"):
            self.present.save(self.present.snapshot())

    def put_span(self, span: int, regions: Sequence[Region]) -> None:
        """Stores a verified span and shows it to readers. Blocks; safe in any thread.

        Raises:
            StoreFull: No room; the span stays missing.
        """
        data = self._data
        if data is not None:
            with translate_os_errors("store a part of a layer"):
                for region in regions:
                    write_all(data.fd, region.data, region.position)
        with self._lock:
            self.present.add(span)

    def lacking(self, start: int, end: int, spans: Sequence[int]) -> list[tuple[int, int]]:
        """What of a range of the blob is still to be fetched to have all of it, and its spans.

        Missing spans are in one part each; parts that are near to each other are one.
        """
        wanted = Ranges()
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
        # Bytes are written before their bit is set: what the snapshot speaks of is in the files.
        with self._lock:
            bits, count = self.present.snapshot(), self.present.present_count
        data, blob = self._data, self.kept.file
        if count == self._saved_count or self._has_lost_writes or data is None or blob is None:
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
        self._saved_count = count

    def complete(self, store: LayerStore) -> None:
        """From now on reads are answered by the layer's final form.

        What only the lazy form needs is dropped. The index is the final form's: it numbers the same
        files alike, and only the positions of their content differ.
        """
        self._complete = store
        self._data = None
        self.kept.close()
        self.index = store.index
        self.table = NoSpans(self.table.blob_size)
        # Whoever waits for a span that is still on its way need not any more.
        self.present.fill()
        self.on_complete()


def create_lazy_layer(
    layout: StoreLayout, digest: Digest, *, index: bytes, table: SpanTable
) -> None:
    """Stores a lazy layer without content, durably. Blocks.

    Raises:
        StoreFull: No room.
    """
    with translate_os_errors("begin a lazy layer"):
        work = layout.ingest / f"lazy-{secrets.token_hex(8)}"
        work.mkdir(mode=0o700)
        try:
            write_file(work / INDEX_NAME, index)
            write_file(work / TABLE_NAME, table.to_bytes())
            for name, size in ((DATA_NAME, table.data_size), (BLOB_NAME, table.blob_size)):
                fd = os.open(work / name, _CREATE, 0o600)
                try:
                    os.ftruncate(fd, size)
                    os.fsync(fd)
                finally:
                    os.close(fd)
            sync_directory(work)
            os.rename(work, layout.lazy_layer(digest))
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        sync_directory(layout.lazy_layers)


def is_lazy_layer(layout: StoreLayout, digest: Digest, *, index: bytes, table: SpanTable) -> bool:
    """Whether a lazy layer was stored from this index and table. Blocks.

    False, too, if there is none any more: it has been completed meanwhile.
    """
    directory = layout.lazy_layer(digest)
    with translate_os_errors("compare a lazy layer"), contextlib.suppress(FileNotFoundError):
        is_same = read_whole(directory / TABLE_NAME) == table.to_bytes()
        return is_same and read_whole(directory / INDEX_NAME) == index
    return False
