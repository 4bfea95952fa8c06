"""SOCI: a gzip or plain tar as it is, read lazily with the help of a zTOC that lies beside it.

A zTOC comes from the registry like any blob, named by its digest in a SOCI index (`soci_index`).
Everything it says is covered by that digest, the windows of the checkpoints included; and it pins a
digest for the compressed bytes of each span, which are checked before they are decompressed.

Positions are offsets in the uncompressed tar. Spans follow one another there without gaps, so the
spans of a range are a run of numbers. In the blob the range of a span may begin with the last byte
of the one before, which holds bits of both. What lies before the first span, the gzip header,
belongs to none and is covered by no digest; nothing of it is needed.

The data file ends where the reader of the tar stopped: padding after the end of the archive, which
most tools write and which the diff ID covers, is not part of it.
"""

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Self

from imgvol import limits
from imgvol.errors import ContentError, DigestMismatch, InvalidLayer, LimitExceeded
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.lazy.checkpoints import Checkpoint, inflate_span, parse_checkpoints
from imgvol.layers.lazy.flatbuffer import I64, BudgetExceeded, FlatBuffer, FlatBufferError
from imgvol.layers.lazy.spans import (
    DIGEST_SIZE,
    Kind,
    LazyLayer,
    Region,
    SpanTable,
    check_span_size,
    damaged,
    seal,
    verify_span,
)
from imgvol.layers.lazy.ztoc import SOCI_ALGORITHMS, Algorithm, Ztoc, parse_ztoc
from imgvol.layers.tar import TarMember
from imgvol.oci.digest import Digest

# sizes of the blob, of the data file and of the checkpoints; algorithm; spans, spans to fetch first
_HEADER: Final = struct.Struct("<QQQBII")


class SpanRange(NamedTuple):
    """Spans to fetch first: those from `first` to `last`, both included."""

    first: int
    last: int


