"""Chunks, packed into spans."""

import hashlib

import pytest

from imgvol import limits
from imgvol.errors import DigestMismatch, InvalidLayer, LimitExceeded
from imgvol.layers.compression import Compression
from imgvol.layers.lazy.chunks import ChunkTable, ChunkTableBuilder
from imgvol.layers.lazy.open import open_span_table
from support.toc_blobs import compress

BOTH = pytest.mark.parametrize("compression", [Compression.GZIP, Compression.ZSTD])


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def builder(size: int, compression: Compression = Compression.GZIP) -> ChunkTableBuilder:
    return ChunkTableBuilder(compression, blob_size=size, data_end=size)


def one_span(
    decoded: bytes, *chunks: tuple[int, bytes], compression: Compression = Compression.GZIP
) -> tuple[ChunkTable, bytes]:
    """A blob of one span and its table, chunks given as their place there and what is pinned."""
    blob = compress(decoded, compression)
    making = builder(len(blob), compression)
    for inner, data in chunks:
        making.add(offset=0, inner=inner, size=len(data), digest=digest(data))
    return making.finish(), blob


@BOTH
def test_decoding_gives_the_chunks_of_a_span_by_position(compression):
    table, blob = one_span(b"..bb.aaa..", (5, b"aaa"), (2, b"bb"), compression=compression)
    assert table.decode(0, blob) == [(0, b"aaa"), (3, b"bb")]


@BOTH
def test_wrong_content_is_a_digest_mismatch(compression):
    table, blob = one_span(b"aaabbb", (0, b"aaa"), (3, b"bxb"), compression=compression)
    with pytest.raises(DigestMismatch) as caught:
        table.decode(0, blob)
    assert caught.value.fields["actual"] == f"sha256:{digest(b'bbb').hex()}"
    assert caught.value.fields["expected"] == f"sha256:{digest(b'bxb').hex()}"


@BOTH
def test_chunks_without_a_digest_survive_storing(compression):
    blob = compress(b"aaabbb", compression)
    making = builder(len(blob), compression)
    making.add(offset=0, inner=0, size=3, digest=None)
    making.add(offset=0, inner=3, size=3, digest=digest(b"bbb"))
    for table in (making.finish(), open_span_table(making.finish().to_bytes())):
        assert not table.is_pinned
        assert table.decode(0, blob) == [(0, b"aaa"), (3, b"bbb")]
        with pytest.raises(DigestMismatch):
            table.decode(0, compress(b"aaaxxx", compression))


@BOTH
def test_a_digest_of_zeros_is_a_digest(compression):
    blob = compress(b"aaa", compression)
    making = builder(len(blob), compression)
    making.add(offset=0, inner=0, size=3, digest=bytes(32))
    table = making.finish()
    assert table.is_pinned
    with pytest.raises(DigestMismatch):
        table.decode(0, blob)


@BOTH
def test_a_span_that_is_too_short_is_refused(compression):
    table, blob = one_span(b"aaa", (0, b"aaab"), compression=compression)
    with pytest.raises(InvalidLayer, match="shorter"):
        table.decode(0, blob)


def test_a_span_of_another_size_than_asked_for_is_refused():
    table, blob = one_span(b"aaa", (0, b"aaa"))
    for data in (b"", blob[:-1], blob + b"\0"):
        with pytest.raises(InvalidLayer, match="wrong size"):
            table.decode(0, data)


def test_damage_is_reported_at_its_place_in_the_blob():
    good = compress(b"good", Compression.GZIP)
    making = builder(len(good) + 4)
    making.add(offset=len(good), inner=0, size=1, digest=digest(b"x"))
    with pytest.raises(InvalidLayer) as caught:
        making.finish().decode(0, b"junk")
    assert caught.value.fields["offset"] == len(good)


def test_decoding_stops_behind_the_last_chunk(peak_memory):
    # A bomb behind the one byte that is wanted.
    table, blob = one_span(b"a" + bytes(50 * limits.MIB), (0, b"a"))
    start, end = table.compressed_range(0)
    with peak_memory() as peak:
        assert table.decode(0, blob[start:end]) == [(0, b"a")]
    assert peak.bytes < 3 * limits.MIB


