"""The zstd decoder: frames, blocks, damage, bombs."""

import random
import resource
import struct

import pytest
import zstandard

from imgvol import limits
from imgvol.errors import InvalidLayer, LimitExceeded, Unsupported
from imgvol.layers.compression import Compression, iter_decoded
from imgvol.layers.zstd import ZstdDecoder
from support import framings

TEXT = random.Random(1).randbytes(1000) + b"layer" * 2000
MAGIC = b"\x28\xb5\x2f\xfd"
RAW, RLE, COMPRESSED, RESERVED = range(4)


def decode(pieces) -> bytes:
    decoder = ZstdDecoder()
    decoded = b"".join(out for piece in pieces for out in decoder.feed(piece))
    decoder.finish()
    return decoded


def drain(pieces) -> int:
    """Decodes with all limits, and keeps only the size."""
    size = 0
    for piece in iter_decoded(pieces, Compression.ZSTD):
        assert len(piece) <= limits.DECODED_PIECE
        size += len(piece)
    return size


def decoded(data: bytes) -> bytes:
    return framings.in_every_framing(data, decode)


def error_of(data: bytes) -> InvalidLayer:
    with pytest.raises(InvalidLayer) as caught:
        decode([data])
    for pieces in framings.iter_framings(data):
        assert framings.outcome(lambda pieces=pieces: decode(pieces))[0] is InvalidLayer
    return caught.value


def compress(content: bytes = TEXT, level: int = 3, **options) -> bytes:
    return zstandard.ZstdCompressor(level=level, **options).compress(content)


def frame(*blocks: bytes, descriptor: int = 0, window: int = 0x70, rest: bytes = b"") -> bytes:
    """A frame by hand; window 0x70 is 16 MiB."""
    return MAGIC + bytes([descriptor, window]) + rest + b"".join(blocks)


def block(kind: int, size: int, body: bytes = b"", *, last: bool = False) -> bytes:
    return struct.pack("<I", size << 3 | kind << 1 | last)[:3] + body


def skippable(body: bytes, number: int = 0) -> bytes:
    return bytes([0x50 + number]) + b"\x2a\x4d\x18" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("content", [b"", b"x", TEXT, bytes(300_000)], ids=len)
@pytest.mark.parametrize("options", [{}, {"write_checksum": True}, {"write_content_size": False}])
def test_one_frame(content, options):
    assert decoded(compress(content, **options)) == content


def test_frame_of_many_blocks():
    content = random.Random(2).randbytes(50_000) + bytes(900_000) + b"ab" * 200_000
    data = compress(content, write_checksum=True)
    assert decode([data]) == content
    assert decode([data[i : i + 7] for i in range(0, len(data), 7)]) == content


def test_frames_follow_one_another_with_skippable_ones_between():
    """As in zstd:chunked, where the table of contents is in a skippable frame at the end."""
    contents = [TEXT, b"", b"x", TEXT[:50]]
    frames = [
        compress(content) + skippable(b"toc" * number, number)
        for number, content in enumerate(contents)
    ]
    data = skippable(b"") + b"".join(frames)
    assert decoded(data) == b"".join(contents)


def test_only_skippable_frames_hold_nothing():
    assert decoded(skippable(b"x" * 100)) == b""


def test_blocks_of_every_kind_by_hand():
    blocks = (
        block(RAW, 3, b"abc"),
        block(RLE, 5, b"x"),
        block(RAW, 0),
        block(RLE, 0, b"y"),
        block(RAW, 2, b"de", last=True),
    )
    assert decoded(frame(*blocks)) == b"abcxxxxxde"


def test_output_is_bounded_however_large_the_input():
    """L24: the library's push interface returned 32 MB for 1,000 bytes."""
    data = compress(bytes(50 * limits.MIB))
    assert len(data) < 10_000
    decoder = ZstdDecoder()
    sizes = [len(piece) for piece in decoder.feed(data)]
    assert sum(sizes) == 50 * limits.MIB
    assert max(sizes) <= limits.DECODED_PIECE


def test_output_of_block_begun_in_an_earlier_push_is_bounded():
    data = compress(random.Random(3).randbytes(200_000) + bytes(3 * limits.MIB))
    for cut in range(1, len(data), 1009):
        decoder = ZstdDecoder()
        for part in (data[:cut], data[cut:]):
            assert all(len(piece) <= limits.DECODED_PIECE for piece in decoder.feed(part))
        decoder.finish()


@pytest.mark.parametrize("write_checksum", [False, True])
def test_truncation_is_an_error_at_every_byte(write_checksum):
    """The library itself says nothing."""
    data = compress(b"x" + TEXT[:60], write_checksum=write_checksum)
    for length in range(len(data)):
        with pytest.raises(InvalidLayer, match="cut off") as caught:
            decode([data[:length]])
        assert caught.value.fields["offset"] == length


