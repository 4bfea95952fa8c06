"""How an archive of images is compressed as a whole, and one decoder for each way.

The first bytes decide; a file's name says nothing that they do not say better. Archives may be
packed in more ways than layers: with lz4, bzip2 and xz, too. Decoders are those of
`layers.compression`, or are like them: bounded output, bounded memory, and an error at the end of a
stream that was cut off.
"""

import bz2
import enum
import lzma
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

import lz4.frame

from imgvol import limits
from imgvol.errors import InvalidLayer, LimitExceeded
from imgvol.layers.compression import (
    Compression,
    MeteredDecoder,
    open_decoder,
    sniff,
    sniff_foreign,
)

SNIFFED: Final = 10
"""Bytes of an archive that `Packing.of` wants to see."""

# Streams may be many and tiny, and a library copies what lies behind the end of one: as in
# `layers.gzip`, each begins with little input.
_FIRST_TAKE: Final = 4 * limits.KIB
_LARGEST_TAKE: Final = 128 * limits.KIB


class Packing(enum.Enum):
    """How an archive is compressed; the value is what people call it."""

    NONE = ""
    GZIP = "gzip"
    ZSTD = "zstd"
    LZ4 = "lz4"
    BZIP2 = "bzip2"
    XZ = "xz"

    @classmethod
    def of(cls, head: bytes) -> "Packing":
        """Tell it from an archive's first SNIFFED bytes."""
        return cls(sniff_foreign(head) or sniff(head).value)

    @classmethod
    def named(cls, path: str) -> "Packing | None":
        """What a file's name claims; None when it claims nothing."""
        name = path.lower()
        for suffix, packing in _SUFFIXES.items():
            if name.endswith(suffix):
                return packing
        return None


_SUFFIXES: Final = {
    ".tar": Packing.NONE,
    ".tar.gz": Packing.GZIP,
    ".tgz": Packing.GZIP,
    ".tar.zst": Packing.ZSTD,
    ".tzst": Packing.ZSTD,
    ".tar.lz4": Packing.LZ4,
    ".tar.bz2": Packing.BZIP2,
    ".tbz": Packing.BZIP2,
    ".tbz2": Packing.BZIP2,
    ".tar.xz": Packing.XZ,
    ".txz": Packing.XZ,
}


def iter_unpacked(pieces: Iterable[bytes], packing: Packing) -> Iterator[bytes]:
    """Decode a whole archive, in pieces of at most limits.DECODED_PIECE.

    Raises:
        InvalidLayer: It is damaged or cut off; `offset` is in the compressed stream.
        LimitExceeded: It would become too large, or needs too much memory.
        Unsupported: It uses a feature that we do not read.
    """
    decoder = _open_decoder(packing)
    for piece in pieces:
        yield from decoder.feed(piece)
    decoder.finish()


def _open_decoder(packing: Packing) -> MeteredDecoder:
    match packing:
        case Packing.LZ4:
            return MeteredDecoder(_StreamsDecoder("lz4", _open_lz4))
        case Packing.BZIP2:
            return MeteredDecoder(_StreamsDecoder("bzip2", bz2.BZ2Decompressor))
        case Packing.XZ:
            return MeteredDecoder(_StreamsDecoder("xz", _open_xz, padding=_XZ_PADDING))
        case _:
            compression = Compression(packing.value)
            return open_decoder(compression, zstd_window=limits.ARCHIVE_ZSTD_WINDOW)


class _Library(Protocol):
    """What the decompressors of bz2, lzma and lz4.frame have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes | None: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _open_lz4() -> _Library:
    opened: _Library = lz4.frame.LZ4FrameDecompressor()
    return opened


def _open_xz() -> _Library:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=limits.ARCHIVE_XZ_MEMORY)


# Streams of xz may be padded, to multiples of four bytes (xz-file-format 2.2).
_XZ_PADDING: Final = 4


class _StreamsDecoder:
    """Decodes streams of one library, end to end. See `layers.compression.Decoder`.

    Args:
        name: Of the format, for messages.
        start: Begins a stream.
        padding: Streams may be followed by zeros, in multiples of so many; 0: they may not.
    """

    def __init__(self, name: str, start: Callable[[], _Library], *, padding: int = 0) -> None:
        self._name = name
        self._start = start
        self._padding = padding
        self._stream: _Library | None = None
        self._streams = 0
        self._offset = 0
        self._zeros = 0
        self._take = _FIRST_TAKE

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """As Decoder says."""
        view = memoryview(data)
        while view:
            if self._stream is None and (used := self._skip_padding(view)):
                view = view[used:]
                continue
            stream = self._stream = self._stream or self._begin()
            piece = bytes(view[: self._take])
            yield from self._decode(stream, piece)
            used = len(piece)
            if stream.eof:
                used -= len(stream.unused_data or b"")
                self._stream = None
            self._take = min(2 * self._take, _LARGEST_TAKE)
            self._offset += used
            view = view[used:]

    def finish(self) -> None:
        """As Decoder says."""
        is_padded = not self._padding or self._zeros % self._padding == 0
        if self._stream is not None or not self._streams or not is_padded:
            raise InvalidLayer(f"{self._name} stream is cut off", offset=self._offset)

    def _begin(self) -> _Library:
        if self._padding and self._zeros % self._padding:
            raise self._damaged("wrong padding")
        self._zeros = 0
        self._streams += 1
        self._take = _FIRST_TAKE
        return self._start()

    def _skip_padding(self, view: memoryview) -> int:
        if not self._padding or not self._streams:
            return 0
        piece = bytes(view[:_LARGEST_TAKE])
        used = len(piece) - len(piece.lstrip(b"\0"))
        self._zeros += used
        self._offset += used
        return used

    def _decode(self, stream: _Library, piece: bytes) -> Iterator[bytes]:
        try:
            output = stream.decompress(piece, limits.DECODED_PIECE)
            while output:
                yield output
                if stream.eof or stream.needs_input:
                    return
                output = stream.decompress(b"", limits.DECODED_PIECE)
        except lzma.LZMAError as error:
            # The library tells it by nothing but its words.
            if "memory usage limit" in str(error).lower():
                raise LimitExceeded(
                    "the archive needs too much memory to be decompressed",
                    limit="ARCHIVE_XZ_MEMORY",
                    allowed=limits.ARCHIVE_XZ_MEMORY,
                ) from error
            raise self._damaged(str(error)) from error
        except (OSError, ValueError, EOFError, RuntimeError) as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, reason: str) -> InvalidLayer:
        return InvalidLayer(f"damaged {self._name} data: {reason}", offset=self._offset)