def test_spans_of_asks_for_no_more_than_needed():
    making = builder(1000)
    # In the data file: span 1, span 0, span 2, each ten bytes.
    for offset in (300, 0, 600):
        making.add(offset=offset, inner=0, size=10, digest=bytes(32))
    table = making.finish()
    assert list(table.spans_of(0, 10)) == [1]
    assert list(table.spans_of(9, 2)) == [0, 1]
    assert list(table.spans_of(10, 20)) == [0, 2]
    assert list(table.spans_of(29, 100)) == [2]
    assert list(table.spans_of(-5, 6)) == [1]
    for nothing in ((0, 0), (30, 1), (-5, 5), (5, -1)):
        assert list(table.spans_of(*nothing)) == []


def test_ranges_end_before_the_next_span_and_are_bounded():
    making = builder(10 * limits.MIB)
    for offset in (0, 100, limits.MIB):
        making.add(offset=offset, inner=0, size=10, digest=bytes(32))
    table = making.finish()
    assert table.compressed_range(0) == (0, 100)
    start, end = table.compressed_range(1)
    assert start == 100
    assert 1000 < end - start < 100 * limits.KIB
    start, end = table.compressed_range(2)
    assert 1000 < end - start < 100 * limits.KIB


def test_known_ends_are_kept():
    making = builder(1000)
    making.add(offset=0, inner=0, size=10, digest=bytes(32), end=60)
    making.add(offset=100, inner=0, size=10, digest=bytes(32))
    assert making.finish().compressed_range(0) == (0, 60)


@pytest.mark.parametrize("end", [0, 5, 101, 2000])
def test_an_end_that_cannot_be_is_refused(end):
    making = builder(1000)
    making.add(offset=5, inner=0, size=10, digest=bytes(32), end=end)
    making.add(offset=100, inner=0, size=10, digest=bytes(32))
    with pytest.raises(InvalidLayer):
        making.finish()


def test_two_ends_of_one_span_are_refused():
    making = builder(1000)
    making.add(offset=0, inner=0, size=10, digest=bytes(32), end=60)
    with pytest.raises(InvalidLayer, match="two ends"):
        making.add(offset=0, inner=10, size=10, digest=bytes(32), end=61)


def test_chunks_that_overlap_are_refused():
    making = builder(1000)
    making.add(offset=5, inner=0, size=10, digest=bytes(32))
    making.add(offset=5, inner=9, size=10, digest=bytes(32))
    with pytest.raises(InvalidLayer, match="overlap"):
        making.finish()


@pytest.mark.parametrize("offset", [-1, 1000, 1 << 62])
def test_a_chunk_outside_of_the_blob_is_refused(offset):
    with pytest.raises(InvalidLayer, match="outside"):
        builder(1000).add(offset=offset, inner=0, size=1, digest=bytes(32))


def test_a_span_that_memory_should_not_hold_is_refused():
    making = builder(1000)
    making.add(offset=0, inner=0, size=limits.SPAN_SIZE, digest=bytes(32))
    with pytest.raises(LimitExceeded):
        making.add(offset=1, inner=1, size=limits.SPAN_SIZE, digest=bytes(32))
    with pytest.raises(LimitExceeded):
        making.add(offset=1, inner=1 << 62, size=1, digest=bytes(32))


def test_a_bomb_is_refused(small_allowance):
    making = builder(1000)
    making.add(offset=0, inner=0, size=limits.SPAN_SIZE, digest=bytes(32))
    with pytest.raises(LimitExceeded, match="bomb"):
        making.add(offset=1, inner=0, size=1, digest=bytes(32))


def test_prefetch_is_what_starts_before_the_landmark():
    making = builder(1000)
    for offset in (300, 0, 600):
        making.add(offset=offset, inner=0, size=10, digest=bytes(32))
    assert list(making.finish().prefetch) == []
    assert list(making.finish(prefetch_end=300).prefetch) == [0]
    assert list(making.finish(prefetch_end=301).prefetch) == [0, 1]


def test_a_layer_without_content_has_no_spans():
    table = builder(10).finish()
    assert (table.span_count, table.data_size) == (0, 0)
    assert list(table.spans_of(0, 100)) == []
