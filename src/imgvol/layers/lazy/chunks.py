"""The span table of eStargz and zstd:chunked: files cut into chunks, chunks packed into spans.

A span is what starts at one offset of the blob: one gzip member or zstd frame, perhaps a few in a
row. A chunk is a piece of one file, and lies somewhere in what its span decodes to. Around it may
be headers and padding of the tar, or the chunks of other files: eStargz packs small files together.
A table of contents pins a SHA-256 for every chunk, and nothing for what lies between them. Chunks
without one are listed apart: there are none, unless whoever opened the layer allowed it.

Chunks are numbered in the order in which they were added, and their bytes follow one another in the
data file in that order. Files of some size begin at whole blocks there, with a gap before them: the
same file in another layer then has the same bytes in the same places of blocks, which filesystems
can share. So chunks have positions and sizes, and whoever reads a stored table checks that no chunk
begins before the one in front of it ends.
"""

import hashlib
import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import add, le
from typing import Final, Self

from imgvol import limits
from imgvol.errors import ContentError, DigestMismatch, InvalidLayer, LimitExceeded
from imgvol.layers.compression import Compression, open_decoder
from imgvol.layers.lazy.spans import (
    DIGEST_SIZE,
    Kind,
    Part,
    Region,
    SpanTable,
    check_expansion,
    damaged,
    seal,
)

# Where files begin in the data file if they are worth it: filesystems share whole blocks, and this
# is what ext4, xfs and btrfs make them unless told otherwise.
ALIGNMENT: Final = 4096

# What data that does not compress may take: deflate and zstd add less than a thousandth, and an
# encoder that is flushed after each small file some bytes per file, whose header compresses well.
_EXPANSION: Final = 2
_EXPANSION_FREE: Final = 64 * limits.KIB

# sizes of the blob and of the data file; compression; spans, chunks, spans to fetch first, chunks
# without a digest
_HEADER: Final = struct.Struct("<QQBIIII")
_COMPRESSIONS: Final = {1: Compression.GZIP, 2: Compression.ZSTD}
_COMPRESSION_NUMBERS: Final = {value: number for number, value in _COMPRESSIONS.items()}


