"""Damage to an index file, whatever it is, is told before anything is read from it."""

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol.errors import StoreDamaged
from imgvol.layers import wire
from imgvol.layers.index import LayerIndex
from support.members import build, directory, file, hardlink, symlink

INDEX = build(
    directory(b"etc"),
    file(b"etc/passwd", 100, xattrs=((b"user.a", b"b"),)),
    hardlink(b"etc/passwd-", b"etc/passwd"),
    hardlink(b"etc/shadow", b"etc/gshadow"),
    symlink(b"link", b"etc"),
    file(b"sparse", 100, sparse=((0, 1), (50, 1))),
    file(b".wh.old"),
)._data


@given(st.integers(0, len(INDEX) * 8 - 1))
def test_a_flipped_bit_is_damage(bit):
    data = bytearray(INDEX)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(StoreDamaged):
        LayerIndex(bytes(data))


@pytest.mark.parametrize("size", range(len(INDEX)))
def test_a_cut_file_is_damage(size):
    with pytest.raises(StoreDamaged):
        LayerIndex(INDEX[:size])


@given(st.binary(min_size=1, max_size=100))
def test_an_extended_file_is_damage(junk):
    with pytest.raises(StoreDamaged):
        LayerIndex(INDEX + junk)


@given(st.integers(0, len(INDEX) - 1), st.binary(min_size=1, max_size=100), st.booleans())
def test_overwritten_bytes_are_damage(position, junk, is_inserted):
    end = position if is_inserted else position + len(junk)
    data = INDEX[:position] + junk + INDEX[end:]
    if data != INDEX:
        with pytest.raises(StoreDamaged):
            LayerIndex(data)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_index_are_damage(data):
    with pytest.raises(StoreDamaged):
        LayerIndex(data)


def test_an_unknown_version_is_named():
    data = INDEX[:8] + struct.pack("<I", 2) + INDEX[12:]
    with pytest.raises(StoreDamaged, match="wrong version") as caught:
        LayerIndex(data)
    assert caught.value.fields == {"reason": "version", "expected": 1, "actual": 2}
    assert "pull it again" in caught.value.hint


def test_tables_that_do_not_fit_the_file_are_damage_even_with_a_right_checksum():
    body = bytearray(INDEX[16:])
    body[8:12] = struct.pack("<I", 1 << 30)  # nodes
    with pytest.raises(StoreDamaged, match="wrong size"):
        LayerIndex(wire.MAGIC + struct.pack("<II", 1, zlib.crc32(body)) + body)


def test_numbers_are_little_endian_on_every_machine(monkeypatch):
    monkeypatch.setattr("sys.byteorder", "big")
    swapped = wire._u32([1, 2**31])
    assert swapped == bytes.fromhex("00000001 80000000")
    assert list(wire._u32_view(swapped, 0, 8)) == [1, 2**31]
