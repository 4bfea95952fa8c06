"""One layer's way from its source into the store: two threads and a short queue.

    receive ─ sha256(blob) ─ decompress ══ queue ══ sha256(diff) ─ parse tar ─ write ─ publish
    └───────── pulling thread ────────┘             └──────────── storing thread ────────────┘

Two threads are the right number: the decoder takes about as long as hashing, parsing and writing
together, and both sides release the GIL for nearly all of it. The queue is short, so memory stays
at a few pieces whatever the layer's size.

Nothing is published unless the blob's digest and size and the diff ID match over every byte.
Whatever goes wrong, on either side, ends both, and the writer's directory is removed.

Cancelling: `cancel` may be called from any thread. It shuts the source, which ends the pulling
thread's wait for bytes, and through the queue the storing thread.
"""

import hashlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from imgvol.content.records import LayerRecord
from imgvol.content.store import Store
from imgvol.errors import DigestMismatch, InternalError
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.compression import Compression, open_decoder, sniff
from imgvol.layers.index import LayerIndex
from imgvol.layers.tar import TarMember, TarParser
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import DiffID, Digest
from imgvol.sources.base import BlobReader

# Pieces of up to limits.DECODED_PIECE between the threads.
QUEUE_LENGTH: Final = 8


@dataclass(slots=True)
class LayerProgress:
    """How far one layer is; written by its threads, read by whoever shows it.

    Attributes:
        digest: The blob's digest, as text.
        size: Bytes of the blob.
        state: "waiting", "pulling", "exists" (already in the store), "lazy" or "done".
        received: Bytes of the blob so far.
        unpacked: Bytes of the uncompressed tar so far.
        entries: Members of the tar so far.
        seconds: Time spent, by stage: "receive", "hash", "decompress", "store", "publish".
    """

    digest: str
    size: int
    state: str = "waiting"
    received: int = 0
    unpacked: int = 0
    entries: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


class IngestWatcher(Protocol):
    """Follows a layer on its way in; called in the storing thread, and never blocks it."""

    def begin(self, builder: IndexBuilder, directory: Path) -> None:
        """The layer will be written there, and its members be added to the builder."""

    def expect(self, number: int, member: TarMember) -> None:
        """A member's payload goes into the own file of that number."""

    def wrote(self, position: int) -> None:
        """The tar is written up to there, and what it says is in the builder."""


class _Cancelled(Exception):
    """The other side has stopped."""


class _PieceQueue:
    """A bounded hand-over between two threads, which either side can break."""

    def __init__(self) -> None:
        self._queue: queue.Queue[bytes | None] = queue.Queue(QUEUE_LENGTH)
        self._broken = threading.Event()

    def put(self, piece: bytes | None) -> None:
        """Hands a piece over; None says that no more will come."""
        while not self._broken.is_set():
            try:
                return self._queue.put(piece, timeout=0.25)
            except queue.Full:
                continue
        raise _Cancelled

    def get(self) -> bytes | None:
        """The next piece, or None at the end."""
        while True:
            try:
                return self._queue.get(timeout=0.25)
            except queue.Empty:
                if self._broken.is_set():
                    raise _Cancelled from None

    def break_off(self) -> None:
        """Ends both sides."""
        self._broken.set()


