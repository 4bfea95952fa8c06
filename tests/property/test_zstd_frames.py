"""zstd frames: any tar in any frames reads as the tar, and changed documents do not lie."""

import contextlib
import functools
import io
import random
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from imgvol.errors import ContentError, DigestMismatch, InvalidLayer, StoreDamaged
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.index import LayerIndex
from imgvol.layers.lazy.frame_builder import ONE_FRAME, FrameBuilder
from imgvol.layers.lazy.frames import FrameRun
from imgvol.layers.lazy.open import open_span_table
from imgvol.layers.lazy.soci_twin import compress_ztoc
from imgvol.layers.lazy.spans import Kind, seal
from imgvol.layers.lazy.zstd_frames import open_frames
from imgvol.oci.digest import Digest
from imgvol.publish import index_job
from support import tars
from support.frames import FrameDraft, cut, draft_of, frame, skippable
from support.soci import decode_all, sha256
from support.tar_files import FILES

# One frame after another: where the tar is cut, how it is packed, and what comes before it.
frames = st.lists(
    st.tuples(
        st.integers(0, 50_000),
        st.sampled_from([-3, 1, 9]),
        st.booleans(),
        st.booleans(),
        st.none() | st.tuples(st.binary(max_size=60), st.integers(0, 15)),
    ),
    max_size=12,
)


def pack(tar: bytes, how) -> tuple[bytes, int]:
    """A blob, and how many of its frames hold something."""
    cuts = sorted({0, len(tar), *(at for at, *_ in how if at < len(tar))})
    # Cuts that come twice are empty frames.
    empty = len(how) + 2 - len(cuts)
    out: list[bytes] = []
    settings = [*how, (0, 3, True, False, None)]
    for number, (start, end) in enumerate(pairwise(cuts)):
        _, level, has_size, has_checksum, before = settings[min(number, len(settings) - 1)]
        if before is not None:
            out.append(skippable(*before))
        out.append(frame(tar[start:end], level=level, has_size=has_size, has_checksum=has_checksum))
        if number < empty:
            out.append(frame(b""))
    if how and how[0][4] is not None:
        out.append(skippable(*how[0][4]))
    return b"".join(out), len(cuts) - 1


@given(
    files=FILES,
    padding=st.integers(0, 40),
    how=frames,
    span_size=st.sampled_from([1, 700, 4096, 1 << 20]),
)
def test_any_frames_of_any_tar_are_read_as_the_tar_is(files, padding, how, span_size):
    archive = b"".join(
        tars.member(name[:99], content, mode=mode, uid=uid) for name, content, mode, uid in files
    )
    tar = archive + tars.END + bytes(512 * padding)
    blob, count = pack(tar, how)
    request = {
        "digest": sha256(blob),
        "size": len(blob),
        "diff_id": sha256(tar),
        "span_size": span_size,
    }
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        answer = index_job.run(request, io.BytesIO(blob), Path(directory), lambda _done: None)
        made = [path.name for path in Path(directory).iterdir()]
        if count == 1:
            assert answer == {"unfit": ONE_FRAME}
            assert not made
            return
        assert made == ["frames"]
        document = (Path(directory) / "frames").read_bytes()
    assert answer["frames"] == {"digest": sha256(document), "size": len(document)}
    assert answer["members"] == len(files)
    layer = open_frames(document, expected=Digest.of(document), blob_size=len(blob))
    builder = IndexBuilder(own_files=False)
    for member in tars.parse([tar]):
        builder.add(member)
    assert layer.index == builder.finish()
    assert layer.table.span_count == answer["spans"]
    data = decode_all(layer.table, blob)
    assert data == tar[: len(data)]
    assert not any(tar[len(data) :])
    start = sum(map(len, (archive, tars.END))) // 3
    some = decode_all(layer.table, blob, layer.table.spans_of(start, 700))
    assert some[start : start + 700] == tar[: len(data)][start : start + 700]


@given(st.binary(max_size=400), st.integers(1, 50))
def test_arbitrary_bytes_are_refused_as_a_stream(data, piece):
    builder = FrameBuilder(1000)
    with contextlib.suppress(ContentError):
        for part in cut(data, piece):
            for _ in builder.feed(part):
                pass
        builder.finish()
        raise AssertionError("nonsense was accepted")


@functools.cache
def small() -> tuple[bytes, bytes, FrameDraft]:
    noise = random.Random(5)
    members = [tars.member(b"f%d" % n, noise.randbytes(2000).hex().encode()) for n in range(8)]
    tar = b"".join(members) + tars.END
    pieces = cut(tar, 9000)
    draft, blob = draft_of(tar, pieces, [frame(piece) for piece in pieces], skippable(b"end"))
    return tar, blob, draft


changes = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8)


def changed(data: bytes, edits: list[tuple[int, int]]) -> bytes:
    out = bytearray(data)
    for at, value in edits:
        out[at % len(out)] = value
    return bytes(out)


def read_or_refused(document: bytes) -> None:
    """Whatever a document says: what comes out of it lies in the layer, and is what was pinned."""
    _, blob, _ = small()
    try:
        layer = open_frames(document, expected=Digest.of(document), blob_size=len(blob))
        LayerIndex(layer.index)
    except ContentError:
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
            assert 0 <= region.position <= region.position + len(region.data) <= table.data_size
            assert span in table.spans_of(region.position, 1)


@given(changes)
def test_changed_documents_are_read_or_refused(edits):
    read_or_refused(compress_ztoc(changed(small()[2].to_ztoc(), edits)))


@given(changes)
def test_documents_that_are_damaged_on_the_way_are_read_or_refused(edits):
    read_or_refused(changed(small()[2].to_bytes(), edits))


@given(st.lists(st.integers(0, 1 << 17), min_size=3, max_size=18), st.integers(0, 1 << 17))
def test_any_runs_are_refused_or_in_order(numbers, size):
    tar, _, draft = small()
    rows = [tuple(numbers[at : at + 3]) for at in range(0, len(numbers) - 2, 3)]
    digests = [sha256(b"")] * len(rows)
    ztoc = replace(draft.ztoc, digests=digests, last_span=len(rows) - 1)
    try:
        table = FrameDraft(ztoc, [FrameRun(*row) for row in rows], size).open().table
    except ContentError:
        return
    places = [place for span in range(table.span_count) for place in table.positions(span)]
    assert places[0][0] == 0
    assert places[-1][1] == len(tar)
    assert all(a[1] == b[0] for a, b in pairwise(places))
    found = [table.compressed_range(span) for span in range(table.span_count)]
    assert all(a[1] <= b[0] for a, b in pairwise(found))


@given(changes)
def test_a_stored_table_is_whole_or_damaged(edits):
    stored = small()[2].open().table.to_bytes()
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
        open_span_table(seal(Kind.FRAMES, body))
    except StoreDamaged:
        return
    raise AssertionError("nonsense was accepted")
