"""The blocking part of a flight: receive, keep, verify, show."""

import threading
import time

import trio

from imgvol import limits
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.spare_spans import Spared
from imgvol.errors import ContentError, ProtocolError, StoreFull
from imgvol.images.fetch.flight import Flight, Purpose, Rank
from imgvol.images.fetch.pace import Pace
from imgvol.oci.descriptor import Descriptor
from imgvol.sources.base import BlobReader, ImageSource


class _KeptWasDamaged(Exception):
    """A span is not what its digest names, and part of it is from an earlier flight."""


class RangeFetch:
    """Runs in a thread of its own; made on the event loop.

    What an earlier flight has left of the range is not received again.

    Attributes:
        received: Bytes that have come over the line.
        first_byte: Seconds until the first of them came; 0 if none did.
        first_size: How many came first.
        seconds: How long it took in all.
        waited: How much of this was spent on waiting for more bytes, after the first.
    """

    def __init__(
        self,
        layer: LazyLayerStore,
        source: ImageSource,
        descriptor: Descriptor,
        flight: Flight,
        pace: Pace,
    ) -> None:
        self._layer = layer
        # The layer drops its own once it is complete, and that may be in the middle of a span.
        self._table = layer.table
        self._source = source
        self._descriptor = descriptor
        self._flight = flight
        self._pace = pace
        self._reader: BlobReader | None = None
        self._cancelled = threading.Event()
        self._loop = trio.lowlevel.current_trio_token()
        self._waiting: list[int] = []
        self._no_room: StoreFull | None = None
        # The part of the range that a span may still need, and where in the blob it begins.
        self._held = bytearray()
        self._held_from = flight.start
        # What lies before this was kept by an earlier flight, which did not verify all of it.
        self._comes_from = flight.start
        self.received = 0
        self.first_byte = 0.0
        self.first_size = 0
        self.seconds = 0.0
        self.waited = 0.0

    def cancel(self) -> None:
        """Ends `run` soon."""
        self._cancelled.set()
        if self._reader is not None:
            self._reader.cancel()

    def run(self) -> None:
        """Receives the range and stores its spans, each as soon as it is whole. Blocks. Once.

        Raises:
            RemoteError: The registry does not deliver.
            ContentError: What it delivers is not what was promised.
            LocalError: The disk does not take it, nor is there memory for whoever waits.
        """
        try:
            self._run()
        finally:
            # An error knows this call. Where it came from may keep it for a while, and is not to
            # keep the layer's files open.
            del self._layer

    def _run(self) -> None:
        flight = self._flight
        was_wrong = False
        while True:
            try:
                self._pass()
                break
            except _KeptWasDamaged:
                continue  # it has been dropped, and now comes over the line
            except (ContentError, ProtocolError):
                # Once may be the line's fault, or that of a cache on the way; good spans are kept.
                if was_wrong or self._cancelled.is_set():
                    raise
                was_wrong = True
        if self._no_room is not None:
            raise self._no_room.anew()
        if flight.reached != flight.end:
            raise ProtocolError(
                "a source sent a range of another size than was asked for",
                digest=self._descriptor.digest,
                expected=flight.end - flight.start,
                actual=flight.reached - flight.start,
            )

    def _pass(self) -> None:
        """The range from its beginning: first what is here, then what has to come."""
        flight = self._flight
        flight.reached = self._held_from = flight.start
        self._held.clear()
        self._waiting = list(reversed(flight.spans))
        self._comes_from = self._layer.kept.reach(flight.start, flight.end)
        while flight.reached < self._comes_from:
            size = min(limits.BODY_PIECE, self._comes_from - flight.reached)
            self._take(self._layer.kept.read(flight.reached, size))
        if flight.reached < flight.end:
            self._receive()

    def _receive(self) -> None:
        began = time.perf_counter()
        start = self._flight.reached
        with self._source.open_blob(self._descriptor, offset=start, end=self._flight.end) as reader:
            self._reader = reader
            if self._cancelled.is_set():
                reader.cancel()
            asked = began
            for piece in reader.iter_pieces():
                now = time.perf_counter()
                if self.received:
                    self.waited += now - asked
                else:
                    self.first_byte = now - began
                    self.first_size = len(piece)
                self.received += len(piece)
                # Before it is verified: whoever goes on after us has it, or it is dropped.
                if not self._layer.intake.keep(self._flight.reached, piece):
                    self._go_on_without_room()
                self._take(piece)
                if self._flight.rank is Rank.BACKGROUND:
                    self._cancelled.wait(self._pace.pause_after(len(piece)))
                asked = time.perf_counter()
        self.seconds += time.perf_counter() - began

    def _go_on_without_room(self) -> None:
        """What is not kept serves those who wait, and nobody else."""
        if self._flight.purpose in {Purpose.BACKGROUND, Purpose.PREFETCH}:
            self._no_room = StoreFull("no room to fetch a layer ahead of its readers")
            if not self._flight.waiters:
                raise self._no_room.anew()

    def _take(self, piece: bytes) -> None:
        """Stores the spans that this piece completes."""
        flight, ranges = self._flight, self._table.compressed_range
        self._held += piece
        flight.reached += len(piece)
        has_more = False
        while self._waiting and ranges(self._waiting[-1])[1] <= flight.reached:
            self._store(self._waiting.pop())
            has_more = True
        # Once per piece, and only if somebody waits: waking the loop costs more than a small span.
        if has_more and flight.waiters:
            self._loop.run_sync_soon(flight.note_change)
        # Spans may share a byte, so it is the next one that tells what is still needed.
        next_start = ranges(self._waiting[-1])[0] if self._waiting else flight.end
        needed_from = min(next_start, flight.reached)
        if needed_from > self._held_from:
            del self._held[: needed_from - self._held_from]
            self._held_from = needed_from

    def _store(self, span: int) -> None:
        if span in self._layer.present:
            return
        start, end = self._table.compressed_range(span)
        compressed = bytes(self._held[start - self._held_from : end - self._held_from])
        try:
            regions = self._table.decode(span, compressed)
        except ContentError as exc:
            self._layer.kept.drop(start, end)
            if start < self._comes_from:
                raise _KeptWasDamaged from exc
            raise
        try:
            self._layer.intake.put_span(span, regions, compressed)
        except StoreFull as exc:
            # Those who wait are served all the same; whoever comes later asks again.
            spared = self._layer.intake.put_spare(span, regions)
            if spared is not Spared.KEPT:
                self._no_room = exc.anew()
                self._flight.is_short |= spared is Spared.REFUSED
