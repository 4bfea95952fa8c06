"""tar-split: what is left of a tar when the contents of its files are taken out.

Lines of JSON, by turns a segment (raw bytes: padding of the file before, all headers of this one)
and a file (its name, size and CRC-64). Podman puts the layer's tar together again from it, and
takes no zstd:chunked layer in parts that has none. It refuses names that are there twice.
"""

import base64
import json

import zstandard

from imgvol import limits
from imgvol.layers.lazy.writing.records import Record


class TarSplit:
    """Collects the lines, compressed.

    Attributes:
        size: Bytes of all lines.
    """

    def __init__(self, level: int) -> None:
        self.size = 0
        self._library = zstandard.ZstdCompressor(level=level, write_checksum=True).compressobj()
        self._compressed = bytearray()
        self._position = 0

    def add(self, raw: bytes, record: Record) -> None:
        """A member.

        Args:
            raw: Padding of the one before, and its headers.
            record: What it is.
        """
        self._segment(raw)
        name = record.member.name.decode("utf-8")
        checksum = base64.b64encode(record.checksum).decode("ascii") if record.member.size else None
        self._line({"type": 1, "name": name, "size": record.member.size, "payload": checksum})

    def finish(self, end: bytes) -> None:
        """Say that the archive ends here.

        Args:
            end: Padding of the last member, and all that comes behind it, which is zeros.
        """
        for start in range(0, len(end), limits.MIB):
            self._segment(end[start : start + limits.MIB])
        self._compressed += self._library.flush()

    @property
    def data(self) -> bytes:
        """All of it, compressed; whole once finished."""
        return bytes(self._compressed)

    def _segment(self, raw: bytes) -> None:
        self._line({"type": 2, "payload": base64.b64encode(raw).decode("ascii")})

    def _line(self, entry: dict[str, object]) -> None:
        line = json.dumps({**entry, "position": self._position}, ensure_ascii=False)
        data = line.encode() + b"\n"
        self._position += 1
        self.size += len(data)
        self._compressed += self._library.compress(data)
