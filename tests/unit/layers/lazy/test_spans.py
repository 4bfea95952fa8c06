"""The sealed form of span tables."""

import pytest

from imgvol.errors import StoreDamaged
from imgvol.layers.lazy.open import open_span_table
from imgvol.layers.lazy.spans import Kind, seal, unseal
from support.toc_blobs import Body


def test_seal_is_undone_by_unseal():
    assert unseal(seal(Kind.CHUNKS, b"body")) == (Kind.CHUNKS, b"body")
    assert unseal(seal(Kind.SOCI, b"")) == (Kind.SOCI, b"")


def test_every_changed_byte_and_every_cut_is_noticed():
    data = seal(Kind.CHUNKS, b"some body")
    for at in range(len(data)):
        with pytest.raises(StoreDamaged):
            unseal(data[:at])
        changed = bytearray(data)
        changed[at] ^= 0x40
        with pytest.raises(StoreDamaged):
            unseal(bytes(changed))
    with pytest.raises(StoreDamaged):
        unseal(data + b"\0")


def test_a_sealed_body_that_is_no_table_is_damage():
    for body in (b"", b"short", bytes(1000)):
        with pytest.raises(StoreDamaged):
            open_span_table(seal(Kind.CHUNKS, body))


def test_a_table_is_the_same_when_read_again():
    body = Body()
    body.file("a", b"alpha")
    body.chunks("b", b"beta", b"", b"gamma")
    table = body.read().table
    stored = table.to_bytes()
    again = open_span_table(stored)
    assert again.to_bytes() == stored
    assert (again.blob_size, again.data_size, again.span_count) == (
        len(body.data),
        len(b"alphabetagamma"),
        3,
    )
    assert [again.compressed_range(n) for n in range(3)] == [
        table.compressed_range(n) for n in range(3)
    ]
