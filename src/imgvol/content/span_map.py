"""Which spans of a lazy layer are on disk: one bit each, in a file that is never ahead of the data.

The map is written whole, beside the old one, and renamed over it, always after the bytes that it
speaks of have been made durable. A crash loses the latest bits, never the truth: a span without its
bit is fetched again. A map that is damaged or does not fit counts as empty, for the same reason.
"""

import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from imgvol.content.durable import sync_directory, write_file
from imgvol.content.open_file import OpenDirectory, read_whole

_MAGIC: Final = b"imgvolSM"
# magic, number of spans, CRC-32 of the bits; then the bits, the first span in the lowest
_HEADER: Final = struct.Struct("<8sQI")


class SpanMap:
    """The map of one layer. Bits are set by one thread at a time, and read by any.

    Attributes:
        present_count: How many spans are present.
        is_damaged: Whether there was a file that could not be believed.
    """

    def __init__(self, path: Path, span_count: int) -> None:
        self._path = path
        self._span_count = span_count
        self._bits = bytearray((span_count + 7) // 8)
        self.is_damaged = False
        # Held open, so that no directory that takes its place later is the same to `stat`.
        self._home: OpenDirectory | None = None
        with contextlib.suppress(OSError):
            self._home = OpenDirectory(path.parent)
        # Not there yet, or not to be trusted: nothing is present then.
        with contextlib.suppress(OSError):
            self.is_damaged = not self._load(read_whole(path))
        self.present_count = sum(byte.bit_count() for byte in self._bits)

    def _load(self, data: bytes) -> bool:
        """Takes the bits of a file, if it is whole and fits."""
        if len(data) != _HEADER.size + len(self._bits):
            return False
        magic, count, checksum = _HEADER.unpack_from(data)
        bits = data[_HEADER.size :]
        if (magic, count, checksum) != (_MAGIC, self._span_count, zlib.crc32(bits)):
            return False
        self._bits[:] = bits
        return True

    def __contains__(self, span: int) -> bool:
        return bool(self._bits[span >> 3] >> (span & 7) & 1)

    def __iter__(self) -> Iterator[int]:
        for place, byte in enumerate(self._bits):
            if byte:
                yield from (8 * place + bit for bit in range(8) if byte >> bit & 1)

    def add(self, span: int) -> None:
        """Marks a span as present, in memory."""
        if span not in self:
            self._bits[span >> 3] |= 1 << (span & 7)
            self.present_count += 1

    def discard(self, span: int) -> None:
        """Marks a span as missing, in memory."""
        if span in self:
            self._bits[span >> 3] &= ~(1 << (span & 7))
            self.present_count -= 1

    def fill(self) -> None:
        """Marks every span as present, in memory. Nothing is saved after that."""
        self._home = None
        self._bits[:] = b"\xff" * len(self._bits)
        self.present_count = self._span_count

    @property
    def is_full(self) -> bool:
        """Whether every span is present."""
        return self.present_count == self._span_count

    def snapshot(self) -> bytes:
        """The bits as they are now, for `save`."""
        return bytes(self._bits)

    def _check_home(self) -> None:
        if self._home is None or not self._home.is_at(self._path.parent):
            raise FileNotFoundError(errno.ENOENT, "the layer has been removed", str(self._path))

    def save(self, bits: bytes) -> None:
        """Makes a snapshot durable. What it says must be durable already. Blocks.

        Raises:
            FileNotFoundError: The layer has been removed, and perhaps begun anew: the map of that
                one is not to speak of what this one had.
        """
        self._check_home()
        new = self._path.with_name(f"{self._path.name}.new")
        new.unlink(missing_ok=True)
        write_file(new, _HEADER.pack(_MAGIC, self._span_count, zlib.crc32(bits)) + bits)
        self._check_home()
        os.replace(new, self._path)
        sync_directory(self._path.parent)
