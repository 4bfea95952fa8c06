"""Reads what is stored again and compares it with its digests. Everything here blocks, for long.

| layer | what proves it |
|---|---|
| complete | the digests of its pieces; without them its card: its tar has to give the diff ID |
| lazy | its span table: every present span, compressed and decoded |
| in place | its blob digest: the file is the tar |

Holes of large sparse files are no part of the tar, and are looked at by themselves: they are to be
zeros.
"""

import contextlib
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from imgvol import limits
from imgvol.content.card import LayerCard, OwnFile
from imgvol.content.damage import DATA_FILE, DamagedParts
from imgvol.content.layout import DATA_NAME, FILES_NAME, INDEX_NAME, StoreLayout
from imgvol.content.open_file import OpenFile, read_whole
from imgvol.content.pieces import PieceHasher, Pieces
from imgvol.content.place import Place, PlacedFile
from imgvol.content.ranges import Ranges
from imgvol.content.reading import pread_exact
from imgvol.content.stored_tar import StoredTar
from imgvol.errors import StoreDamaged
from imgvol.layers.index import LayerIndex
from imgvol.oci.digest import Digest

# Told after each piece, with its size; may raise to end it all.
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedPlace:
    """A part of a layer that is not what it was.

    Attributes:
        offset: In the layer's tar.
        size: Bytes.
        files: Paths of the files that have bytes there, not more than a few; it may be none.
    """

    offset: int
    size: int
    files: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Why a layer's bytes are not what they were.

    Attributes:
        shared: Damaged large files that other layers may link to, by content.
        parts: What must not be shown; None: nothing of the layer may.
        places: The same, for people; not more than a few.
    """

    reason: str
    shared: tuple[Digest, ...] = ()
    parts: DamagedParts | None = None
    places: tuple[DamagedPlace, ...] = ()


def scrub_complete(layout: StoreLayout, digest: Digest, progress: Progress) -> Damage | None:
    """Proves a complete layer; returns what is wrong with it."""
    directory = layout.layer(digest)
    try:
        index = LayerIndex(_read_index(directory))
        card = LayerCard.load(directory, digest)
        OpenFile(_existing(directory / DATA_NAME, digest), os.O_RDONLY)
        pieces = _known_pieces(directory, card)
        if pieces is None:
            damage = _prove(directory, card, progress)
            return damage or _Findings(index, card, directory).damage()
        return _check_pieces(_Findings(index, card, directory), pieces, progress)
    except (StoreDamaged, OSError) as exc:
        return Damage(reason=str(exc), shared=_damaged_files(directory, digest))


def _known_pieces(directory: Path, card: LayerCard) -> Pieces | None:
    try:
        return Pieces.load(directory, card.record.digest, card.record.unpacked_size)
    except StoreDamaged:
        return None  # they are made anew if the layer can be proven otherwise


def _prove(directory: Path, card: LayerCard, progress: Progress) -> Damage | None:
    """Proves a layer as a whole, and seals the digests of its pieces if it is what it was."""
    hasher, pieces = card.proof.hasher(), PieceHasher()
    for piece in card.iter_pieces(directory):
        hasher.update(piece)
        pieces.update(piece)
        progress(len(piece))
    digest = card.record.digest
    if Digest.from_hasher(hasher) == card.proof:
        # No room, or removed in this moment: the next scrub tries again.
        with contextlib.suppress(OSError):
            pieces.finish().seal(directory, digest)
        return None
    damaged = _damaged_files(directory, digest)
    where = f"of {len(damaged)} large files" if damaged else "of its tar"
    return Damage(reason=f"bytes {where} are not what was verified", shared=damaged)


def _check_pieces(findings: "_Findings", pieces: Pieces, progress: Progress) -> Damage | None:
    for number in range(pieces.count):
        start, end = pieces.place(number)
        try:
            is_right = pieces.check(number, findings.tar.read(start, end))
        except StoreDamaged:
            is_right = False
        if not is_right:
            findings.add(start, end)
        progress(end - start)
    return findings.damage()


class _Findings:
    """Collects what is damaged of one layer."""

    def __init__(self, index: LayerIndex, card: LayerCard, directory: Path) -> None:
        self.tar = StoredTar(card, directory)
        self._index = index
        self._card = card
        self._directory = directory
        self._places = Ranges()
        self._pieces = 0

    def add(self, start: int, end: int) -> None:
        """The piece [start, end) of the tar is not what it was."""
        self._places.add(start, end)
        self._pieces += 1

    def damage(self) -> Damage | None:
        """All that was found."""
        parts = [(start, end - start, self._parts_at(start, end)) for start, end in self._places]
        reason = f"{self._pieces} MiB of its tar are not what was verified" if parts else ""
        for file in self._card.own_files:
            holes = Ranges()
            for start, end in self._filled_holes(file):
                holes.add(start, end)
            if holes.size:
                parts.append((file.position, holes.size, {file.number: holes}))
                reason = reason or "holes of its files are not empty"
        if not parts:
            return None
        merged: dict[int, Ranges] = defaultdict(Ranges)
        for _, _, found in parts:
            for number, ranges in found.items():
                for start, end in ranges:
                    merged[number].add(start, end)
        damaged = DamagedParts.collect(merged)
        contents = {file.number: file.content for file in self._card.own_files}
        return Damage(
            reason=reason,
            shared=tuple(
                content
                for number in damaged.ranges
                if (content := contents.get(number)) is not None
            ),
            parts=damaged,
            places=self._told(parts[: limits.SCRUB_PLACES_TOLD], damaged),
        )

    def _parts_at(self, start: int, end: int) -> dict[int, Ranges]:
        found: dict[int, Ranges] = defaultdict(Ranges)
        for number, offset, size in self.tar.parts(start, end):
            found[DATA_FILE if number is None else number].add(offset, offset + size)
        return found

    def _told(
        self, parts: Sequence[tuple[int, int, dict[int, Ranges]]], damaged: DamagedParts
    ) -> tuple[DamagedPlace, ...]:
        index = self._index
        nodes = list(damaged.iter_files(index))
        places = []
        for offset, size, found in parts:
            here = DamagedParts.collect(found)
            files = (
                path
                for node, path in nodes
                if here.touches_content(index, node, 0, index.record(node).size)
            )
            told = tuple(islice(files, limits.SCRUB_FILES_TOLD))
            places.append(DamagedPlace(offset=offset, size=size, files=told))
        return tuple(places)

    def _filled_holes(self, file: OwnFile) -> Iterator[tuple[int, int]]:
        """Ranges of a sparse own file that lie between its pieces and are not zeros."""
        if file.content is not None:
            return
        size = self._size_of(file.number)
        try:
            opened = OpenFile(self._directory / FILES_NAME / str(file.number), os.O_RDONLY)
        except OSError:
            return  # its pieces have told
        there = os.fstat(opened.fd).st_size
        if there < size:
            yield there, size
        cursor = 0
        for offset, length in (*file.pieces, (min(size, there), 0)):
            yield from _data_in_hole(opened, cursor, offset, self._card.record.digest)
            cursor = max(cursor, offset + length)

    def _size_of(self, number: int) -> int:
        index = self._index
        for node in range(index.node_count):
            if index.is_directory(node) or index.is_foreign_link(node):
                continue
            if index.own_file(node) == number:
                return index.record(node).size
        return 0


def _data_in_hole(
    file: OpenFile, start: int, end: int, digest: Digest
) -> Iterator[tuple[int, int]]:
    while start < end:
        try:
            start = os.lseek(file.fd, start, os.SEEK_DATA)
        except OSError:  # ENXIO: no more data
            return
        stop = min(end, os.lseek(file.fd, start, os.SEEK_HOLE))
        while start < stop:
            size = min(limits.BODY_PIECE, stop - start)
            data = pread_exact(file.fd, start, size, digest)
            if data.count(0) < size:
                yield start, start + size
            start += size


def _existing(path: Path, digest: Digest) -> Path:
    if not path.is_file():
        raise StoreDamaged("a file of a stored layer is missing", digest=digest, file=path.name)
    return path


def _damaged_files(directory: Path, digest: Digest) -> tuple[Digest, ...]:
    """The layer's large files that are not what their names among the shared ones say."""
    try:
        card = LayerCard.load(directory, digest)
    except StoreDamaged:
        return ()
    return tuple(
        file.content
        for file in card.own_files
        if file.content is not None
        and not _is_content(directory / FILES_NAME / str(file.number), file.content)
    )


def _is_content(path: Path, content: Digest) -> bool:
    try:
        opened = OpenFile(path, os.O_RDONLY)
        with open(opened.fd, "rb", closefd=False) as file:
            return hashlib.file_digest(file, content.algorithm).hexdigest() == content.encoded
    except OSError:
        return False


def scrub_place(directory: Path, place: Place, digest: Digest, progress: Progress) -> Damage | None:
    """Proves a layer where it lies; returns what is wrong with it."""
    try:
        LayerIndex(_read_index(directory))
        file = PlacedFile(place.path, digest)
        hasher = digest.hasher()
        for piece in file.iter_pieces(place.offset, place.size):
            hasher.update(piece)
            progress(len(piece))
    except (StoreDamaged, OSError) as exc:
        return Damage(reason=str(exc))
    if Digest.from_hasher(hasher) == digest:
        return None
    return Damage(reason="the file that it is read from has changed")


def _read_index(directory: Path) -> bytes:
    try:
        return read_whole(directory / INDEX_NAME)
    except OSError as exc:
        raise StoreDamaged("the index cannot be read", reason=exc.strerror) from exc
