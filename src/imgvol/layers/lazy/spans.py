"""What a lazy layer is: its files, and where in the blob each byte of them comes from.

Every format ends up as the same two things. The LayerIndex says which files there are and at which
*position* of the layer's data file their contents lie. The SpanTable says which *spans* of the blob
bring those positions: a span is what is fetched, verified and decoded at once.

Rule 1: a span table hands out verified bytes only. Whatever `decode` returns is covered by a digest
that the table of contents pins; a layer whose table of contents leaves anything uncovered is
refused when it is opened, never served in part. The one exception is a layer that was opened with
`may_lack_digests`, which the machine's operator has to ask for: its table is not `is_pinned`.

Rule 2: positions are the table's own. A SOCI layer uses the offsets of its uncompressed tar, the
others put the contents of files one after another. The index that came with a table is the only one
that fits it.

Rule 3: a table survives restarts without its source. `to_bytes` gives one self-describing piece of
bytes, sealed here: magic, version, kind and checksum before a body that only its kind understands.
`imgvol.layers.lazy.open.open_span_table` reads it again.
"""

import enum
import hashlib
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from imgvol import limits
from imgvol.errors import DigestMismatch, LimitExceeded, StoreDamaged
from imgvol.oci.digest import Digest

MAGIC: Final = b"imgvolST"
VERSION: Final = 2
DIGEST_SIZE: Final = 32
"""Bytes of a SHA-256."""

# magic, version, kind, CRC-32 of the body, size of the body; then the body
_SEAL: Final = struct.Struct("<8sHHIQ")


class Kind(enum.IntEnum):
    """What understands the body of a sealed table. Stored: numbers are never used again."""

    SOCI = 2
    FRAMES = 3  # zstd of several frames
    CHUNKS = 4  # eStargz and zstd:chunked; it was 1 while chunks lay without gaps


class Region(NamedTuple):
    """Bytes that belong at a position of the layer's data file."""

    position: int
    data: bytes


class Part(NamedTuple):
    """A piece of a span's content that a digest of its own pins.

    Attributes:
        position: Where it belongs in the layer's data file.
        size: Bytes.
        digest: Their SHA-256.
    """

    position: int
    size: int
    digest: bytes


class SpanTable(ABC):
    """Where the bytes of a lazy layer's data file come from. Immutable, for any number of threads.

        for span in table.spans_of(extent.position, extent.size):
            start, end = table.compressed_range(span)
            for region in table.decode(span, fetch(start, end)):
                write(region.data, region.position)

    Spans are numbered in the order of the blob: neighbours there have neighbouring numbers. Their
    ranges may touch, share bytes at their borders (a checkpoint in the middle of a byte) or leave
    gaps (headers of the tar that nobody needs).

    Attributes:
        blob_size: Bytes of the blob.
        data_size: Bytes of the data file's address space.
        span_count: Spans, numbered from 0.
        prefetch: The spans that whoever made the image wants first, in that order; often none.
        is_pinned: Whether a digest covers everything that `decode` returns.
    """

    blob_size: int
    data_size: int
    span_count: int
    prefetch: Sequence[int]
    is_pinned: bool = True

    @abstractmethod
    def spans_of(self, position: int, size: int) -> Sequence[int]:
        """The spans that hold the bytes [position, position + size) of the data file, ascending.

        Bytes outside of the address space are nowhere: they add no span.
        """

    @abstractmethod
    def compressed_range(self, span: int) -> tuple[int, int]:
        """Where a span lies in the blob: its first byte, and the one after its last.

        Never empty, never outside of the blob, and bounded, whatever the table of contents said.
        """

    @abstractmethod
    def positions(self, span: int) -> Sequence[tuple[int, int]]:
        """Which ranges of the data file a span brings: first byte, and the one after the last."""

    @abstractmethod
    def decode(self, span: int, data: bytes) -> list[Region]:
        """Verify and decode a span. Pure computation of up to some 100 ms: do it in a thread.

        Args:
            span: Its number.
            data: Exactly the bytes of its compressed range.

        Returns:
            Everything in the span that belongs into the data file, by ascending position. The
            regions of different spans do not overlap, and those of all spans make up all positions
            that the index refers to.

        Raises:
            DigestMismatch: The bytes are not those that the table of contents pins.
            InvalidLayer: They cannot be decoded, or the table of contents lied about them.
        """

    def parts(self, span: int) -> Sequence[Part] | None:  # noqa: ARG002 - of any
        """What a span holds, by digests of the content itself, by ascending position.

        None if nothing pins all of it that way: SOCI has digests of compressed spans only. What
        has parts can be taken from wherever the same bytes are.
        """
        return None

    @abstractmethod
    def to_bytes(self) -> bytes:
        """The table in its sealed form: the same table gives the same bytes."""


