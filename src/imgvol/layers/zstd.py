"""zstd (RFC 8878): compressed pieces in, bounded pieces out.

The library's push interface has no bound: 1,000 bytes may return 32 MB. But a block, whatever it is
made of, gives no more than 128 KiB and says beforehand how long it is. So this module follows
frames and blocks itself and pushes only as many blocks at a time as fit into limits.DECODED_PIECE.
Following frames also shows, to the byte, where data is cut off or goes on as something else.
"""

import enum
from collections.abc import Iterator
from typing import Final

import zstandard

from imgvol import limits
from imgvol.errors import InvalidLayer, LimitExceeded, Unsupported

MAGIC: Final = b"\x28\xb5\x2f\xfd"
SKIPPABLE_MAGIC: Final = b"\x2a\x4d\x18"
"""Follows a byte from 0x50 to 0x5f."""

_MAGIC_LENGTH: Final = 4
_SKIPPABLE_HEADER: Final = 8
_CHECKSUM: Final = 4
_BLOCK_HEADER: Final = 3
_LARGEST_BLOCK: Final = 128 * limits.KIB
# Magic, descriptor, window, dictionary, content size: RFC 8878, 3.1.1.1.
_LARGEST_HEADER: Final = 4 + 1 + 1 + 4 + 8
_DICTIONARY_LENGTHS: Final = (0, 1, 2, 4)
_CONTENT_LENGTHS: Final = (0, 2, 4, 8)

_RLE: Final = 1  # block types; 0 is raw
_COMPRESSED: Final = 2
_RESERVED: Final = 3


def is_skippable(head: bytes) -> bool:
    """Whether data that begins like this, in up to four bytes, can be a skippable frame."""
    return 0x50 <= head[0] <= 0x5F and SKIPPABLE_MAGIC.startswith(head[1:_MAGIC_LENGTH])


class ZstdDecoder:
    """Decodes one stream of zstd frames, end to end. See `compression.Decoder`.

    Attributes:
        offset: Bytes decoded so far.
        frame_header: Of the frame that is being decoded; empty between frames.
    """

    def __init__(self, *, window: int = limits.ZSTD_WINDOW) -> None:
        self.offset = 0
        self.frame_header = b""
        self._window = window
        self._library = zstandard.ZstdDecompressor(max_window_size=window)
        self._stream: zstandard.ZstdDecompressionObj | None = None
        self._frame: _Frame | None = None
        self._frames = 0
        self._head = b""
        self._skip = 0

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """Decode the next input. Exhaust the iterator before the next call.

        Raises:
            InvalidLayer: The data is not zstd, or damaged; `offset` is in the compressed stream.
            LimitExceeded: A frame needs more memory than allowed, or claims too large a content.
            Unsupported: A frame needs a dictionary.
        """
        view = memoryview(data)
        while view:
            used, output = self.step(view)
            if output:
                yield output
            view = view[used:]

    def step(self, view: memoryview) -> tuple[int, bytes]:
        """Decode a part of the input that lies within one frame, or between two.

        Args:
            view: The next input, at least a byte.

        Returns:
            How many bytes of it that was, and what they gave.

        Raises:
            InvalidLayer, LimitExceeded, Unsupported: As `feed`.
        """
        output = b""
        if self._skip:
            used = min(self._skip, len(view))
            self._skip -= used
        elif self._frame is None:
            used = self._read_header(view)
        else:
            used = self._frame.advance(view, limits.DECODED_PIECE)
            output = self._push(self._frame, view[:used])
        self.offset += used
        return used, output

    def finish(self) -> None:
        """Say that the stream ends here.

        Raises:
            InvalidLayer: It ends inside a frame, or has none.
        """
        if self._frame is not None or self._head or self._skip or not self._frames:
            raise InvalidLayer("zstd stream is cut off", offset=self.offset)

    def _read_header(self, view: memoryview) -> int:
        """Open a frame if its header ends in `view`. Returns how much of it is header."""
        before = len(self._head)
        head = self._head + bytes(view[: _LARGEST_HEADER - before])
        start = self.offset - before
        if is_skippable(head):
            length = _SKIPPABLE_HEADER if len(head) >= _SKIPPABLE_HEADER else None
            if length:
                self._skip = int.from_bytes(head[_MAGIC_LENGTH:_SKIPPABLE_HEADER], "little")
        elif head.startswith(MAGIC[: len(head)]):
            length = _header_length(head)
            if length:
                self._frame = _parse_header(head[:length], start, self._window)
                self._stream = self._library.decompressobj()
                self._push(self._frame, head[:length])
                self.frame_header = head[:length]
        else:
            what = "garbage after the last zstd frame" if self._frames else "not zstd data"
            raise InvalidLayer(what, offset=start)
        if not length:
            self._head = head
            return len(head) - before
        self._head = b""
        self._frames += 1
        return length - before

    def _push(self, frame: "_Frame", data: bytes | memoryview) -> bytes:
        assert self._stream is not None
        try:
            output = self._stream.decompress(data)
        except zstandard.ZstdError as error:
            raise InvalidLayer(f"damaged zstd data: {error}", offset=self.offset) from error
        if self._stream.eof != frame.is_complete:
            raise InvalidLayer("damaged zstd data: wrong end of frame", offset=self.offset)
        if frame.is_complete:
            self._frame = self._stream = None
            self.frame_header = b""
        return output


