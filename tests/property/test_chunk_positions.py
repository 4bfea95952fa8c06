"""Where chunks lie in a data file: files of some size at whole blocks, with gaps before them."""

import hashlib
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgvol import limits
from imgvol.content.punch import BLOCK
from imgvol.errors import StoreDamaged
from imgvol.layers.compression import Compression
from imgvol.layers.lazy.chunks import ALIGNMENT, ChunkTable, ChunkTableBuilder
from imgvol.layers.lazy.open import open_span_table
from imgvol.layers.lazy.spans import Kind, seal
from support.copying import Machine, check_content, files_of, fill, noise, present_files
from support.images import file

BLOB = 10_000_000
LARGE = limits.ALIGNED_FILE
# What a file is said to have, and its chunks: their spans, and their sizes.
FILES = st.lists(
    st.tuples(
        st.sampled_from([0, 1, LARGE - 1, LARGE, 10 * LARGE]),
        st.lists(
            st.tuples(
                st.integers(0, 30), st.sampled_from([1, 2, 100, 4095, 4096, 4097, LARGE, 300_000])
            ),
            max_size=4,
        ),
    ),
    max_size=12,
)


def build(files) -> tuple[ChunkTable, list[tuple[int, int, int]]]:
    """A table, and for each chunk its position, its size and the offset of its span."""
    builder = ChunkTableBuilder(Compression.GZIP, blob_size=BLOB, data_end=BLOB)
    inner: dict[int, int] = {}
    expected, end = [], 0
    for size, chunks in files:
        while size >= LARGE and end % 4096:
            end += 1
        assert builder.begin_file(size) == end
        for offset, length in chunks:
            start = inner.get(offset, 0)
            inner[offset] = start + length
            digest = hashlib.sha256(bytes([len(expected)])).digest()
            builder.add(offset=offset, inner=start, size=length, digest=digest)
            expected.append((end, length, offset))
            end += length
    assert builder.data_size == end
    return builder.finish(), expected


@given(FILES, st.integers(-10, 2_000_000), st.integers(-10, 400_000))
def test_chunks_lie_where_they_should_and_are_found(files, position, size):
    table, expected = build(files)
    numbers = {offset: n for n, offset in enumerate(sorted({o for _, _, o in expected}))}
    for found in (table, open_span_table(table.to_bytes())):
        assert found.chunk_count == len(expected)
        assert found.data_size == max((at + length for at, length, _ in expected), default=0)
        for chunk, (at, length, offset) in enumerate(expected):
            part = found.part(chunk)
            assert (part.position, part.size) == (at, length)
            assert part.digest == hashlib.sha256(bytes([chunk])).digest()
            assert found.span_of_chunk(chunk) == numbers[offset]
        for span in range(found.span_count):
            wanted = [(at, at + n) for at, n, offset in expected if numbers[offset] == span]
            assert sorted(found.positions(span)) == wanted
        wanted = {
            numbers[offset]
            for at, length, offset in expected
            if max(at, position) < min(at + length, position + size)
        }
        assert list(found.spans_of(position, size)) == sorted(wanted)
        begin = [n for n, (at, _, _) in enumerate(expected) if position <= at < position + size]
        assert list(found.chunks_at(position, size)) == begin
        for at, length, _ in expected:  # at every border of a gap
            for place in (at - 1, at, at + length - 1, at + length):
                owners = [o for p, n, o in expected if p <= place < p + n]
                assert list(found.spans_of(place, 1)) == [numbers[o] for o in owners]


@given(FILES, st.integers(0, 100), st.integers(-400_000, 400_000), st.booleans())
def test_stored_chunks_that_overlap_are_damage(files, number, change, is_size):
    table, expected = build(files)
    if not expected:
        return
    number %= len(expected)
    values = [list(chunk[:2]) for chunk in expected]
    values[number][is_size] += change
    if not 0 <= values[number][is_size] < 1 << 32:
        return
    spans, chunks = table.span_count, table.chunk_count
    positions = struct.calcsize("<QQBIIII") + 20 * spans + 4
    place, form = (
        (positions + 16 * chunks + 4 * number, "<I") if is_size else (positions + 8 * number, "<Q")
    )
    body = bytearray(table._body)
    assert struct.unpack_from(form, body, place) == (expected[number][is_size],)
    struct.pack_into(form, body, place, values[number][is_size])
    ends = [at + size for at, size in values]
    following = [at for at, _ in values[1:]]
    sealed = seal(Kind.CHUNKS, bytes(body))
    is_sound = all(end <= at for end, at in zip(ends, following, strict=False))
    if is_sound and ends[-1] == table.data_size:
        open_span_table(sealed)
    else:
        with pytest.raises(StoreDamaged, match="positions"):
            open_span_table(sealed)


def test_a_table_without_chunks_has_no_data():
    body = bytearray(build([])[0]._body)
    struct.pack_into("<Q", body, 8, 1)
    with pytest.raises(StoreDamaged, match="positions"):
        open_span_table(seal(Kind.CHUNKS, bytes(body)))


def test_tables_of_the_time_without_gaps_are_refused():
    with pytest.raises(StoreDamaged, match="kind"):
        open_span_table(seal(1, build([(1, [(0, 1)])])[0]._body))


def test_alignment_is_what_space_is_given_back_by():
    assert ALIGNMENT == BLOCK


SIZES = st.lists(st.sampled_from([1, 3000, LARGE - 1, LARGE, LARGE + 1, 150_000]), max_size=8)


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES, st.data())
def test_equal_files_lie_alike_in_blocks_and_space_between_them_is_given_back(old, new, data):
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "SPAN_WINDOW", 20_000)
        machine = Machine(Path(root))
        layers = []
        for name, sizes in (("old", old), ("new", new)):
            entries = [file(f"f{n}", noise(n, size)) for n, size in enumerate(sizes)]
            layer = machine.lazy(name, entries)
            for _, node in files_of(layer.index):
                places = [extent.position for extent in layer.index.extents(node)]
                assert layer.index.record(node).size < LARGE or places[0] % BLOCK == 0
            layers.append((layer, entries))
        layer, entries = layers[1]
        fill(layer, entries, is_kept=False)
        assert len(present_files(layer)) == len(entries)
        windows = [window for window, _, _ in layer.reclaimer.windows()]
        gone = data.draw(st.sets(st.sampled_from(windows)) if windows else st.just(set()))
        kept = {
            span
            for span in layer.present
            if not any(span in layer.uses.spans_in(window) for window in gone)
        }
        layer.reclaimer.give_back(gone)
        assert set(layer.present) == kept
        check_content(layer, entries)
        fill(layer, entries, is_kept=False)
        assert len(present_files(layer)) == len(entries)
        check_content(layer, entries)
