"""The catalogue of a layer's digests: what was put in is found, and nothing else."""

import hashlib
import tempfile
from array import array
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol.content.chunk_catalogue import (
    NO_NODE,
    ChunkCatalogue,
    ChunkOwners,
    catalogue_bytes,
    load_catalogue,
    save_catalogue,
)
from imgvol.errors import StoreDamaged
from imgvol.layers.compression import Compression
from imgvol.layers.index import LayerIndex
from imgvol.layers.lazy.chunks import ChunkTable, ChunkTableBuilder
from support.images import directory, file, hardlink, symlink
from support.stargz import Stargz

# Some begin alike, some are the same.
DIGESTS = [bytes([begin]) * 8 + bytes([end]) * 24 for begin in (0, 7, 255) for end in (1, 2)]
CHUNKS = st.lists(
    st.tuples(
        st.sampled_from([*DIGESTS, None]),
        st.sampled_from([0, 1, 0xFFFFFFFE, NO_NODE]),
        st.integers(0, 2**62),
    ),
    max_size=12,
)


def table_of(digests) -> ChunkTable:
    builder = ChunkTableBuilder(Compression.ZSTD, blob_size=10**6, data_end=10**6)
    for number, digest in enumerate(digests):
        builder.add(offset=1000 * number, inner=0, size=10, digest=digest)
    return builder.finish()


@given(CHUNKS)
def test_every_place_of_a_digest_is_found(chunks):
    digests, nodes, offsets = zip(*chunks, strict=True) if chunks else ((), (), ())
    owners = SimpleNamespace(nodes=array("I", nodes), offsets=array("Q", offsets))
    catalogue = ChunkCatalogue(catalogue_bytes(table_of(digests), owners))
    placed = [c for c in chunks if c[0] is not None and c[1] != NO_NODE]
    assert len(catalogue) == len(placed)
    for wanted in DIGESTS:
        # Only the beginning is compared: whoever copies hashes the bytes.
        expected = sorted((n, o) for d, n, o in placed if d[:8] == wanted[:8])
        assert sorted(catalogue.find(wanted)) == expected
    assert list(catalogue.find(bytes([9]) * 32)) == []


@given(st.data())
def test_a_damaged_catalogue_is_refused(data):
    owners = SimpleNamespace(nodes=array("I", [1, 2]), offsets=array("Q", [0, 5]))
    good = catalogue_bytes(table_of(DIGESTS[:2]), owners)
    place = data.draw(st.integers(0, len(good) - 1))
    if not 9 <= place < 12:  # padding
        bad = bytearray(good)
        bad[place] ^= 1 << data.draw(st.integers(0, 7))
        with pytest.raises(StoreDamaged):
            ChunkCatalogue(bytes(bad))
    with pytest.raises(StoreDamaged):
        ChunkCatalogue(good[:place])


def test_owners_tell_where_each_chunk_is(tmp_path):
    content = {"a": b"x" * 150_000, "d/b": b"y" * 99, "d/c": b"z" * 60_000, ".no": b"q"}
    entries = [directory("d"), *(file(name, data) for name, data in content.items())]
    entries += [hardlink("d/link", "a"), symlink("d/soft", "b"), file("d/empty")]
    _, lazy = Stargz(entries, chunk=50_000).opened()
    index = LayerIndex(lazy.index)
    owners = ChunkOwners(lazy.table, index)
    names = {index.child(0, b"a"): "a", index.child(0, b".no"): ".no"}
    parent = index.child(0, b"d")
    names |= {index.child(parent, name.encode()): f"d/{name}" for name in "bc"}
    assert lazy.table.chunk_count == 7
    for chunk in range(lazy.table.chunk_count):
        part, offset = lazy.table.part(chunk), owners.offsets[chunk]
        data = content[names[owners.nodes[chunk]]][offset : offset + part.size]
        assert hashlib.sha256(data).digest() == part.digest


def test_a_saved_catalogue_is_loaded_and_what_is_none_is_not():
    owners = SimpleNamespace(nodes=array("I", [4]), offsets=array("Q", [6]))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "chunks"
        assert load_catalogue(path) is None
        save_catalogue(path, catalogue_bytes(table_of(DIGESTS[:1]), owners))
        found = load_catalogue(path)
        assert found is not None
        assert list(found.find(DIGESTS[0])) == [(4, 6)]
        path.write_bytes(path.read_bytes()[:-1])
        assert load_catalogue(path) is None
        assert [entry.name for entry in Path(name).iterdir()] == ["chunks"]
