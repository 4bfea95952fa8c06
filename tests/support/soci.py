"""zTOCs without soci-snapshotter: checkpoints by zlib itself, the rest by the flatbuffers package.

`checkpoints_of` asks zlib where deflate blocks end, which Python's module does not tell.
"""

import ctypes
import ctypes.util
import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import flatbuffers

from imgvol.layers.compression import Compression, iter_decoded
from imgvol.layers.lazy.soci import open_ztoc
from imgvol.layers.tar import MemberType, TarMember
from imgvol.oci.digest import Digest
from support import tars

WINDOW = 32768


@dataclass(frozen=True)
class Point:
    compressed: int
    position: int
    bits: int
    window: bytes = bytes(WINDOW)

    def pack(self) -> bytes:
        return struct.pack("<qqB", self.compressed, self.position, self.bits) + self.window


class _Stream(ctypes.Structure):
    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    )


_BLOCK, _STREAM_END, _AUTODETECT = 5, 1, 47


def checkpoints_of(blob: bytes, span_size: int) -> list[Point]:
    """A checkpoint after the first header, and at the first block's end after each span_size."""
    plain = b"".join(iter_decoded([blob], Compression.GZIP))
    zlib = ctypes.CDLL(ctypes.util.find_library("z"))
    source = ctypes.create_string_buffer(blob, len(blob))
    target = ctypes.create_string_buffer(len(plain) + 1)
    stream = _Stream(
        next_in=ctypes.addressof(source),
        avail_in=len(blob),
        next_out=ctypes.addressof(target),
        avail_out=len(plain) + 1,
    )
    reference = ctypes.byref(stream)
    assert not zlib.inflateInit2_(reference, _AUTODETECT, b"1.2", ctypes.sizeof(stream))
    points: list[Point] = []
    last = 0
    while True:
        result = zlib.inflate(reference, _BLOCK)
        assert result in (0, _STREAM_END), result
        used = len(blob) - stream.avail_in
        done = len(plain) + 1 - stream.avail_out
        if result == _STREAM_END:
            if not stream.avail_in:
                break
            assert not zlib.inflateReset2(reference, _AUTODETECT)
            continue
        is_at_block = stream.data_type & 128 and not stream.data_type & 64
        if is_at_block and (not points or done - last > span_size):
            window = plain[max(0, done - WINDOW) : done].rjust(WINDOW, b"\0")
            points.append(Point(used, done, stream.data_type & 7, window))
            last = done
    zlib.inflateEnd(reference)
    return points


def pack_checkpoints(points: Sequence[Point], *, version: int = 2, count: int | None = None):
    head = struct.pack("<iq", len(points) if count is None else count, 4 << 20)
    return head + b"".join(point.pack() for point in points[2 - version :])


def ranges_of(points: Sequence[Point], size: int) -> list[tuple[int, int]]:
    starts = [point.compressed - (point.bits > 0) for point in points]
    ends = [point.compressed for point in points[1:]] + [size]
    return list(zip(starts, ends, strict=True))


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


_TYPES = {
    MemberType.FILE: "reg",
    MemberType.DIRECTORY: "dir",
    MemberType.SYMLINK: "symlink",
    MemberType.HARDLINK: "hardlink",
    MemberType.CHAR: "char",
    MemberType.BLOCK: "block",
    MemberType.FIFO: "fifo",
}


@dataclass(frozen=True)
class Entry:
    name: bytes = b"file"
    type: bytes = b"reg"
    offset: int = 512
    size: int = 0
    linkname: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: bytes = b"2024-01-02T03:04:05Z"
    major: int = 0
    minor: int = 0
    records: tuple[tuple[bytes, bytes], ...] = ()


def entry_of(member: TarMember) -> Entry:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=member.mtime_ns // 10**9)
    text = moment.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
    fraction = f".{member.mtime_ns % 10**9:09}".rstrip("0").rstrip(".")
    return Entry(
        member.name,
        _TYPES[member.type].encode(),
        member.payload_offset,
        member.size,
        member.linkname,
        member.mode,
        member.uid,
        member.gid,
        f"{text}{fraction}Z".encode(),
        member.devmajor,
        member.devminor,
        tuple((b"SCHILY.xattr." + name, value) for name, value in member.xattrs),
    )


@dataclass(frozen=True)
class Draft:
    """Everything that a zTOC says, to be changed with `dataclasses.replace`."""

    version: str = "0.9"
    compressed_size: int = 0
    uncompressed_size: int = 0
    entries: Sequence[Entry] = ()
    algorithm: int | None = 1
    last_span: int = 0
    digests: Sequence[str] = ()
    checkpoints: bytes = b""
    parts: frozenset[str] = field(default=frozenset({"toc", "spans"}))

    def to_bytes(self) -> bytes:
        return write_ztoc(self)

    def open(self, **changes):
        data = replace(self, **changes).to_bytes()
        return open_ztoc(data, expected=Digest.of(data), blob_size=self.compressed_size)


