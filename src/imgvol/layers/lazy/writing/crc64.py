"""CRC-64 of ISO 3309, as tar-split has it of every file; from what Python does quickly.

The remainder modulo P = x^64 + x^4 + x^3 + x + 1 is not taken bit by bit, nor by a table, which
Python does at 5 MB/s, but by halves: over GF(2), (a + b)^2 = a^2 + b^2, so for every m that is a
power of two

    x^(64m) = (x^4 + x^3 + x + 1)^m = x^(4m) + x^(3m) + x^m + 1 = (x^(3m) + 1)(x^m + 1)  (mod P)

and the upper half of a long polynomial is added to its lower one with two shifts of a long integer.

Bits are reflected, as in all CRCs of this kind: in an integer read from bytes in little endian
order, the lowest bit is the coefficient of the highest power.
"""

from typing import Final

_BITS: Final = 64
_ONES: Final = (1 << _BITS) - 1
# More at once gains nothing: long integers should stay in the processor's caches.
_PIECE: Final = 64 * 1024


class Crc64:
    """Takes bytes; `digest` is what Go's `crc64.ISO` gives for all of them."""

    def __init__(self) -> None:
        self._state = _ONES

    def update(self, data: bytes | memoryview) -> None:
        """Takes the next bytes."""
        view = memoryview(data)
        for start in range(0, len(view), _PIECE):
            piece = view[start : start + _PIECE]
            number = int.from_bytes(piece, "little") ^ self._state
            self._state = _reduced(number, 8 * len(piece) + _BITS)

    def digest(self) -> bytes:
        """Of all bytes so far; 8 bytes, the highest first."""
        return (self._state ^ _ONES).to_bytes(8, "big")


def _reduced(number: int, bits: int) -> int:
    """The remainder of a polynomial of `bits` coefficients, times no power."""
    while bits > _BITS:
        half = 1 << ((bits - 1) // _BITS).bit_length() - 1
        kept = _BITS * half
        upper_bits = bits - kept
        upper = number & ((1 << upper_bits) - 1)
        upper ^= upper << half
        upper ^= upper << 3 * half
        upper_bits += 4 * half
        number >>= bits - kept
        bits = max(kept, upper_bits)
        number = (number << (bits - kept)) ^ (upper << (bits - upper_bits))
    return number
