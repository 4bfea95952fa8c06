"""Which spans of a lazy layer are on disk, in a file that is never ahead of the data.

Two bits for each: whether its content is present, and whether its compressed bytes were not kept
beside it, because they never came (the content was copied from another layer) or were given back.
The second survives the first: it is taken away only by bytes that come from the blob.

The map is written whole, beside the old one, and renamed over it, always after the bytes that it
speaks of have been made durable. A crash loses the latest bits, never the truth: a span without its
bit is fetched again. A map that is damaged or does not fit counts as empty, for the same reason.
"""

import contextlib
import errno
import operator
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from imgvol.content.durable import NO_ROOM, overwrite_file, sync_directory, write_file
from imgvol.content.open_file import OpenDirectory, read_whole

_MAGIC: Final = b"imgvolS2"
# magic, number of spans, CRC-32 of the rest: the bits of what is present, the first span in the
# lowest, and those of what was not kept
_HEADER: Final = struct.Struct("<8sQI")


class SpanMap:
    """The map of one layer. Bits are set by one thread at a time, and read by any.

    Attributes:
        present_count: How many spans are present.
        unkept_count: How many spans' compressed bytes were not kept, present or not.
        is_damaged: Whether there was a file that could not be believed.
    """

    def __init__(self, path: Path, span_count: int) -> None:
        self._path = path
        self._span_count = span_count
        self._bits = bytearray((span_count + 7) // 8)
        self._unkept = bytearray(len(self._bits))
        self.is_damaged = False
        # Held open, so that no directory that takes its place later is the same to `stat`.
        self._home: OpenDirectory | None = None
        with contextlib.suppress(OSError):
            self._home = OpenDirectory(path.parent)
        # Not there yet, or not to be trusted: nothing is present then.
        with contextlib.suppress(OSError):
            self.is_damaged = not self._load(read_whole(path))
        self.present_count = _count(self._bits)
        self.unkept_count = _count(self._unkept)
        self._saved = self.snapshot()

    def _load(self, data: bytes) -> bool:
        """Takes the bits of a file, if it is whole and fits."""
        if len(data) != _HEADER.size + 2 * len(self._bits):
            return False
        magic, count, checksum = _HEADER.unpack_from(data)
        bits = data[_HEADER.size :]
        if (magic, count, checksum) != (_MAGIC, self._span_count, zlib.crc32(bits)):
            return False
        self._bits[:], self._unkept[:] = bits[: len(self._bits)], bits[len(self._bits) :]
        return True

    def __contains__(self, span: int) -> bool:
        return bool(self._bits[span >> 3] >> (span & 7) & 1)

    def __iter__(self) -> Iterator[int]:
        for place, byte in enumerate(self._bits):
            if byte:
                yield from (8 * place + bit for bit in range(8) if byte >> bit & 1)

    def is_kept(self, span: int) -> bool:
        """Whether the compressed bytes of a span that is present are here, too."""
        return not self._unkept[span >> 3] >> (span & 7) & 1

    def add(self, span: int, *, is_kept: bool = True) -> None:
        """Marks a span as present, in memory, and whether its compressed bytes were kept."""
        if span not in self:
            self._bits[span >> 3] |= 1 << (span & 7)
            self.present_count += 1
        if self.is_kept(span) != is_kept:
            self._unkept[span >> 3] ^= 1 << (span & 7)
            self.unkept_count += -1 if is_kept else 1

    def give_up(self, span: int) -> None:
        """Marks a span as one whose compressed bytes are not kept, in memory."""
        if self.is_kept(span):
            self._unkept[span >> 3] |= 1 << (span & 7)
            self.unkept_count += 1

    def discard(self, span: int) -> None:
        """Marks a span as missing, in memory."""
        if span in self:
            self._bits[span >> 3] &= ~(1 << (span & 7))
            self.present_count -= 1

    def leave(self) -> None:
        """Its directory is another's from now on, or will be gone: nothing is saved after that."""
        self._home = None

    def fill(self) -> None:
        """Marks every span as present, in memory. Nothing is saved after that."""
        self.leave()
        self._bits[:] = b"\xff" * len(self._bits)
        self.present_count = self._span_count

    @property
    def is_full(self) -> bool:
        """Whether every span is present."""
        return self.present_count == self._span_count

    def snapshot(self) -> bytes:
        """The bits as they are now, for `save`."""
        return bytes(self._bits + self._unkept)

    @property
    def saved(self) -> bytes:
        """The snapshot that is durable."""
        return self._saved

    def save(self, bits: bytes) -> None:
        """Makes a snapshot durable. What it says must be durable already. Blocks.

        Raises:
            FileNotFoundError: The layer has been removed, and perhaps begun anew: the map of that
                one is not to speak of what this one had.
        """
        self._check_home()
        new = self._path.with_name(f"{self._path.name}.new")
        new.unlink(missing_ok=True)
        write_file(new, self._sealed(bits))
        self._check_home()
        os.replace(new, self._path)
        sync_directory(self._path.parent)
        self._saved = bits

    def save_missing(self) -> None:
        """Makes durable that spans are missing by now, or not kept, and nothing else. Blocks.

        A full disk must not be in the way of giving space back: where there is no room for a new
        map, the old one is overwritten. Cut off in the middle of that, it counts as empty.
        """
        half = len(self._bits)
        now, saved = self.snapshot(), self._saved
        present = _combined(operator.and_, now[:half], saved[:half])
        bits = present + _combined(operator.or_, now[half:], saved[half:])
        if bits == saved:
            return
        try:
            self.save(bits)
        except OSError as exc:
            if exc.errno not in NO_ROOM:
                raise
            overwrite_file(self._path, self._sealed(bits))
            self._saved = bits

    def _check_home(self) -> None:
        if self._home is None or not self._home.is_at(self._path.parent):
            raise FileNotFoundError(errno.ENOENT, "the layer has been removed", str(self._path))

    def _sealed(self, bits: bytes) -> bytes:
        return _HEADER.pack(_MAGIC, self._span_count, zlib.crc32(bits)) + bits


def _count(bits: bytearray) -> int:
    return sum(byte.bit_count() for byte in bits)


def _combined(how: Callable[[int, int], int], one: bytes, other: bytes) -> bytes:
    return how(int.from_bytes(one), int.from_bytes(other)).to_bytes(len(one))