class _Part(enum.Enum):
    BLOCK_HEADER = enum.auto()
    BLOCK_BODY = enum.auto()
    CHECKSUM = enum.auto()
    END = enum.auto()


class _Frame:
    """How far one frame has been followed, and what its blocks can give."""

    __slots__ = (
        "_has_checksum",
        "_header",
        "_is_last",
        "_largest",
        "_left",
        "_offset",
        "_output",
        "_part",
    )

    def __init__(self, *, offset: int, largest_block: int, has_checksum: bool) -> None:
        self._offset = offset
        self._largest = largest_block
        self._has_checksum = has_checksum
        self._part = _Part.BLOCK_HEADER
        self._left = _BLOCK_HEADER  # of this part
        self._header = b""
        self._is_last = False
        self._output = 0  # the most that this block gives

    @property
    def is_complete(self) -> bool:
        return self._part is _Part.END

    def advance(self, view: memoryview, budget: int) -> int:
        """Pass over input of this frame from which no more than `budget` bytes can come.

        Returns:
            How much that is: up to the end of the input, of the frame, or of the budget.
        """
        position = 0
        if self._part is _Part.BLOCK_BODY:
            # It was begun in an earlier push, and may have kept all of its output for this one.
            budget -= self._output
        while self._part is not _Part.END:
            if self._part is _Part.BLOCK_HEADER and budget < self._largest:
                break
            step = min(self._left, len(view) - position)
            if self._part is _Part.BLOCK_HEADER:
                self._header += bytes(view[position : position + step])
            position += step
            self._left -= step
            if self._left:
                break
            self._begin_next_part(self._offset + position)
            if self._part is _Part.BLOCK_BODY:
                budget -= self._output
        self._offset += position
        return position

    def _begin_next_part(self, offset: int) -> None:
        match self._part:
            case _Part.BLOCK_HEADER:
                self._begin_block(offset - _BLOCK_HEADER)
            case _Part.BLOCK_BODY if not self._is_last:
                self._part, self._left, self._header = _Part.BLOCK_HEADER, _BLOCK_HEADER, b""
            case _Part.BLOCK_BODY if self._has_checksum:
                self._part, self._left = _Part.CHECKSUM, _CHECKSUM
            case _:
                self._part = _Part.END

    def _begin_block(self, offset: int) -> None:
        """Read a block header: RFC 8878, 3.1.1.2."""
        header = int.from_bytes(self._header, "little")
        self._is_last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        if kind == _RESERVED or size > self._largest:
            raise InvalidLayer("damaged zstd data: impossible block", offset=offset)
        self._part = _Part.BLOCK_BODY
        self._left = 1 if kind == _RLE else size
        self._output = self._largest if kind == _COMPRESSED else size


def _header_length(head: bytes) -> int | None:
    """The length of the frame header that `head` starts with, None when more is needed."""
    if len(head) <= _MAGIC_LENGTH:
        return None
    descriptor = head[_MAGIC_LENGTH]
    is_single_segment = descriptor >> 5 & 1
    length = (
        _MAGIC_LENGTH
        + 1
        + (not is_single_segment)
        + _DICTIONARY_LENGTHS[descriptor & 3]
        + (_CONTENT_LENGTHS[descriptor >> 6] or is_single_segment)
    )
    return length if len(head) >= length else None


def _parse_header(head: bytes, offset: int, allowed_window: int) -> _Frame:
    """Read a whole frame header: RFC 8878, 3.1.1.1."""
    descriptor = head[_MAGIC_LENGTH]
    if descriptor & 0x08:
        raise InvalidLayer("zstd frame with a reserved flag", offset=offset)
    is_single_segment = descriptor >> 5 & 1
    dictionary_at = _MAGIC_LENGTH + 1 + (not is_single_segment)
    content_at = dictionary_at + _DICTIONARY_LENGTHS[descriptor & 3]
    if any(head[dictionary_at:content_at]):
        raise Unsupported("zstd frame that needs a dictionary", offset=offset)
    content = int.from_bytes(head[content_at:], "little")
    if len(head) - content_at == 2:  # these count from 256
        content += 256
    if content > limits.TAR_SIZE:
        raise LimitExceeded("layer too large", limit="TAR_SIZE", allowed=limits.TAR_SIZE)
    if is_single_segment:
        window = content
    else:
        exponent, mantissa = divmod(head[_MAGIC_LENGTH + 1], 8)
        window = (8 + mantissa) << (7 + exponent)
    if window > allowed_window:
        raise LimitExceeded(
            "zstd frame needs too much memory",
            limit="ZSTD_WINDOW",
            allowed=allowed_window,
            offset=offset,
        )
    return _Frame(
        offset=offset + len(head),
        largest_block=min(window, _LARGEST_BLOCK),
        has_checksum=bool(descriptor & 0x04),
    )
