"""Checkpoints and zTOCs of arbitrary layers: every span decodes to what the stream had there."""

import gzip
import io
import random
import tempfile
import zlib
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from imgvol.layers.builder import IndexBuilder
from imgvol.layers.lazy import checkpoint_builder
from imgvol.layers.lazy.checkpoint_builder import CheckpointBuilder
from imgvol.layers.lazy.checkpoints import inflate_span, parse_checkpoints
from imgvol.layers.lazy.rfc3339 import format_rfc3339, parse_rfc3339
from imgvol.layers.lazy.soci import open_ztoc
from imgvol.layers.lazy.soci_twin import expand_twin
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.publish import index_job
from support import tars
from support.soci import checkpoints_of, decode_all, ranges_of, sha256
from support.tar_files import FILES

STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE)

# A stretch: how it repeats itself, and how long it is.
stretches = st.lists(
    st.tuples(st.integers(0, 1 << 32), st.integers(1, 5000), st.integers(1, 60_000)),
    min_size=1,
    max_size=4,
)
encoders = st.tuples(st.integers(0, 9), st.sampled_from(STRATEGIES), st.integers(1, 9))


def fill(parts) -> bytes:
    return b"".join(
        (random.Random(seed).randbytes(period) * (size // period + 1))[:size]
        for seed, period, size in parts
    )


def encode(plain: bytes, how) -> bytes:
    level, strategy, memory = how
    encoder = zlib.compressobj(level, zlib.DEFLATED, 31, memory, strategy)
    return encoder.compress(plain) + encoder.flush()


@given(
    members=st.lists(st.tuples(stretches, encoders), min_size=1, max_size=3),
    span_size=st.sampled_from([1, 500, 5000, 40_000]),
    piece=st.sampled_from([1000, 33_333, 1 << 20]),
)
def test_every_span_decodes_whatever_made_the_blob(members, span_size, piece):
    plain = b"".join(fill(parts) for parts, _ in members)
    blob = b"".join(encode(fill(parts), how) for parts, how in members)
    builder = CheckpointBuilder(span_size)
    pieces = (blob[at : at + piece] for at in range(0, len(blob), piece))
    assert b"".join(out for data in pieces for out in builder.feed(data)) == plain
    builder.finish()
    spans = builder.spans()
    points = parse_checkpoints(spans.checkpoints)
    for number, point in enumerate(points):
        following = points[number + 1] if number + 1 < len(points) else None
        end = following.compressed if following else len(blob)
        assert Digest.of(blob[point.start : end]).hex == spans.digests[number].hex()
        rest = plain[point.position :]
        # Over the next checkpoints, too: some readers decode several spans at once.
        assert inflate_span(blob[point.start :], point, spans.checkpoints, len(rest)) == rest


# How blocks end before they are full: with the next one at a bit, after an empty block with fixed
# codes, or after an empty stored one at a byte.
FLUSHES = (zlib.Z_BLOCK, zlib.Z_PARTIAL_FLUSH, zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH)
short_stretches = st.lists(
    st.tuples(st.integers(0, 1 << 32), st.integers(1, 400), st.integers(0, 900)), max_size=20
)


def encode_flushed(parts, how, flush: int) -> bytes:
    """A member with a block of its own, or several, for each stretch."""
    level, strategy, memory = how
    encoder = zlib.compressobj(level, zlib.DEFLATED, 31, memory, strategy)
    pieces = [encoder.compress(fill([part])) + encoder.flush(flush) for part in parts]
    return b"".join(pieces) + encoder.flush()


@given(
    members=st.lists(
        st.tuples(short_stretches, encoders, st.sampled_from(FLUSHES)), min_size=1, max_size=4
    ),
    cuts=st.lists(st.integers(0, 20_000), max_size=8),
    output=st.sampled_from([1, 61, 1000, 1 << 19]),
    data=st.data(),
)
def test_checkpoints_lie_at_the_first_ends_of_blocks_behind_a_span(members, cuts, output, data):
    """Against zlib over the whole blob, stopped at every block: where most ends are passed over,
    and wherever input and output are cut, the same are found."""
    plain = b"".join(fill(parts) for parts, _, _ in members)
    blob = b"".join(encode_flushed(*member) for member in members)
    # Spans that end where a block does, or by one byte do not, are what can go wrong.
    ends = sorted({point.position for point in checkpoints_of(blob, 0)})
    start, end = (data.draw(st.sampled_from(ends)) for _ in range(2))
    span_size = max(1, abs(end - start) + data.draw(st.integers(-1, 1)))
    expected = checkpoints_of(blob, span_size)
    with patch.object(checkpoint_builder, "_PIECE", output):
        builder = CheckpointBuilder(span_size)
        pieces = [blob[start:end] for start, end in pairwise(sorted({0, *cuts, len(blob)}))]
        assert b"".join(out for piece in pieces for out in builder.feed(piece)) == plain
        builder.finish()
    spans = builder.spans()
    assert [point[:3] for point in parse_checkpoints(spans.checkpoints)] == [
        (point.compressed, point.position, point.bits) for point in expected
    ]
    assert [f"sha256:{digest.hex()}" for digest in spans.digests] == [
        sha256(blob[start:end]) for start, end in ranges_of(expected, len(blob))
    ]


@given(files=FILES, padding=st.integers(0, 3), is_plain=st.booleans())
def test_what_is_written_is_read_as_the_tar_is(files, padding, is_plain):
    archive = b"".join(
        tars.member(name[:99], content, mode=mode, uid=uid) for name, content, mode, uid in files
    )
    tar = archive + tars.END + bytes(512 * padding)
    blob = tar if is_plain else gzip.compress(tar)
    request = {
        "digest": sha256(blob),
        "size": len(blob),
        "diff_id": sha256(tar),
        "span_size": 4096,
    }
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        answer = index_job.run(request, io.BytesIO(blob), Path(directory), lambda _done: None)
        ztoc = (Path(directory) / "ztoc").read_bytes()
        twin = (Path(directory) / "twin").read_bytes()
    described = Descriptor(media_type="a/b", digest=Digest.of(ztoc), size=len(ztoc))
    assert expand_twin(twin, described) == ztoc
    assert answer["members"] == len(files)
    layer = open_ztoc(ztoc, expected=Digest.of(ztoc), blob_size=len(blob))
    builder = IndexBuilder(own_files=False)
    for member in tars.parse([tar]):
        builder.add(member)
    assert layer.index == builder.finish()
    data = decode_all(layer.table, blob)
    assert data == tar[: len(data)]
    assert not any(tar[len(data) :])


@given(st.integers(-62_135_510_400_000_000_000, 253_402_300_799_999_999_999))
def test_times_are_read_as_they_were_written(moment):
    assert parse_rfc3339(format_rfc3339(moment)) == moment