class ChunkTable(SpanTable):
    """See the module, and SpanTable. Made by ChunkTableBuilder or from a stored body.

    Attributes:
        chunk_count: Chunks, numbered from 0 by their positions.
    """

    def __init__(self, body: bytes) -> None:
        if len(body) < _HEADER.size:
            raise damaged("size", expected=_HEADER.size, actual=len(body))
        header = _HEADER.unpack_from(body)
        self.blob_size, self.data_size, number, spans, chunks, prefetch, bare = header
        # by span: where it starts and ends in the blob, its first place in `order`; by chunk: its
        # position, where it starts in its span, its size, its span; `order`: chunks by span and
        # place there; chunks without a digest; digests of all
        widths = (8, 8, 4, 8, 8, 4, 4, 4, 4, DIGEST_SIZE)
        counts = (spans, spans, spans + 1, *[chunks] * 5, bare, chunks)
        sizes = [width * count for width, count in zip(widths, counts, strict=True)]
        bounds = list(accumulate(sizes, initial=_HEADER.size))
        if bounds[-1] != len(body):
            raise damaged("size", expected=bounds[-1], actual=len(body))
        if number not in _COMPRESSIONS:
            raise damaged("compression", actual=number)
        view = memoryview(body)
        tables = [
            _numbers(view[start:end], width)
            for (start, end), width in zip(pairwise(bounds), widths[:-1], strict=False)
        ]
        self._starts, self._ends, self._firsts, *tables = tables
        self._positions, self._inner, self._sizes, self._spans, self._order, bare_chunks = tables
        self._without_digest = frozenset(bare_chunks)
        self.is_pinned = not self._without_digest
        self._digests = bounds[-2]
        self._body = body
        self._compression = _COMPRESSIONS[number]
        self.span_count = spans
        self.chunk_count = chunks
        self.prefetch: Sequence[int] = range(prefetch)
        self._check_positions()

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Read the body of a sealed table.

        Raises:
            StoreDamaged: It is none.
        """
        return cls(body)

    def _check_positions(self) -> None:
        """A chunk that reached into the next one, or out of the file, would overwrite others."""
        end = self._end(self.chunk_count - 1) if self.chunk_count else 0
        ends = map(add, self._positions, self._sizes)
        if end != self.data_size or not all(map(le, ends, self._positions[1:])):
            raise damaged("positions")

    def to_bytes(self) -> bytes:
        """As SpanTable says."""
        return seal(Kind.CHUNKS, self._body)

    def spans_of(self, position: int, size: int) -> Sequence[int]:
        """As SpanTable says."""
        start, end = max(position, 0), min(position + size, self.data_size)
        if start >= end:
            return ()
        first = max(0, bisect_right(self._positions, start) - 1)
        if self._end(first) <= start:
            first += 1  # it begins in the gap behind that one
        last = bisect_left(self._positions, end, first)
        if last - first == 1:
            return (self._spans[first],)
        return sorted(set(self._spans[first:last]))

    def compressed_range(self, span: int) -> tuple[int, int]:
        """As SpanTable says."""
        return self._starts[span], self._ends[span]

    def positions(self, span: int) -> Sequence[tuple[int, int]]:
        """As SpanTable says."""
        chunks = self._order[self._firsts[span] : self._firsts[span + 1]]
        return [(self._positions[chunk], self._end(chunk)) for chunk in chunks]

    def decode(self, span: int, data: bytes) -> list[Region]:
        """As SpanTable says."""
        start, end = self.compressed_range(span)
        if len(data) != end - start:
            raise InvalidLayer("a span of a wrong size", offset=start, actual=len(data))
        chunks = sorted(self._order[self._firsts[span] : self._firsts[span + 1]])
        needed = max(self._inner[chunk] + self._sizes[chunk] for chunk in chunks)
        decoded = self._decompress(data, needed, start)
        return [self._verified(chunk, decoded, start) for chunk in chunks]

    def parts(self, span: int) -> Sequence[Part] | None:
        """As SpanTable says."""
        chunks = sorted(self.chunks_of_span(span))
        if not self._without_digest.isdisjoint(chunks):
            return None
        return [self.part(chunk) for chunk in chunks]

    def part(self, chunk: int) -> Part:
        """A chunk: where it lies in the data file, and what pins it."""
        return Part(self._positions[chunk], self._sizes[chunk], self.digest(chunk))

    def digest(self, chunk: int) -> bytes:
        """The SHA-256 of a chunk; zeros if there is none."""
        at = self._digests + chunk * DIGEST_SIZE
        return self._body[at : at + DIGEST_SIZE]

    def position(self, chunk: int) -> int:
        """Where a chunk lies in the data file."""
        return self._positions[chunk]

    def is_chunk_pinned(self, chunk: int) -> bool:
        """Whether there is a digest for a chunk."""
        return chunk not in self._without_digest

    def chunks_of_span(self, span: int) -> Sequence[int]:
        """The chunks in a span, by their places there."""
        return self._order[self._firsts[span] : self._firsts[span + 1]]

    def chunks_at(self, position: int, size: int) -> range:
        """The chunks that begin within [position, position + size) of the data file."""
        first = bisect_left(self._positions, position)
        return range(first, bisect_left(self._positions, position + size, first))

    def span_of_chunk(self, chunk: int) -> int:
        """The span that a chunk is in."""
        return self._spans[chunk]

    def _decompress(self, data: bytes, needed: int, offset: int) -> bytes:
        """The first `needed` bytes that a span decodes to."""
        pieces: list[bytes] = []
        missing = needed
        try:
            for piece in open_decoder(self._compression).feed(data):
                pieces.append(piece[:missing])
                missing -= len(pieces[-1])
                if not missing:
                    return b"".join(pieces) if len(pieces) > 1 else pieces[0]
        except ContentError as error:
            at = error.fields.get("offset")
            where = offset + at if isinstance(at, int) else offset
            fields = {**error.fields, "offset": where}
            raise InvalidLayer(error.message, hint="", **fields) from error
        raise InvalidLayer("a span shorter than its table of contents says", offset=offset)

    def _verified(self, chunk: int, decoded: bytes, offset: int) -> Region:
        inner = self._inner[chunk]
        data = decoded[inner : inner + self._sizes[chunk]]
        if chunk in self._without_digest:
            return Region(self._positions[chunk], data)
        expected = self.digest(chunk)
        actual = hashlib.sha256(data, usedforsecurity=False)
        if actual.digest() != expected:
            raise DigestMismatch(
                "a span of a layer is not what its table of contents says",
                expected=f"sha256:{expected.hex()}",
                actual=f"sha256:{actual.hexdigest()}",
                offset=offset,
            )
        return Region(self._positions[chunk], data)

    def _end(self, chunk: int) -> int:
        return self._positions[chunk] + self._sizes[chunk]


class ChunkTableBuilder:
    """Collects the chunks of a table of contents and checks them against each other.

    Args:
        compression: Of the spans: gzip or zstd.
        blob_size: Bytes of the blob.
        data_end: Where the part of the blob that holds content ends, at the latest.

    Attributes:
        data_size: Where the next chunk will lie in the data file.
    """

    def __init__(self, compression: Compression, *, blob_size: int, data_end: int) -> None:
        self._compression = compression
        self._blob_size = blob_size
        self._data_end = data_end
        self._offsets = array("Q")
        self._inner = array("Q")
        self._positions = array("Q")
        self._sizes = array("I")
        self._content_size = 0
        self._digests = bytearray()
        self._without_digest = array("I")
        self._known_ends: dict[int, int] = {}  # of spans, by offset
        self.data_size = 0

    def begin_file(self, size: int) -> int:
        """The next chunks are those of a file; returns where they will lie in the data file.

        Args:
            size: Of the file.
        """
        if size >= limits.ALIGNED_FILE:
            self.data_size = -(-self.data_size // ALIGNMENT) * ALIGNMENT
        return self.data_size

    def add(
        self, *, offset: int, inner: int, size: int, digest: bytes | None, end: int | None = None
    ) -> None:
        """Take the next chunk.

        Args:
            offset: Where its span starts in the blob.
            inner: Where it starts in what the span decodes to.
            size: Its size, at least 1.
            digest: Its SHA-256; None: nothing is known of what it holds.
            end: Where its span ends in the blob, if that is known.

        Raises:
            InvalidLayer: It is not within the blob.
            LimitExceeded: Its span, or all content, is too large.
        """
        if not 0 <= offset < self._data_end:
            raise InvalidLayer("content outside of the blob", offset=offset)
        if inner + size > limits.SPAN_SIZE:
            raise LimitExceeded(
                "a span too large to verify as a whole",
                limit="SPAN_SIZE",
                allowed=limits.SPAN_SIZE,
                actual=inner + size,
            )
        total = self._content_size + size
        check_expansion(self._blob_size, total)
        self._offsets.append(offset)
        self._inner.append(inner)
        self._positions.append(self.data_size)
        self._sizes.append(size)
        self._content_size = total
        self.data_size += size
        if digest is None:
            self._without_digest.append(len(self._offsets) - 1)
        self._digests += digest or bytes(DIGEST_SIZE)
        if end is not None and self._known_ends.setdefault(offset, end) != end:
            raise InvalidLayer("a span with two ends", offset=offset)

    def finish(self, *, prefetch_end: int = 0) -> ChunkTable:
        """The table of all chunks.

        Args:
            prefetch_end: Spans that start before this offset are to be fetched first.

        Raises:
            InvalidLayer: Spans or chunks overlap.
        """
        offsets, inner = self._offsets, self._inner
        order = sorted(range(len(offsets)), key=lambda chunk: (offsets[chunk], inner[chunk]))
        starts = sorted(set(offsets))
        ends = array("Q")
        firsts = array("I", [0])
        spans = array("I", bytes(4 * len(order)))
        place = 0
        for number, start in enumerate(starts):
            decoded = 0
            while place < len(order) and offsets[order[place]] == start:
                chunk = order[place]
                if inner[chunk] < decoded:
                    raise InvalidLayer("chunks that overlap", offset=start)
                decoded = inner[chunk] + self._sizes[chunk]
                spans[chunk] = number
                place += 1
            limit = starts[number + 1] if number + 1 < len(starts) else self._data_end
            ends.append(self._span_end(start, limit, decoded))
            firsts.append(place)
        header = _HEADER.pack(
            self._blob_size,
            self._positions[-1] + self._sizes[-1] if order else 0,
            _COMPRESSION_NUMBERS[self._compression],
            len(starts),
            len(order),
            bisect_left(starts, prefetch_end),
            len(self._without_digest),
        )
        tables = (array("Q", starts), ends, firsts, self._positions, inner, self._sizes, spans)
        chunks = (array("I", order), self._without_digest)
        body = [header, *map(_bytes, (*tables, *chunks)), bytes(self._digests)]
        return ChunkTable(b"".join(body))

    def _span_end(self, start: int, limit: int, decoded: int) -> int:
        """Where to stop fetching a span: `limit` is where the next one starts."""
        end = self._known_ends.get(start, limit)
        if not start < end <= limit:
            raise InvalidLayer("spans that overlap", offset=start, end=end)
        # Headers of many entries without content may follow, which nobody needs; and what the
        # table of contents left out must not make one read fetch the blob.
        return min(end, start + _EXPANSION * decoded + _EXPANSION_FREE)


def _numbers(view: memoryview, width: int) -> Sequence[int]:
    if sys.byteorder == "little":
        return view.cast("Q") if width == 8 else view.cast("I")
    numbers = array("Q" if width == 8 else "I")
    numbers.frombytes(view)
    numbers.byteswap()
    return numbers


def _bytes(numbers: "array[int]") -> bytes:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()
