"""Checkpoints of gzip: how to start decompressing in the middle of a stream.

A checkpoint names the end of a deflate block: how many bytes of the blob and of the plain data lie
before it, and the last 32 KiB of plain data, the *window* that what follows may refer to. Blocks
end at bits, not bytes, so it also says how many bits of the byte before belong to what follows.

Starting inside a byte needs no bits to be moved. Deflate allows blocks without content; a few of
them, so many bits long that the shared byte's own bits come to lie where they were, are put before
it. The decoder passes over them without a trace and goes on in the middle of the byte.

The blob with all checkpoints of a layer is soci-snapshotter's (`gzip_zinfo.h`), version 1 or 2. In
version 1 the first checkpoint is left out, for it was taken to be always the same: after a gzip
header of ten bytes. Where that is not so, the first span of such a layer cannot be decoded.
"""

import struct
from typing import Final, NamedTuple

from isal import isal_zlib

from imgvol import limits
from imgvol.errors import InvalidLayer, LimitExceeded
from imgvol.layers.gzip import GzipDecoder

WINDOW: Final = 32 * limits.KIB

# How many checkpoints, and how far apart they were meant to be, which nobody needs.
_HEADER: Final = struct.Struct("<iq")
# Bytes before it in the blob, the byte with shared bits included; plain bytes before it; how many
# bits are shared. The window follows.
_CHECKPOINT: Final = struct.Struct("<qqB")
_CHECKPOINT_SIZE: Final = _CHECKPOINT.size + WINDOW

# The shortest gzip header, and the only one that version 1 knows.
_GZIP_HEADER: Final = 10
# CRC and length.
_GZIP_TRAILER: Final = 8


class Checkpoint(NamedTuple):
    """Where a span starts.

    Attributes:
        compressed: Bytes of the blob before the first byte that is wholly the span's.
        position: Plain bytes before it.
        bits: How many bits of the byte before are the span's too, 0 to 7.
        window: Where in the blob of checkpoints its window is; None for one of zeros.
    """

    compressed: int
    position: int
    bits: int
    window: int | None

    @property
    def start(self) -> int:
        """The first byte in which the span has a part."""
        return self.compressed - (self.bits > 0)


def parse_checkpoints(blob: bytes) -> tuple[Checkpoint, ...]:
    """Read all checkpoints, and check that they can be those of one stream.

    Raises:
        InvalidLayer: They cannot.
    """
    if len(blob) < _HEADER.size:
        raise InvalidLayer("checkpoints cut off")
    count, _ = _HEADER.unpack_from(blob, 0)
    stored, rest = divmod(len(blob) - _HEADER.size, _CHECKPOINT_SIZE)
    # The number alone tells the version.
    if rest or count < 1 or stored not in (count, count - 1):
        raise InvalidLayer("checkpoints of the wrong size", expected=count, actual=stored)
    checkpoints = [] if stored == count else [Checkpoint(_GZIP_HEADER, 0, 0, None)]
    for at in range(_HEADER.size, len(blob), _CHECKPOINT_SIZE):
        compressed, position, bits = _CHECKPOINT.unpack_from(blob, at)
        checkpoints.append(Checkpoint(compressed, position, bits, at + _CHECKPOINT.size))
    _check(checkpoints)
    return tuple(checkpoints)


def pack_header(count: int, span_size: int) -> bytes:
    """What a blob of checkpoints, version 2, begins with."""
    return _HEADER.pack(count, span_size)


def pack_checkpoint(compressed: int, position: int, bits: int, window: bytes) -> bytes:
    """One checkpoint with its window of 32 KiB."""
    return _CHECKPOINT.pack(compressed, position, bits) + window


def _check(checkpoints: list[Checkpoint]) -> None:
    first = checkpoints[0]
    if first.compressed < _GZIP_HEADER or first.position or first.bits:
        raise InvalidLayer("checkpoints that do not begin after a gzip header")
    before = None
    for checkpoint in checkpoints:
        if checkpoint.bits > 7:
            raise InvalidLayer("a checkpoint with more than seven bits")
        if before is not None and (
            checkpoint.compressed <= before.compressed or checkpoint.position <= before.position
        ):
            raise InvalidLayer("checkpoints out of order", offset=checkpoint.compressed)
        before = checkpoint


