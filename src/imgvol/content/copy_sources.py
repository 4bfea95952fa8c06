"""Layers of this machine as something to copy from: what is where, and the bytes.

A layer is open as a whole only while it is compared with what another one lacks (`CopySource`);
afterwards its files are all that is left of it (`SourceFiles`). Nothing here is trusted: whoever
copies hashes what came. So a layer that changes, goes, or was never proven does no harm.

Everything here blocks.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imgvol.content.chunk_catalogue import (
    ChunkCatalogue,
    ChunkOwners,
    catalogue_bytes,
    load_catalogue,
    save_catalogue,
)
from imgvol.content.layer import Layer
from imgvol.content.layout import CHUNKS_NAME, DATA_NAME, FILES_NAME, INDEX_NAME, StoreLayout
from imgvol.content.lazy_directory import SPANS_NAME, TABLE_NAME
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.open_file import OpenFile, read_whole
from imgvol.content.place import Place
from imgvol.content.reading import pread_exact
from imgvol.content.records import LayerRecord
from imgvol.content.span_map import SpanMap
from imgvol.errors import StoreDamaged
from imgvol.layers.index import LayerIndex, NodeType
from imgvol.layers.lazy.chunks import ChunkTable
from imgvol.layers.lazy.open import open_span_table
from imgvol.layers.lazy.spans import SpanTable
from imgvol.oci.digest import Digest

# Large files of one layer that are open at once.
_OPEN_FILES: Final = 32
DATA: Final = 0
"""The number of a layer's data file; its own files have theirs, and one more."""


class SourceFiles:
    """The files of one layer. For any thread.

    Args:
        data: Where positions of the data file are.
        base: Of the first position in that file.
        directory: Of the layer.
        is_verified: Whether all of it was verified, so that a wrong byte means damage.
    """

    def __init__(
        self, digest: Digest, data: OpenFile, base: int, directory: Path, *, is_verified: bool
    ) -> None:
        self.digest = digest
        self.is_verified = is_verified
        self._data = data
        self._base = base
        self._directory = directory
        self._files: OrderedDict[int, OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, file: int, position: int, size: int) -> bytes:
        """Bytes that may be what somebody wants.

        Raises:
            StoreDamaged: They cannot be read, or have gone.
        """
        opened, start = self.open(file, position)
        return pread_exact(opened.fd, start, size, self.digest)

    def open(self, file: int, position: int) -> tuple[OpenFile, int]:
        """The file where such bytes are, and where in it.

        Raises:
            StoreDamaged: It has gone.
        """
        if file == DATA:
            return self._data, self._base + position
        return self._own_file(file - 1), position

    def _own_file(self, number: int) -> OpenFile:
        with self._lock:
            if opened := self._files.get(number):
                self._files.move_to_end(number)
                return opened
        try:
            opened = OpenFile(self._directory / FILES_NAME / str(number), os.O_RDONLY)
        except OSError as exc:
            raise StoreDamaged(
                "a file of a stored layer cannot be opened",
                digest=self.digest,
                reason=exc.strerror,
            ) from exc
        with self._lock:
            self._files[number] = opened
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
        return opened


@dataclass(frozen=True, slots=True)
class CopySource:
    """One layer, to be searched.

    Attributes:
        files: Its bytes.
        index: Its files.
        catalogue: Its digests, if it has any.
        is_present: Whether a range of its data file is here.
    """

    files: SourceFiles
    index: LayerIndex
    catalogue: ChunkCatalogue | None
    is_present: Callable[[int, int], bool]

    def locate(self, node: int, offset: int, size: int) -> tuple[int, int] | None:
        """File number and position of a range of a file; None if it is not here, or in pieces."""
        index = self.index
        if node >= index.node_count or index.is_directory(node) or index.is_foreign_link(node):
            return None
        record = index.record(node)
        if record.type is not NodeType.FILE or offset + size > record.size:
            return None
        number = index.own_file(node)
        if number is not None:
            return number + 1, offset
        for extent in index.extents(node):
            if extent.offset <= offset and offset + size <= extent.offset + extent.size:
                position = extent.position + offset - extent.offset
                return (DATA, position) if self.is_present(position, size) else None
        return None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layer that may be opened as a source.

    Attributes:
        record: As the database has it.
        place: Where it lies, if it is read in place.
        opened: The same layer, if views have it open: it knows more than its files.
    """

    record: LayerRecord
    place: Place | None = None
    opened: Layer | None = None

    def open(self, layout: StoreLayout) -> CopySource:
        """Opens it; a lazy one gets its catalogue, if it has none.

        Raises:
            OSError: It has gone, or cannot be read.
            StoreDamaged: It is damaged.
        """
        digest = self.record.digest
        if self.place is not None:
            directory = layout.place(digest)
            data, base = OpenFile(self.place.path, os.O_RDONLY), self.place.offset
        elif self.record.is_complete:
            directory = layout.layer(digest)
            data, base = OpenFile(directory / DATA_NAME, os.O_RDONLY), 0
        else:
            return self._open_lazy(layout.lazy_layer(digest))
        return CopySource(
            files=SourceFiles(digest, data, base, directory, is_verified=self.place is None),
            index=LayerIndex(read_whole(directory / INDEX_NAME)),
            catalogue=load_catalogue(directory / CHUNKS_NAME),
            is_present=_always,
        )

    def _open_lazy(self, directory: Path) -> CopySource:
        data = OpenFile(directory / DATA_NAME, os.O_RDONLY)
        table = open_span_table(read_whole(directory / TABLE_NAME))
        index = LayerIndex(read_whole(directory / INDEX_NAME))
        present = (
            self.opened.present
            if isinstance(self.opened, LazyLayerStore)
            else SpanMap(directory / SPANS_NAME, table.span_count)
        )
        catalogue = None
        if isinstance(table, ChunkTable):
            catalogue = load_catalogue(directory / CHUNKS_NAME)
            if catalogue is None:
                catalogue = write_catalogue(directory, table, ChunkOwners(table, index))
        return CopySource(
            files=SourceFiles(self.record.digest, data, 0, directory, is_verified=False),
            index=index,
            catalogue=catalogue,
            is_present=_present_by(table, present),
        )


def write_catalogue(directory: Path, table: ChunkTable, owners: ChunkOwners) -> ChunkCatalogue:
    """Makes the catalogue of a lazy layer.

    Raises:
        OSError: There is no room for it, or the layer has gone.
    """
    data = catalogue_bytes(table, owners)
    save_catalogue(directory / CHUNKS_NAME, data)
    return ChunkCatalogue(data)


def _always(_position: int, _size: int) -> bool:
    return True


def _present_by(table: SpanTable, present: SpanMap) -> Callable[[int, int], bool]:
    def is_present(position: int, size: int) -> bool:
        return all(span in present for span in table.spans_of(position, size))

    return is_present
