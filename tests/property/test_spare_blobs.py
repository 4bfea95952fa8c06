"""Compressed bytes of proven lazy layers are given back: the content stays, and stays right."""

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgvol import limits
from imgvol.content.proof import PROOF_NAME, read_proof
from imgvol.content.punch import BLOCK, allocated
from imgvol.errors import LocalError
from imgvol.layers.index import ROOT
from imgvol.oci.digest import DiffID, Digest
from support.spans import DigestTable, PlainTable, make_lazy_layer, reopen_lazy_layer
from support.spans import use_plain_tables as use_tables

SIZE = 100_000
BLOB = random.Random(3).randbytes(SIZE)
WINDOW = 7000
WINDOWS = SIZE // WINDOW + 1
DIFF_ID = DiffID(Digest.of(b"tar"))


@pytest.fixture(autouse=True, scope="module")
def _tables():
    with pytest.MonkeyPatch.context() as patch:
        use_tables(patch, DigestTable)
        patch.setattr(limits, "SPAN_WINDOW", WINDOW)
        yield


@st.composite
def tables(draw) -> DigestTable:
    """Spans of any size, with gaps, or with a byte that neighbours share."""
    ranges, at = [], draw(st.integers(0, 9000))
    while at < SIZE - 1 and len(ranges) < 40:
        size = draw(st.sampled_from([2, 100, 4095, 4096, 4097, 9000]))
        ranges.append((at, min(SIZE, at + size)))
        at = ranges[-1][1] + draw(st.sampled_from([-1, 0, 0, 0, 1, 300, 5000]))
    return DigestTable(BLOB, ranges)


def put(layer, span: int) -> None:
    start, end = layer.table.compressed_range(span)
    layer.intake.put_span(span, layer.table.decode(span, BLOB[start:end]), BLOB[start:end])


def check(layer, present: set[int]) -> None:
    """What counts as present is there, and what counts as kept, too."""
    assert set(layer.present) == present
    node = layer.index.child(ROOT, b"all")
    for span in present:
        start, end = layer.table.compressed_range(span)
        ((first, last),) = layer.table.positions(span)
        assert layer.read_blocking(node, first, last - first) == BLOB[start:end]
        if layer.present.is_kept(span) and layer.kept.covers(start, end):
            assert layer.kept.read(start, end - start) == BLOB[start:end]
    assert layer.scrubber.damaged_spans(lambda _size: None) == []
    assert 0 <= layer.present_size <= layer.table.blob_size + len(present)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_spans_and_blob_come_and_go_in_any_order(data):
    table = data.draw(tables())
    spans = st.sets(st.integers(0, table.span_count - 1))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as base:
        layer = make_lazy_layer(Path(base), table)
        present: set[int] = set()
        for _ in range(data.draw(st.integers(1, 12))):
            match data.draw(st.sampled_from(["put", "prove", "blob", "windows", "flush", "again"])):
                case "put":
                    come = data.draw(spans)
                    for span in come:
                        put(layer, span)
                    present |= come
                case "prove":
                    layer.prove(DIFF_ID)
                case "blob":
                    was_spare = layer.reclaimer.spare_blob
                    layer.reclaimer.give_back_blob()
                    if was_spare:
                        assert allocated(layer.kept.file.fd) == 0
                        assert layer.kept.size == 0
                        assert layer.forgoes_proof or not present
                case "windows":
                    windows = data.draw(st.sets(st.integers(0, WINDOWS)))
                    present -= {s for w in windows for s in layer.uses.spans_in(w)}
                    layer.reclaimer.give_back(windows)
                case "flush":
                    layer.intake.flush()
                case "again":
                    was_proven = layer.is_proven
                    layer = reopen_lazy_layer(Path(base))
                    assert layer.is_proven == was_proven
                    assert set(layer.present) <= present, "never more than there was"
                    present = set(layer.present)
            check(layer, present)
            check(reopened := reopen_lazy_layer(Path(base)), set(reopened.present))
            assert layer.is_whole == (layer.is_proven and len(present) == table.span_count)


def proven(base) -> tuple:
    table = DigestTable(BLOB, [(at, min(SIZE, at + 3000)) for at in range(0, SIZE, 3000)])
    layer = make_lazy_layer(base, table)
    for span in range(table.span_count):
        put(layer, span)
    layer.intake.flush()
    layer.prove(DIFF_ID)
    return layer, set(range(table.span_count))


def test_what_comes_after_the_blob_went_is_kept_without_its_compressed_bytes(tmp_path):
    layer, everything = proven(tmp_path)
    assert layer.reclaimer.spare_blob == SIZE
    assert layer.has_blob
    given_back = layer.reclaimer.give_back_blob()
    assert (given_back.spans, given_back.size) == (0, -(-SIZE // BLOCK) * BLOCK)
    assert not layer.has_blob
    assert layer.is_whole
    assert not layer.stays_lazy
    gone = layer.reclaimer.give_back([1, 2]).spans
    assert gone > 2
    assert layer.stays_lazy
    assert not layer.is_whole
    for span in everything - set(layer.present):
        put(layer, span)
    check(layer, everything)
    assert layer.is_whole
    assert allocated(layer.kept.file.fd) == 0
    assert layer.reclaimer.spare_blob == 0


def test_a_process_that_ends_between_map_and_hole_leaves_nothing_for_long(tmp_path, monkeypatch):
    layer, everything = proven(tmp_path)

    def die(*_):
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("imgvol.content.reclaiming.punch_hole", die)
        with pytest.raises(LocalError):
            layer.reclaimer.give_back_blob()
    reopened = reopen_lazy_layer(tmp_path)
    check(reopened, everything)
    assert reopened.forgoes_proof, "what is there does not count"
    assert allocated(reopened.kept.file.fd) >= SIZE
    reopened.reclaimer.give_back([3])
    assert allocated(reopened.kept.file.fd) == 0
    check(reopened, set(reopened.present))


def test_nothing_goes_while_the_whole_is_verified(tmp_path):
    layer, _ = proven(tmp_path)
    with layer.reclaimer.paused():
        assert layer.reclaimer.spare_blob == 0
        assert layer.reclaimer.give_back_blob().size == 0
        assert layer.has_blob
    assert layer.reclaimer.give_back_blob().size


def test_content_without_digests_of_its_own_keeps_its_compressed_bytes(tmp_path):
    """A scrub could not tell whether it is right."""
    with pytest.MonkeyPatch.context() as patch:
        use_tables(patch, PlainTable)
        layer = make_lazy_layer(tmp_path, PlainTable(BLOB, [(0, SIZE)]))
        put(layer, 0)
        layer.prove(DIFF_ID)
        assert layer.reclaimer.spare_blob == 0
        assert layer.reclaimer.give_back_blob().size == 0
        assert layer.has_blob


def test_a_proof_that_is_damaged_counts_as_none(tmp_path):
    layer, _ = proven(tmp_path)
    path = layer.directory / PROOF_NAME
    assert read_proof(layer.directory) == DIFF_ID
    whole = path.read_bytes()
    for damaged in (b"", whole[:-9], whole[:4], whole.replace(b"sha256", b"sha255"), b"\xff" * 90):
        path.write_bytes(damaged)
        assert read_proof(layer.directory) is None
    path.unlink()
    assert not reopen_lazy_layer(tmp_path).is_proven
