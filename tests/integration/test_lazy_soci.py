"""Layers indexed by soci-snapshotter's own builder: what imgvol sees equals what the tar says."""

import gzip
import random
import subprocess
import zlib

import pytest

from imgvol.errors import DigestMismatch, Unsupported
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.index import LayerIndex
from imgvol.layers.lazy.open import open_span_table
from imgvol.layers.lazy.soci import open_ztoc
from imgvol.layers.lazy.spans import LazyLayer
from imgvol.oci.digest import Digest
from support import edge_cases, tars
from support.lazy import describe_lazy, describe_tar, rich_archive
from support.peers import require_peer
from support.programs import require, run
from support.soci import checkpoints_of, decode_all, pack_checkpoints

pytestmark = pytest.mark.servers

KIB = 1024
# The peer indexes members of the usual types only.
EDGE_CASES = [
    case
    for case in edge_cases.CASES + edge_cases.DISPUTED
    if case.name not in ("old-sparse", "contiguous", "global-pax-header")
]


def build(directory, blob: bytes, *flags: str) -> bytes:
    """The peer's zTOC of a blob."""
    program = require_peer("ztoc")
    source = directory / "blob"
    source.write_bytes(blob)
    done = subprocess.run([program, *flags, source], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def open_layer(ztoc: bytes, blob: bytes) -> LazyLayer:
    return open_ztoc(ztoc, expected=Digest.of(ztoc), blob_size=len(blob))


def index_of(tar: bytes) -> bytes:
    builder = IndexBuilder(own_files=False)
    for member in tars.parse([tar]):
        builder.add(member)
    return builder.finish()


def check(directory, tar: bytes, blob: bytes, *flags: str) -> LazyLayer:
    """Compares files and bytes, before and after the table has been stored."""
    layer = open_layer(build(directory, blob, *flags), blob)
    expected = describe_tar(tar)
    actual = describe_lazy(layer, blob)
    assert actual.keys() == expected.keys()
    for path, what in expected.items():
        assert actual[path] == what, path
    # The very same, for positions are those of the tar.
    assert layer.index == index_of(tar)
    data = decode_all(layer.table, blob)
    assert data == tar[: len(data)]
    assert not any(tar[len(data) :])
    table = open_span_table(layer.table.to_bytes())
    assert decode_all(table, blob) == data
    return layer


@pytest.fixture(scope="module")
def archive() -> bytes:
    return rich_archive()


@pytest.mark.parametrize("span", [64 * KIB, 1024 * KIB, 4096 * KIB])
@pytest.mark.parametrize("level", [1, 6, 9])
def test_gzip_layer_equals_its_tar(level, span, archive, tmp_path):
    layer = check(tmp_path, archive, gzip.compress(archive, level), f"-span={span}")
    assert layer.table.span_count > 1


def test_layer_of_other_compressors_equals_its_tar(archive, tmp_path):
    require("gzip")
    source = tmp_path / "layer.tar"
    source.write_bytes(archive)
    run("gzip", "-k", source)
    # With the name of the file in its header, as most tools leave it.
    check(tmp_path, archive, (tmp_path / "layer.tar.gz").read_bytes(), f"-span={256 * KIB}")
    for strategy in (zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY):
        encoder = zlib.compressobj(6, zlib.DEFLATED, 31, 9, strategy)
        blob = encoder.compress(archive) + encoder.flush()
        check(tmp_path, archive, blob, f"-span={256 * KIB}")


@pytest.mark.parametrize("span", [64 * KIB, 1024 * KIB, 4096 * KIB])
def test_layer_of_several_gzip_members_equals_its_tar(span, archive, tmp_path):
    step = 1_300_007
    pieces = [archive[at : at + step] for at in range(0, len(archive), step)]
    blob = b"".join(map(gzip.compress, pieces))
    check(tmp_path, archive, blob, f"-span={span}")


@pytest.mark.parametrize("span", [100_000, 4096 * KIB])
def test_uncompressed_layer_equals_its_tar(span, archive, tmp_path):
    layer = check(tmp_path, archive, archive, f"-span={span}", "-algorithm=uncompressed")
    assert layer.table.span_count == -(-len(archive) // span)


@pytest.mark.parametrize("case", EDGE_CASES, ids=lambda c: c.name)
def test_edge_case_equals_its_tar_or_is_refused(case, tmp_path):
    for layer in edge_cases.image_of([case], ["gzip"] * edge_cases.LAYERS).layers:
        if case.name == "sparse" and len(layer.tar) > 10_240:
            with pytest.raises(Unsupported, match="sparse"):
                check(tmp_path, layer.tar, layer.blob, f"-span={64 * KIB}")
        else:
            check(tmp_path, layer.tar, layer.blob, f"-span={64 * KIB}")


def test_large_padding_behind_the_archive_is_harmless(tmp_path):
    text = random.Random(1).randbytes(100_000).hex().encode()
    tar = tars.member(b"file", text) + tars.END
    padded = tar + bytes(3_000_000)
    layer = check(tmp_path, padded, gzip.compress(padded), f"-span={64 * KIB}")
    assert layer.table.data_size == len(tar)
    (start, end) = layer.table.compressed_range(layer.table.span_count - 1)
    assert start < end


def test_our_checkpoints_are_the_peers(archive, tmp_path):
    """What the unit tests are made of."""
    blob = gzip.compress(archive[:3_000_000]) + gzip.compress(archive[3_000_000:])
    ztoc = build(tmp_path, blob, f"-span={100 * KIB}")
    assert pack_checkpoints(checkpoints_of(blob, 100 * KIB))[12:] in ztoc


def test_every_damaged_span_is_noticed(archive, tmp_path):
    blob = gzip.compress(archive)
    table = open_layer(build(tmp_path, blob, f"-span={1024 * KIB}"), blob).table
    for span in range(table.span_count):
        start, end = table.compressed_range(span)
        data = bytearray(blob[start:end])
        data[len(data) // 3] ^= 0x10
        with pytest.raises(DigestMismatch):
            table.decode(span, bytes(data))


def test_small_layer_is_one_span(tmp_path):
    tar = tars.member(b"file", b"content") + tars.END
    blob = gzip.compress(tar)
    layer = check(tmp_path, tar, blob)
    assert layer.table.span_count == 1
    assert LayerIndex(layer.index).file_bytes == 7
