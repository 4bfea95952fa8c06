"""Windows of checkpoints, freed of what nobody refers to.

Of the 32 KiB before a checkpoint what follows uses a tenth, mostly. The rest can as well be zeros:
SOCI's format stores windows whole, but whatever compresses a zTOC then has little left to keep.

What is used, a decoder tells. It is given windows of our own making instead of the real one, in
which each byte says where it is. Three decodes are needed: the first two give the two halves of
that place; in the third the second halves are others, so that a byte that is alike in both is none
of the window's. Only the first 32 KiB that follow can refer to a window, for no distance is longer.

The result is not believed but tried: with the trimmed window the same bytes must come out.
"""

import struct
from array import array
from typing import Final

from isal import isal_zlib

from imgvol.layers.lazy.checkpoints import WINDOW, start_at_bit

# Places are written in digits from 1 on: 0 marks what comes from elsewhere.
_BASE: Final = 255
_LOW: Final = bytes(1 + place % _BASE for place in range(WINDOW))
_HIGH: Final = bytes(1 + place // _BASE for place in range(WINDOW))  # 1 to 129
# Differs from _HIGH in one bit everywhere, which is how a byte of the window is known.
_MARK: Final = 0x40
_OTHER_HIGH: Final = bytes(digit ^ _MARK for digit in _HIGH)
_UNIT: Final = int.from_bytes(b"\1" * WINDOW, "little")


def trim_window(window: bytes, data: bytes, bits: int, expected: bytes) -> bytes:
    """A window without what is not used; the window itself where that cannot be proven.

    Args:
        window: The plain bytes before a checkpoint, WINDOW of them.
        data: The compressed bytes from there on, the shared byte first if there is one.
        bits: How many bits of it count.
        expected: The plain bytes that follow: WINDOW of them, or all that there are.
    """
    stream = start_at_bit(data, bits)
    size = len(expected)
    low, high, other = (_decode(stream, coded, size) for coded in (_LOW, _HIGH, _OTHER_HIGH))
    if low is None or high is None or other is None:
        return window
    trimmed = _keep(window, _places(low, high, other))
    return trimmed if _decode(stream, trimmed, size) == expected[: len(low)] else window


def _decode(stream: bytes, window: bytes, size: int) -> bytes | None:
    """What follows, as far as it can refer to the window; None: that cannot be told."""
    decoder = isal_zlib.decompressobj(wbits=-15, zdict=window)
    try:
        output: bytes = decoder.decompress(stream, size)
    except isal_zlib.error:  # type: ignore[misc] # declared as an instance
        return None
    # After the end of its member nothing refers to the window.
    return output if len(output) == size or decoder.eof else None


def _places(low: bytes, high: bytes, other: bytes) -> set[int]:
    """Which bytes of the window have come out, as pairs of digits: high * 256 + low."""
    size = len(low)
    first = int.from_bytes(high, "little")
    # 1 for each byte that is the window's, and 255 for each of them.
    ours = (first ^ int.from_bytes(other, "little")) // _MARK & _UNIT
    ours *= 255
    lows = (int.from_bytes(low, "little") & ours).to_bytes(size, "little")
    highs = (first & ours).to_bytes(size, "little")
    pairs = bytearray(2 * (size - lows.count(0)))
    pairs[0::2] = lows.translate(None, b"\0")
    pairs[1::2] = highs.translate(None, b"\0")
    if struct.pack("=H", 1) == b"\1\0":
        return set(array("H", bytes(pairs)))
    return {pairs[at] | pairs[at + 1] << 8 for at in range(0, len(pairs), 2)}


def _keep(window: bytes, places: set[int]) -> bytes:
    kept = bytearray(WINDOW)
    for pair in places:
        place = ((pair >> 8) - 1) * _BASE + (pair & 0xFF) - 1
        kept[place] = window[place]
    return bytes(kept)
