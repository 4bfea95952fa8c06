"""Lazy layers by hand: blobs whose tables of contents say whatever a test wants."""

import gzip
import hashlib
import io
import json
import struct
import tarfile
from dataclasses import dataclass, field

import zstandard

from imgvol.layers.compression import Compression
from imgvol.layers.lazy import estargz
from imgvol.layers.lazy.spans import LazyLayer
from imgvol.layers.lazy.toc import read_toc
from imgvol.layers.lazy.zstd_chunked import CONTAINERS, STARGZ, Family
from imgvol.layers.reserved import TOC_NAME


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def compress(data: bytes, compression: Compression) -> bytes:
    if compression is Compression.GZIP:
        return gzip.compress(data, 1, mtime=0)
    return zstandard.ZstdCompressor().compress(data)


@dataclass
class Body:
    """The part of a blob before its table of contents, and the entries for it."""

    compression: Compression = Compression.GZIP
    data: bytearray = field(default_factory=bytearray)
    entries: list[dict] = field(default_factory=list)

    def span(self, decoded: bytes) -> int:
        """Adds a span; where it starts is returned."""
        offset = len(self.data)
        self.data += compress(decoded, self.compression)
        return offset

    def entry(self, type_: str, name: str, **fields: object) -> dict:
        self.entries.append({"type": type_, "name": name, **fields})
        return self.entries[-1]

    def file(self, name: str, content: bytes, **fields: object) -> dict:
        """A file of one chunk, in a span of its own."""
        offset = self.span(content + b"rest of the tar")
        fields = {"size": len(content), "digest": sha256(content), "offset": offset} | fields
        return self.entry("reg", name, **fields)

    def chunks(self, name: str, *contents: bytes) -> list[dict]:
        """A file of several chunks; empty ones are holes of 100 bytes."""
        whole = b"".join(content or bytes(100) for content in contents)
        made: list[dict] = []
        offset = 0
        for content in contents:
            size = len(content or bytes(100))
            fields: dict[str, object] = {"chunkOffset": offset, "chunkSize": size}
            if content:
                fields |= {"offset": self.span(content), "chunkDigest": sha256(content)}
            else:
                fields |= {"chunkType": "zeros"}
            if not made:
                fields |= {"size": len(whole), "digest": sha256(whole)}
            made.append(self.entry("chunk" if made else "reg", name, **fields))
            offset += size
        return made

    @property
    def toc(self) -> bytes:
        return json.dumps({"version": 1, "entries": self.entries}).encode()

    def read(self, toc: bytes | None = None, *, may_lack_digests: bool = False) -> LazyLayer:
        """Reads the table of contents, as if its digest had been checked."""
        size = len(self.data)
        return read_toc(
            self.toc if toc is None else toc,
            compression=self.compression,
            blob_size=size,
            data_end=size,
            may_lack_digests=may_lack_digests,
        )


def gzip_footer(extra: bytes) -> bytes:
    head = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + struct.pack("<H", len(extra))
    return head + extra + b"\x01\0\0\xff\xff" + bytes(8)


def stargz_footer(offset: int) -> bytes:
    return gzip_footer(b"SG\x16\0%016xSTARGZ" % offset)


def legacy_footer(offset: int) -> bytes:
    return gzip_footer(b"%016xSTARGZ" % offset)


EXTERNAL_FOOTER = gzip_footer(b"SG\x11\0STARGZEXTERNALTOC")


def tar_of(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def stargz_blob(body: Body, *, footer=stargz_footer) -> tuple[bytes, dict[str, str]]:
    """An eStargz blob and its annotations."""
    packed = gzip.compress(tar_of(TOC_NAME.decode(), body.toc), mtime=0)
    blob = bytes(body.data) + packed + footer(len(body.data))
    return blob, {estargz.TOC_DIGEST: sha256(body.toc)}


def external_blob(body: Body) -> tuple[bytes, dict[str, str], bytes]:
    """An eStargz blob without its table of contents, its annotations, and the layer that has it."""
    toc = gzip.compress(tar_of(TOC_NAME.decode(), body.toc), mtime=0)
    return bytes(body.data) + EXTERNAL_FOOTER, {estargz.TOC_DIGEST: sha256(body.toc)}, toc


def skippable(payload: bytes) -> bytes:
    return b"\x50\x2a\x4d\x18" + struct.pack("<I", len(payload)) + payload


def chunked_blob(body: Body, family: Family = CONTAINERS) -> tuple[bytes, dict[str, str]]:
    """A zstd:chunked blob with its family's trailer, and its annotations."""
    packed = zstandard.ZstdCompressor().compress(body.toc)
    position = (len(body.data) + 8, len(packed), len(body.toc), 1)
    blob = bytes(body.data) + skippable(packed)
    if family is STARGZ:
        blob += skippable(struct.pack("<4Q8s", *position, b"GnUlInUx"))
    else:
        split = b"tar-split, which nobody reads"
        tail = (*position[:3], 1, len(blob) + 8, len(split), 99)
        blob += skippable(split) + skippable(struct.pack("<7Q8s", *tail, b"GNUlInUx"))
    annotations = {
        family.position: ":".join(map(str, position)),
        family.checksum: sha256(packed),
    }
    return blob, annotations
