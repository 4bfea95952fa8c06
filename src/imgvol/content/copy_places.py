"""Where chunks of a layer may be in others, and what became of the tries to copy them."""

from array import array
from dataclasses import dataclass
from typing import Final

from imgvol.content.cloning import shared_range
from imgvol.content.copy_sources import SourceFiles
from imgvol.content.open_file import OpenFile
from imgvol.layers.lazy.spans import Part
from imgvol.oci.digest import Digest

_NO_SOURCE: Final = 0xFFFF


@dataclass(slots=True)
class CopyCounts:
    """What became of tries to copy.

    Attributes:
        spans: Spans that were copied.
        size: Bytes that they have in the blob: what was not fetched.
        cloned: Bytes of content whose blocks are shared with another file.
        unlike: Chunks whose likely place had other bytes.
        damaged: Chunks whose verified place has other bytes by now, by layer.
    """

    spans: int = 0
    size: int = 0
    cloned: int = 0
    unlike: int = 0
    damaged: tuple[Digest, ...] = ()


class Places:
    """Where chunks may be: the number of a source, a file of it, and a position there."""

    def __init__(self, chunks: int) -> None:
        self.sources = array("H", [_NO_SOURCE]) * chunks
        self.files = array("I", [0]) * chunks
        self.positions = array("Q", [0]) * chunks

    def __contains__(self, chunk: int) -> bool:
        return self.sources[chunk] != _NO_SOURCE

    def put(self, chunk: int, source: int, place: tuple[int, int]) -> None:
        """Notes a place: file and position."""
        self.sources[chunk] = source
        self.files[chunk], self.positions[chunk] = place

    def get(self, chunk: int) -> tuple[int, int, int] | None:
        """All three, if they are known; another thread may drop them at any time."""
        source = self.sources[chunk]
        return None if source == _NO_SOURCE else (source, self.files[chunk], self.positions[chunk])

    def drop(self, chunk: int) -> None:
        """Forgets a place that was none."""
        self.sources[chunk] = _NO_SOURCE


@dataclass(frozen=True, slots=True)
class Clone:
    """A chunk whose blocks lie in a source as they will in the layer.

    Attributes:
        chunk: Its number.
        part: It, in the layer.
        places: Which table of places told.
        source: Where that is.
        file: Of the source.
        start: Its first byte there.
        device: The filesystem of that.
    """

    chunk: int
    part: Part
    places: Places
    source: SourceFiles
    file: OpenFile
    start: int
    device: int

    @property
    def size(self) -> int:
        """Bytes that are shared."""
        first, last = shared_range(self.start, self.part.position, self.part.size)
        return last - first
