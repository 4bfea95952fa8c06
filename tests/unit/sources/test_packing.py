"""Archives packed as a whole: every format, cut anywhere, damaged, and made to hurt."""

import bz2
import gzip
import lzma
import random

import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from imgvol import limits
from imgvol.errors import InvalidLayer, LimitExceeded
from imgvol.sources.packing import Packing, iter_unpacked

NOISE = random.Random(3).randbytes(30_000)
DATA = NOISE + bytes(2_000_000) + NOISE[::-1]
PACKERS = {
    Packing.NONE: bytes,
    Packing.GZIP: lambda data: gzip.compress(data, 1),
    Packing.ZSTD: zstandard.ZstdCompressor().compress,
    Packing.LZ4: lambda data: lz4.frame.compress(data, content_checksum=True),
    Packing.BZIP2: bz2.compress,
    Packing.XZ: lzma.compress,
}
PACKED = {packing: pack(DATA) for packing, pack in PACKERS.items()}
COMPRESSED = [packing for packing in Packing if packing is not Packing.NONE]
# Those that this module decodes; the others are those of layers.
OWN = [Packing.LZ4, Packing.BZIP2, Packing.XZ]


def unpack(data, packing, step=70_000):
    pieces = (data[start : start + step] for start in range(0, len(data), step))
    return list(iter_unpacked(pieces, packing))


@pytest.mark.parametrize("packing", Packing)
def test_what_is_packed_is_recognised_and_comes_out_in_bounded_pieces(packing):
    assert Packing.of(PACKED[packing][:10]) is packing
    pieces = unpack(PACKED[packing], packing)
    assert b"".join(pieces) == DATA
    assert max(map(len, pieces)) <= limits.DECODED_PIECE


@pytest.mark.parametrize("packing", OWN)
@given(step=st.integers(1, 5000))
def test_input_may_be_cut_anywhere(packing, step):
    small = PACKERS[packing](NOISE)
    assert b"".join(unpack(small, packing, step)) == NOISE


@pytest.mark.parametrize("packing", OWN)
@given(share=st.floats(0, 1, exclude_max=True))
def test_what_is_cut_off_is_damaged(packing, share):
    small = PACKERS[packing](NOISE)
    with pytest.raises(InvalidLayer):
        unpack(small[: int(len(small) * share)], packing)


@pytest.mark.parametrize("packing", OWN)
def test_streams_end_to_end_are_one(packing):
    pack = PACKERS[packing]
    streams = pack(NOISE) + pack(b"") + pack(b"end")
    assert b"".join(unpack(streams, packing, 1000)) == NOISE + b"end"


@pytest.mark.parametrize("packing", OWN)
@pytest.mark.parametrize("junk", [b"junk", b"\0\0\0", b"\0" * 4 + b"x"])
def test_nothing_may_follow(packing, junk):
    with pytest.raises(InvalidLayer):
        unpack(PACKERS[packing](NOISE) + junk, packing)


def test_streams_of_xz_may_be_padded():
    stream = lzma.compress(NOISE)
    padded = stream + bytes(8) + stream + bytes(4)
    for step in (1, 3, 100_000):
        assert b"".join(unpack(padded, Packing.XZ, step)) == 2 * NOISE


@pytest.mark.parametrize("packing", OWN)
def test_a_flipped_bit_is_damage(packing):
    data = bytearray(PACKERS[packing](NOISE))
    data[len(data) // 2] ^= 4
    with pytest.raises(InvalidLayer):
        unpack(bytes(data), packing)


@pytest.mark.parametrize("packing", COMPRESSED)
def test_bombs_end_at_the_ratio(packing, monkeypatch):
    monkeypatch.setattr(limits, "DECOMPRESSION_FREE", 1_000_000)
    monkeypatch.setattr(limits, "DECOMPRESSION_RATIO", 20)
    with pytest.raises(LimitExceeded) as caught:
        unpack(PACKERS[packing](bytes(30_000_000)), packing)
    assert caught.value.fields["limit"] == "DECOMPRESSION_RATIO"


def test_many_tiny_streams_take_no_time_of_their_own():
    stream = lz4.frame.compress(b"x")
    assert b"".join(unpack(stream * 20_000, Packing.LZ4)) == b"x" * 20_000


def test_memory_that_an_archive_may_need(monkeypatch):
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 128 << 20}]
    greedy = lzma.compress(NOISE, filters=filters)
    with pytest.raises(LimitExceeded) as caught:
        unpack(greedy, Packing.XZ)
    assert caught.value.fields["limit"] == "ARCHIVE_XZ_MEMORY"
    assert b"".join(unpack(lzma.compress(NOISE, preset=9), Packing.XZ)) == NOISE
    for log, fits in [(25, True), (26, False)]:
        parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=log)
        packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        data = packer.compress(NOISE) + packer.flush()
        if fits:
            assert b"".join(unpack(data, Packing.ZSTD)) == NOISE
            continue
        with pytest.raises(LimitExceeded, match="too much memory"):
            unpack(data, Packing.ZSTD)


@pytest.mark.parametrize(
    ("name", "packing"),
    [
        ("a.tar", Packing.NONE),
        ("a.TAR.GZ", Packing.GZIP),
        ("a.tgz", Packing.GZIP),
        ("a.tar.zst", Packing.ZSTD),
        ("a.tzst", Packing.ZSTD),
        ("a.tar.Lz4", Packing.LZ4),
        ("a.tar.bz2", Packing.BZIP2),
        ("a.tbz", Packing.BZIP2),
        ("a.tar.xz", Packing.XZ),
        ("a.txt", None),
        ("tar", None),
    ],
)
def test_what_names_claim(name, packing):
    assert Packing.named(name) is packing
