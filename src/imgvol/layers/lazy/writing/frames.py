"""Compressed pieces that can be read alone: gzip members and zstd frames, one after the other.

Each is made at once, by one thread, without a name or a time: the same content and level give the
same bytes, with the same version of the library.
"""

import struct
import zlib
from collections.abc import Callable
from typing import Final

import zstandard
from isal import isal_zlib

from imgvol.errors import InternalError
from imgvol.layers.compression import Compression

GZIP_LEVEL: Final = 6
"""Level 9 is 0.5 % smaller, and takes four times as long."""

ZSTD_LEVEL: Final = 3
"""Level 9 is 7 % smaller, and takes five times as long."""

LEVELS: Final = {Compression.GZIP: range(1, 10), Compression.ZSTD: range(1, 20)}
"""Those that are offered. Beyond 19 zstd wants windows that readers may refuse."""

DEFAULT_LEVELS: Final = {Compression.GZIP: GZIP_LEVEL, Compression.ZSTD: ZSTD_LEVEL}

# RFC 1952: magic, deflate, no flags, no time, nothing on the level, unknown system.
_GZIP_HEAD: Final = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
_GZIP_END: Final = struct.Struct("<II")
_RAW_DEFLATE: Final = -15
_GZIP: Final = 31


def open_compressor(compression: Compression, level: int) -> Callable[[bytes], bytes]:
    """What makes one gzip member, or one zstd frame, of the bytes that it is given."""
    if compression is Compression.ZSTD:
        library = zstandard.ZstdCompressor(level=level, write_checksum=True)
        return library.compress

    def compress(data: bytes) -> bytes:
        body = zlib.compress(data, level, _RAW_DEFLATE)
        return _GZIP_HEAD + body + _GZIP_END.pack(zlib.crc32(data), len(data) & 0xFFFFFFFF)

    return compress


def decompress(compression: Compression, frame: bytes, size: int) -> bytes:
    """Undo it, to see what readers will.

    Raises:
        InternalError: That is not what was compressed.
    """
    if compression is Compression.ZSTD:
        data = zstandard.ZstdDecompressor().decompress(frame)
    else:
        data = isal_zlib.decompress(frame, _GZIP, bufsize=max(size, 1))
    if len(data) != size:
        raise InternalError("a compressed piece cannot be read again")
    return bytes(data)
