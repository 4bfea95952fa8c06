"""Telling compressions apart, and what all decoders have in common."""

import bz2
import gzip
import lzma

import pytest
import zstandard

from imgvol import limits
from imgvol.errors import InvalidLayer, LimitExceeded, Unsupported
from imgvol.layers.compression import Compression, iter_decoded, open_decoder, sniff

TEXT = b"layer" * 1000
BLOBS = {
    Compression.NONE: TEXT,
    Compression.GZIP: gzip.compress(TEXT),
    Compression.ZSTD: zstandard.ZstdCompressor().compress(TEXT),
}
LZ4 = b"\x04\x22\x4d\x18\x64\x40\xa7" + bytes(20)


@pytest.mark.parametrize("compression", BLOBS)
@pytest.mark.parametrize("length", [4, 10, 100])
def test_sniff(compression, length):
    assert sniff(BLOBS[compression][:length]) is compression


@pytest.mark.parametrize("number", range(16))
def test_sniff_knows_skippable_zstd_frames(number):
    assert sniff(bytes([0x50 + number]) + b"\x2a\x4d\x18" + bytes(4)) is Compression.ZSTD


@pytest.mark.parametrize(
    "head",
    [b"", b"P", b"P*M\x17", b"BZh9", b"BZhello.txt\0", b"usr/", bytes(512), b"\x1f\x9d\x90a"],
)
def test_sniff_takes_everything_else_for_plain_data(head):
    assert sniff(head) is Compression.NONE


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (bz2.compress(TEXT), "bzip2"),
        (bz2.compress(b""), "bzip2"),
        (lzma.compress(TEXT), "xz"),
        (lzma.compress(TEXT)[:4], "xz"),
        (LZ4, "lz4"),
    ],
)
def test_sniff_names_what_it_does_not_support(head, name):
    with pytest.raises(Unsupported, match=name):
        sniff(head)


@pytest.mark.parametrize("size", [1, 3, 4096, 1 << 20])
@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("compression", BLOBS)
def test_iter_decoded(compression, is_known, size):
    blob = BLOBS[compression]
    pieces = [blob[i : i + size] for i in range(0, len(blob), size)]
    assert b"".join(iter_decoded(pieces, compression if is_known else None)) == TEXT


def test_iter_decoded_of_nothing_is_nothing():
    assert list(iter_decoded([])) == []
    assert list(iter_decoded([b"", b""])) == []


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.ZSTD])
def test_iter_decoded_of_nothing_is_an_error_where_something_was_promised(compression):
    with pytest.raises(InvalidLayer):
        list(iter_decoded([], compression))


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.ZSTD])
def test_blob_is_what_it_was_promised_to_be(compression):
    with pytest.raises(InvalidLayer):
        list(iter_decoded([TEXT], compression))


def test_plain_pieces_are_bounded_bytes():
    content = bytes(3 * limits.DECODED_PIECE + 1)
    pieces = list(open_decoder(Compression.NONE).feed(memoryview(content)))
    assert b"".join(pieces) == content
    assert max(map(len, pieces)) <= limits.DECODED_PIECE
    assert {type(piece) for piece in pieces} == {bytes}


@pytest.mark.parametrize("compression", BLOBS)
def test_layer_larger_than_the_limit_is_refused(compression, monkeypatch):
    monkeypatch.setattr(limits, "TAR_SIZE", len(TEXT) - 1)
    with pytest.raises(LimitExceeded):
        list(iter_decoded([BLOBS[compression]], compression))


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_output_of_many_small_units_is_joined(compress):
    """A layer with a frame or member for each small file does not become as many pieces."""
    contents = [bytes([number % 251]) * (number % 7000) for number in range(2000)]
    pieces = list(iter_decoded([b"".join(map(compress, contents))]))
    assert b"".join(pieces) == b"".join(contents)
    assert max(map(len, pieces)) <= limits.DECODED_PIECE
    assert len(pieces) < 40
