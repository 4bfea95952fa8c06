"""The gzip decoder: members, headers, damage, bombs."""

import gzip
import random
import struct
import zlib

import pytest

from imgvol import limits
from imgvol.errors import InvalidLayer, LimitExceeded
from imgvol.layers.compression import Compression, iter_decoded, open_decoder
from imgvol.layers.gzip import GzipDecoder
from support import framings

TEXT = random.Random(1).randbytes(1000) + b"layer" * 2000


def decode(pieces) -> bytes:
    decoder = GzipDecoder()
    decoded = b"".join(out for piece in pieces for out in decoder.feed(piece))
    decoder.finish()
    return decoded


def drain(pieces) -> None:
    """Decodes with all limits and keeps nothing."""
    for piece in iter_decoded(pieces, Compression.GZIP):
        assert len(piece) <= limits.DECODED_PIECE


def decoded(data: bytes) -> bytes:
    return framings.in_every_framing(data, decode)


def error_of(data: bytes) -> InvalidLayer:
    with pytest.raises(InvalidLayer) as caught:
        decode([data])
    for pieces in framings.iter_framings(data):
        # How far the library had read when it saw the damage depends on the framing.
        assert framings.outcome(lambda pieces=pieces: decode(pieces))[0] is InvalidLayer
    return caught.value


def member(
    content: bytes = TEXT,
    *,
    extra: bytes | None = None,
    name: bytes | None = None,
    comment: bytes | None = None,
    has_checksum: bool = False,
    flags: int = 0,
) -> bytes:
    flags |= 2 * has_checksum | 4 * (extra is not None)
    flags |= 8 * (name is not None) | 16 * (comment is not None)
    head = b"\x1f\x8b\x08" + bytes([flags]) + bytes(6)
    if extra is not None:
        head += struct.pack("<H", len(extra)) + extra
    head += b"".join(text + b"\0" for text in (name, comment) if text is not None)
    if has_checksum:
        head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    return head + gzip.compress(content)[10:]


@pytest.mark.parametrize("content", [b"", b"x", TEXT])
def test_one_member(content):
    assert decoded(gzip.compress(content)) == content


def test_members_follow_one_another():
    contents = [b"", TEXT, b"", b"x", TEXT[:100], b""]
    assert decoded(b"".join(map(gzip.compress, contents))) == b"".join(contents)


@pytest.mark.parametrize(
    "fields",
    [
        {"extra": b""},
        {"extra": struct.pack("<2sH", b"SG", 22) + b"0000000000000000STARGZ"},
        {"name": b"layer.tar"},
        {"name": b""},
        {"comment": b"c" * 300},
        {"has_checksum": True},
        {"extra": b"e" * 9, "name": b"n", "comment": b"c", "has_checksum": True},
    ],
)
def test_header_fields(fields):
    """isal itself refuses a valid header checksum that is cut in two."""
    assert decoded(member(**fields) + member(**fields)) == TEXT * 2


def test_output_is_bounded_however_large_the_input():
    data = gzip.compress(bytes(10 * limits.MIB))
    decoder = GzipDecoder()
    sizes = [len(piece) for piece in decoder.feed(data)]
    assert sum(sizes) == 10 * limits.MIB
    assert max(sizes) <= limits.DECODED_PIECE


@pytest.mark.parametrize("missing", [1, 4, 5, 8, 9, 50])
def test_truncation_is_an_error(missing):
    """The library itself says nothing."""
    data = gzip.compress(TEXT)[:-missing]
    error = error_of(data)
    assert error.fields["offset"] == len(data)


@pytest.mark.parametrize("length", range(1, 10))
def test_truncated_header_of_a_second_member_is_an_error(length):
    error_of(gzip.compress(TEXT) + gzip.compress(b"x")[:length])


def test_nothing_is_not_gzip():
    error_of(b"")


@pytest.mark.parametrize(
    "garbage", [b"\0", b"x", b"\x1f\x8c", b"\x1f\x8b\x07", b"x" * 9, bytes(600)]
)
def test_trailing_garbage_is_an_error(garbage):
    """Fewer than ten bytes of it pass the library in silence."""
    data = gzip.compress(TEXT)
    error = error_of(data + garbage)
    assert error.fields["offset"] == len(data)
    assert "garbage" in error.message


def test_wrong_start_is_an_error():
    assert error_of(b"plain text").fields["offset"] == 0


@pytest.mark.parametrize("place", [-8, -4], ids=["CRC", "ISIZE"])
def test_wrong_trailer_is_an_error(place):
    data = bytearray(gzip.compress(TEXT))
    data[place] ^= 1
    error_of(bytes(data))


def test_wrong_header_checksum_is_an_error():
    data = bytearray(member(has_checksum=True))
    data[10] ^= 1
    assert error_of(bytes(data)).fields["offset"] == 0


def test_reserved_flag_is_an_error():
    error_of(member(flags=0x20))


def test_damaged_data_is_an_error():
    data = bytearray(gzip.compress(TEXT))
    data[200] ^= 0xFF
    error_of(bytes(data))


def test_endless_header_is_refused():
    head = b"\x1f\x8b\x08\x08" + bytes(6)
    pieces = [head] + [b"n" * 4096] * 100
    with pytest.raises(LimitExceeded) as caught:
        decode(pieces)
    assert caught.value.fields["limit"] == "GZIP_HEADER_SIZE"


def test_bomb_meets_the_ratio_with_little_memory_cve_2017_14992(small_allowance, peak_memory):
    """10 GiB of zeros in 10 MiB, one huge member. Docker ran out of memory over such a layer."""
    block = zlib.compressobj(9, wbits=-15)
    # One deflate block of zeros, ended at a byte boundary, can be repeated.
    unit = block.compress(bytes(limits.MIB)) + block.flush(zlib.Z_FULL_FLUSH)
    bomb = b"\x1f\x8b\x08" + bytes(7) + unit * (10 * 1024)
    assert len(bomb) < 12 * limits.MIB
    with pytest.raises(LimitExceeded) as caught, peak_memory() as peak:
        drain([bomb])
    assert caught.value.fields["limit"] == "DECOMPRESSION_RATIO"
    assert peak.bytes < 4 * limits.MIB


def test_bomb_of_many_members_meets_the_same_limits(small_allowance, peak_memory):
    unit = gzip.compress(bytes(limits.MIB))
    with pytest.raises(LimitExceeded), peak_memory() as peak:
        drain(unit for _ in range(10 * 1024))
    assert peak.bytes < 4 * limits.MIB


def test_input_and_output_are_counted():
    decoder = open_decoder(Compression.GZIP)
    data = gzip.compress(TEXT)
    list(decoder.feed(data))
    assert (decoder.received, decoder.produced) == (len(data), len(TEXT))
