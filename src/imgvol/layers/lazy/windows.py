"""Windows of checkpoints, freed of what nobody refers to.

Of the 32 KiB before a checkpoint what follows uses a tenth, mostly. The rest can as well be zeros:
SOCI's format stores windows whole, but whatever compresses a zTOC then has little left to keep.

What is used, a decoder tells. It is given windows of our own making instead of the real one, in
which each byte says where it is. A place takes two digits, so two decodes are needed: the first
gives the low digits, the second gives both in one byte, low xor high. No high digit is 0: where a
byte is alike in both, it is none of the window's. Only the first 32 KiB that follow can refer to a
window, for no distance is longer.

The result is not believed but tried: with the trimmed window the same bytes must come out.
"""

import sys
from array import array
from typing import Final

from isal import isal_zlib

from imgvol.layers.lazy.checkpoints import WINDOW, start_at_bit

# Places are written in digits from 1 on: 0 marks what comes from elsewhere.
_BASE: Final = 255
_STARTS: Final = range(0, WINDOW, _BASE)
_LOW: Final = (bytes(range(1, 1 + _BASE)) * len(_STARTS))[:WINDOW]
_HIGH: Final = b"".join(bytes([1 + number]) * _BASE for number in range(len(_STARTS)))[:WINDOW]
_BOTH: Final = (int.from_bytes(_LOW, "little") ^ int.from_bytes(_HIGH, "little")).to_bytes(
    WINDOW, "little"
)
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
    low, both = _decode(stream, _LOW, size), _decode(stream, _BOTH, size)
    if low is None or both is None:
        return window
    trimmed = _keep(window, _pairs(low, both))
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


def _pairs(low: bytes, both: bytes) -> "array[int]":
    """Which bytes of the window have come out, as pairs of digits: high * 256 + low.

    Most of them several times: to leave them out takes longer than to take them.
    """
    size = len(low)
    lows = int.from_bytes(low, "little")
    high = lows ^ int.from_bytes(both, "little")
    highs = high.to_bytes(size, "little")
    # 1 for each byte that is the window's, and then 255: whatever bit its high digit has.
    high |= high >> 4
    high |= high >> 2
    ours = (high | high >> 1) & _UNIT
    ours = (ours << 8) - ours
    found_low = (lows & ours).to_bytes(size, "little").translate(None, b"\0")
    pairs = bytearray(2 * len(found_low))
    pairs[0::2] = found_low
    pairs[1::2] = highs.translate(None, b"\0")
    found = array("H", bytes(pairs))
    if sys.byteorder == "big":
        found.byteswap()
    return found


def _keep(window: bytes, pairs: "array[int]") -> bytes:
    is_used = bytearray(256 * (1 + len(_STARTS)))
    for pair in pairs:
        is_used[pair] = 0xFF
    # A high digit is followed by each low one, but for 0.
    mask = b"".join(is_used[at + 1 : at + 256] for at in range(256, len(is_used), 256))[:WINDOW]
    kept = int.from_bytes(window, "little") & int.from_bytes(mask, "little")
    return kept.to_bytes(WINDOW, "little")