class LayerIngest:
    """Pulls, verifies and stores one layer. Use once: `run` blocks, `cancel` ends it.

        record = await run_cancellable(ingest.run, ingest.cancel, limiter=pulls)

    Args:
        open_blob: Opens the layer's blob.
        store: Where the layer goes.
        descriptor: Of the blob.
        compression: Of the blob; None: its first bytes tell.
        diff_id: What the uncompressed tar has to hash to; None: whatever it does, for nobody has
            said.
        progress: Told how far it is.
        twin: A stored layer that has this diff ID, too: the data of both is one file.
        is_verified: Whether what `open_blob` gives has been verified, so that the descriptor's
            digest need not be its hash.
        watcher: Shows the layer before it has been verified; None: nobody does.
    """

    def __init__(
        self,
        *,
        open_blob: Callable[[], BlobReader],
        store: Store,
        descriptor: Descriptor,
        compression: Compression | None,
        diff_id: DiffID | None,
        progress: LayerProgress,
        twin: LayerRecord | None = None,
        is_verified: bool = False,
        watcher: IngestWatcher | None = None,
    ) -> None:
        self._open_blob = open_blob
        self._store = store
        self._descriptor = descriptor
        self._compression = compression
        self._diff_id = diff_id
        self._progress = progress
        self._twin = twin
        self._is_verified = is_verified
        self._watcher = watcher
        self._pieces = _PieceQueue()
        self._reader: BlobReader | None = None
        self._is_cancelled = False
        self._storing_failure: BaseException | None = None
        self._record: LayerRecord | None = None

    def cancel(self) -> None:
        """Ends `run` soon, from any thread."""
        self._is_cancelled = True
        self._pieces.break_off()
        if self._reader is not None:
            self._reader.cancel()

    def run(self) -> LayerRecord:
        """Does it all; blocks.

        Raises:
            DigestMismatch: The blob or its uncompressed content is not what was promised.
            InvalidLayer: It cannot be read as a layer.
            RegistryUnavailable: The source failed after all retries.
            StoreFull: No room.
        """
        self._progress.state = "pulling"
        storing = threading.Thread(target=self._storing_thread, name="imgvol-store", daemon=True)
        storing.start()
        failure: BaseException | None = None
        try:
            self._pull()
        except BaseException as exc:  # noqa: BLE001 - raised again below, once the threads are one
            # A storing side that has failed already is why this one was shut.
            failure = self._storing_failure or exc
            self._pieces.break_off()
        storing.join()
        reason: BaseException | None = None
        try:
            for reason in (failure, self._storing_failure):
                if reason is not None and not isinstance(reason, _Cancelled):
                    raise reason
        finally:
            # It knows this call, and so us: we would keep each other, and the blob.
            failure = reason = self._storing_failure = None
        if self._record is None:
            raise InternalError("a layer's pull was cancelled", digest=self._descriptor.digest)
        self._progress.state = "done"
        return self._record

    def _pull(self) -> None:
        """The pulling thread: receive, hash, decompress."""
        expected = self._descriptor.digest
        hasher = expected.hasher()
        clock = _Stopwatch(self._progress.seconds)
        decoder = None if self._compression is None else open_decoder(self._compression)
        head = b""
        with self._open_blob() as reader:
            self._reader = reader
            if self._is_cancelled:
                raise _Cancelled
            for piece in reader.iter_pieces():
                clock.lap("receive")
                if not self._is_verified:
                    hasher.update(piece)
                self._progress.received += len(piece)
                clock.lap("hash")
                if decoder is None:
                    head += piece
                    if len(head) < _SNIFFED:
                        continue
                    decoder, piece = open_decoder(sniff(head)), head  # noqa: PLW2901 - all so far
                for decoded in decoder.feed(piece):
                    clock.lap("decompress")
                    self._pieces.put(decoded)
                    clock.lap("wait")
                clock.lap("decompress")
        if not self._is_verified:
            self._check(Digest.from_hasher(hasher), expected, "layer does not match its digest")
        if decoder is None:
            decoder = open_decoder(sniff(head))
            for decoded in decoder.feed(head):
                self._pieces.put(decoded)
        decoder.finish()
        self._pieces.put(None)

    def _storing_thread(self) -> None:
        try:
            self._record = self._store_pieces()
        except BaseException as exc:  # noqa: BLE001 - handed to `run`
            self._storing_failure = exc
            self._pieces.break_off()
            if self._reader is not None:
                self._reader.cancel()

    def _store_pieces(self) -> LayerRecord:
        """The storing thread: hash, parse, write; at the end of a good layer, publish."""
        hasher = self._diff_id.hasher() if self._diff_id else hashlib.sha256()
        clock = _Stopwatch(self._progress.seconds)
        parser = TarParser()
        builder = IndexBuilder()
        position = 0
        watcher = self._watcher
        with self._store.new_layer() as writer:
            if watcher is not None:
                watcher.begin(builder, writer.directory)
            while (piece := self._pieces.get()) is not None:
                clock.lap("idle")
                hasher.update(piece)
                members = parser.feed(piece)
                for member in members:
                    number = builder.add(member)
                    if number is not None:
                        writer.expect(number, member)
                        if watcher is not None:
                            watcher.expect(number, member)
                writer.write(piece, position)
                position += len(piece)
                if watcher is not None:
                    watcher.wrote(position)
                self._progress.unpacked = position
                self._progress.entries += len(members)
                clock.lap("store")
            parser.finish()
            diff_id = DiffID(Digest.from_hasher(hasher))
            if self._diff_id is not None:
                self._check(diff_id, self._diff_id, "layer's content does not match its diff ID")
            index = builder.finish()
            record = LayerRecord(
                digest=self._descriptor.digest,
                diff_id=diff_id,
                media_type=self._descriptor.media_type,
                size=self._descriptor.size,
                unpacked_size=position,
                entries=LayerIndex(index).entry_count,
            )
            # Whoever reads the file that was written would find it emptied.
            if self._twin is not None and watcher is None:
                writer.share_data(self._twin.digest)
            writer.publish(record, index, builder.referenced_files)
            clock.lap("publish")
        return record

    def _check(self, actual: Digest, expected: Digest, message: str) -> None:
        if actual != expected:
            raise DigestMismatch(
                message,
                hint="The image is damaged where it is stored, or on the way: nothing was kept.",
                layer=self._descriptor.digest,
                expected=expected,
                actual=actual,
            )


_SNIFFED: Final = 4


class _Stopwatch:
    """Adds the time since its last lap to a named stage."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._last
        self._last = now