class NoSpans(SpanTable):
    """What stands for the table of a layer whose spans nobody needs any more.

    A flight that lands late may still ask where a span lies: nowhere.
    """

    data_size = 0
    span_count = 0
    prefetch: Sequence[int] = ()

    def __init__(self, blob_size: int) -> None:
        self.blob_size = blob_size

    def spans_of(self, position: int, size: int) -> Sequence[int]:  # noqa: ARG002 - none
        """None."""
        return ()

    def compressed_range(self, span: int) -> tuple[int, int]:  # noqa: ARG002 - any
        """An empty range."""
        return (0, 0)

    def positions(self, span: int) -> Sequence[tuple[int, int]]:  # noqa: ARG002 - none
        """None."""
        return ()

    def decode(self, span: int, data: bytes) -> list[Region]:
        """Not possible."""
        raise NotImplementedError

    def to_bytes(self) -> bytes:
        """Not possible."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class LazyLayer:
    """A layer that can be shown before its content is there.

    Attributes:
        index: The file of its LayerIndex; all content is in the data file, own files are not used.
        table: Where that comes from.
    """

    index: bytes
    table: SpanTable


def seal(kind: Kind, body: bytes) -> bytes:
    """Put the seal before the body of a table."""
    return _SEAL.pack(MAGIC, VERSION, kind, zlib.crc32(body), len(body)) + body


def unseal(data: bytes) -> tuple[Kind, bytes]:
    """Check a seal.

    Returns:
        Who understands the body, and the body, unchanged since it was sealed.

    Raises:
        StoreDamaged: It is not a whole, unchanged table of a version and kind that we know.
    """
    if len(data) < _SEAL.size:
        raise damaged("size", expected=_SEAL.size, actual=len(data))
    magic, version, kind, checksum, size = _SEAL.unpack_from(data)
    if magic != MAGIC:
        raise damaged("magic")
    if version != VERSION:
        raise damaged("version", expected=VERSION, actual=version)
    body = data[_SEAL.size :]
    if len(body) != size:
        raise damaged("size", expected=size, actual=len(body))
    actual = zlib.crc32(body)
    if actual != checksum:
        raise damaged("checksum", expected=f"{checksum:08x}", actual=f"{actual:08x}")
    try:
        return Kind(kind), body
    except ValueError:
        raise damaged("kind", actual=kind) from None


def check_span_size(start: int, size: int) -> None:
    """Refuse a span that no reader would hold at once.

    Args:
        start: Its first byte in the blob.
        size: Its bytes, compressed or plain: the larger number.

    Raises:
        LimitExceeded: It is too large.
    """
    if size > limits.SPAN_SIZE:
        raise LimitExceeded(
            "a span of the layer is too large",
            limit="SPAN_SIZE",
            allowed=limits.SPAN_SIZE,
            offset=start,
        )


def check_expansion(blob_size: int, plain_size: int) -> None:
    """Refuse a layer that claims to decode to more than any honest one does.

    Raises:
        LimitExceeded: It does.
    """
    free = max(limits.DECOMPRESSION_FREE, limits.DECOMPRESSION_RATIO * blob_size)
    if plain_size > min(free, limits.TAR_SIZE):
        raise LimitExceeded(
            "layer expands like a decompression bomb",
            limit="DECOMPRESSION_RATIO",
            allowed=limits.DECOMPRESSION_RATIO,
        )


def verify_span(data: bytes, start: int, end: int, expected: bytes) -> None:
    """Check the compressed bytes of a span.

    Args:
        data: What was fetched.
        start: The span's first byte in the blob.
        end: The one after its last.
        expected: Its SHA-256.

    Raises:
        DigestMismatch: It is something else.
    """
    if len(data) != end - start:
        raise DigestMismatch(
            "a span of the layer has a wrong size",
            offset=start,
            expected=end - start,
            actual=len(data),
        )
    actual = hashlib.sha256(data).digest()
    if actual != expected:
        raise DigestMismatch(
            "a span of the layer does not match its digest",
            offset=start,
            expected=Digest("sha256", expected.hex()),
            actual=Digest("sha256", actual.hex()),
        )


def damaged(reason: str, *, expected: object = None, actual: object = None) -> StoreDamaged:
    """The error for a stored table that cannot be used."""
    message = f"not a usable span table: wrong {reason}"
    hint = "Remove the image and pull it again."
    return StoreDamaged(message, hint=hint, reason=reason, expected=expected, actual=actual)
