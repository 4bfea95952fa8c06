"""Our own digests of a stored layer, piece by piece: what was there when its diff ID was proven.

    layers/<hex>/pieces    sealed by a checksum; without it, the card proves the layer as a whole

A piece is a MiB of the layer's tar, as its files give it when they are put together (`card`,
`stored_tar`). The digests are computed while the tar streams by, but written only with a layer that
is published, hence after both of its digests have been checked: a piece that has its digest is
what the registry promised, wherever it comes from. One SHA-256 for each MiB: 32 bytes, 0.003 % of
the layer.

A payload that a later member of the same layer replaced is gone: its bytes count as zeros here, as
they do in the card's proof.
"""

import hashlib
import os
import struct
import zlib
from pathlib import Path
from typing import Final, Self

from imgvol.content.durable import sync_directory, write_file
from imgvol.content.open_file import read_whole
from imgvol.errors import StoreDamaged
from imgvol.oci.digest import Digest

PIECES_NAME: Final = "pieces"
PIECE_SIZE: Final = 1 << 20

_MAGIC: Final = b"imgvolPD"
_VERSION: Final = 1
_PREFIX: Final = struct.Struct("<8sII")  # magic, version, CRC-32 of all that follows it
_HEAD: Final = struct.Struct("<QIH")  # bytes of the tar, of a piece, of the layer's digest
_DIGEST_SIZE: Final = hashlib.sha256().digest_size


class Pieces:
    """The digests of one layer's pieces.

    Pieces are numbered from 0; all have `PIECE_SIZE` bytes, but for the last.

    Attributes:
        size: Bytes of the tar.
        count: How many pieces it has.
    """

    __slots__ = ("_digests", "count", "size")

    def __init__(self, size: int, digests: bytes) -> None:
        self.size = size
        self.count = -(-size // PIECE_SIZE)
        self._digests = digests
        assert len(digests) == self.count * _DIGEST_SIZE

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pieces):
            return NotImplemented
        return (self.size, self._digests) == (other.size, other._digests)

    def __hash__(self) -> int:
        return hash((self.size, self._digests))

    def place(self, number: int) -> tuple[int, int]:
        """Where a piece lies in the tar: its first byte, and the first behind it."""
        start = number * PIECE_SIZE
        return start, min(start + PIECE_SIZE, self.size)

    def touching(self, start: int, end: int) -> range:
        """The numbers of the pieces that have any of the bytes [start, end) of the tar."""
        return range(start // PIECE_SIZE, -(-min(end, self.size) // PIECE_SIZE))

    def check(self, number: int, data: bytes | bytearray | memoryview) -> bool:
        """Whether this is a piece as it was when the layer's diff ID was proven. Hashes: 0.7 ms.

        Args:
            number: Of the piece, below `count`.
            data: All of it.
        """
        start = number * _DIGEST_SIZE
        digest = self._digests[start : start + _DIGEST_SIZE]
        return hashlib.sha256(data).digest() == digest

    def to_bytes(self, layer: Digest) -> bytes:
        """The file, sealed for this layer."""
        name = str(layer).encode()
        body = _HEAD.pack(self.size, PIECE_SIZE, len(name)) + name + self._digests
        return _PREFIX.pack(_MAGIC, _VERSION, zlib.crc32(body)) + body

    @classmethod
    def parse(cls, data: bytes, layer: Digest, size: int) -> Self:
        """Reads such a file.

        Args:
            layer: Whose it has to be.
            size: Of that layer's tar.

        Raises:
            StoreDamaged: It is not what was written, or another layer's.
        """
        name = str(layer).encode()
        head = _HEAD.pack(size, PIECE_SIZE, len(name)) + name
        expected = _PREFIX.size + len(head) + -(-size // PIECE_SIZE) * _DIGEST_SIZE
        body = data[_PREFIX.size :]
        if (
            len(data) != expected
            or _PREFIX.unpack_from(data) != (_MAGIC, _VERSION, zlib.crc32(body))
            or not body.startswith(head)
        ):
            raise StoreDamaged("the digests of a stored layer are damaged", digest=layer)
        return cls(size, body[len(head) :])

    @classmethod
    def load(cls, directory: Path, layer: Digest, size: int) -> Self | None:
        """Reads the file of a layer's directory; None: it was stored before there were any.

        Raises:
            StoreDamaged: As `parse`, or it cannot be read.
        """
        try:
            return cls.parse(read_whole(directory / PIECES_NAME), layer, size)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise StoreDamaged(
                "the digests of a stored layer cannot be read", digest=layer, reason=exc.strerror
            ) from exc

    def seal(self, directory: Path, layer: Digest) -> None:
        """Writes the file into a layer's directory, in the place of any, durably.

        Raises:
            OSError: The filesystem fails, or the layer is gone.
        """
        replace_file(directory / PIECES_NAME, self.to_bytes(layer))


class PieceHasher:
    """Computes the digests of a tar that comes in order, in parts of any size."""

    def __init__(self) -> None:
        self._size = 0
        self._digests = bytearray()
        self._hasher = hashlib.sha256()

    def update(self, data: bytes | memoryview) -> None:
        """Takes the next bytes."""
        room = PIECE_SIZE - self._size % PIECE_SIZE
        self._size += len(data)
        if len(data) < room:
            self._hasher.update(data)
            return
        view = memoryview(data)
        while len(view) >= room:
            self._hasher.update(view[:room])
            self._digests += self._hasher.digest()
            self._hasher = hashlib.sha256()
            view, room = view[room:], PIECE_SIZE
        self._hasher.update(view)

    def finish(self) -> Pieces:
        """The digests of all that came."""
        if self._size % PIECE_SIZE:
            self._digests += self._hasher.digest()
        return Pieces(self._size, bytes(self._digests))


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file durably, in the place of any: a crash leaves the old one or the new one.

    Raises:
        OSError: The filesystem fails.
    """
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    write_file(new, data)
    os.replace(new, path)
    sync_directory(path.parent)
