"""Tables of contents from outside: whatever they say, an answer or a declared error."""

import contextlib
import gzip
import json

from hypothesis import assume, example, given
from hypothesis import strategies as st

from imgvol.errors import (
    DigestMismatch,
    InvalidDocument,
    InvalidLayer,
    LimitExceeded,
    StoreDamaged,
    Unsupported,
)
from imgvol.layers.compression import Compression
from imgvol.layers.index import LayerIndex
from imgvol.layers.lazy import estargz, zstd_chunked
from imgvol.layers.lazy.chunks import ChunkTableBuilder
from imgvol.layers.lazy.entries import iter_entries
from imgvol.layers.lazy.locate import NeedTail, TocRange, find_toc, open_layer
from imgvol.layers.lazy.open import open_span_table
from support.toc_blobs import CONTAINERS, STARGZ, Body, chunked_blob, sha256, stargz_blob

DECLARED = (DigestMismatch, InvalidDocument, InvalidLayer, LimitExceeded, Unsupported)


def sample(compression: Compression = Compression.GZIP) -> Body:
    body = Body(compression)
    body.entry("dir", "etc/", mode=0o755, modtime="2023-01-01T00:00:00Z")
    body.file("etc/a", b"alpha", xattrs={"user.x": "eA=="})
    body.chunks("etc/b", b"one", b"", b"two")
    body.entry("hardlink", "etc/c", linkName="etc/a")
    body.entry("symlink", "etc/d", linkName="c")
    body.entry("char", "null", devMajor=1, devMinor=3)
    body.file(".prefetch.landmark", b"\x0f")
    return body


def use(body: Body, toc: bytes) -> None:
    """Reads a table and everything that it then promises."""
    try:
        layer = body.read(toc)
    except DECLARED:
        return
    index, table = LayerIndex(layer.index), layer.table
    assert index.node_count >= 1
    seen: dict[int, int] = {}
    for span in range(table.span_count):
        start, end = table.compressed_range(span)
        assert 0 <= start < end <= table.blob_size
        try:
            regions = table.decode(span, bytes(body.data[start:end]))
        except DECLARED:
            continue
        for region in regions:
            assert region.data
            assert span in table.spans_of(region.position, len(region.data))
            assert seen.setdefault(region.position, span) == span


@given(st.binary(max_size=300))
def test_any_bytes_are_an_error_of_ours(data):
    use(sample(), data)
    for extract in (estargz.extract_json, lambda d: zstd_chunked.extract_json(d, 100)):
        for framed in (data, gzip.compress(data)):
            with contextlib.suppress(DECLARED):
                extract(framed)


@given(st.data())
def test_mutated_tables_never_surprise(data):
    body = sample(data.draw(st.sampled_from([Compression.GZIP, Compression.ZSTD])))
    toc = bytearray(body.toc)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(toc) - 1))
        piece = data.draw(st.binary(max_size=4))
        toc[at : at + data.draw(st.integers(0, 4))] = piece
    use(body, bytes(toc))


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.integers(-5, 300),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["reg", "dir", "chunk", "hardlink", "zeros", "etc/a", "..", "/", ".wh.x"]),
    st.sampled_from([sha256(b"alpha"), sha256(b"")]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=5), st.text(max_size=8), max_size=2),
)


@given(st.data())
def test_mutated_values_never_surprise(data):
    body = sample(data.draw(st.sampled_from([Compression.GZIP, Compression.ZSTD])))
    fields = sorted({key for entry in body.entries for key in entry} | {"innerOffset", "endOffset"})
    for _ in range(data.draw(st.integers(1, 3))):
        entry = data.draw(st.sampled_from(body.entries))
        entry[data.draw(st.sampled_from(fields))] = data.draw(ANYTHING)
    if data.draw(st.booleans()):
        body.entries = data.draw(st.permutations(body.entries))
    use(body, body.toc)


@given(
    st.dictionaries(
        st.sampled_from([*CONTAINERS, *STARGZ, estargz.TOC_DIGEST]),
        st.one_of(
            st.just(sha256(b"x")),
            st.text(max_size=30),
            st.from_regex(r"\A\d{1,20}:\d{1,4}:\d{1,4}:[12]\Z"),
        ),
    ),
    st.integers(0, 1 << 41),
    st.one_of(
        st.none(),
        st.binary(max_size=80),
        st.sampled_from([stargz_blob(sample())[0][-60:], chunked_blob(sample())[0][-80:]]),
    ),
)
def test_any_annotations_give_a_range_in_the_blob_or_an_error(annotations, blob_size, tail):
    try:
        found = find_toc(annotations, blob_size, tail)
    except DECLARED:
        return
    if isinstance(found, TocRange):
        assert 0 <= found.start < found.end <= blob_size
        assert found.digest or found.json_digest
        with contextlib.suppress(DECLARED):
            open_layer(found, tail or b"")
    elif isinstance(found, NeedTail):
        assert 0 <= found.size <= blob_size


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(1, 255))
def test_changed_stored_tables_are_damage(junk, at, flip):
    stored = sample().read().table.to_bytes()
    changed = bytearray(stored)
    changed[at % len(stored)] ^= flip
    for data in (junk, bytes(changed), stored[: at % len(stored)], stored + junk):
        if data == stored:
            continue
        try:
            open_span_table(data)
        except StoreDamaged:
            continue
        raise AssertionError("damage went unnoticed")


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 50)), max_size=30),
    st.integers(-10, 800),
    st.integers(-10, 400),
)
def test_spans_of_agrees_with_a_list(chunks, position, size):
    builder = ChunkTableBuilder(Compression.GZIP, blob_size=1000, data_end=1000)
    inner: dict[int, int] = {}
    owner: list[int] = []
    for offset, length in chunks:
        start = inner.get(offset, 0)
        inner[offset] = start + length
        builder.add(offset=offset, inner=start, size=length, digest=bytes(32))
        owner += [offset] * length
    table = builder.finish()
    numbers = {offset: number for number, offset in enumerate(sorted(inner))}
    wanted = owner[max(position, 0) : max(position + size, 0)]
    assert list(table.spans_of(position, size)) == sorted({numbers[o] for o in wanted})


@given(st.recursive(ANYTHING, lambda v: st.lists(v, max_size=3), max_leaves=5), st.integers(0, 4))
@example({"a": "\ud800"}, 0)
def test_entries_equal_what_the_library_reads(value, indent):
    wanted = [{"value": value}, {}]
    document = {"other": value, "entries": wanted, "version": 1}
    try:
        data = json.dumps(document, allow_nan=False, indent=indent or None).encode()
    except ValueError:
        assume(False)
        return
    try:
        found = list(iter_entries(data))
    except InvalidDocument:
        assert "\\ud" in data.decode()
        return
    assert found == wanted
