"""The decoders: what was compressed comes back, in every framing; everything else is an error."""

import gzip
import random

import zstandard
from hypothesis import given
from hypothesis import strategies as st

from imgvol import limits
from imgvol.errors import InvalidLayer, LimitExceeded, Unsupported
from imgvol.layers.compression import Compression, iter_decoded, open_decoder
from support import framings

COMPRESSED = st.sampled_from([Compression.GZIP, Compression.ZSTD])


@st.composite
def plain(draw: st.DrawFn) -> bytes:
    """Runs, noise and repetition: what gives blocks of all kinds."""
    parts = []
    for _ in range(draw(st.integers(0, 4))):
        size = draw(st.integers(0, 3000) | st.integers(100_000, 300_000))
        rng = random.Random(draw(st.integers(0, 99)))
        kind = draw(st.sampled_from(["zeros", "noise", "words"]))
        if kind == "zeros":
            parts.append(bytes(size))
        elif kind == "noise":
            parts.append(rng.randbytes(size))
        else:
            words = [rng.randbytes(rng.randint(1, 9)) for _ in range(20)]
            parts.append(b"".join(rng.choices(words, k=size // 5)))
    return b"".join(parts)


def compressed(unit: bytes, compression: Compression, choice: int) -> bytes:
    if compression is Compression.GZIP:
        return gzip.compress(unit, compresslevel=choice % 10, mtime=choice)
    options = {"write_checksum": choice % 2 == 0, "write_content_size": choice % 3 == 0}
    skippable = b"\x50\x2a\x4d\x18\x03\0\0\0toc" if choice % 5 == 0 else b""
    return zstandard.ZstdCompressor(level=choice % 10 - 3, **options).compress(unit) + skippable


@given(st.lists(plain(), min_size=1, max_size=4), COMPRESSED, st.integers(0, 99), st.data())
def test_what_was_compressed_comes_back(units, compression, choice, data):
    blob = b"".join(compressed(unit, compression, choice + i) for i, unit in enumerate(units))
    largest = data.draw(st.sampled_from([100, 5000, 131_072, 1 << 22]), label="largest piece")
    rng = random.Random(choice)
    decoder = open_decoder(compression)
    decoded = []
    position = 0
    while position < len(blob):
        step = rng.randint(1, largest)
        pieces = list(decoder.feed(memoryview(blob)[position : position + step]))
        assert all(0 < len(piece) <= limits.DECODED_PIECE for piece in pieces)
        decoded += pieces
        position += step
    decoder.finish()
    assert b"".join(decoded) == b"".join(units)


def decode(pieces, compression: Compression) -> bytes:
    return b"".join(iter_decoded(pieces, compression))


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=3), COMPRESSED, st.integers(0, 99))
def test_small_units_come_back_in_every_framing(units, compression, choice):
    blob = b"".join(compressed(unit, compression, choice + i) for i, unit in enumerate(units))
    found = framings.in_every_framing(blob, lambda pieces: decode(pieces, compression))
    assert found == b"".join(units)


def survives(blob: bytes, compression: Compression) -> None:
    """Decodes anything: the only errors are about the content, and all framings agree on them."""
    outcomes = []
    for pieces in framings.iter_framings(blob):
        found = framings.outcome(lambda pieces=pieces: decode(pieces, compression))
        # Where exactly damage shows depends on the framing, that it does must not.
        outcomes.append(found[0] if isinstance(found, tuple) else found)
        if isinstance(found, tuple):
            assert found[0] in (InvalidLayer, LimitExceeded, Unsupported)
    assert all(found == outcomes[0] for found in outcomes)


@given(st.binary(max_size=300), COMPRESSED)
def test_arbitrary_bytes_raise_nothing_else(data, compression):
    survives(data, compression)
    magic = b"\x1f\x8b\x08" if compression is Compression.GZIP else b"\x28\xb5\x2f\xfd"
    survives(magic + data, compression)


@given(
    COMPRESSED, st.integers(0, 99), st.integers(0, 1000), st.integers(0, 9), st.binary(max_size=9)
)
def test_mutated_streams_raise_nothing_else(compression, choice, place, removed, inserted):
    content = random.Random(choice).randbytes(100) + b"words " * 100
    blob = compressed(content, compression, choice) + compressed(b"x", compression, choice)
    place %= len(blob) + 1
    survives(blob[:place] + inserted + blob[place + removed :], compression)
