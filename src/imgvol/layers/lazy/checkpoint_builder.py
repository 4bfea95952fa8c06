"""Makes checkpoints of a gzip blob while it passes, and the digests of the spans between them.

A checkpoint comes after the first header and then at the first end of a block that is more than a
span's size after the one before, as soci-snapshotter places them (`gzip_zinfo.c`). So a span has at
least its size, and as much more as its last block brings. Members follow one another without a
seam: a checkpoint may be in any of them, and before the first block of any.

The byte that a checkpoint lies in belongs to the spans on both sides, see `checkpoints`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from imgvol import limits
from imgvol.errors import InvalidLayer, LimitExceeded
from imgvol.layers.gzip import MAGIC
from imgvol.layers.lazy.checkpoints import WINDOW, pack_checkpoint, pack_header
from imgvol.layers.lazy.libz import GzipStream
from imgvol.layers.lazy.windows import trim_window

_PIECE: Final = limits.DECODED_PIECE
# Compressed bytes that a window is compared over: 32 KiB of plain bytes need no more, unless blocks
# without content are put between them.
_TRIMMED_OVER: Final = 1 * limits.MIB


@dataclass(slots=True)
class BuiltCheckpoint:
    """One checkpoint; attributes as in `checkpoints.Checkpoint`, with the window itself."""

    compressed: int
    position: int
    bits: int
    window: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class BuiltSpans:
    """The spans of a blob.

    Attributes:
        checkpoints: SOCI's blob of checkpoints, all of them in it.
        digests: The SHA-256 of each span's compressed bytes.
        untrimmed: Windows that are kept whole, because nothing could be proven of them.
    """

    checkpoints: bytes = field(repr=False)
    digests: Sequence[bytes]
    untrimmed: int = 0


class CheckpointBuilder:
    """Decodes a stream of gzip members and keeps checkpoints. A `compression.Decoder`.

        builder = CheckpointBuilder(4 * limits.MIB)
        for piece in pieces:
            for plain in builder.feed(piece): ...
        builder.finish()
        spans = builder.spans()

    Args:
        span_size: Plain bytes of a span, at least.

    Raises:
        MachineLacks: There is no zlib.
    """

    def __init__(self, span_size: int) -> None:
        self._span_size = span_size
        self._stream = GzipStream(_PIECE)
        self._points: list[BuiltCheckpoint] = []
        self._spans = _SpanHasher()
        self._trimming: _Trimming | None = None
        self._base = 0  # where in the blob the current input begins
        self._produced = 0
        self._untrimmed = 0
        self._head = b""

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """Decode the next input. Exhaust the iterator before the next call.

        Raises:
            InvalidLayer: The data is not gzip, or damaged; `offset` is in the compressed stream.
            LimitExceeded: There are more spans than a zTOC may have.
        """
        piece = bytes(data)
        if len(self._head) < len(MAGIC):
            self._head += piece[: len(MAGIC) - len(self._head)]
            if not MAGIC.startswith(self._head):
                raise InvalidLayer("not gzip data", offset=0)
        self._stream.give(piece)
        self._spans.give(piece)
        if self._trimming is not None:
            self._trimming.give(piece)
        while self._advance():
            if self._stream.output:
                self._produced += len(self._stream.output)
                plain = bytes(self._stream.output)
                if self._trimming is not None:
                    self._trimming.add_plain(plain)
                yield plain
            if self._trimming is not None and (self._trimming.is_ready or self._stream.has_ended):
                self._trim()
            if self._stream.is_at_block:
                self._consider(piece)
        self._spans.end_piece()
        self._base += len(piece)

    def _advance(self) -> bool:
        # Ends of blocks that are too near to the last checkpoint are not even looked for.
        room = self._points[-1].position + self._span_size - self._produced if self._points else 0
        try:
            return self._stream.skip(room) if room > 0 else self._stream.step()
        except InvalidLayer as error:
            raise InvalidLayer(error.message, offset=self._base + self._stream.consumed) from error

    def _consider(self, piece: bytes) -> None:
        """Between two blocks: time for a checkpoint?"""
        points = self._points
        if points and self._produced - points[-1].position <= self._span_size:
            return
        if len(points) == limits.ZTOC_SPANS:
            raise LimitExceeded(
                "layer with too many spans",
                hint="Choose larger spans: --span-size.",
                limit="ZTOC_SPANS",
                allowed=limits.ZTOC_SPANS,
            )
        self._trim()
        stream = self._stream
        self._spans.cut(stream.consumed, shared=stream.bits > 0)
        window = stream.window()
        point = BuiltCheckpoint(self._base + stream.consumed, self._produced, stream.bits, window)
        points.append(point)
        if any(window):
            self._trimming = _Trimming(point, self._spans.shared_byte)
            self._trimming.give(piece[stream.consumed :])

    def _trim(self) -> None:
        trimming, self._trimming = self._trimming, None
        if trimming is None:
            return
        if not trimming.finish(has_ended=self._stream.has_ended):
            self._untrimmed += 1

    def finish(self) -> None:
        """Say that the stream ends here.

        Raises:
            InvalidLayer: It ends inside a member, or has none.
        """
        self._trim()
        if not self._stream.has_ended:
            raise InvalidLayer("gzip stream is cut off", offset=self._base)

    def spans(self) -> BuiltSpans:
        """What there is, after `finish`.

        Raises:
            InvalidLayer: There is nothing in it.
        """
        if not self._points:
            raise InvalidLayer("gzip data without a block to start at")
        blob = [pack_header(len(self._points), self._span_size)]
        blob += [pack_checkpoint(p.compressed, p.position, p.bits, p.window) for p in self._points]
        return BuiltSpans(b"".join(blob), self._spans.finish(), self._untrimmed)


class _SpanHasher:
    """SHA-256 of the compressed bytes of each span; those before the first are of none.

    Attributes:
        shared_byte: The byte that the last cut went through; empty if it went between two.
    """

    def __init__(self) -> None:
        self._digests: list[bytes] = []
        self._hasher: hashlib._Hash | None = None
        self._piece = memoryview(b"")
        self._done = 0
        self._last = b""
        self.shared_byte = b""

    def give(self, piece: bytes) -> None:
        self._piece = memoryview(piece)
        self._done = 0

    def cut(self, at: int, *, shared: bool) -> None:
        """A span begins at so many bytes of the piece."""
        self._hash_up_to(at)
        if self._hasher is not None:
            self._digests.append(self._hasher.digest())
        self.shared_byte = b""
        if shared:
            self.shared_byte = bytes(self._piece[at - 1 : at]) if at else self._last
        self._hasher = hashlib.sha256(self.shared_byte)

    def end_piece(self) -> None:
        self._hash_up_to(len(self._piece))
        self._last = bytes(self._piece[-1:]) or self._last

    def finish(self) -> Sequence[bytes]:
        if self._hasher is not None:
            self._digests.append(self._hasher.digest())
            self._hasher = None
        return self._digests

    def _hash_up_to(self, at: int) -> None:
        if self._hasher is not None:
            self._hasher.update(self._piece[self._done : at])
        self._done = at


class _Trimming:
    """What is needed to trim one window: the bytes after its checkpoint, both kinds of them."""

    def __init__(self, point: BuiltCheckpoint, shared_byte: bytes) -> None:
        self._point = point
        self._data = bytearray(shared_byte)
        self._plain = bytearray()

    def give(self, piece: bytes) -> None:
        """The next compressed bytes, of which some may not have been decoded."""
        if len(self._data) <= _TRIMMED_OVER:
            self._data += piece

    def add_plain(self, plain: bytes) -> None:
        self._plain += plain[: WINDOW - len(self._plain)]

    @property
    def is_ready(self) -> bool:
        return len(self._plain) >= WINDOW or len(self._data) > 2 * _TRIMMED_OVER

    def finish(self, *, has_ended: bool) -> bool:
        """Trims the window; returns whether it could.

        What has been cut off by the next checkpoint, and not by the end of a member, does not show
        all that refers to it: whoever decodes several spans goes on over that.
        """
        point = self._point
        whole = point.window
        if not (self.is_ready or has_ended):
            return False
        point.window = trim_window(whole, bytes(self._data), point.bits, bytes(self._plain))
        return point.window is not whole
