"""zstd blobs of several frames, and documents about them, without the code that makes them."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import zstandard

from imgvol.layers.lazy.frames import FrameRun
from imgvol.layers.lazy.soci_twin import compress_ztoc
from imgvol.layers.lazy.spans import LazyLayer
from imgvol.layers.lazy.zstd_frames import open_frames
from imgvol.oci.digest import Digest
from support import soci, tars
from support.soci import Draft, entry_of, sha256

ALGORITHM = 100
SEEKABLE_MAGIC = 0x8F92EAB1


def frame(
    plain: bytes, *, level: int = 3, has_size: bool = True, has_checksum: bool = False
) -> bytes:
    """One frame."""
    packed = zstandard.ZstdCompressor(
        level=level, write_content_size=has_size, write_checksum=has_checksum
    ).compress(plain)
    assert isinstance(packed, bytes)
    return packed


def skippable(content: bytes, kind: int = 0) -> bytes:
    """A skippable frame."""
    return struct.pack("<II", 0x184D2A50 + kind, len(content)) + content


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def seek_table(pieces: Sequence[bytes], frames: Sequence[bytes]) -> bytes:
    """The table of zstd's seekable format, version 0.1.0, without checksums."""
    entries = b"".join(
        struct.pack("<II", len(packed), len(plain))
        for packed, plain in zip(frames, pieces, strict=True)
    )
    return skippable(entries + struct.pack("<IBI", len(frames), 0, SEEKABLE_MAGIC), 0xE)


def seekable(plain: bytes, size: int) -> bytes:
    """A blob in zstd's seekable format."""
    pieces = cut(plain, size)
    frames = [frame(piece) for piece in pieces]
    return b"".join(frames) + seek_table(pieces, frames)


def as_pzstd(plain: bytes, size: int) -> bytes:
    """What pzstd writes: before each frame a skippable one with its size."""
    frames = [frame(piece, has_size=False) for piece in cut(plain, size)]
    return b"".join(skippable(struct.pack("<I", len(packed))) + packed for packed in frames)


@dataclass(frozen=True)
class FrameDraft:
    """Everything that a document says, to be changed with `dataclasses.replace`."""

    ztoc: Draft
    runs: Sequence[FrameRun]
    plain_size: int
    packed: bytes | None = field(default=None, repr=False)

    def to_ztoc(self) -> bytes:
        """The document before it is compressed."""
        packed = self.packed
        if packed is None:
            rows = [struct.pack("<QQQ", *run) for run in self.runs]
            packed = b"".join(rows) + struct.pack("<Q", self.plain_size)
        return replace(self.ztoc, checkpoints=packed).to_bytes()

    def to_bytes(self) -> bytes:
        return compress_ztoc(self.to_ztoc())

    def open(self) -> LazyLayer:
        data = self.to_bytes()
        return open_frames(data, expected=Digest.of(data), blob_size=self.ztoc.compressed_size)


def draft_of(
    tar: bytes, pieces: Sequence[bytes], frames: Sequence[bytes], tail: bytes = b""
) -> tuple[FrameDraft, bytes]:
    """The document of a blob of these frames, each a run; its blob, too."""
    blob = b"".join(frames) + tail
    runs, at, position = [], 0, 0
    for piece, packed in zip(pieces, frames, strict=True):
        runs.append(FrameRun(at, at + len(packed), position))
        at += len(packed)
        position += len(piece)
    ztoc = soci.Draft(
        compressed_size=len(blob),
        uncompressed_size=len(tar),
        entries=tuple(map(entry_of, tars.parse([tar]))),
        algorithm=ALGORITHM,
        last_span=len(runs) - 1,
        digests=[sha256(blob[run.start : run.end]) for run in runs],
    )
    return FrameDraft(ztoc, runs, position), blob
