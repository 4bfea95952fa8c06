"""zTOCs, checkpoints and spans: arbitrary and changed bytes, and any way to cut a stream up."""

import contextlib
import functools
import gzip
import json
import random
from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from imgvol.errors import (
    DigestMismatch,
    InvalidDocument,
    InvalidLayer,
    LimitExceeded,
    StoreDamaged,
    Unsupported,
)
from imgvol.layers.index import LayerIndex
from imgvol.layers.lazy.checkpoints import Checkpoint, inflate_span, parse_checkpoints
from imgvol.layers.lazy.open import open_span_table
from imgvol.layers.lazy.soci import open_ztoc
from imgvol.layers.lazy.soci_index import parse_prefetch, parse_soci_index
from imgvol.layers.lazy.spans import Kind, seal
from imgvol.layers.lazy.ztoc import parse_ztoc
from imgvol.oci.digest import Digest
from support import tars
from support.lazy import describe, reader, rich_archive
from support.soci import (
    Draft,
    Entry,
    checkpoints_of,
    decode_all,
    draft_of,
    pack_checkpoints,
    plain_draft_of,
    sha256,
)

DECLARED = (InvalidLayer, LimitExceeded, DigestMismatch, Unsupported, InvalidDocument)

changes = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8)
# What tends to break readers of offsets and sizes.
numbers = st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 31, (1 << 32) - 1])


def changed(data: bytes, edits: list[tuple[int, int]]) -> bytes:
    out = bytearray(data)
    for at, value in edits:
        out[at % len(out)] = value
    return bytes(out)


@functools.cache
def small_layer() -> tuple[bytes, bytes, Draft]:
    noise = random.Random(5)
    members = [tars.member(b"f%d" % n, noise.randbytes(2000).hex().encode()) for n in range(30)]
    extra = tars.pax((b"SCHILY.xattr.user.x", b"y")) + tars.member(b"attributes")
    tar = b"".join(members) + extra + tars.END
    blob = gzip.compress(tar, 6)
    return tar, blob, draft_of(tar, blob, 40_000)


@functools.cache
def tiny_ztoc() -> bytes:
    """One without checkpoints, so that changes hit what matters."""
    entries = tuple(
        Entry(b"f%d" % n, offset=512 + 1024 * n, size=5, records=((b"SCHILY.xattr.user.x", b"y"),))
        for n in range(4)
    )
    return Draft(
        compressed_size=1000,
        uncompressed_size=10_240,
        entries=entries,
        digests=[sha256(b"")],
        checkpoints=bytes(12),
    ).to_bytes()


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_declared_errors_only(data):
    digest = Digest.of(data)
    for attempt in (
        lambda: open_ztoc(data, expected=digest, blob_size=1000),
        lambda: parse_checkpoints(data),
        lambda: parse_soci_index(data, expected=digest),
        lambda: parse_prefetch(data, expected=digest),
    ):
        try:
            attempt()
        except DECLARED:
            pass
        else:
            raise AssertionError("arbitrary bytes were accepted")


@given(changes)
def test_changed_ztoc_raises_declared_errors_only(edits):
    try:
        ztoc = parse_ztoc(changed(tiny_ztoc(), edits))
    except DECLARED:
        return
    end = 0
    for member in ztoc.members:
        assert member.payload_offset >= end + 512
        end = member.payload_offset + member.payload_size
    assert end <= ztoc.uncompressed_size


