"""The tar of a stored layer at any position: which of its files have which bytes."""

import os
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from imgvol.content.card import LayerCard
from imgvol.content.layout import DATA_NAME, FILES_NAME
from imgvol.content.open_file import OpenFile
from imgvol.content.reading import pread_exact
from imgvol.errors import StoreDamaged


class StoredPart(NamedTuple):
    """A part of the tar, in one file.

    Attributes:
        number: Of the own file; None: the data file, which has each byte at its place in the tar.
        offset: In that file.
        size: Bytes.
    """

    number: int | None
    offset: int
    size: int


class StoredTar:
    """The tar of one layer. All of this blocks.

    Args:
        card: What the layer says of itself.
        directory: Where it is stored.
    """

    def __init__(self, card: LayerCard, directory: Path) -> None:
        self.size = card.record.unpacked_size
        self._digest = card.record.digest
        self._directory = directory
        self._parts = list(_parts_of(card))
        self._starts = [0]
        for part in self._parts[:-1]:
            self._starts.append(self._starts[-1] + part.size)
        # One after another is read: two files are enough.
        self._data: OpenFile | None = None
        self._own: tuple[int, OpenFile] | None = None

    def parts(self, start: int, end: int) -> Iterator[StoredPart]:
        """Which files have the bytes [start, end) of the tar, in order."""
        place = bisect_right(self._starts, start) - 1
        while start < end and place < len(self._parts):
            part, skipped = self._parts[place], start - self._starts[place]
            size = min(part.size - skipped, end - start)
            yield StoredPart(part.number, part.offset + skipped, size)
            start += size
            place += 1

    def read(self, start: int, end: int) -> bytes:
        """The bytes [start, end) of the tar.

        Raises:
            StoreDamaged: A file is missing or too short, or the disk fails.
        """
        return b"".join(
            pread_exact(self._open(number).fd, offset, size, self._digest)
            for number, offset, size in self.parts(start, end)
        )

    def _open(self, number: int | None) -> OpenFile:
        if number is None:
            self._data = self._data or self._open_path(self._directory / DATA_NAME)
            return self._data
        if self._own is None or self._own[0] != number:
            path = self._directory / FILES_NAME / str(number)
            self._own = number, self._open_path(path)
        return self._own[1]

    def _open_path(self, path: Path) -> OpenFile:
        try:
            return OpenFile(path, os.O_RDONLY)
        except OSError as exc:
            raise StoreDamaged(
                "a file of a stored layer cannot be opened",
                digest=self._digest,
                file=path.name,
                reason=exc.strerror,
            ) from exc


def _parts_of(card: LayerCard) -> Iterator[StoredPart]:
    cursor = 0
    for file in card.own_files:
        if file.position > cursor:
            yield StoredPart(None, cursor, file.position - cursor)
        cursor = file.position
        for offset, size in file.pieces:
            if size:
                yield StoredPart(file.number, offset, size)
                cursor += size
    if cursor < card.record.unpacked_size:
        yield StoredPart(None, cursor, card.record.unpacked_size - cursor)
