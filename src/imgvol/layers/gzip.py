"""gzip (RFC 1952): compressed pieces in, bounded pieces out.

The deflate data and its CRC and length are the library's part. Members and their headers are ours,
for three reasons: the library stays silent about up to nine bytes of garbage, it refuses a valid
header checksum that arrives in two pieces (isal 1.9), and errors should say where they are.

One more thing is ours: the library's CRC leaves the upper halves of the vector registers in use
(isal 1.9 with AVX-512), and from then on SHA-256, which is made of older instructions, takes a
third longer in that thread: 98 microseconds for 128 KiB, not 73. One block of OpenSSL's SHA-512
clears them, in a third of a microsecond.
"""

import hashlib
from collections.abc import Iterator
from typing import Final
from zlib import crc32

from isal import igzip_lib

from imgvol import limits
from imgvol.errors import InvalidLayer, LimitExceeded

MAGIC: Final = b"\x1f\x8b\x08"

_FIXED_HEADER: Final = 10
_HAS_CHECKSUM: Final = 0x02
_HAS_EXTRA: Final = 0x04
_HAS_NAME: Final = 0x08
_HAS_COMMENT: Final = 0x10
_RESERVED: Final = 0xE0

# The library copies what lies behind the end of a member. Starting each member with little input
# keeps many tiny members (eStargz has one per file) from costing their number times the piece.
_FIRST_TAKE: Final = 4 * limits.KIB
_LARGEST_TAKE: Final = 128 * limits.KIB

_SHA512_BLOCK: Final = bytes(128)


class GzipDecoder:
    """Decodes one stream of gzip members, end to end. See `compression.Decoder`."""

    def __init__(self) -> None:
        self._offset = 0
        self._head = b""
        self._stream: igzip_lib.IgzipDecompressor | None = None
        self._take = _FIRST_TAKE
        self._members = 0
        self._clears_registers = hashlib.sha512(usedforsecurity=False)

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """Decode the next input. Exhaust the iterator before the next call.

        Raises:
            InvalidLayer: The data is not gzip, or damaged; `offset` is in the compressed stream.
            LimitExceeded: A header is too large.
        """
        view = memoryview(data)
        while view:
            piece = view[: self._take]
            if self._stream is None:
                used = self._read_header(bytes(piece))
            else:
                yield from self._inflate(self._stream, piece)
                used = len(piece) - self._end_member()
                self._take = min(2 * self._take, _LARGEST_TAKE)
            self._offset += used
            view = view[used:]

    def finish(self) -> None:
        """Say that the stream ends here.

        Raises:
            InvalidLayer: It ends inside a member, or has none.
        """
        if self._stream is not None or self._head or not self._members:
            raise InvalidLayer("gzip stream is cut off", offset=self._offset)

    def _read_header(self, piece: bytes) -> int:
        """Open a member if its header ends in `piece`. Returns how much of it is header."""
        before = len(self._head)
        head = self._head + piece
        start = self._offset - before
        if not head.startswith(MAGIC[: len(head)]):
            what = "garbage after the last gzip member" if self._members else "not gzip data"
            raise InvalidLayer(what, offset=start)
        length = _header_length(head, start)
        if length is None:
            if len(head) > limits.GZIP_HEADER_SIZE:
                raise LimitExceeded(
                    "gzip header too large",
                    limit="GZIP_HEADER_SIZE",
                    allowed=limits.GZIP_HEADER_SIZE,
                    offset=start,
                )
            self._head = head
            return len(piece)
        self._head = b""
        self._stream = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP_NO_HDR_VER)
        self._take = _FIRST_TAKE
        self._members += 1
        return length - before

    def _inflate(
        self, stream: igzip_lib.IgzipDecompressor, piece: bytes | memoryview
    ) -> Iterator[bytes]:
        while True:
            try:
                output = stream.decompress(piece, limits.DECODED_PIECE)
            except igzip_lib.error as error:  # type: ignore[misc] # declared as an instance
                raise InvalidLayer(f"damaged gzip data: {error}", offset=self._offset) from error
            self._clears_registers.update(_SHA512_BLOCK)
            if output:
                yield output
            if stream.eof or stream.needs_input:
                return
            piece = b""

    def _end_member(self) -> int:
        """Close the member if it is complete. Returns how much input it left."""
        if self._stream is None or not self._stream.eof:
            return 0
        unused = len(self._stream.unused_data)
        self._stream = None
        return unused


def _header_length(head: bytes, start: int) -> int | None:
    """The length of the member header that `head` starts with, None when more is needed."""
    if len(head) < _FIXED_HEADER:
        return None
    flags = head[3]
    if flags & _RESERVED:
        raise InvalidLayer("gzip header with reserved flags", offset=start)
    end = _FIXED_HEADER
    if flags & _HAS_EXTRA:
        if len(head) < end + 2:
            return None
        end += 2 + int.from_bytes(head[end : end + 2], "little")
    for _ in range(bool(flags & _HAS_NAME) + bool(flags & _HAS_COMMENT)):
        end = head.find(b"\0", end) + 1
        if not end:
            return None
    if flags & _HAS_CHECKSUM:
        end += 2
        if len(head) >= end:
            expected = int.from_bytes(head[end - 2 : end], "little")
            if crc32(head[: end - 2]) & 0xFFFF != expected:
                raise InvalidLayer("gzip header with a wrong checksum", offset=start)
    return end if len(head) >= end else None