@given(st.integers(0, 1 << 20), numbers)
def test_changed_offsets_raise_declared_errors_only(at, number):
    data = bytearray(tiny_ztoc())
    at = at % (len(data) // 4) * 4
    data[at : at + 4] = number.to_bytes(4, "little")
    with contextlib.suppress(*DECLARED):
        parse_ztoc(bytes(data))


@given(changes, st.booleans())
def test_changed_layer_opens_to_something_readable_or_not_at_all(edits, is_plain):
    tar, blob, draft = small_layer()
    if is_plain:
        blob, draft = tar, plain_draft_of(tar, 40_000)
    data = draft.to_bytes()
    # The checkpoints are most of it; what lies around them is what has a structure.
    window = data.index(b"\0" * 4096) if b"\0" * 4096 in data else 0
    edits = [(at if window < 5000 else at % window, value) for at, value in edits]
    data = changed(data, edits)
    try:
        layer = open_ztoc(data, expected=Digest.of(data), blob_size=len(blob))
        LayerIndex(layer.index)
    except DECLARED:
        return
    table = layer.table
    for span in range(table.span_count):
        start, end = table.compressed_range(span)
        assert 0 <= start < end <= len(blob)
        try:
            regions = table.decode(span, blob[start:end])
        except (DigestMismatch, InvalidLayer):
            continue
        for region in regions:
            assert region.position >= 0
            assert region.position + len(region.data) <= table.data_size
            assert span in table.spans_of(region.position, 1)


@given(st.lists(st.integers(-5, 1 << 16), min_size=2, max_size=12), st.integers(0, 255))
def test_any_checkpoints_are_refused_or_in_order(numbers, bits):
    _, blob, _ = small_layer()
    points = checkpoints_of(blob, 1 << 30)[:1]
    for compressed, position in zip(numbers[::2], numbers[1::2], strict=False):
        points.append(replace(points[0], compressed=compressed, position=position, bits=bits))
    try:
        found = parse_checkpoints(pack_checkpoints(points))
    except InvalidLayer:
        return
    assert len(found) == len(points)
    assert sorted(set(found)) == list(found)
    assert len({point.position for point in found}) == len(found)


@given(st.binary(min_size=1, max_size=300), st.integers(0, 7), st.integers(1, 5000))
def test_arbitrary_data_inflates_to_what_was_asked_or_not_at_all(data, bits, size):
    checkpoint = Checkpoint(10, 0, bits, None)
    with contextlib.suppress(InvalidLayer):
        assert len(inflate_span(data, checkpoint, b"", size)) == size


@given(
    st.integers(1, 9),
    st.integers(1, 60_000),
    st.lists(st.integers(1, 120_000), max_size=5),
    st.randoms(use_true_random=False),
)
def test_any_members_and_spans_read_as_the_tar(level, span_size, cuts, noise):
    tar, _, _ = small_layer()
    bounds = sorted({0, len(tar), *(cut for cut in cuts if cut < len(tar))})
    pieces = [tar[a:b] for a, b in pairwise(bounds)]
    blob = b"".join(gzip.compress(piece, level) for piece in pieces)
    layer = draft_of(tar, blob, span_size).open()
    assert decode_all(layer.table, blob) == tar
    start = noise.randrange(len(tar))
    size = noise.randint(1, len(tar) - start)
    part = decode_all(layer.table, blob, layer.table.spans_of(start, size))
    assert part[start : start + size] == tar[start : start + size]


@given(changes)
def test_stored_table_is_whole_or_damaged(edits):
    _, _, draft = small_layer()
    stored = draft.open().table.to_bytes()
    edited = changed(stored, edits)
    try:
        table = open_span_table(edited)
    except StoreDamaged:
        return
    assert edited == stored
    assert table.to_bytes() == stored


@given(st.binary(max_size=200))
def test_sealed_nonsense_is_damaged(body):
    try:
        open_span_table(seal(Kind.SOCI, body))
    except StoreDamaged:
        return
    raise AssertionError("nonsense was accepted")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 40), 1 << 40) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["start_span", "end_span", "priority"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(st.lists(json_values, max_size=4))
def test_any_prefetch_artifact_is_read_or_refused(spans):
    raw = json.dumps({"version": "1.0", "prefetch_spans": spans}).encode()
    try:
        ranges = parse_prefetch(raw, expected=Digest.of(raw))
    except DECLARED:
        return
    assert len(ranges) == len(spans)
    assert all(0 <= first <= last for first, last in ranges)


def test_rich_archive_reads_the_same_after_a_restart():
    tar = rich_archive()
    blob = gzip.compress(tar, 1)
    layer = draft_of(tar, blob, 500_000).open()
    index = LayerIndex(layer.index)
    again = open_span_table(layer.table.to_bytes())
    assert describe(index, reader(layer.table, blob)) == describe(index, reader(again, blob))
