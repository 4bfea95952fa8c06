"""Lazy layers that imgvol has written, and what they should be."""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass

from imgvol.layers.lazy.locate import Format
from imgvol.layers.lazy.writing.formats import open_dialect
from imgvol.layers.lazy.writing.writer import LayerWriter, WriterOptions, WrittenLayer

FORMATS = (Format.ESTARGZ, Format.ZSTD_CHUNKED)


@dataclass(frozen=True)
class Written:
    """A blob, and what the writer says of it."""

    blob: bytes
    result: WrittenLayer

    @property
    def annotations(self) -> dict[str, str]:
        return dict(self.result.annotations)

    def diff_id(self, archive: bytes) -> str:
        """Of its tar; `archive` is what it was made of."""
        return str(self.result.diff_id or f"sha256:{hashlib.sha256(archive).hexdigest()}")


def write_layer(archive: bytes | Iterable[bytes], format_: Format, **options: object) -> Written:
    """Writes a layer; options as `WriterOptions` has them."""
    pieces = [archive] if isinstance(archive, bytes) else archive
    writer = LayerWriter(open_dialect(format_), io.BytesIO(), WriterOptions(**options))
    for piece in pieces:
        writer.feed(bytes(piece))
    blob = b"".join(writer.finish())
    assert writer.result is not None
    return Written(blob, writer.result)
