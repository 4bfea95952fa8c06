"""Which compression a blob has, and one interface to all decoders.

Decoders are pure and push style. Three things bound them: no piece of output is larger than
limits.DECODED_PIECE however the input is made; a layer has no more than limits.TAR_SIZE in all;
and beyond limits.DECOMPRESSION_FREE the output may be only limits.DECOMPRESSION_RATIO times the
input, which leaves room for large files of zeros and none for bombs.
"""

import enum
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from imgvol import limits
from imgvol.errors import LimitExceeded, Unsupported
from imgvol.layers import gzip, zstd
from imgvol.layers.gzip import GzipDecoder
from imgvol.layers.zstd import ZstdDecoder


class Compression(enum.Enum):
    """How a layer blob is compressed; the value is the suffix of its media type."""

    NONE = ""
    GZIP = "gzip"
    ZSTD = "zstd"


class Decoder(Protocol):
    """Turns the pieces of a compressed stream into pieces of the plain one.

    Input may be cut anywhere; the output is the same, except for where it is cut. After an error a
    decoder is not to be used any more.

        decoder = open_decoder(Compression.GZIP)
        for data in body:
            for piece in decoder.feed(data):
                write(piece)
        decoder.finish()
    """

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """Decode the next input, in pieces of at most limits.DECODED_PIECE.

        The work is done while the iterator is being read: exhaust it before the next call.

        Raises:
            InvalidLayer: The data is damaged, or something else; `offset` is in the input.
            LimitExceeded: It would become too large, or need too much memory.
            Unsupported: It uses a feature that we do not read.
        """
        ...

    def finish(self) -> None:
        """Say that the input ends here.

        Raises:
            InvalidLayer: It was cut off.
        """
        ...


# A shorter start could be that of many things.
_SNIFFED: Final = 4
_SNIFFED_BEST: Final = 10

# bzip2's three letters could begin the name of a file in a tar; the first block's mark cannot.
_BZIP2: Final = b"BZh"
_BZIP2_BLOCKS: Final = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")
_FOREIGN: Final = {b"\xfd7zXZ\0": "xz", b"\x04\x22\x4d\x18": "lz4"}


def sniff(head: bytes) -> Compression:
    """Tell the compression of a blob from its first bytes: four suffice, ten are better.

    Raises:
        Unsupported: It is bzip2, xz or lz4, which layers may not be.
    """
    if head.startswith(gzip.MAGIC):
        return Compression.GZIP
    if head.startswith(zstd.MAGIC) or (len(head) >= _SNIFFED and zstd.is_skippable(head)):
        return Compression.ZSTD
    name = sniff_foreign(head)
    if name:
        raise Unsupported(
            f"layer compressed with {name}", hint="Rebuild the image with gzip or zstd layers."
        )
    return Compression.NONE


def sniff_foreign(head: bytes) -> str:
    """Name the compression that a blob has and layers may not have: xz, lz4, bzip2, or none."""
    for magic, name in _FOREIGN.items():
        if len(head) >= _SNIFFED and head.startswith(magic[: len(head)]):
            return name
    return "bzip2" if head.startswith(_BZIP2) and head[4:10] in _BZIP2_BLOCKS else ""


def open_decoder(
    compression: Compression, *, zstd_window: int = limits.ZSTD_WINDOW
) -> "MeteredDecoder":
    """Make a decoder, with all its limits.

    Args:
        compression: Of the input.
        zstd_window: The memory that a zstd frame may need.
    """
    match compression:
        case Compression.GZIP:
            return MeteredDecoder(GzipDecoder())
        case Compression.ZSTD:
            return MeteredDecoder(ZstdDecoder(window=zstd_window))
        case Compression.NONE:
            return MeteredDecoder(_PlainDecoder())


def iter_decoded(
    pieces: Iterable[bytes | memoryview], compression: Compression | None = None
) -> Iterator[bytes]:
    """Decode a whole stream; when `compression` is None, its first bytes tell.

    Raises:
        InvalidLayer, LimitExceeded, Unsupported: As Decoder says.
    """
    source = iter(pieces)
    head = b""
    if compression is None:
        while len(head) < _SNIFFED_BEST and (piece := next(source, None)) is not None:
            head += bytes(piece)
        compression = sniff(head)
    decoder = open_decoder(compression)
    yield from decoder.feed(head)
    for piece in source:
        yield from decoder.feed(piece)
    decoder.finish()


# Every piece costs its consumer a hash update, a write, perhaps a change of threads, and a layer
# with a frame for each file is made of crumbs.
_WORTH_PASSING_ON: Final = 64 * limits.KIB


class _PlainDecoder:
    """Passes uncompressed data through, in pieces no larger than those of the others."""

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        if isinstance(data, bytes) and 0 < len(data) <= limits.DECODED_PIECE:
            yield data
            return
        view = memoryview(data)
        for start in range(0, len(view), limits.DECODED_PIECE):
            yield bytes(view[start : start + limits.DECODED_PIECE])

    def finish(self) -> None:
        pass


class MeteredDecoder:
    """A Decoder that compares what comes out with what went in, and joins what comes in crumbs.

    Attributes:
        received: Bytes in.
        produced: Bytes out.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.received = 0
        self.produced = 0
        self._decoder = decoder

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """As Decoder says."""
        self.received += len(data)
        crumbs: list[bytes] = []
        size = 0
        for piece in self._decoder.feed(data):
            self.produced += len(piece)
            self._check()
            if crumbs and size + len(piece) > limits.DECODED_PIECE:
                yield b"".join(crumbs)
                crumbs, size = [], 0
            if not crumbs and len(piece) >= _WORTH_PASSING_ON:
                yield piece
                continue
            crumbs.append(piece)
            size += len(piece)
        if crumbs:
            yield b"".join(crumbs)

    def finish(self) -> None:
        """As Decoder says."""
        self._decoder.finish()

    def _check(self) -> None:
        if self.produced > limits.TAR_SIZE:
            raise LimitExceeded("layer too large", limit="TAR_SIZE", allowed=limits.TAR_SIZE)
        allowed = max(limits.DECOMPRESSION_FREE, limits.DECOMPRESSION_RATIO * self.received)
        if self.produced > allowed:
            raise LimitExceeded(
                "layer expands like a decompression bomb",
                limit="DECOMPRESSION_RATIO",
                allowed=limits.DECOMPRESSION_RATIO,
                received=self.received,
            )
