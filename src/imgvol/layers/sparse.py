"""Maps of sparse files: where the stored pieces of a file with holes belong.

GNU tar has written four formats. The old one (type flag `S`) keeps four pieces in the header and
more in extension blocks; PAX 0.0 and 0.1 keep the map in records; 1.0 keeps it, as text, in blocks
before the data. All become the same tuple of pieces. Reading from the archive is `tar`'s part.
"""

import struct
from collections.abc import Mapping
from typing import Final

from imgvol import limits
from imgvol.errors import LimitExceeded
from imgvol.layers.header import BLOCK, INT64_MAX, FormatError, parse_decimal, parse_number
from imgvol.layers.pax import SPARSE_MAP

Piece = tuple[int, int]
"""Offset in the file, and size."""

_PIECE: Final = struct.Struct("12s12s")
_HEADER_PIECES: Final = slice(386, 482)
_HEADER_IS_EXTENDED: Final = 482
_HEADER_REAL_SIZE: Final = slice(483, 495)
_EXTENSION_PIECES: Final = slice(0, 504)
_EXTENSION_IS_EXTENDED: Final = 504

_KEY_MAJOR: Final = b"GNU.sparse.major"
_KEY_MINOR: Final = b"GNU.sparse.minor"
_KEY_COUNT: Final = b"GNU.sparse.numblocks"
_KEY_NAME: Final = b"GNU.sparse.name"
_KEY_SIZES: Final = (b"GNU.sparse.size", b"GNU.sparse.realsize")


class BlockMap:
    """The old format: the header's own pieces, then extension blocks until `is_complete`."""

    def __init__(self, header_block: bytes) -> None:
        self.size = parse_number(header_block[_HEADER_REAL_SIZE])
        self.pieces: list[Piece] = []
        self._extensions = 0
        self._read(header_block[_HEADER_PIECES])
        self.is_complete = not header_block[_HEADER_IS_EXTENDED]

    def add(self, block: bytes) -> None:
        """Read one extension block."""
        self._extensions += BLOCK
        # An extension may be empty, so that only their number bounds them.
        if self._extensions >= limits.TAR_SPECIAL_SIZE:
            raise _too_long("TAR_SPECIAL_SIZE", limits.TAR_SPECIAL_SIZE)
        self._read(block[_EXTENSION_PIECES])
        self.is_complete = not block[_EXTENSION_IS_EXTENDED]

    def _read(self, area: bytes) -> None:
        for offset, size in _PIECE.iter_unpack(area):
            if not offset[0]:
                return
            self.pieces.append((parse_number(offset), parse_number(size)))
        _check_count(len(self.pieces))


class TextMap:
    """Format 1.0: lines, in whole blocks: how many pieces, then each one's offset and size."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.is_complete = False
        self._text = bytearray()
        self._lines = 0
        self._wanted = 1

    def add(self, block: bytes) -> None:
        """Read one block of the text."""
        self._text += block
        if len(self._text) > limits.TAR_SPECIAL_SIZE:
            raise _too_long("TAR_SPECIAL_SIZE", limits.TAR_SPECIAL_SIZE)
        self._lines += block.count(b"\n")
        if self._lines and self._wanted == 1:
            count = parse_decimal(bytes(self._text[: self._text.index(b"\n")]))
            _check_count(count)
            self._wanted = 1 + 2 * count
        if self._lines >= self._wanted:
            numbers = bytes(self._text).split(b"\n", self._wanted)[1 : self._wanted]
            self.pieces = _paired(numbers)
            self.is_complete = True


class RecordMap:
    """What PAX records say of a sparse file. Formats 0.0 and 0.1 have the map there, too."""

    def __init__(self, records: Mapping[bytes, bytes]) -> None:
        self._records = records
        self.name = records.get(_KEY_NAME)
        sizes = [records[key] for key in _KEY_SIZES if records.get(key)]
        self.size = parse_decimal(sizes[0]) if sizes else None

    @property
    def is_text(self) -> bool:
        """Whether the map itself is a TextMap before the data."""
        return self._records.get(_KEY_MAJOR) == b"1"

    def read(self) -> list[Piece]:
        """The pieces of a format 0.0 or 0.1 map."""
        count = parse_decimal(self._records.get(_KEY_COUNT, b""))
        text = self._records.get(SPARSE_MAP)
        numbers = text.split(b",") if text else []
        if len(numbers) != 2 * count:
            raise FormatError("GNU sparse map whose length is not what it says")
        _check_count(count)
        return _paired(numbers)


def is_sparse(records: Mapping[bytes, bytes]) -> bool:
    """Whether PAX records describe a sparse file, in a version that is known; others are data."""
    if _KEY_MAJOR not in records and SPARSE_MAP not in records:
        return False
    match records.get(_KEY_MAJOR, b""), records.get(_KEY_MINOR, b""):
        case (b"0", b"0" | b"1") | (b"1", b"0"):
            return True
        case (b"", b""):
            return bool(records.get(SPARSE_MAP))
        case _:
            return False


def check_pieces(pieces: list[Piece], size: int, stored: int) -> tuple[Piece, ...]:
    """Make sure that pieces lie in order in a file of `size` and use up what is `stored`.

    Returns:
        The pieces that are not empty.

    Raises:
        FormatError: They do not.
    """
    end = 0
    total = 0
    for offset, length in pieces:
        if offset < end or length < 0 or offset + length > size:
            raise FormatError("GNU sparse map out of order or beyond its file")
        end = offset + length
        total += length
    if not 0 <= size <= INT64_MAX or total != stored:
        raise FormatError("GNU sparse map that does not fit its data")
    return tuple(piece for piece in pieces if piece[1])


def _paired(numbers: list[bytes]) -> list[Piece]:
    values = iter(map(parse_decimal, numbers))
    return list(zip(values, values, strict=True))


def _check_count(count: int) -> None:
    if count < 0:
        raise FormatError("GNU sparse map of negative length")
    if count > limits.TAR_SPARSE_PIECES:
        raise _too_long("TAR_SPARSE_PIECES", limits.TAR_SPARSE_PIECES)


def _too_long(limit: str, allowed: int) -> LimitExceeded:
    return LimitExceeded("GNU sparse map too long", limit=limit, allowed=allowed)
