"""What the background has yet to fetch of a lazy layer."""

import random

import pytest

from imgvol import limits
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.images.fetch.rest import lacking
from support.spans import PlainTable, cut, make_lazy_layer, use_plain_tables

BLOB = random.Random(3).randbytes(1000)
TABLE = PlainTable(BLOB, cut(len(BLOB), 100))


@pytest.fixture(autouse=True)
def _plain_tables(monkeypatch):
    use_plain_tables(monkeypatch)


def put(layer: LazyLayerStore, *spans: int, is_kept: bool = True) -> None:
    for span in spans:
        start, end = TABLE.compressed_range(span)
        regions = TABLE.decode(span, BLOB[start:end])
        layer.intake.put_span(span, regions, BLOB[start:end] if is_kept else b"", is_kept=is_kept)


def test_what_is_lacking_is_what_was_not_kept_and_spans_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "FETCH_GAP", 50)
    layer = make_lazy_layer(tmp_path, TABLE)
    everything = range(10)
    assert lacking(layer, 0, 1000, everything) == [(0, 1000)]
    put(layer, 2, 3, 7)
    assert lacking(layer, 0, 1000, everything) == [(0, 200), (400, 700), (800, 1000)]
    assert lacking(layer, 150, 450, [4]) == [(150, 200), (400, 500)]
    layer.kept.put(0, BLOB[:150])  # without its spans: they are needed whole
    assert lacking(layer, 0, 200, [0, 1]) == [(0, 200)]
    layer.kept.put(800, BLOB[800:850])
    assert lacking(layer, 700, 1000, []) == [(850, 1000)]
    put(layer, 4)
    layer.kept.put(540, BLOB[540:580])
    assert lacking(layer, 400, 700, []) == [(500, 700)], "near parts are one"
    put(layer, *everything)
    assert lacking(layer, 0, 1000, everything) == []


def test_a_layer_that_forgoes_its_proof_lacks_spans_only_and_little_between(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "FETCH_GAP", 150)
    monkeypatch.setattr(limits, "FETCH_ALONG_SHARE", 0.3)
    layer = make_lazy_layer(tmp_path, TABLE)
    put(layer, 0, is_kept=False)
    assert layer.forgoes_proof
    put(layer, 2, 4, 6)
    # 600 bytes are missing: 180 along with them, hence one gap of 100.
    assert lacking(layer, 0, 1000, range(10)) == [(100, 400), (500, 600), (700, 1000)]
    assert lacking(layer, 0, 1000, [9]) == [(900, 1000)], "no bytes that are nobody's"
    put(layer, *range(10))
    assert lacking(layer, 0, 1000, range(10)) == []
