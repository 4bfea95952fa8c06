"""Small layers that other people's tools made: see tests/fixtures/lazy/README.md."""

import json
from pathlib import Path

import pytest

from imgvol.layers.lazy.locate import Format
from imgvol.layers.reserved import RESERVED_NAMES
from support.lazy import decompress, describe_lazy, describe_tar, locate, open_lazy

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures" / "lazy"
FORMATS = {
    "estargz": Format.ESTARGZ,
    "estargz-packed": Format.ESTARGZ,
    "stargz-zstd": Format.ZSTD_CHUNKED,
    "podman": Format.ZSTD_CHUNKED,
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_layer_equals_its_tar(name):
    blob = (FIXTURES / f"{name}.blob").read_bytes()
    annotations = json.loads((FIXTURES / f"{name}.json").read_bytes())
    assert locate(blob, annotations).format is FORMATS[name]
    layer = open_lazy(blob, annotations)
    found = describe_lazy(layer, blob)
    assert found == describe_tar(decompress(blob))
    assert found[b"/data/holes"][3] == bytes(5000) + b"middle" + bytes(5000)
    assert found[b"/etc/gone"] == "whiteout"
    assert not found.keys() & {b"/" + name for name in RESERVED_NAMES}
    assert bool(layer.table.prefetch) == (name == "estargz-packed")
