"""zstd of several frames: a blob as it is, read in runs of whole frames.

Nothing in a frame refers to another one, so decoding may begin wherever a frame does. A span is a
run of whole frames, with what lies between them. What lies between runs and gives nothing, which is
skippable frames and empty ones, belongs to no span.

Where runs begin and end, and how much they give, comes from imgvol's own document
(`zstd_frames`), and from nothing that the blob says of itself: the table at the end of zstd's
seekable format is one more skippable frame. Each run has a digest of its compressed bytes, which is
checked before they are decoded; and it has to give neither more nor less than the document says.

Positions are offsets in the uncompressed tar, as in `soci`: runs follow one another there without
gaps. The data file ends where the archive does, and may do so within a run, or before the last.
"""

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from imgvol import limits
from imgvol.errors import ContentError, InvalidLayer, LimitExceeded
from imgvol.layers.lazy.spans import (
    DIGEST_SIZE,
    Kind,
    Region,
    SpanTable,
    check_expansion,
    check_span_size,
    damaged,
    seal,
    verify_span,
)
from imgvol.layers.zstd import ZstdDecoder

# sizes of the blob and of the data file; runs. Then the digests, and the runs as they are packed.
_HEADER: Final = struct.Struct("<QQI")
_RUN: Final = struct.Struct("<QQQ")
_END: Final = struct.Struct("<Q")


class FrameRun(NamedTuple):
    """Whole frames, one after another.

    Attributes:
        start: Its first byte in the blob.
        end: The one after its last.
        position: Plain bytes before it.
    """

    start: int
    end: int
    position: int


def pack_runs(runs: Sequence[FrameRun], plain_size: int) -> bytes:
    """Runs as the document has them: three numbers each, and the plain size of all."""
    return b"".join(_RUN.pack(*run) for run in runs) + _END.pack(plain_size)


def _parse_runs(packed: bytes) -> tuple[tuple[FrameRun, ...], int]:
    count, rest = divmod(len(packed) - _END.size, _RUN.size)
    if count < 1 or rest:
        raise InvalidLayer("a table of zstd frames that is cut off")
    if count > limits.ZTOC_SPANS:
        raise LimitExceeded(
            "layer with too many spans", limit="ZTOC_SPANS", allowed=limits.ZTOC_SPANS
        )
    runs = tuple(FrameRun(*numbers) for numbers in _RUN.iter_unpack(packed[: -_END.size]))
    return runs, _END.unpack(packed[-_END.size :])[0]


class FrameTable(SpanTable):
    """See the module, and SpanTable.

    Args:
        blob_size: Bytes of the blob.
        data_size: Bytes of the tar, as far as its reader went.
        digests: The SHA-256 of each run, end to end.
        packed_runs: The runs, as `pack_runs` gives them.

    Raises:
        InvalidLayer: The parts do not fit together.
        LimitExceeded: A run, or what all of them give, is too large; or there are too many.
    """

    def __init__(
        self, *, blob_size: int, data_size: int, digests: bytes, packed_runs: bytes
    ) -> None:
        self.blob_size = blob_size
        self.data_size = data_size
        self.prefetch: Sequence[int] = ()
        self._digests = digests
        self._packed = packed_runs
        self._runs, plain_size = _parse_runs(packed_runs)
        self.span_count = len(self._runs)
        # One more than there are runs: where the last one ends.
        self._positions = array("Q", [*(run.position for run in self._runs), plain_size])
        self._check()

    def _check(self) -> None:
        if len(self._digests) != self.span_count * DIGEST_SIZE:
            raise InvalidLayer("a table of zstd frames with more or fewer digests than spans")
        plain_size = self._positions[-1]
        if self._positions[0] != 0 or self.data_size > plain_size:
            raise InvalidLayer("a table of zstd frames that leaves out some of the layer")
        check_expansion(self.blob_size, plain_size)
        before = 0
        for span, (start, end, _) in enumerate(self._runs):
            size = self._plain_size(span)
            if not before <= start < end <= self.blob_size or size <= 0:
                raise InvalidLayer("zstd frames that are out of order", offset=start)
            check_span_size(start, max(end - start, size))
            before = end

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Read the body of a sealed table.

        Raises:
            StoreDamaged: It is none.
        """
        if len(body) < _HEADER.size:
            raise damaged("size", expected=_HEADER.size, actual=len(body))
        blob_size, data_size, count = _HEADER.unpack_from(body)
        runs = _HEADER.size + count * DIGEST_SIZE
        try:
            return cls(
                blob_size=blob_size,
                data_size=data_size,
                digests=body[_HEADER.size : runs],
                packed_runs=body[runs:],
            )
        except ContentError as error:
            raise damaged("content") from error

    def to_bytes(self) -> bytes:
        """As SpanTable says."""
        header = _HEADER.pack(self.blob_size, self.data_size, self.span_count)
        return seal(Kind.FRAMES, b"".join((header, self._digests, self._packed)))

    def spans_of(self, position: int, size: int) -> Sequence[int]:
        """As SpanTable says."""
        start, end = max(position, 0), min(position + size, self.data_size)
        if start >= end:
            return ()
        first = bisect_right(self._positions, start) - 1
        return range(first, bisect_left(self._positions, end, first))

    def compressed_range(self, span: int) -> tuple[int, int]:
        """As SpanTable says."""
        start, end, _ = self._runs[span]
        return start, end

    def positions(self, span: int) -> Sequence[tuple[int, int]]:
        """As SpanTable says."""
        start, end = self._positions[span], min(self._positions[span + 1], self.data_size)
        return ((start, end),) if start < end else ()

    def decode(self, span: int, data: bytes) -> list[Region]:
        """As SpanTable says."""
        offset, end, position = self._runs[span]
        at = span * DIGEST_SIZE
        verify_span(data, offset, end, self._digests[at : at + DIGEST_SIZE])
        if position >= self.data_size:
            return []  # after the end of the archive
        plain = _decode_frames(data, self._plain_size(span), offset)
        return [Region(position, plain[: self.data_size - position])]

    def _plain_size(self, span: int) -> int:
        return self._positions[span + 1] - self._positions[span]


def _decode_frames(data: bytes, size: int, offset: int) -> bytes:
    """What whole frames give, if that has the size that it should have.

    Args:
        data: The frames.
        size: Plain bytes; decoding stops as soon as there are more.
        offset: Of the data in its blob, for errors.

    Raises:
        InvalidLayer: It has not, or the data is damaged.
    """
    pieces: list[bytes] = []
    missing = size
    decoder = ZstdDecoder()
    try:
        for piece in decoder.feed(data):
            missing -= len(piece)
            if missing < 0:
                break
            pieces.append(piece)
        else:
            decoder.finish()
    except ContentError as error:
        at = error.fields.get("offset")
        where = offset + at if isinstance(at, int) else offset
        fields = {**error.fields, "offset": where}
        raise InvalidLayer(error.message, hint="", **fields) from error
    if missing:
        what = "more" if missing < 0 else "less"
        raise InvalidLayer(f"zstd frames with {what} in them than their table says", offset=offset)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
