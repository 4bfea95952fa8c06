import hashlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol.errors import InvalidDigest
from imgvol.oci.digest import Digest

F64 = "f" * 64


@pytest.mark.parametrize(
    "text", [f"sha256:{F64}", f"sha384:{'0' * 96}", f"sha512:{'a1' * 64}"], ids=lambda t: t[:6]
)
def test_registered_algorithms_parse_and_print_back(text):
    digest = Digest.parse(text)
    assert str(digest) == text
    assert text == f"{digest.algorithm}:{digest.hex}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "sha256",
        "sha256:",
        f":{F64}",
        F64,
        f"sha256:{F64[1:]}",
        f"sha256:{F64}f",
        f"sha256:{F64.upper()}",
        f"SHA256:{F64}",
        f"sha256:{'g' * 64}",
        f"sha256:{F64}\n",
        f" sha256:{F64}",
        f"sha256::{F64[1:]}",
        "sha256:../../x",
        f"sha256:{'../' * 21}x",
        "sha256:" + "\u0660" * 64,  # digits, but not ASCII ones
        f"md5:{'0' * 32}",
        f"blake3:{F64}",
        f"sha256+b64:{F64}",
        f"sha512:{F64}",
        "sha256:" + "f" * (1 << 20),
    ],
    ids=lambda t: repr(t[:24]),
)
def test_anything_else_is_refused(text):
    with pytest.raises(InvalidDigest) as caught:
        Digest.parse(text)
    assert len(str(caught.value)) < 600


def test_an_invalid_digest_cannot_be_built_either():
    with pytest.raises(InvalidDigest):
        Digest("sha256", "../" * 21 + "x")
    with pytest.raises(InvalidDigest):
        Digest("../..", F64)


def test_digest_of_bytes_matches_them_and_nothing_else():
    digest = Digest.of(b"a")
    assert str(digest) == (
        "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    )
    assert digest.short == "ca978112ca1b"
    assert digest.matches(b"a")
    assert not digest.matches(b"b")


def test_known_digest_of_no_bytes():
    assert Digest.of(b"").hex == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_hasher_gives_the_same_digest_piece_by_piece(algorithm):
    digest = Digest.of(b"abc", algorithm)
    hasher = digest.hasher()
    for piece in (b"a", bytearray(b"b"), memoryview(b"c")):
        hasher.update(piece)
    assert Digest.from_hasher(hasher) == digest
    assert Digest.from_hasher(hashlib.new(algorithm, b"abc")) == digest


def test_unknown_algorithm_cannot_hash():
    with pytest.raises(InvalidDigest):
        Digest.of(b"", "md5")


def test_digests_are_values():
    one, same, other = Digest.of(b"1"), Digest.of(b"1"), Digest.of(b"2")
    assert one == same
    assert len({one, same, other}) == 2
    assert sorted([one, other], key=str) == sorted([one, other])


@given(st.binary(max_size=64), st.sampled_from(["sha256", "sha384", "sha512"]))
def test_round_trip(data, algorithm):
    digest = Digest.of(data, algorithm)
    assert Digest.parse(str(digest)) == digest
    assert digest.matches(data)


@given(st.text(max_size=100))
def test_no_other_exception_on_any_text(text):
    with suppress(InvalidDigest):
        assert str(Digest.parse(text)) == text
