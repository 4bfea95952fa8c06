"""Lazy layers that other people's tools write: what imgvol sees equals what the tar says."""

import pytest

from imgvol.errors import DigestMismatch, InvalidLayer
from imgvol.layers.lazy.locate import ExternalToc, Format
from imgvol.layers.lazy.open import open_span_table
from imgvol.layers.lazy.spans import LazyLayer
from support.lazy import (
    decompress,
    describe_lazy,
    describe_tar,
    locate,
    open_lazy,
    rich_archive,
)
from support.peers import PeerLayer, external_stargz_layer, podman_layer, stargz_layer
from support.tars import END, member, pax

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def archive() -> bytes:
    return rich_archive()


def check(layer: PeerLayer, format_: Format) -> LazyLayer:
    """Compares files and bytes, before and after the table has been stored."""
    found = locate(layer.blob, layer.annotations)
    assert found is not None
    assert found.format is format_
    lazy = open_lazy(layer.blob, layer.annotations, layer.toc)
    expected = describe_tar(decompress(layer.blob))
    actual = describe_lazy(lazy, layer.blob)
    assert actual.keys() == expected.keys()
    for path, what in expected.items():
        assert actual[path] == what, path
    stored = lazy.table.to_bytes()
    table = open_span_table(stored)
    assert table.to_bytes() == stored
    assert describe_lazy(LazyLayer(lazy.index, table), layer.blob) == actual
    return lazy


FORMATS = {"gzip": Format.ESTARGZ, "zstd": Format.ZSTD_CHUNKED}
FLAGS = {
    "default": (),
    "lossless": ("-lossless",),
    "chunks of 100 kB": ("-chunk-size=100000",),
    "files packed": ("-min-chunk-size=50000",),
    "chunks and files packed": ("-min-chunk-size=300000", "-chunk-size=100000"),
    "prioritized": ("-prioritize=usr/share/7.txt,etc/passwd",),
}


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
@pytest.mark.parametrize(
    ("name", "format_"), [("gzip", Format.ESTARGZ), ("zstd", Format.ZSTD_CHUNKED)]
)
def test_stargz_layer_equals_its_tar(name, format_, flags, archive, tmp_path):
    layer = stargz_layer(tmp_path, archive, f"-format={name}", *flags)
    lazy = check(layer, format_)
    if any(flag.startswith("-prioritize") for flag in flags):
        assert list(lazy.table.prefetch) == list(range(len(lazy.table.prefetch)))
        assert 0 < len(lazy.table.prefetch) < 5
    else:
        assert list(lazy.table.prefetch) == []


def test_podman_layer_equals_its_tar(tmp_path):
    archive = rich_archive(is_lowest=True)
    layer = podman_layer(tmp_path, archive)
    lazy = check(layer, Format.ZSTD_CHUNKED)
    # The holes of its files are not stored.
    assert lazy.table.data_size < len(archive) - 4_000_000


def test_estargz_rounds_times_to_seconds_and_nothing_else_differs(tmp_path):
    def exact(name: str, *times: str) -> bytes:
        return b"".join(
            pax((b"mtime", time.encode())) + member(f"{name}{number}".encode(), b"x")
            for number, time in enumerate(times)
        )

    times = ("1700000000.4", "1700000000.5", "1700000000.987654321")
    layer = stargz_layer(tmp_path, exact("f", *times) + END, "-lossless")
    actual = describe_lazy(open_lazy(layer.blob, layer.annotations), layer.blob)
    expected = describe_tar(decompress(layer.blob))
    assert [expected[b"/f%d" % n][0].mtime_ns % 10**9 for n in range(3)] == [
        400_000_000,
        500_000_000,
        987_654_321,
    ]
    for number, seconds in enumerate((1_700_000_000, 1_700_000_001, 1_700_000_001)):
        record, *rest = actual[b"/f%d" % number]
        wanted, *wanted_rest = expected[b"/f%d" % number]
        assert record == wanted._replace(mtime_ns=seconds * 10**9)
        assert rest == wanted_rest


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_stargz_layer_with_external_table_of_contents_equals_its_tar(flags, archive, tmp_path):
    layer = external_stargz_layer(tmp_path, archive, *flags)
    assert isinstance(locate(layer.blob, layer.annotations), ExternalToc)
    check(layer, Format.ESTARGZ)
    if "-lossless" in flags:
        assert decompress(layer.blob) == archive


@pytest.mark.parametrize("name", FORMATS)
def test_every_damaged_span_is_noticed_and_no_other_is_affected(name, tmp_path):
    layer = stargz_layer(tmp_path, rich_archive(), f"-format={name}", "-min-chunk-size=50000")
    table = open_lazy(layer.blob, layer.annotations).table
    for span in range(table.span_count):
        start, end = table.compressed_range(span)
        data = bytearray(layer.blob[start:end])
        data[len(data) // 3] ^= 0x10
        good = table.decode(span, layer.blob[start:end])
        try:
            regions = table.decode(span, bytes(data))
        except (DigestMismatch, InvalidLayer):
            continue
        # Damage beyond the last chunk, in what nobody gets to see.
        assert regions == good
