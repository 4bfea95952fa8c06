"""Which parts of a stored layer are not what they were, and must not be shown.

    layers/<hex>/damaged    sealed by a checksum; written by a scrub, gone with the layer

A part is a range of one of the layer's files: the data file or an own file. Whatever lies in it
gives errors; everything else of the layer is served. The list is durable before the layer's record
speaks of it, and a layer whose list cannot be read is not opened at all.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from imgvol.content.open_file import read_whole
from imgvol.content.pieces import replace_file
from imgvol.content.ranges import Ranges
from imgvol.errors import StoreDamaged
from imgvol.layers.index import LayerIndex, NodeType
from imgvol.oci.digest import Digest

DAMAGED_NAME: Final = "damaged"

# Stands for the data file among the numbers of own files.
DATA_FILE: Final = -1


@dataclass(frozen=True, slots=True)
class DamagedParts:
    """Ranges of a layer's files.

    Attributes:
        ranges: By file: DATA_FILE, or the number of an own file; offset and end of each range, in
            order, without overlap.
    """

    ranges: dict[int, tuple[tuple[int, int], ...]]

    @classmethod
    def collect(cls, found: dict[int, Ranges]) -> Self:
        """Of what was found."""
        return cls({number: tuple(ranges) for number, ranges in found.items() if ranges.size})

    def touches(self, number: int, start: int, end: int) -> bool:
        """Whether any of the bytes [start, end) of a file is damaged."""
        return any(begin < end and start < stop for begin, stop in self.ranges.get(number, ()))

    def touches_content(self, index: LayerIndex, node: int, offset: int, size: int) -> bool:
        """Whether reading that of a file of the layer would show a damaged byte."""
        number = index.own_file(node)
        if number is not None:
            return self.touches(number, offset, offset + size)
        if DATA_FILE not in self.ranges:
            return False
        for extent in index.extents(node):
            begin = max(extent.offset, offset)
            end = min(extent.offset + extent.size, offset + size)
            shift = extent.position - extent.offset
            if begin < end and self.touches(DATA_FILE, begin + shift, end + shift):
                return True
        return False

    def iter_files(self, index: LayerIndex) -> Iterator[tuple[int, bytes]]:
        """The files that are damaged: their nodes, and one path of each."""
        for node in range(index.node_count):
            if index.is_directory(node) or index.is_foreign_link(node):
                continue
            record = index.record(node)
            if record.type is NodeType.FILE and self.touches_content(index, node, 0, record.size):
                directory, name = index.hardlink_names(node)[0]
                yield node, index.path_of(directory).rstrip(b"/") + b"/" + name

    def save(self, directory: Path) -> None:
        """Writes the list into a layer's directory, in the place of any, durably.

        Raises:
            OSError: The filesystem fails.
        """
        body = json.dumps({str(number): ranges for number, ranges in self.ranges.items()}).encode()
        replace_file(directory / DAMAGED_NAME, b"%08x\n%s\n" % (zlib.crc32(body), body))

    @classmethod
    def load(cls, directory: Path, digest: Digest) -> Self | None:
        """Reads the list of a layer's directory; None: there is none.

        Raises:
            StoreDamaged: It is not what was written.
            OSError: It cannot be read.
        """
        try:
            checksum, body, _ = read_whole(directory / DAMAGED_NAME).split(b"\n")
            if int(checksum, 16) != zlib.crc32(body):
                raise ValueError("checksum")
            # It was written above: only its types are not told.
            listed = json.loads(body)
        except FileNotFoundError:
            return None
        except ValueError as exc:
            raise StoreDamaged(
                "the list of what is damaged of a stored layer is damaged itself",
                hint="Pull the image again: imgvol pull IMAGE.",
                digest=digest,
            ) from exc
        return cls(
            {
                int(number): tuple((start, end) for start, end in ranges)
                for number, ranges in listed.items()
            }
        )