def write_ztoc(draft: Draft) -> bytes:
    builder = flatbuffers.Builder(1024)
    version = builder.CreateString(draft.version)
    toc = _table(builder, {0: _vector(builder, [_entry(builder, e) for e in draft.entries])})
    digests = _vector(builder, [builder.CreateString(text) for text in draft.digests])
    checkpoints = builder.CreateByteVector(draft.checkpoints)
    builder.StartObject(4)
    if draft.algorithm is not None:
        builder.PrependInt8Slot(0, draft.algorithm, 1)
    builder.PrependInt32Slot(1, draft.last_span, 0)
    builder.PrependUOffsetTRelativeSlot(2, digests, 0)
    builder.PrependUOffsetTRelativeSlot(3, checkpoints, 0)
    spans = builder.EndObject()
    builder.StartObject(6)
    builder.PrependUOffsetTRelativeSlot(0, version, 0)
    builder.PrependInt64Slot(2, draft.compressed_size, 0)
    builder.PrependInt64Slot(3, draft.uncompressed_size, 0)
    if "toc" in draft.parts:
        builder.PrependUOffsetTRelativeSlot(4, toc, 0)
    if "spans" in draft.parts:
        builder.PrependUOffsetTRelativeSlot(5, spans, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


def write_tar_zinfo(span_size: int, size: int) -> bytes:
    builder = flatbuffers.Builder(64)
    builder.StartObject(3)
    builder.PrependInt32Slot(0, 2, 0)
    builder.PrependInt64Slot(1, span_size, 0)
    builder.PrependInt64Slot(2, size, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


def _entry(builder: flatbuffers.Builder, entry: Entry) -> int:
    pairs = [
        _table(builder, {0: builder.CreateString(key), 1: builder.CreateString(value)})
        for key, value in entry.records
    ]
    records = _vector(builder, pairs)
    strings = {
        slot: builder.CreateString(text)
        for slot, text in (
            (0, entry.name),
            (1, entry.type),
            (4, entry.linkname),
            (8, b"root"),
            (9, b"root"),
            (10, entry.mtime),
        )
    }
    builder.StartObject(14)
    for slot, offset in strings.items():
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    for slot, number in (
        (2, entry.offset),
        (3, entry.size),
        (5, entry.mode),
        (11, entry.major),
        (12, entry.minor),
    ):
        builder.PrependInt64Slot(slot, number, 0)
    builder.PrependUint32Slot(6, entry.uid, 0)
    builder.PrependUint32Slot(7, entry.gid, 0)
    builder.PrependUOffsetTRelativeSlot(13, records, 0)
    return builder.EndObject()


def _table(builder: flatbuffers.Builder, offsets: dict[int, int]) -> int:
    builder.StartObject(len(offsets))
    for slot, offset in offsets.items():
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    return builder.EndObject()


def _vector(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def draft_of(
    tar: bytes, blob: bytes, span_size: int, *, version: int = 2, padding: int = 0
) -> Draft:
    """The zTOC of a gzip blob of a tar; so many bytes at its end are left out, as padding is."""
    points = checkpoints_of(blob, span_size)
    return Draft(
        compressed_size=len(blob),
        uncompressed_size=len(tar) - padding,
        entries=tuple(map(entry_of, tars.parse([tar]))),
        last_span=len(points) - 1,
        digests=[sha256(blob[start:end]) for start, end in ranges_of(points, len(blob))],
        checkpoints=pack_checkpoints(points, version=version),
    )


def plain_draft_of(tar: bytes, span_size: int) -> Draft:
    starts = range(0, len(tar), span_size)
    return Draft(
        compressed_size=len(tar),
        uncompressed_size=len(tar),
        entries=tuple(map(entry_of, tars.parse([tar]))),
        algorithm=2,
        last_span=len(starts) - 1,
        digests=[sha256(tar[start : start + span_size]) for start in starts],
        checkpoints=write_tar_zinfo(span_size, len(tar)),
    )


INDEX_DIGEST = "com.amazon.soci.index-digest"


def write_index(ztocs: Mapping[str, bytes], frames: Mapping[str, bytes] | None = None) -> bytes:
    """An index of version 2: zTOCs, and documents of zstd frames, by the digests of layers."""

    def describe(data: bytes, media_type: str, **more: object) -> dict[str, object]:
        return {"mediaType": media_type, "digest": sha256(data), "size": len(data), **more}

    layers = [
        describe(
            ztoc,
            "application/octet-stream",
            annotations={"com.amazon.soci.image-layer-digest": layer},
        )
        for layer, ztoc in ztocs.items()
    ]
    layers += [
        describe(
            document,
            "application/vnd.imgvol.zstd-frames.v1+zstd",
            annotations={"vnd.imgvol.zstd-frames.layer-digest": layer},
        )
        for layer, document in (frames or {}).items()
    ]
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": describe(b"{}", "application/vnd.amazon.soci.index.v2+json"),
        "layers": layers,
    }
    return json.dumps(index).encode()


def decode_all(table, blob: bytes, spans: Iterable[int] | None = None) -> bytes:
    """The data file, as far as some spans bring it."""
    data = bytearray(table.data_size)
    for span in range(table.span_count) if spans is None else spans:
        start, end = table.compressed_range(span)
        for region in table.decode(span, blob[start:end]):
            data[region.position : region.position + len(region.data)] = region.data
    assert len(data) == table.data_size
    return bytes(data)