def test_truncated_skippable_frame_is_an_error():
    for length in range(1, 20):
        error_of(compress(b"x") + skippable(b"x" * 12)[:length])


@pytest.mark.parametrize("garbage", [b"\0", b"\x28x", b"\x28\xb5\x2f\xfc", b"\x4f", bytes(600)])
def test_trailing_garbage_is_an_error(garbage):
    data = compress()
    error = error_of(data + garbage)
    assert error.fields["offset"] == len(data)
    assert "garbage" in error.message


def test_wrong_start_is_an_error():
    assert error_of(b"plain text").fields["offset"] == 0
    error_of(b"")


def test_wrong_checksum_is_an_error():
    data = bytearray(compress(write_checksum=True))
    data[-1] ^= 1
    error_of(bytes(data))


def test_content_that_is_not_as_long_as_the_header_says_is_an_error():
    blocks = block(RAW, 3, b"abc", last=True)
    assert decoded(frame(blocks, descriptor=0x20, window=3)) == b"abc"
    for size in (2, 4):
        error_of(frame(blocks, descriptor=0x20, window=size))


def test_damaged_data_is_an_error():
    data = bytearray(compress(TEXT, write_checksum=True))
    data[100] ^= 0xFF
    error_of(bytes(data))


@pytest.mark.parametrize(
    "bad",
    [
        block(RESERVED, 1, b"x", last=True),
        block(RAW, 128 * limits.KIB + 1, bytes(128 * limits.KIB + 1), last=True),
        block(RLE, 128 * limits.KIB + 1, b"x", last=True),
        block(COMPRESSED, (1 << 21) - 1, b"x" * 1000, last=True),
    ],
)
def test_impossible_block_is_an_error_where_it_is(bad):
    with pytest.raises(InvalidLayer) as caught:
        decode([frame(block(RAW, 1, b"x"), bad)])
    assert caught.value.fields["offset"] == 6 + 4


def test_block_is_no_larger_than_a_small_window():
    error_of(frame(block(RLE, 1025, b"x", last=True), window=0))
    assert decoded(frame(block(RLE, 1024, b"x", last=True), window=0)) == b"x" * 1024


def test_reserved_flag_is_an_error():
    error_of(frame(block(RAW, 0, last=True), descriptor=0x08))


def test_dictionary_is_refused():
    with pytest.raises(Unsupported):
        decode([frame(block(RAW, 0, last=True), descriptor=0x01, rest=b"\x07")])
    assert decoded(frame(block(RAW, 0, last=True), descriptor=0x01, rest=b"\0")) == b""


def test_largest_window_is_that_of_long_27():
    last = block(RAW, 1, b"x", last=True)
    assert decoded(frame(last, window=17 << 3)) == b"x"
    for window in (17 << 3 | 1, 18 << 3, 31 << 3 | 7):
        with pytest.raises(LimitExceeded) as caught:
            decode([frame(last, window=window)])
        assert caught.value.fields["limit"] == "ZSTD_WINDOW"


def test_content_size_beyond_any_layer_is_refused_at_once():
    size = struct.pack("<Q", 1 << 62)
    with pytest.raises(LimitExceeded) as caught:
        decode([frame(descriptor=0xC0, rest=size)])
    assert caught.value.fields["limit"] == "TAR_SIZE"


def bomb(blocks: int) -> bytes:
    """Zeros, 128 KiB in four bytes each."""
    zeros = block(RLE, 128 * limits.KIB, b"\0")
    return frame(zeros * blocks, block(RLE, 1, b"\0", last=True))


def test_bomb_meets_the_ratio_with_little_memory(small_allowance, peak_memory):
    """10 GiB of zeros in 320 KiB."""
    data = bomb(80 * 1024)
    assert len(data) < 330_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LimitExceeded) as caught, peak_memory() as peak:
        drain(data[start : start + 4096] for start in range(0, len(data), 4096))
    assert caught.value.fields["limit"] == "DECOMPRESSION_RATIO"
    assert peak.bytes < 4 * limits.MIB
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024  # KiB: the frame's window of 16 MiB and some


@pytest.mark.parametrize(
    "unit",
    [compress(bytes(64 * limits.MIB)), compress(bytes(limits.MIB)) + skippable(b"")],
    ids=["frames", "with skippable frames"],
)
def test_bomb_of_many_frames_meets_the_same_limits(unit, small_allowance, peak_memory):
    with pytest.raises(LimitExceeded) as caught, peak_memory() as peak:
        drain(unit for _ in range(10 * 1024))
    assert caught.value.fields["limit"] == "DECOMPRESSION_RATIO"
    assert peak.bytes < 4 * limits.MIB


def test_zeros_within_the_free_allowance_are_no_bomb(small_allowance):
    data = compress(bytes(limits.DECOMPRESSION_FREE))
    assert drain([data]) == limits.DECOMPRESSION_FREE
