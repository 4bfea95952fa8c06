"""What a stored layer says of itself: `layer.json`, beside its index.

With it a layer is recognised without the database, and its bytes can be proven again: the layer's
tar is its data file with the payloads of the own files put back into their holes, so hashing that
gives the diff ID, over every byte. Nothing has to be hashed for this when a layer is pulled.

A member that a later one of the same layer replaces has no own file any more, and its payload is
gone. Then the card has another digest: of the same bytes, with zeros where those payloads were.
"""

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from imgvol import limits
from imgvol.content.layout import DATA_NAME, FILES_NAME
from imgvol.content.open_file import OpenFile, read_whole
from imgvol.content.reading import pread_exact
from imgvol.content.records.layers import LayerRecord
from imgvol.errors import InvalidDigest, StoreDamaged
from imgvol.oci.digest import DiffID, Digest

CARD_NAME: Final = "layer.json"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnFile:
    """A large file of a layer.

    Attributes:
        number: Its name below `files/`.
        position: Where its payload belongs in the tar.
        pieces: Where the payload's bytes are in the file, in order: offset and size.
        content: The SHA-256 under which layers share it; None for sparse files.
    """

    number: int
    position: int
    pieces: tuple[tuple[int, int], ...]
    content: Digest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCard:
    """One layer's own word; believed because of `proof`, never without.

    Attributes:
        record: As it was recorded; without slot.
        own_files: By position.
        proof: What hashing the layer's bytes gives: the diff ID, most often.
    """

    record: LayerRecord
    own_files: tuple[OwnFile, ...]
    proof: Digest

    def to_bytes(self) -> bytes:
        """The file, sealed by a checksum."""
        record = self.record
        body = json.dumps(
            {
                "version": _VERSION,
                "digest": str(record.digest),
                "diff_id": str(record.diff_id),
                "media_type": record.media_type,
                "size": record.size,
                "unpacked_size": record.unpacked_size,
                "entries": record.entries,
                "format": record.format,
                "proof": str(self.proof),
                "own_files": [
                    [file.number, file.position, file.pieces, file.content and str(file.content)]
                    for file in self.own_files
                ],
            }
        ).encode()
        return b"%08x\n%s\n" % (zlib.crc32(body), body)

    @classmethod
    def load(cls, directory: Path, digest: Digest | None = None) -> Self:
        """Reads the card of a layer's directory.

        Args:
            digest: Whose it has to be; None: any whose directory it is.

        Raises:
            StoreDamaged: There is none, or it is not what was written, or another layer's.
        """
        try:
            checksum, body, _ = read_whole(directory / CARD_NAME).split(b"\n")
            if int(checksum, 16) != zlib.crc32(body):
                raise StoreDamaged("the card of a stored layer is damaged", layer=directory.name)
            return cls._parse(json.loads(body), directory.name, digest)
        except OSError as exc:
            raise StoreDamaged(
                "the card of a stored layer cannot be read",
                layer=directory.name,
                reason=exc.strerror,
            ) from exc
        except (ValueError, KeyError, TypeError, InvalidDigest) as exc:
            raise StoreDamaged(
                "the card of a stored layer is damaged", layer=directory.name
            ) from exc

    @classmethod
    def _parse(cls, card: dict[str, object], name: str, digest: Digest | None) -> Self:
        values: dict[str, object] = dict(card)
        if values.pop("version") != _VERSION:
            raise ValueError("version")
        proof, files = Digest.parse(str(values.pop("proof"))), values.pop("own_files")
        found = Digest.parse(str(values.pop("digest")))
        if found.encoded != name or found != (digest or found):
            raise ValueError("digest")
        diff_id = DiffID(Digest.parse(str(values.pop("diff_id"))))
        if not isinstance(files, list):
            raise TypeError("own_files")
        # The checksum has told that we wrote it: what is left are the record's own fields.
        return cls(
            record=LayerRecord(digest=found, diff_id=diff_id, **values),  # type: ignore[arg-type]
            own_files=tuple(
                OwnFile(
                    number=number,
                    position=position,
                    pieces=tuple((offset, size) for offset, size in pieces),
                    content=Digest.parse(content) if content else None,
                )
                for number, position, pieces, content in files
            ),
            proof=proof,
        )

    def iter_pieces(self, directory: Path) -> Iterator[bytes]:
        """The layer's bytes, put together, in order. Blocks.

        Raises:
            StoreDamaged: A file is missing or too short, or the disk fails.
        """
        digest = self.record.digest
        data = _open(directory / DATA_NAME, digest)
        cursor = 0
        for file in self.own_files:
            yield from _pieces(data, cursor, file.position - cursor, digest)
            own = _open(directory / FILES_NAME / str(file.number), digest)
            for offset, size in file.pieces:
                yield from _pieces(own, offset, size, digest)
            cursor = file.position + sum(size for _, size in file.pieces)
        yield from _pieces(data, cursor, self.record.unpacked_size - cursor, digest)


def _open(path: Path, digest: Digest) -> OpenFile:
    try:
        return OpenFile(path, os.O_RDONLY)
    except OSError as exc:
        raise StoreDamaged(
            "a file of a stored layer cannot be opened",
            digest=digest,
            file=path.name,
            reason=exc.strerror,
        ) from exc


def _pieces(file: OpenFile, start: int, size: int, digest: Digest) -> Iterator[bytes]:
    for position in range(start, start + size, limits.BODY_PIECE):
        piece = min(limits.BODY_PIECE, start + size - position)
        yield pread_exact(file.fd, position, piece, digest)
