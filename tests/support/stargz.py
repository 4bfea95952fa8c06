"""Whole eStargz and zstd:chunked layers, from the entries of an image: their table of contents may
be made to lie before the blob is closed."""

import base64
import tarfile
from collections.abc import Sequence
from datetime import UTC, datetime

from imgvol.layers.compression import Compression
from imgvol.layers.lazy.spans import LazyLayer
from support import images
from support.lazy import decompress, open_lazy
from support.toc_blobs import Body, chunked_blob, compress, sha256, stargz_blob

TIME = 1_700_000_000 * 10**9  # eStargz keeps seconds
_TYPES = {
    tarfile.REGTYPE: "reg",
    tarfile.DIRTYPE: "dir",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}


class Stargz:
    """An eStargz layer under construction; with zstd, a zstd:chunked one of containers' family.

    Args:
        entries: What the tar holds.
        chunk: Bytes of a file per span.
        compression: gzip or zstd.

    Attributes:
        body: Its `entries` are those of the table of contents, to be changed at will.
    """

    def __init__(
        self,
        entries: Sequence[images.Entry],
        chunk: int = 4 << 20,
        compression: Compression = Compression.GZIP,
    ):
        self.body = Body(compression)
        for entry in entries:
            self._add(entry, chunk)

    def _add(self, entry: images.Entry, chunk: int) -> None:
        body, content = self.body, entry.content
        member = entry.member()
        head = member[: len(member) - len(images.padded(content))]
        body.data += compress(head, body.compression)
        fields: dict[str, object] = {
            "mode": entry.mode,
            "modtime": datetime.fromtimestamp(entry.mtime_ns // 10**9, UTC).strftime(
                "%Y-%m-%dT%H:%M:%SZ"
            ),
            "uid": entry.uid,
            "gid": entry.gid,
        }
        if entry.target:
            fields["linkName"] = entry.target
        if any(entry.device):
            fields["devMajor"], fields["devMinor"] = entry.device
        if entry.xattrs:
            fields["xattrs"] = {k: base64.b64encode(v).decode() for k, v in entry.xattrs.items()}
        if not content:
            body.entry(_TYPES[entry.type], entry.name, **fields)
            return
        fields |= {"size": len(content), "digest": sha256(content)}
        for offset in range(0, len(content), chunk):
            piece = content[offset : offset + chunk]
            is_last = offset + chunk >= len(content)
            span = body.span(piece + bytes(-len(content) % images.BLOCK) if is_last else piece)
            place = {"offset": span, "chunkOffset": offset, "chunkDigest": sha256(piece)}
            place["chunkSize"] = 0 if is_last else chunk
            body.entry(
                "chunk" if offset else "reg", entry.name, **({} if offset else fields), **place
            )

    def entry(self, name: str) -> dict:
        """The entry of the table of contents with this name."""
        return next(e for e in self.body.entries if e["name"] == name)

    def layer(self) -> images.Layer:
        """The finished layer; its digest and diff ID are right, whatever its contents say."""
        if self.body.compression is Compression.GZIP:
            blob, annotations = stargz_blob(self.body)
        else:
            self.body.span(bytes(2 * images.BLOCK))
            blob, annotations = chunked_blob(self.body)
        layer = images.Layer(decompress(blob), self.body.compression.value)
        layer.blob, layer.size, layer.digest = blob, len(blob), images.sha256(blob)
        layer.annotations = annotations
        return layer

    def opened(self) -> tuple[images.Layer, LazyLayer]:
        """The finished layer, and what its table of contents makes of it."""
        layer = self.layer()
        return layer, open_lazy(layer.blob, layer.annotations)