def inflate_span(data: bytes, checkpoint: Checkpoint, checkpoints: bytes, size: int) -> bytes:
    """Decompress what follows a checkpoint.

    Args:
        data: The blob from `checkpoint.start` on; what comes after the span does no harm.
        checkpoint: Where it starts.
        checkpoints: The blob of checkpoints, for the window.
        size: Plain bytes wanted, at least 1. They may come from several gzip members.

    Raises:
        InvalidLayer: The data is damaged, or gives fewer bytes.
    """
    at = checkpoint.window
    window = bytes(WINDOW) if at is None else checkpoints[at : at + WINDOW]
    stream = isal_zlib.decompressobj(wbits=-15, zdict=window)
    try:
        output = stream.decompress(start_at_bit(data, checkpoint.bits), size)
    except isal_zlib.error as error:  # type: ignore[misc] # declared as an instance
        raise InvalidLayer(f"damaged gzip data: {error}") from error
    if len(output) == size:
        return output
    if not stream.eof or len(stream.unused_data) < _GZIP_TRAILER:
        raise InvalidLayer("gzip data ends too soon", expected=size, actual=len(output))
    return output + _inflate_members(stream.unused_data[_GZIP_TRAILER:], size - len(output))


def _inflate_members(data: bytes, size: int) -> bytes:
    """Decompress the first `size` bytes of whole gzip members, the last of them perhaps cut off."""
    pieces: list[bytes] = []
    wanted = size
    try:
        for piece in GzipDecoder().feed(data):
            pieces.append(piece[:wanted])
            wanted -= len(pieces[-1])
            if not wanted:
                return b"".join(pieces)
    except LimitExceeded as error:
        raise InvalidLayer(error.message) from error
    raise InvalidLayer("gzip data ends too soon", expected=size, actual=size - wanted)


# --- blocks without content -----------------------------------------------------------------------


class _Bits(NamedTuple):
    """Bits, the first one lowest, as deflate counts them."""

    value: int = 0
    size: int = 0

    def then(self, value: int, size: int) -> "_Bits":
        return _Bits(self.value | value << self.size, self.size + size)


def _add_fixed(bits: _Bits) -> _Bits:
    """An empty block with fixed codes (RFC 1951, 3.2.6): 10 bits.

    Not the last block; type 1; the code of end-of-block, seven zeros.
    """
    return bits.then(0, 1).then(1, 2).then(0, 7)


def _add_dynamic(bits: _Bits) -> _Bits:
    """An empty block that brings its own codes (3.2.7): 95 bits, for the odd numbers.

    Its codes are the smallest complete ones, for decoders are strict about that: one bit each for
    the literal 0 and end-of-block, one bit each for two distances, and, to write these lengths
    down, one bit each for "1" and for "a run of zeros".
    """
    # Not the last block; type 2; 257 literals, 2 distances, 19 lengths of lengths.
    bits = bits.then(0, 1).then(2, 2).then(257 - 257, 5).then(2 - 1, 5).then(19 - 4, 4)
    for symbol in (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15):
        bits = bits.then(1 if symbol in (1, 18) else 0, 3)
    one, zeros = 0, 1
    bits = bits.then(one, 1)  # literal 0
    for run in (138, 117):  # literals 1 to 255
        bits = bits.then(zeros, 1).then(run - 11, 7)
    bits = bits.then(one, 1)  # end-of-block, which is 256
    bits = bits.then(one, 1).then(one, 1)  # two distances
    return bits.then(1, 1)  # and here it is


def _make_fillers() -> tuple[_Bits, ...]:
    """For each number of shared bits, blocks that end so many bits before the end of a byte."""
    fillers: dict[int, _Bits] = {}
    for start in (_Bits(), _add_dynamic(_Bits())):
        bits = start
        for _ in range(4):
            fillers.setdefault(-bits.size % 8, bits)
            bits = _add_fixed(bits)
    return tuple(fillers[shared] for shared in range(8))


_FILLERS: Final = _make_fillers()


def start_at_bit(data: bytes, shared: int) -> bytes:
    """Put blocks before data of whose first byte only the last `shared` bits count.

    What decodes raw deflate passes over them, and over the other bits of the byte.
    """
    if not shared:
        return data
    bits = _FILLERS[shared].then(data[0] >> (8 - shared), shared)
    return bits.value.to_bytes(bits.size // 8, "little") + data[1:]