class SociTable(SpanTable):
    """See the module, and SpanTable.

    Args:
        blob_size: Bytes of the blob.
        data_size: Bytes of the tar, as far as its reader went.
        algorithm: How the blob is compressed.
        digests: The SHA-256 of each span, end to end.
        checkpoints: The zTOC's, unchanged.
        prefetch: The spans to fetch first, each once.

    Raises:
        InvalidLayer: The parts do not fit together.
        LimitExceeded: A span is too large.
    """

    def __init__(
        self,
        *,
        blob_size: int,
        data_size: int,
        algorithm: Algorithm,
        digests: bytes,
        checkpoints: bytes,
        prefetch: Iterable[int] = (),
    ) -> None:
        self.blob_size = blob_size
        self.data_size = data_size
        self._algorithm = algorithm
        self._digests = digests
        self._blob = checkpoints
        if algorithm not in SOCI_ALGORITHMS:
            raise InvalidLayer("a zTOC of a compression that SOCI does not have")
        if algorithm is Algorithm.GZIP:
            self._checkpoints = parse_checkpoints(checkpoints)
        else:
            count = len(digests) // DIGEST_SIZE
            self._checkpoints = _plain_checkpoints(checkpoints, blob_size, count)
        self.span_count = len(self._checkpoints)
        self._positions = array("Q", (point.position for point in self._checkpoints))
        self.prefetch: Sequence[int] = tuple(prefetch)
        self._check()

    def _check(self) -> None:
        if len(self._digests) != self.span_count * DIGEST_SIZE:
            raise InvalidLayer("zTOC with more or fewer digests than spans")
        if self._checkpoints[-1].compressed >= self.blob_size:
            raise InvalidLayer("zTOC with a span outside of the blob")
        for span in range(self.span_count):
            start, end = self.compressed_range(span)
            check_span_size(start, max(end - start, self._size(span)))

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Read the body of a sealed table.

        Raises:
            StoreDamaged: It is none.
        """
        if len(body) < _HEADER.size:
            raise damaged("size", expected=_HEADER.size, actual=len(body))
        blob_size, data_size, blob, algorithm, spans, first = _HEADER.unpack_from(body)
        digests = _HEADER.size
        prefetch = digests + spans * DIGEST_SIZE
        checkpoints = prefetch + 4 * first
        if checkpoints + blob != len(body):
            raise damaged("size", expected=checkpoints + blob, actual=len(body))
        try:
            return cls(
                blob_size=blob_size,
                data_size=data_size,
                algorithm=Algorithm(algorithm),
                digests=body[digests:prefetch],
                checkpoints=body[checkpoints:],
                prefetch=struct.unpack_from(f"<{first}I", body, prefetch),
            )
        except (ContentError, ValueError) as error:
            raise damaged("content") from error

    def to_bytes(self) -> bytes:
        """As SpanTable says."""
        first = len(self.prefetch)
        header = _HEADER.pack(
            self.blob_size,
            self.data_size,
            len(self._blob),
            self._algorithm,
            self.span_count,
            first,
        )
        prefetch = struct.pack(f"<{first}I", *self.prefetch)
        return seal(Kind.SOCI, b"".join((header, self._digests, prefetch, self._blob)))

    def spans_of(self, position: int, size: int) -> Sequence[int]:
        """As SpanTable says."""
        start, end = max(position, 0), min(position + size, self.data_size)
        if start >= end:
            return ()
        first = bisect_right(self._positions, start) - 1
        return range(first, bisect_left(self._positions, end, first))

    def compressed_range(self, span: int) -> tuple[int, int]:
        """As SpanTable says."""
        following = span + 1
        points = self._checkpoints
        end = points[following].compressed if following < len(points) else self.blob_size
        return points[span].start, end

    def positions(self, span: int) -> Sequence[tuple[int, int]]:
        """As SpanTable says."""
        start, size = self._positions[span], self._size(span)
        return ((start, start + size),) if size > 0 else ()

    def decode(self, span: int, data: bytes) -> list[Region]:
        """As SpanTable says."""
        start, end = self.compressed_range(span)
        at = span * DIGEST_SIZE
        verify_span(data, start, end, self._digests[at : at + DIGEST_SIZE])
        size = self._size(span)
        if size <= 0:
            return []  # after the end of the archive
        checkpoint = self._checkpoints[span]
        if self._algorithm is Algorithm.UNCOMPRESSED:
            return [Region(checkpoint.position, data[:size])]
        try:
            output = inflate_span(data, checkpoint, self._blob, size)
        except InvalidLayer as error:
            error.fields = {**error.fields, "offset": checkpoint.start}
            raise
        return [Region(checkpoint.position, output)]

    def _size(self, span: int) -> int:
        """Bytes of the data file that a span brings; not positive when it lies behind its end."""
        following = span + 1
        end = self._positions[following] if following < self.span_count else self.data_size
        return min(end, self.data_size) - self._positions[span]


def open_ztoc(
    data: bytes, *, expected: Digest, blob_size: int, prefetch: Iterable[SpanRange] = ()
) -> LazyLayer:
    """Make a lazy layer from its zTOC.

    Args:
        data: The zTOC.
        expected: The digest that the SOCI index pins for it.
        blob_size: Bytes of the layer's blob, as the image manifest says.
        prefetch: Spans that whoever made the image wants first. Advice: what makes no sense is
            left out.

    Raises:
        DigestMismatch: The zTOC is not what was pinned.
        InvalidLayer: It is damaged, contradicts itself, or belongs to another blob.
        LimitExceeded: It, or something that it describes, is too large.
        Unsupported: Another version or compression, spans without digests, or sparse files.
    """
    if len(data) > limits.ZTOC_SIZE:
        raise LimitExceeded("zTOC is too large", limit="ZTOC_SIZE", allowed=limits.ZTOC_SIZE)
    if not expected.matches(data):
        raise DigestMismatch(
            "zTOC does not match its digest",
            expected=expected,
            actual=Digest.of(data, expected.algorithm),
        )
    members, table = read_ztoc(data, blob_size=blob_size, prefetch=prefetch)
    return LazyLayer(index_members(members), table)


def read_ztoc(
    data: bytes, *, blob_size: int, prefetch: Iterable[SpanRange] = ()
) -> tuple[list[TarMember], SociTable]:
    """The members and the spans of a zTOC that need not be verified; else as `open_ztoc`."""
    ztoc = parse_ztoc(data)
    if ztoc.compressed_size != blob_size:
        raise InvalidLayer("zTOC of another blob", expected=blob_size, actual=ztoc.compressed_size)
    return ztoc.members, _make_table(ztoc, prefetch)


def index_members(members: Iterable[TarMember]) -> bytes:
    """The file of the LayerIndex of what a zTOC describes.

    Raises:
        InvalidLayer, LimitExceeded: A layer cannot have such members.
    """
    builder = IndexBuilder(own_files=False)
    for member in members:
        builder.add(member)
    return builder.finish()


def _make_table(ztoc: Ztoc, prefetch: Iterable[SpanRange]) -> SociTable:
    last = len(ztoc.span_digests) - 1
    return SociTable(
        blob_size=ztoc.compressed_size,
        data_size=ztoc.uncompressed_size,
        algorithm=ztoc.algorithm,
        digests=b"".join(bytes.fromhex(digest.hex) for digest in ztoc.span_digests),
        checkpoints=ztoc.checkpoints,
        prefetch=_iter_spans(prefetch, last),
    )


def _iter_spans(ranges: Iterable[SpanRange], last: int) -> Iterator[int]:
    seen = bytearray(last + 1)
    for wanted in ranges:
        # A search for the next one unseen, for ranges may repeat each other without end.
        span = seen.find(0, max(wanted.first, 0), wanted.last + 1)
        while span >= 0:
            seen[span] = 1
            yield span
            span = seen.find(0, span, wanted.last + 1)


def _plain_checkpoints(zinfo: bytes, blob_size: int, span_count: int) -> tuple[Checkpoint, ...]:
    """The spans of a blob that is not compressed: all of one size, but for the last.

    The description is a FlatBuffer of its own, `ztoc/compression/fbs/zinfo.fbs`: version, size of a
    span, size of the tar.
    """
    try:
        root = FlatBuffer(zinfo, budget=limits.KIB).root()
        span_size, size = root.integer(1, I64), root.integer(2, I64)
    except (FlatBufferError, BudgetExceeded) as error:
        raise InvalidLayer("zTOC with damaged spans") from error
    if size != blob_size or span_size <= 0:
        raise InvalidLayer("zTOC with spans of an impossible size")
    if span_count != -(-size // span_size):
        raise InvalidLayer("zTOC with more or fewer digests than spans")
    starts = range(0, size, span_size)
    return tuple(Checkpoint(start, start, 0, None) for start in starts)
