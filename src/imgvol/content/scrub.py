"""Reads what is stored again and compares it with its digests. Everything here blocks, for long.

| layer | what proves it |
|---|---|
| complete | its card: the tar put together again has to give the diff ID |
| lazy | its span table: every present span, compressed and decoded |
| in place | its blob digest: the file is the tar |
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from imgvol.content.card import LayerCard
from imgvol.content.layout import FILES_NAME, INDEX_NAME, StoreLayout
from imgvol.content.open_file import OpenFile, read_whole
from imgvol.content.place import Place, PlacedFile
from imgvol.errors import StoreDamaged
from imgvol.layers.index import LayerIndex
from imgvol.oci.digest import Digest

# Told after each piece, with its size; may raise to end it all.
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Why a layer's bytes are not what they were.

    Attributes:
        shared: Damaged large files that other layers may link to, by content.
    """

    reason: str
    shared: tuple[Digest, ...] = ()


def scrub_complete(layout: StoreLayout, digest: Digest, progress: Progress) -> Damage | None:
    """Proves a complete layer; returns what is wrong with it."""
    directory = layout.layer(digest)
    try:
        LayerIndex(_read_index(directory))
        card = LayerCard.load(directory, digest)
        hasher = card.proof.hasher()
        for piece in card.iter_pieces(directory):
            hasher.update(piece)
            progress(len(piece))
    except StoreDamaged as exc:
        return Damage(reason=str(exc), shared=_damaged_files(directory, digest))
    if Digest.from_hasher(hasher) == card.proof:
        return None
    damaged = _damaged_files(directory, digest)
    where = f"of {len(damaged)} large files" if damaged else "of its tar"
    return Damage(reason=f"bytes {where} are not what was verified", shared=damaged)


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
