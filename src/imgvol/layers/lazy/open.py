"""Opens stored span tables, of whatever kind."""

from imgvol.layers.lazy.chunks import ChunkTable
from imgvol.layers.lazy.frames import FrameTable
from imgvol.layers.lazy.soci import SociTable
from imgvol.layers.lazy.spans import Kind, SpanTable, unseal


def open_span_table(data: bytes) -> SpanTable:
    """Read what `SpanTable.to_bytes` gave.

    Raises:
        StoreDamaged: It is not a whole, unchanged table of a version and kind that we know.
    """
    kind, body = unseal(data)
    match kind:
        case Kind.CHUNKS:
            return ChunkTable.from_body(body)
        case Kind.SOCI:
            return SociTable.from_body(body)
        case Kind.FRAMES:
            return FrameTable.from_body(body)
