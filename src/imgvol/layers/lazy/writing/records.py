"""What a writer remembers of each member, until the order in the blob is known.

Headers, padding that is not zeros, and compressed content are in the scratch file, which the caller
gives; here are their places. So memory grows with the number of files, not with their size.
"""

from dataclasses import dataclass, field
from typing import BinaryIO, Final

from imgvol.layers.header import BLOCK
from imgvol.layers.tar import TarMember

_ZEROS: Final = bytes(BLOCK)


@dataclass(frozen=True, slots=True)
class Slice:
    """Bytes in the scratch file."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a file's content, compressed alone.

    Attributes:
        offset: In the file.
        size: Uncompressed.
        frame: Where it is, compressed.
        digest: The SHA-256 of its content.
        is_hole: Whether it is all zeros, and said to be.
    """

    offset: int
    size: int
    frame: Slice
    digest: bytes
    is_hole: bool = False


@dataclass(slots=True)
class Record:
    """One member.

    Attributes:
        path: Its name, cleaned, as a path from the root without a slash at its start.
        target: Of a hard link: its target, likewise; otherwise None.
        entry: The members of its entry in the table of contents that do not depend on where it is
            in the blob: JSON without the closing brace.
        head: Its headers.
        padding: What follows its content, if that is not zeros up to the block; None: it is.
        digest: The SHA-256 of its content; None unless it is a file.
        checksum: The CRC-64 of its content; nothing where nobody needs it.
        is_exact: Whether its entry says all that Go's archive/tar reads in its headers.
    """

    member: TarMember
    path: bytes
    target: bytes | None
    entry: bytes
    head: Slice
    is_exact: bool
    padding: Slice | None = None
    digest: bytes | None = None
    checksum: bytes = b""
    chunks: list[Chunk] = field(default_factory=list)


class Scratch:
    """A temporary file, written at its end and read anywhere.

    Args:
        file: Empty, binary, for reading and writing; it stays the caller's.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = 0
        self._is_at_end = True

    def put(self, data: bytes) -> Slice:
        """Appends bytes."""
        if not self._is_at_end:
            self._file.seek(self._size)
            self._is_at_end = True
        self._file.write(data)
        place = Slice(self._size, len(data))
        self._size += len(data)
        return place

    def get(self, place: Slice) -> bytes:
        """Reads bytes again."""
        self._is_at_end = False
        self._file.seek(place.offset)
        return self._file.read(place.size)

    def padding_of(self, record: Record) -> bytes:
        """What follows the content of a member."""
        if record.padding is not None:
            return self.get(record.padding)
        return _ZEROS[: -record.member.payload_size % BLOCK]
