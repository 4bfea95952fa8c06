"""The two formats, as `writer.LayerWriter` wants to know them: how they end.

Where things are, to the byte, say the readers: `imgvol.layers.lazy.estargz` and `zstd_chunked`.
"""

import json
import struct
from typing import Final

from imgvol import limits
from imgvol.errors import LimitExceeded
from imgvol.layers.compression import Compression
from imgvol.layers.header import BLOCK
from imgvol.layers.lazy import estargz, zstd_chunked
from imgvol.layers.lazy.locate import Format
from imgvol.layers.lazy.writing.entries import ContainersEntries, EstargzEntries
from imgvol.layers.lazy.writing.frames import open_compressor
from imgvol.layers.lazy.writing.tar_split import TarSplit
from imgvol.layers.lazy.writing.writer import Dialect, Ending, header_block
from imgvol.layers.reserved import TOC_NAME
from imgvol.oci.digest import Digest

UNCOMPRESSED_SIZE: Final = "io.containers.estargz.uncompressed-size"
"""The annotation with the bytes of an eStargz layer's tar; the caller knows them."""

_END_BLOCKS: Final = bytes(2 * BLOCK)
_NONE: Final = b'{"version":1,"entries":[\n'
_SKIPPABLE: Final = b"\x50\x2a\x4d\x18"


def open_dialect(format_: Format) -> Dialect:
    """What writes one layer of a format."""
    return _Estargz() if format_ is Format.ESTARGZ else _ZstdChunked()


class _Estargz(EstargzEntries):
    """The table of contents is the last file of the tar; a footer says where."""

    compression = Compression.GZIP
    chunk_size = 4 * limits.MIB  # as stargz-snapshotter has it
    changes_tar = True
    has_ends = False
    wants_tar_split = False

    def close(
        self, entries: list[bytes], offset: int, level: int, tar_split: TarSplit | None
    ) -> Ending:
        """See Dialect."""
        assert tar_split is None
        document = _document(entries)
        head = header_block(TOC_NAME, len(document))
        tar = b"".join((head, document, bytes(-len(document) % BLOCK), _END_BLOCKS))
        member = open_compressor(self.compression, level)(tar)
        return Ending(
            blob=member + estargz.format_footer(offset),
            tar=tar,
            annotations={estargz.TOC_DIGEST: str(Digest.of(document))},
        )


class _ZstdChunked(ContainersEntries):
    """Table of contents, tar-split and footer are frames that decoders skip."""

    compression = Compression.ZSTD
    # Four times what containers/storage makes in the mean: 2 % smaller layers.
    chunk_size = 1 * limits.MIB
    changes_tar = False
    has_ends = True
    wants_tar_split = True

    def close(
        self, entries: list[bytes], offset: int, level: int, tar_split: TarSplit | None
    ) -> Ending:
        """See Dialect."""
        split = tar_split.data if tar_split is not None else b""
        more = {"tarSplitDigest": str(Digest.of(split))} if split else {}
        document = _document(entries, **more)
        toc = open_compressor(self.compression, level)(document)
        start = offset + zstd_chunked.FRAME_HEADER_SIZE
        position = zstd_chunked.Position(start, len(toc), len(document))
        annotations = {
            zstd_chunked.CONTAINERS.position: zstd_chunked.format_position(position),
            zstd_chunked.CONTAINERS.checksum: str(Digest.of(toc)),
        }
        blob = _skippable(toc)
        split_position = zstd_chunked.Position(0, 0, 0)
        if tar_split is not None:
            split_start = offset + len(blob) + zstd_chunked.FRAME_HEADER_SIZE
            split_position = zstd_chunked.Position(split_start, len(split), tar_split.size)
            annotations[zstd_chunked.TAR_SPLIT] = ":".join(map(str, split_position))
            blob += _skippable(split)
        blob += _skippable(zstd_chunked.format_footer(position, split_position))
        return Ending(blob=blob, annotations=annotations)


def _document(entries: list[bytes], **more: str) -> bytes:
    tail = "".join(f",{json.dumps(key)}:{json.dumps(value)}" for key, value in more.items())
    end = f"\n]{tail}}}".encode()
    entries[:1] = [b'{"version":1,"entries":[\n' + first for first in entries[:1]] or [_NONE]
    entries[-1] += end
    document = b",\n".join(entries)
    entries.clear()
    if len(document) > limits.TOC_SIZE:
        raise LimitExceeded(
            "the table of contents would be too large", limit="TOC_SIZE", allowed=limits.TOC_SIZE
        )
    return document


def _skippable(data: bytes) -> bytes:
    return _SKIPPABLE + struct.pack("<I", len(data)) + data
