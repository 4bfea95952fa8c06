"""What of an open lazy layer is here: spans, their compressed bytes, and the file of their content.

It knows nothing of the layer that has it. So what takes in, reads, gives back and scrubs spans can
have it, too, without having the layer: see the lifecycle of `Layer`.
"""

from dataclasses import dataclass

from imgvol.content.kept_blob import KeptBlob
from imgvol.content.open_file import OpenFile
from imgvol.content.span_map import SpanMap
from imgvol.content.spare_spans import SpareSpans
from imgvol.layers.lazy.spans import NoSpans, SpanTable
from imgvol.oci.digest import Digest


@dataclass(eq=False, slots=True)
class Holdings:
    """The holdings of one layer. What changes them is called with the layer's bookkeeping locked.

    Attributes:
        digest: Of the layer's blob, for errors.
        table: The layer's span table; one without spans once the layer is complete.
        present: Which spans are here.
        kept: Which compressed bytes are here.
        data: The file with their content; None once the layer is complete: what it takes on disk
            is given back.
        spare: Spans that are in memory only, for want of room.
        is_proven: Whether the whole was verified while it stayed lazy; spans may have gone since.
        has_given_back: Whether spans have gone since the layer was opened.
        unkept_size: Bytes of the blob that stand for content which is here without them.
    """

    digest: Digest
    table: SpanTable
    present: SpanMap
    kept: KeptBlob
    data: OpenFile | None
    spare: SpareSpans
    is_proven: bool = False
    has_given_back: bool = False
    unkept_size: int = 0

    def __post_init__(self) -> None:
        for span in self.present:
            start, end = self.table.compressed_range(span)
            if self.present.is_kept(span):
                self.kept.note(start, end)
            else:
                self.unkept_size += end - start

    @property
    def lacks_compressed(self) -> bool:
        """Whether content is here without its compressed bytes."""
        return self.present.unkept_count > 0 and self.data is not None

    def add(self, span: int, *, is_kept: bool) -> None:
        """Counts a span as present, and its compressed bytes, too, if they are kept."""
        if span not in self.present:  # else another thread has been as quick
            self.unkept_size += 0 if is_kept else self._size(span)
            self.present.add(span, is_kept=is_kept)

    def discard(self, span: int) -> None:
        """Counts a span as missing."""
        if span in self.present and not self.present.is_kept(span):
            self.unkept_size -= self._size(span)
        self.present.discard(span)

    def give_up(self, span: int) -> None:
        """Counts the compressed bytes of a span as missing."""
        if span in self.present and self.present.is_kept(span):
            self.unkept_size += self._size(span)
            self.present.give_up(span)

    def close(self) -> None:
        """The layer is complete: nobody needs any of this now."""
        self.table = NoSpans(self.table.blob_size)
        self.kept.close()

    def _size(self, span: int) -> int:
        start, end = self.table.compressed_range(span)
        return end - start
