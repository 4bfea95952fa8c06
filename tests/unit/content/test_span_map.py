"""The map of present spans: what was saved is there again, and nothing else ever is."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol.content.span_map import SpanMap

COUNT = 21


@pytest.fixture
def path(tmp_path):
    return tmp_path / "spans"


def spans_in(span_map: SpanMap, count: int = COUNT) -> set[int]:
    return {span for span in range(count) if span in span_map}


def saved(path: Path, spans, count: int = COUNT) -> bytes:
    span_map = SpanMap(path, count)
    for span in spans:
        span_map.add(span)
    span_map.save(span_map.snapshot())
    return path.read_bytes()


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_bits_survive_saving(case):
    count, spans = case
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "spans"
        saved(path, spans, count)
        again = SpanMap(path, count)
        assert spans_in(again, count) == spans
        assert again.present_count == len(spans)
        assert again.is_full == (len(spans) == count)
        assert os.listdir(directory) == ["spans"]


def test_a_span_counts_once(path):
    span_map = SpanMap(path, COUNT)
    span_map.add(7)
    span_map.add(7)
    assert span_map.present_count == 1


def test_a_map_without_spans_is_full(path):
    assert SpanMap(path, 0).is_full
    saved(path, [], 0)
    assert SpanMap(path, 0).is_full


@given(st.data())
def test_a_damaged_map_never_claims_what_was_not_there(data):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "spans"
        spans = data.draw(st.sets(st.integers(0, COUNT - 1)))
        good = saved(path, spans)
        at = data.draw(st.integers(0, len(good) - 1))
        bad = bytearray(good)
        bad[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(bad)
        span_map = SpanMap(path, COUNT)
        assert (spans_in(span_map), span_map.present_count) == (set(), 0)


def test_every_cut_and_every_addition_counts_as_empty(path):
    good = saved(path, range(COUNT))
    for wrong in [good[:at] for at in range(len(good))] + [good + b"\0"]:
        path.write_bytes(wrong)
        assert SpanMap(path, COUNT).present_count == 0


@pytest.mark.parametrize("count", [COUNT - 1, COUNT + 1, COUNT + 100])
def test_the_map_of_another_table_counts_as_empty(path, count):
    saved(path, range(COUNT))
    assert SpanMap(path, count).present_count == 0


def test_what_is_no_file_counts_as_empty_and_is_no_error(path):
    path.mkdir()
    assert SpanMap(path, COUNT).present_count == 0


def test_a_snapshot_does_not_grow(path):
    """What is added while the data is being made durable must not slip into the map."""
    span_map = SpanMap(path, COUNT)
    span_map.add(3)
    bits = span_map.snapshot()
    span_map.add(4)
    span_map.save(bits)
    assert spans_in(SpanMap(path, COUNT)) == {3}
    assert 4 in span_map


def test_a_failed_save_leaves_the_old_map(path, monkeypatch):
    saved(path, {1})
    span_map = SpanMap(path, COUNT)
    span_map.add(2)

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("imgvol.content.span_map.write_file", fail)
        with pytest.raises(OSError, match="space"):
            span_map.save(span_map.snapshot())
    assert spans_in(SpanMap(path, COUNT)) == {1}
    span_map.save(span_map.snapshot())
    assert spans_in(SpanMap(path, COUNT)) == {1, 2}


def test_what_a_killed_save_left_is_in_nobody_s_way(path):
    path.with_name("spans.new").write_bytes(b"half")
    saved(path, {1})
    assert spans_in(SpanMap(path, COUNT)) == {1}


SPANS = st.integers(0, COUNT - 1)
STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "copy", "give up", "discard"]), SPANS), max_size=30
)


@given(STEPS)
def test_what_was_not_kept_stays_so_until_it_comes(steps):
    present: set[int] = set()
    unkept: set[int] = set()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "spans"
        span_map = SpanMap(path, COUNT)
        for step, span in steps:
            match step:
                case "add":
                    span_map.add(span)
                    present.add(span)
                    unkept.discard(span)
                case "copy":
                    span_map.add(span, is_kept=False)
                    present.add(span)
                    unkept.add(span)
                case "give up":
                    span_map.give_up(span)
                    unkept.add(span)
                case "discard":
                    span_map.discard(span)
                    present.discard(span)
        span_map.save(span_map.snapshot())
        for same in (span_map, SpanMap(path, COUNT)):
            assert spans_in(same) == present
            assert {span for span in range(COUNT) if not same.is_kept(span)} == unkept
            assert (same.present_count, same.unkept_count) == (len(present), len(unkept))


def test_the_map_of_a_layer_that_was_removed_is_not_written_into_the_next_one(tmp_path):
    home = tmp_path / "layer"
    home.mkdir()
    old = SpanMap(home / "spans", COUNT)
    old.add(3)
    home.rmdir()
    with pytest.raises(FileNotFoundError):
        old.save(old.snapshot())
    home.mkdir()  # as a pull begins it anew
    with pytest.raises(FileNotFoundError):
        old.save(old.snapshot())
    assert list(home.iterdir()) == []
    assert spans_in(SpanMap(home / "spans", COUNT)) == set()
