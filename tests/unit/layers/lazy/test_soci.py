"""SOCI layers: spans at every bit, several gzip members, and zTOCs that do not keep their word."""

import gzip
import hashlib
import random
import struct
import zlib
from dataclasses import replace
from itertools import pairwise

import flatbuffers
import pytest

from imgvol import limits
from imgvol.errors import (
    DigestMismatch,
    InvalidLayer,
    LimitExceeded,
    StoreDamaged,
    Unsupported,
)
from imgvol.layers.lazy.open import open_span_table
from imgvol.layers.lazy.soci import SociTable, SpanRange, open_ztoc
from imgvol.layers.lazy.spans import Kind, seal
from imgvol.layers.lazy.ztoc import Algorithm
from imgvol.oci.digest import Digest
from support import tars
from support.lazy import describe_lazy, describe_tar
from support.soci import (
    WINDOW,
    Draft,
    Entry,
    Point,
    checkpoints_of,
    decode_all,
    draft_of,
    pack_checkpoints,
    plain_draft_of,
    ranges_of,
    sha256,
    write_tar_zinfo,
)

KIB = 1024


def words(size: int, seed: int = 1) -> bytes:
    """Text that compresses as text does, in blocks of many kinds."""
    noise = random.Random(seed)
    known = [noise.randbytes(noise.randint(2, 9)) for _ in range(2000)]
    out = b"".join(noise.choices(known, k=size // 4))
    return out[:size]


@pytest.fixture(scope="module")
def tar() -> bytes:
    sizes = random.Random(2)
    members = [
        tars.member(b"d/%d" % number, words(sizes.randrange(90_000), number))
        for number in range(40)
    ]
    return b"".join(members) + tars.END


@pytest.fixture(scope="module")
def draft(tar) -> Draft:
    """A small and sound zTOC, for a blob of its own: nothing here is decoded."""
    return draft_of(tar, gzip.compress(tar, 6), 256 * KIB)


def with_checkpoints(draft: Draft, points: list[Point], **changes) -> Draft:
    digests = [sha256(b"")] * len(points)
    return replace(
        draft,
        checkpoints=pack_checkpoints(points),
        digests=digests,
        last_span=len(points) - 1,
        **changes,
    )


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [1, 6, 9])
def test_every_span_decodes_whatever_bit_it_starts_at(tar, level):
    blob = gzip.compress(tar, level)
    points = checkpoints_of(blob, 4 * KIB)
    assert {point.bits for point in points} == set(range(8))
    table = draft_of(tar, blob, 4 * KIB).open().table
    assert table.span_count == len(points)
    assert decode_all(table, blob) == tar


@pytest.mark.parametrize(
    "strategy", [zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE], ids=["fixed", "huffman", "rle"]
)
def test_blocks_of_every_kind_decode(tar, strategy):
    encoder = zlib.compressobj(6, zlib.DEFLATED, 31, 9, strategy)
    blob = encoder.compress(tar) + encoder.flush()
    assert decode_all(draft_of(tar, blob, 16 * KIB).open().table, blob) == tar


def test_stored_blocks_decode(tar):
    blob = gzip.compress(tar, 0)
    assert decode_all(draft_of(tar, blob, 16 * KIB).open().table, blob) == tar


@pytest.mark.parametrize("span_size", [16 * KIB, 256 * KIB, 4096 * KIB])
def test_spans_across_gzip_members_decode(tar, span_size):
    cuts = [0, 1, 700, 100_000, 100_001, 600_000, 1_000_000, len(tar)]
    blob = b"".join(gzip.compress(tar[start:end], 6) for start, end in pairwise(cuts))
    assert decode_all(draft_of(tar, blob, span_size).open().table, blob) == tar


def test_checkpoints_of_the_first_member_only_are_enough(tar):
    """So old builders wrote them: all other members are in the last span."""
    blob = gzip.compress(tar[:500_000]) + gzip.compress(tar[500_000:])
    draft = draft_of(tar, blob, 64 * KIB)
    points = [p for p in checkpoints_of(blob, 64 * KIB) if p.position < 400_000]
    digests = [sha256(blob[start:end]) for start, end in ranges_of(points, len(blob))]
    shorter = with_checkpoints(draft, points)
    table = replace(shorter, digests=digests).open().table
    assert decode_all(table, blob) == tar


def test_many_tiny_members_take_linear_time():
    tar = tars.member(b"f", words(1_000_000)) + tars.END
    pieces = [gzip.compress(tar[at : at + 100], 1) for at in range(0, len(tar), 100)]
    blob = b"".join(pieces)
    points = checkpoints_of(blob, 1 << 30)
    assert len(points) == 1
    assert decode_all(draft_of(tar, blob, 1 << 30).open().table, blob) == tar


def test_first_version_of_checkpoints_leaves_out_the_first(tar):
    blob = gzip.compress(tar)
    draft = draft_of(tar, blob, 128 * KIB, version=1)
    assert len(draft.checkpoints) == 12 + 32785 * draft.last_span
    assert decode_all(draft.open().table, blob) == tar


def named_gzip(data: bytes) -> bytes:
    """A gzip member with a file name in its header."""
    plain = gzip.compress(data, mtime=0)
    return plain[:3] + b"\x08" + plain[4:10] + b"layer.tar\0" + plain[10:]


def test_long_gzip_header_is_skipped(tar):
    blob = named_gzip(tar)
    table = draft_of(tar, blob, 128 * KIB).open().table
    assert table.compressed_range(0)[0] == 20
    assert decode_all(table, blob) == tar


def test_first_version_with_a_long_gzip_header_fails_in_its_first_span_only(tar):
    blob = named_gzip(tar)
    draft = draft_of(tar, blob, 128 * KIB, version=1)
    _, end = ranges_of(checkpoints_of(blob, 128 * KIB), len(blob))[0]
    table = draft.open(digests=[sha256(blob[10:end]), *draft.digests[1:]]).table
    with pytest.raises(InvalidLayer):
        table.decode(0, blob[10:end])
    rest = decode_all(table, blob, range(1, table.span_count))
    start = checkpoints_of(blob, 128 * KIB)[1].position
    assert rest[start:] == tar[start:]


def test_uncompressed_layer_is_cut_into_equal_spans(tar):
    table = plain_draft_of(tar, 100_000).open().table
    assert table.span_count == -(-len(tar) // 100_000)
    assert table.compressed_range(1) == (100_000, 200_000)
    assert table.compressed_range(table.span_count - 1)[1] == len(tar)
    assert decode_all(table, tar) == tar


@pytest.mark.parametrize("span_size", [16 * KIB, 4096 * KIB])
def test_padding_behind_the_archive_is_left_out(tar, span_size):
    padding = 300_000
    padded = tar + bytes(padding)
    blob = gzip.compress(padded)
    table = draft_of(padded, blob, span_size, padding=padding).open().table
    assert table.data_size == len(tar)
    assert decode_all(table, blob) == tar
    plain = replace(plain_draft_of(padded, 100_000), uncompressed_size=len(tar)).open().table
    assert decode_all(plain, padded) == tar


def test_index_equals_that_of_the_stream(tar):
    blob = gzip.compress(tar)
    assert describe_lazy(draft_of(tar, blob, 64 * KIB).open(), blob) == describe_tar(tar)


def test_order_of_entries_does_not_matter(draft):
    backwards = draft.open(entries=draft.entries[::-1])
    assert backwards.index == draft.open().index


# --- the table ------------------------------------------------------------------------------------


def test_spans_of_a_range_are_those_that_hold_it(tar):
    table = plain_draft_of(tar, 100_000).open().table
    assert table.spans_of(0, 1) == range(1)
    assert table.spans_of(99_999, 1) == range(1)
    assert table.spans_of(99_999, 2) == range(2)
    assert table.spans_of(100_000, 1) == range(1, 2)
    assert table.spans_of(150_000, 150_001) == range(1, 4)
    assert table.spans_of(0, 1 << 60) == range(table.span_count)
    assert len(table.spans_of(0, 0)) == len(table.spans_of(len(tar), 1)) == 0
    assert len(table.spans_of(-5, 5)) == 0


def test_spans_of_any_range_bring_it(tar):
    blob = gzip.compress(tar)
    table = draft_of(tar, blob, 32 * KIB).open().table
    noise = random.Random(3)
    for _ in range(30):
        start = noise.randrange(len(tar))
        size = noise.randrange(1, 80_000)
        data = decode_all(table, blob, table.spans_of(start, size))
        assert data[start : start + size] == tar[start : start + size]


def test_stored_table_reads_the_same(tar):
    blob = gzip.compress(tar)
    data = draft_of(tar, blob, 64 * KIB).to_bytes()
    prefetch = [SpanRange(3, 4), SpanRange(1, 3)]
    layer = open_ztoc(data, expected=Digest.of(data), blob_size=len(blob), prefetch=prefetch)
    stored = layer.table.to_bytes()
    table = open_span_table(stored)
    assert isinstance(table, SociTable)
    assert table.to_bytes() == stored
    assert list(table.prefetch) == list(layer.table.prefetch) == [3, 4, 1, 2]
    assert decode_all(table, blob) == tar


def test_stored_plain_table_reads_the_same(tar):
    stored = plain_draft_of(tar, 100_000).open().table.to_bytes()
    assert decode_all(open_span_table(stored), tar) == tar


def test_stored_table_that_makes_no_sense_is_damaged(draft):
    body = draft.open().table.to_bytes()[len(seal(Kind.SOCI, b"")) :]
    for broken in (b"", body[:20], body[:-1], body + b"\0", bytes(len(body))):
        with pytest.raises(StoreDamaged):
            open_span_table(seal(Kind.SOCI, broken))


def test_prefetch_is_advice(draft):
    data = draft.to_bytes()
    last = draft.last_span
    ranges = [SpanRange(last, 1 << 31), SpanRange(0, 0), SpanRange(0, 1), SpanRange(1 << 30, 9)]
    layer = open_ztoc(
        data, expected=Digest.of(data), blob_size=draft.compressed_size, prefetch=ranges
    )
    assert list(layer.table.prefetch) == [last, 0, 1]


# --- trust ----------------------------------------------------------------------------------------


def test_ztoc_that_is_not_the_pinned_one_is_refused(draft):
    with pytest.raises(DigestMismatch):
        open_ztoc(draft.to_bytes(), expected=Digest.of(b"another"), blob_size=draft.compressed_size)


def test_ztoc_of_another_blob_is_refused(draft):
    data = draft.to_bytes()
    with pytest.raises(InvalidLayer, match="another blob"):
        open_ztoc(data, expected=Digest.of(data), blob_size=draft.compressed_size + 1)


def test_changed_span_is_refused_before_it_is_decoded(tar):
    blob = gzip.compress(tar)
    table = draft_of(tar, blob, 64 * KIB).open().table
    for span in range(table.span_count):
        start, end = table.compressed_range(span)
        data = bytearray(blob[start:end])
        data[-1] ^= 1
        with pytest.raises(DigestMismatch) as caught:
            table.decode(span, bytes(data))
        assert caught.value.fields["offset"] == start
        with pytest.raises(DigestMismatch, match="wrong size"):
            table.decode(span, blob[start : end - 1])


def test_pinned_span_that_is_no_gzip_data_is_told(tar):
    blob = gzip.compress(tar)
    draft = draft_of(tar, blob, 64 * KIB)
    start, end = draft.open().table.compressed_range(1)
    for data in (b"\xff" * (end - start), bytes(end - start)):
        table = draft.open(digests=[draft.digests[0], sha256(data), *draft.digests[2:]]).table
        with pytest.raises(InvalidLayer) as caught:
            table.decode(1, data)
        assert caught.value.fields["offset"] == start


def test_span_that_ends_before_the_archive_does_is_told(tar):
    blob = gzip.compress(tar)
    draft = draft_of(tar, blob, 64 * KIB)
    table = draft.open(uncompressed_size=len(tar) + 1).table
    start, end = table.compressed_range(draft.last_span)
    with pytest.raises(InvalidLayer, match="too soon"):
        table.decode(draft.last_span, blob[start:end])


def test_garbage_between_members_is_told(tar):
    blob = gzip.compress(tar[:500_000]) + b"garbage" * 10
    draft = draft_of(tar, gzip.compress(tar), 1 << 30)
    changed = replace(draft, digests=[sha256(blob[10:])], compressed_size=len(blob))
    with pytest.raises(InvalidLayer, match="not gzip data"):
        changed.open().table.decode(0, blob[10:])


def test_bomb_in_a_span_gives_no_more_than_the_checkpoints_say(peak_memory):
    plain = bytes(200 * limits.MIB)
    blob = gzip.compress(plain, 1)
    checkpoints = pack_checkpoints([Point(10, 0, 0)])
    tar_size = 1024
    table = SociTable(
        blob_size=len(blob),
        data_size=tar_size,
        algorithm=Algorithm.GZIP,
        digests=hashlib.sha256(blob[10:]).digest(),
        checkpoints=checkpoints,
    )
    with peak_memory() as peak:
        (region,) = table.decode(0, blob[10:])
    assert region.data == bytes(tar_size)
    assert peak.bytes < 4 * limits.MIB


# --- checkpoints that lie -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "points",
    [
        [Point(9, 0, 0)],
        [Point(10, 1, 0)],
        [Point(11, 0, 1)],
        [Point(10, 0, 0), Point(20, 5, 8)],
        [Point(10, 0, 0), Point(10, 5, 0)],
        [Point(10, 0, 0), Point(20, 0, 0)],
        [Point(10, 0, 0), Point(20, -5, 0)],
        [Point(10, 0, 0), Point(-20, 5, 0)],
        [Point(10, 0, 0), Point(30, 9, 0), Point(20, 20, 0)],
        [Point(10, 0, 0), Point(1 << 62, 9, 0)],
    ],
    ids=str,
)
def test_impossible_checkpoints_are_refused(draft, points):
    with pytest.raises(InvalidLayer):
        with_checkpoints(draft, points).open()


@pytest.mark.parametrize("blob", [b"", b"\1\0\0\0", bytes(12), struct.pack("<iq", -1, 0)])
def test_checkpoints_without_checkpoints_are_refused(draft, blob):
    with pytest.raises(InvalidLayer):
        draft.open(checkpoints=blob)


def test_checkpoints_of_a_wrong_length_are_refused(draft):
    good = draft.checkpoints
    for blob in (good[:-1], good + b"\0", good + bytes(32785), good[:-32785] + bytes(1)):
        with pytest.raises(InvalidLayer):
            draft.open(checkpoints=blob)
    huge = struct.pack("<iq", (1 << 31) - 1, 1) + good[12:]
    with pytest.raises(InvalidLayer):
        draft.open(checkpoints=huge)


def test_number_of_digests_must_be_that_of_spans(draft):
    for digests in (draft.digests[:-1], [*draft.digests, draft.digests[0]]):
        with pytest.raises(InvalidLayer):
            draft.open(digests=digests)
        with pytest.raises(InvalidLayer):
            draft.open(digests=digests, last_span=len(digests) - 1)


def test_span_that_would_need_too_much_memory_is_refused(draft):
    with pytest.raises(LimitExceeded):
        draft.open(uncompressed_size=limits.SPAN_SIZE * 2)
    points = [Point(10, 0, 0), Point(20, limits.SPAN_SIZE + 1, 0)]
    with pytest.raises(LimitExceeded):
        with_checkpoints(draft, points, uncompressed_size=limits.SPAN_SIZE + 2).open()
    with pytest.raises(LimitExceeded):
        with_checkpoints(draft, [Point(10, 0, 0)], compressed_size=limits.SPAN_SIZE + 11).open()


@pytest.mark.parametrize(
    ("span_size", "size"), [(0, None), (-1, None), (100_000, 5), (1, None), (1 << 40, 1 << 41)]
)
def test_impossible_plain_spans_are_refused(tar, span_size, size):
    draft = plain_draft_of(tar, 100_000)
    zinfo = write_tar_zinfo(span_size, len(tar) if size is None else size)
    with pytest.raises(InvalidLayer):
        draft.open(checkpoints=zinfo)


@pytest.mark.parametrize("zinfo", [b"", b"\xff\xff\xff\xff", bytes(16)])
def test_plain_spans_that_are_no_flatbuffer_are_refused(tar, zinfo):
    with pytest.raises(InvalidLayer):
        plain_draft_of(tar, 100_000).open(checkpoints=zinfo)


def test_window_is_the_one_of_the_checkpoint(tar):
    """Another window gives other bytes: it is the zTOC's digest that vouches for it."""
    blob = gzip.compress(tar, 9)
    draft = draft_of(tar, blob, 64 * KIB)
    points = [replace(p, window=bytes(WINDOW)) for p in checkpoints_of(blob, 64 * KIB)]
    table = draft.open(checkpoints=pack_checkpoints(points)).table
    assert decode_all(table, blob) != tar


# --- members that lie -----------------------------------------------------------------------------


SMALL = Draft(
    compressed_size=1000,
    uncompressed_size=10_240,
    digests=[sha256(b"")],
    checkpoints=pack_checkpoints([Point(10, 0, 0)]),
)


def open_entries(*entries: Entry):
    return SMALL.open(entries=entries)


@pytest.mark.parametrize(
    "entries",
    [
        [Entry(offset=0)],
        [Entry(offset=-512)],
        [Entry(offset=513)],
        [Entry(offset=511)],
        [Entry(size=-1)],
        [Entry(size=10_240)],
        [Entry(offset=512, size=1 << 62)],
        [Entry(offset=10_752)],
        [Entry(offset=1 << 62)],
        [Entry(b"a", offset=512, size=1), Entry(b"b", offset=1024)],
        [Entry(b"a", offset=512, size=513), Entry(b"b", offset=1536)],
        [Entry(b"a"), Entry(b"b")],
    ],
    ids=str,
)
def test_members_where_none_can_be_are_refused(entries):
    with pytest.raises(InvalidLayer):
        open_entries(*entries)


@pytest.mark.parametrize(
    "entry",
    [
        Entry(type=b""),
        Entry(type=b"whiteout"),
        Entry(mtime=b"yesterday"),
        Entry(mtime=b"2024-13-01T00:00:00Z"),
        Entry(mtime=b"2024-02-30T00:00:00Z"),
        Entry(mtime=b"2024-01-01T24:00:00Z"),
        Entry(mtime=b"2024-01-01T00:00:00"),
        Entry(mtime=b"2024-01-01T00:00:00+24:00"),
        Entry(type=b"char", major=-1),
        Entry(type=b"block", minor=1 << 32),
        Entry(name=b"a\0b"),
        Entry(type=b"symlink"),
        Entry(uid=(1 << 32) - 1),
        Entry(records=((b"SCHILY.xattr.", b"x"),)),
        Entry(records=((b"SCHILY.xattr.user.a\0b", b"x"),)),
    ],
    ids=str,
)
def test_impossible_members_are_refused(entry):
    with pytest.raises(InvalidLayer):
        open_entries(entry)


def test_sizes_of_other_members_mean_nothing():
    layer = open_entries(Entry(b"d", b"dir", size=1 << 40), Entry(b"f", offset=1024))
    assert layer.table.data_size == 10_240


@pytest.mark.parametrize(
    "records",
    [
        ((b"GNU.sparse.map", b"0,5"),),
        ((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")),
        ((b"path", b"x"), (b"GNU.sparse.size", b"0")),
    ],
)
def test_sparse_files_are_refused(records):
    with pytest.raises(Unsupported, match="sparse"):
        open_entries(Entry(records=records))


# --- zTOCs that are none --------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["", "0.8", "1.0", "0.9 ", "0.9\0"])
def test_other_versions_are_unsupported(version):
    with pytest.raises(Unsupported, match="version"):
        SMALL.open(version=version)


@pytest.mark.parametrize("algorithm", [3, 0, -1])
def test_other_compressions_are_unsupported(algorithm):
    with pytest.raises(Unsupported, match="compression"):
        SMALL.open(algorithm=algorithm)


def test_compression_is_gzip_unless_stated(tar):
    blob = gzip.compress(tar)
    table = draft_of(tar, blob, 64 * KIB).open(algorithm=None).table
    assert decode_all(table, blob) == tar


def test_spans_without_digests_are_unsupported():
    with pytest.raises(Unsupported, match="verified"):
        SMALL.open(digests=[])
    with pytest.raises(Unsupported, match="SHA-256"):
        SMALL.open(digests=["sha512:" + "a" * 128])


@pytest.mark.parametrize("digest", ["", "sha256:abc", "md5:" + "a" * 32, "\udcff", "é"])
def test_malformed_digests_are_refused(digest):
    with pytest.raises(InvalidLayer):
        SMALL.open(digests=[digest.encode("utf-8", "surrogateescape")])


@pytest.mark.parametrize("part", ["toc", "spans"])
def test_missing_parts_are_refused(part):
    with pytest.raises(InvalidLayer, match="missing"):
        SMALL.open(parts=SMALL.parts - {part})


@pytest.mark.parametrize("sizes", [(0, 1), (-1, 1), (1, -1)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(InvalidLayer):
        SMALL.open(compressed_size=sizes[0], uncompressed_size=sizes[1])


def test_layer_beyond_the_limit_is_refused():
    with pytest.raises(LimitExceeded):
        SMALL.open(uncompressed_size=limits.TAR_SIZE + 1)


def test_ztoc_beyond_the_limit_is_refused(draft, monkeypatch):
    monkeypatch.setattr(limits, "ZTOC_SIZE", len(draft.to_bytes()) - 1)
    with pytest.raises(LimitExceeded):
        draft.open()


def test_too_many_members_are_refused(draft, monkeypatch):
    monkeypatch.setattr(limits, "TAR_ENTRIES", len(draft.entries) - 1)
    with pytest.raises(LimitExceeded):
        draft.open()


def refuse(data: bytes) -> None:
    with pytest.raises((InvalidLayer, Unsupported, LimitExceeded)):
        open_ztoc(data, expected=Digest.of(data), blob_size=1000)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\4\0\0\0",
        bytes(64),
        b"\xff" * 64,
        b"PK\3\4 no flatbuffer at all",
        # a vtable before the buffer, and one that starts inside and ends outside
        struct.pack("<Ii", 4, 100),
        struct.pack("<IiHH", 4, -4, 400, 4),
        struct.pack("<IiHHH", 4, -4, 5, 4, 0),
    ],
)
def test_arbitrary_bytes_are_refused(data):
    refuse(data)


def test_every_prefix_is_refused():
    data = replace(SMALL, entries=(Entry(),), checkpoints=b"").to_bytes()
    for end in range(0, len(data), 3):
        refuse(data[:end])


def test_one_table_a_million_times_is_refused_at_once():
    """Offsets may all lead to one place, so a few megabytes could describe many terabytes."""
    builder = flatbuffers.Builder(1 << 20)
    key = builder.CreateString(b"SCHILY.xattr.user.x")
    value = builder.CreateString(bytes(1 << 20))
    builder.StartObject(2)
    builder.PrependUOffsetTRelativeSlot(0, key, 0)
    builder.PrependUOffsetTRelativeSlot(1, value, 0)
    pair = builder.EndObject()
    builder.StartVector(4, 100_000, 4)
    for _ in range(100_000):
        builder.PrependUOffsetTRelative(pair)
    pairs = builder.EndVector()
    kind = builder.CreateString(b"reg")
    builder.StartObject(14)
    builder.PrependUOffsetTRelativeSlot(1, kind, 0)
    builder.PrependInt64Slot(2, 512, 0)
    builder.PrependUOffsetTRelativeSlot(13, pairs, 0)
    entry = builder.EndObject()
    builder.StartVector(4, 1, 4)
    builder.PrependUOffsetTRelative(entry)
    entries = builder.EndVector()
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, entries, 0)
    toc = builder.EndObject()
    builder.StartObject(1)
    spans = builder.EndObject()
    version = builder.CreateString("0.9")
    builder.StartObject(6)
    builder.PrependUOffsetTRelativeSlot(0, version, 0)
    builder.PrependInt64Slot(2, 1000, 0)
    builder.PrependUOffsetTRelativeSlot(4, toc, 0)
    builder.PrependUOffsetTRelativeSlot(5, spans, 0)
    builder.Finish(builder.EndObject())
    data = bytes(builder.Output())
    with pytest.raises(LimitExceeded):
        open_ztoc(data, expected=Digest.of(data), blob_size=1000)
