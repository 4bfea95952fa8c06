"""Digests of pieces: any split gives the same, any change is noticed, what is sealed is whole."""

import hashlib
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol.content.pieces import PIECE_SIZE, PieceHasher, Pieces
from imgvol.errors import StoreDamaged
from imgvol.oci.digest import Digest

LAYER = Digest.of(b"layer")
TAR = random.Random(4).randbytes(3 * PIECE_SIZE + 12_345)


def pieces_of(data: bytes) -> Pieces:
    hasher = PieceHasher()
    hasher.update(data)
    return hasher.finish()


@given(st.lists(st.integers(0, len(TAR)) | st.sampled_from(range(0, len(TAR), PIECE_SIZE))))
def test_any_split_gives_the_same(cuts):
    hasher = PieceHasher()
    places = [0, *sorted(cuts), len(TAR)]
    for start, end in pairwise(places):
        hasher.update(memoryview(TAR)[start:end])
    assert hasher.finish() == pieces_of(TAR)


@pytest.mark.parametrize("size", [0, 1, PIECE_SIZE - 1, PIECE_SIZE, PIECE_SIZE + 1, len(TAR)])
def test_every_piece_is_checked_by_its_own_sha256(size):
    data = TAR[:size]
    pieces = pieces_of(data)
    assert (pieces.size, pieces.count) == (size, -(-size // PIECE_SIZE))
    assert list(pieces.touching(0, size)) == list(range(pieces.count))
    covered = 0
    for number in range(pieces.count):
        start, end = pieces.place(number)
        assert start == covered
        covered = end
        piece = data[start:end]
        assert hashlib.sha256(piece).digest() in pieces.to_bytes(LAYER)
        assert pieces.check(number, piece)
        assert pieces.check(number, memoryview(piece))
        assert not pieces.check(number, piece + b"\0")
        assert not pieces.check(number, piece[:-1] + bytes([piece[-1] ^ 1]))
    assert covered == size


@pytest.mark.parametrize(
    ("start", "end", "numbers"),
    [
        (0, 1, [0]),
        (PIECE_SIZE - 1, PIECE_SIZE, [0]),
        (PIECE_SIZE - 1, PIECE_SIZE + 1, [0, 1]),
        (PIECE_SIZE, PIECE_SIZE, []),
        (3 * PIECE_SIZE, len(TAR) + PIECE_SIZE, [3]),
    ],
)
def test_which_pieces_have_which_bytes(start, end, numbers):
    assert list(pieces_of(TAR).touching(start, end)) == numbers


def test_what_is_sealed_is_read_again_and_stays_readable(tmp_path):
    pieces = pieces_of(TAR)
    assert Pieces.load(tmp_path, LAYER, len(TAR)) is None
    for _ in range(2):
        pieces.seal(tmp_path, LAYER)
        assert Pieces.load(tmp_path, LAYER, len(TAR)) == pieces
    assert [path.name for path in tmp_path.iterdir()] == ["pieces"]
    assert (tmp_path / "pieces").stat().st_size < 50 + len(str(LAYER)) + 32 * pieces.count


@given(st.data())
def test_any_change_of_what_is_sealed_is_noticed(data):
    sealed = pieces_of(TAR).to_bytes(LAYER)
    change = data.draw(st.sampled_from(["flip", "cut", "more", "other layer", "other size"]))
    layer, size = LAYER, len(TAR)
    match change:
        case "flip":
            at = data.draw(st.integers(0, len(sealed) - 1))
            bit = 1 << data.draw(st.integers(0, 7))
            sealed = sealed[:at] + bytes([sealed[at] ^ bit]) + sealed[at + 1 :]
        case "cut":
            sealed = sealed[: data.draw(st.integers(0, len(sealed) - 1))]
        case "more":
            sealed += data.draw(st.binary(min_size=1))
        case "other layer":
            layer = Digest.of(b"another")
        case "other size":
            size += 1
    with pytest.raises(StoreDamaged):
        Pieces.parse(sealed, layer, size)
