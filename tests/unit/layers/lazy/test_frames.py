"""zstd layers of several frames: how they are read, and documents that do not keep their word."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import zstandard

from imgvol import limits
from imgvol.errors import (
    ContentError,
    DigestMismatch,
    InvalidLayer,
    LimitExceeded,
    StoreDamaged,
    Unsupported,
)
from imgvol.layers.lazy.frames import FrameRun, FrameTable
from imgvol.layers.lazy.open import open_span_table
from imgvol.layers.lazy.soci import open_ztoc
from imgvol.layers.lazy.soci_twin import compress_ztoc
from imgvol.layers.lazy.spans import Kind, seal
from imgvol.layers.lazy.zstd_frames import open_frames
from imgvol.oci.digest import Digest
from support import tars
from support.frames import FrameDraft, cut, draft_of, frame, skippable
from support.lazy import describe_lazy, describe_tar, rich_archive
from support.soci import decode_all, sha256

KIB = 1024
TAR = b"".join(tars.member(b"f%d" % n, random.Random(n).randbytes(3000)) for n in range(9)) + (
    tars.END
)
PIECES = cut(TAR, 12_000)
DRAFT, BLOB = draft_of(TAR, PIECES, [frame(piece) for piece in PIECES])


def with_runs(*runs: FrameRun, **changes) -> FrameDraft:
    """A document of other runs, with the digests that they have in the blob."""
    digests = [sha256(BLOB[run.start : run.end]) for run in runs]
    ztoc = replace(DRAFT.ztoc, digests=digests, last_span=len(runs) - 1)
    return replace(DRAFT, ztoc=ztoc, runs=runs, **changes)


def moved(number: int, **fields) -> FrameDraft:
    runs = list(DRAFT.runs)
    runs[number] = runs[number]._replace(**fields)
    return with_runs(*runs)


# --- what is right --------------------------------------------------------------------------------


def test_any_range_comes_from_the_frames_that_hold_it():
    table = DRAFT.open().table
    assert (table.span_count, table.data_size, table.blob_size) == (3, len(TAR), len(BLOB))
    assert table.is_pinned
    assert decode_all(table, BLOB) == TAR
    for start, size in (
        (0, 1),
        (11_999, 1),
        (11_999, 2),
        (12_000, 1),
        (15_000, 9000),
        (0, 1 << 40),
    ):
        spans = list(table.spans_of(start, size))
        end = min(start + size, len(TAR))
        assert spans == list(range(start // 12_000, (end - 1) // 12_000 + 1))
        assert decode_all(table, BLOB, spans)[start:end] == TAR[start:end]
    for start, size in ((-5, 5), (0, 0), (len(TAR), 1), (5, -1)):
        assert not table.spans_of(start, size)


def test_a_layer_reads_as_its_tar():
    tar = rich_archive()
    pieces = cut(tar, 100 * KIB)
    draft, blob = draft_of(tar, pieces, [frame(piece, has_size=False) for piece in pieces])
    layer = draft.open()
    assert describe_lazy(layer, blob) == describe_tar(tar)


def test_a_run_may_have_many_frames_and_what_lies_between():
    parts = [frame(piece) + frame(b"") + skippable(b"any") for piece in PIECES]
    blob = b"".join(parts)
    ztoc = replace(DRAFT.ztoc, compressed_size=len(blob), digests=[sha256(blob)], last_span=0)
    table = FrameDraft(ztoc, [FrameRun(0, len(blob), 0)], len(TAR)).open().table
    assert decode_all(table, blob) == TAR


def test_padding_behind_the_archive_is_not_shown():
    padded = TAR + bytes(50_000)
    pieces = cut(padded, 12_000)
    draft, blob = draft_of(padded, pieces, [frame(piece) for piece in pieces])
    table = replace(draft, ztoc=replace(draft.ztoc, uncompressed_size=len(TAR))).open().table
    assert decode_all(table, blob) == TAR
    assert table.positions(2) == ((24_000, len(TAR)),)
    assert table.positions(table.span_count - 1) == ()
    start, end = table.compressed_range(table.span_count - 1)
    assert table.decode(table.span_count - 1, blob[start:end]) == []


def test_a_stored_table_is_the_same_table():
    stored = DRAFT.open().table.to_bytes()
    again = open_span_table(stored)
    assert isinstance(again, FrameTable)
    assert again.to_bytes() == stored
    assert decode_all(again, BLOB) == TAR


# --- what is not ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draft", "error", "text"),
    [
        (moved(0, start=5, end=5), InvalidLayer, "out of order"),
        (moved(0, end=DRAFT.runs[1].start + 1), InvalidLayer, "out of order"),
        (moved(2, end=len(BLOB) + 1), InvalidLayer, "out of order"),
        (moved(2, start=1 << 63, end=(1 << 63) + 5), InvalidLayer, "out of order"),
        (moved(1, start=len(BLOB), end=0), InvalidLayer, "out of order"),
        (moved(0, position=1), InvalidLayer, "leaves out"),
        (moved(1, position=0), InvalidLayer, "out of order"),
        (moved(1, position=24_000), InvalidLayer, "out of order"),
        (moved(2, position=1 << 40), LimitExceeded, "too large"),
        (replace(DRAFT, plain_size=len(TAR) - 1), InvalidLayer, "leaves out"),
        (replace(DRAFT, plain_size=1 << 63), LimitExceeded, "bomb"),
        (replace(DRAFT, plain_size=len(TAR) + limits.SPAN_SIZE), LimitExceeded, "too large"),
        (with_runs(DRAFT.runs[0], DRAFT.runs[2]), None, ""),
        (with_runs(plain_size=len(TAR)), Unsupported, "without digests"),
        (replace(DRAFT, packed=b""), InvalidLayer, "cut off"),
        (replace(DRAFT, packed=bytes(8)), InvalidLayer, "cut off"),
        (replace(DRAFT, packed=bytes(24 * 3 + 7)), InvalidLayer, "cut off"),
        (replace(DRAFT, packed=bytes(24 * 4 + 8)), InvalidLayer, "more or fewer digests"),
        (
            replace(DRAFT, packed=bytes(24 * (limits.ZTOC_SPANS + 1) + 8)),
            LimitExceeded,
            "too many spans",
        ),
        (replace(DRAFT, ztoc=replace(DRAFT.ztoc, algorithm=1)), Unsupported, "compression"),
        (replace(DRAFT, ztoc=replace(DRAFT.ztoc, algorithm=2)), Unsupported, "compression"),
        (replace(DRAFT, ztoc=replace(DRAFT.ztoc, version="1.0")), Unsupported, "version"),
    ],
)
def test_documents_that_contradict_themselves_are_refused(
    draft: FrameDraft, error: type[ContentError] | None, text: str
):
    if error is not None:
        with pytest.raises(error, match=text):
            draft.open()
        return
    # Sound by itself, and wrong of this blob: one run gives less than the gap that it covers.
    table = draft.open().table
    with pytest.raises(InvalidLayer, match="less in them"):
        decode_all(table, BLOB)


@pytest.mark.parametrize(
    ("run", "plain_size", "text"),
    [
        (FrameRun(0, len(BLOB), 0), len(TAR) + 512, "less in them"),
        (FrameRun(0, DRAFT.runs[2].start, 0), len(TAR), "less in them"),
        (FrameRun(0, len(BLOB) - 1, 0), len(TAR), "cut off"),
        (FrameRun(1, len(BLOB), 0), len(TAR), "not zstd"),
        (FrameRun(DRAFT.runs[1].start - 1, len(BLOB), 0), len(TAR), "not zstd"),
    ],
)
def test_runs_that_are_no_whole_frames_are_refused(run, plain_size, text):
    table = with_runs(run, plain_size=plain_size).open().table
    with pytest.raises(InvalidLayer, match=text):
        decode_all(table, BLOB)


def test_frames_that_give_more_than_they_should_are_refused_before_they_have():
    """A hundred megabytes of zeros for what should be a small tar: decoding stops."""
    bomb = zstandard.ZstdCompressor().compress(bytes(100_000_000))
    ztoc = replace(DRAFT.ztoc, compressed_size=len(bomb), digests=[sha256(bomb)], last_span=0)
    table = FrameDraft(ztoc, [FrameRun(0, len(bomb), 0)], len(TAR)).open().table
    with pytest.raises(InvalidLayer, match="more in them"):
        decode_all(table, bomb)


def test_frames_that_need_a_dictionary_or_too_much_memory_are_refused():
    words = [b"some words %d" % n for n in range(2000)]
    dictionary = zstandard.train_dictionary(5000, words)
    with_dictionary = zstandard.ZstdCompressor(dict_data=dictionary).compress(TAR)
    wide = zstandard.ZstdCompressionParameters.from_level(3, window_log=28)
    maker = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    for blob, text in (
        (with_dictionary, "dictionary"),
        (maker.compress(TAR) + maker.flush(), "memory"),
    ):
        ztoc = replace(DRAFT.ztoc, compressed_size=len(blob), digests=[sha256(blob)], last_span=0)
        table = FrameDraft(ztoc, [FrameRun(0, len(blob), 0)], len(TAR)).open().table
        with pytest.raises(InvalidLayer, match=text):
            decode_all(table, blob)


def test_bytes_that_are_not_the_pinned_ones_are_not_decoded():
    table = DRAFT.open().table
    for span in range(table.span_count):
        start, end = table.compressed_range(span)
        data = BLOB[start:end]
        for wrong in (data[:-1], data + b"\0", b"", bytes(len(data)), data[:-1] + b"\0"):
            with pytest.raises(DigestMismatch):
                table.decode(span, wrong)


def test_a_digest_for_another_run_is_noticed():
    digests = list(reversed(DRAFT.ztoc.digests))
    table = replace(DRAFT, ztoc=replace(DRAFT.ztoc, digests=digests)).open().table
    with pytest.raises(DigestMismatch):
        decode_all(table, BLOB)


def test_a_document_is_what_the_index_pins_or_refused():
    data = DRAFT.to_bytes()
    digest = Digest.of(data)
    assert open_frames(data, expected=digest, blob_size=len(BLOB)).table.span_count == 3
    with pytest.raises(DigestMismatch):
        open_frames(data + b"\0", expected=digest, blob_size=len(BLOB))
    with pytest.raises(InvalidLayer, match="another blob"):
        open_frames(data, expected=digest, blob_size=len(BLOB) + 1)


def opened(data: bytes) -> object:
    return open_frames(data, expected=Digest.of(data), blob_size=len(BLOB))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", InvalidLayer),
        (DRAFT.to_bytes()[:-5], InvalidLayer),
        (DRAFT.to_ztoc(), InvalidLayer),  # not compressed
        (compress_ztoc(b""), InvalidLayer),
        (compress_ztoc(b"\xff" * 900), InvalidLayer),
    ],
    ids=["empty", "cut off", "plain", "of nothing", "nonsense"],
)
def test_what_is_no_document_is_refused(data, kind):
    with pytest.raises(kind):
        opened(data)


def test_a_document_that_expands_without_end_is_refused(monkeypatch):
    monkeypatch.setattr("imgvol.limits.ZTOC_SIZE", 1 << 20)
    with pytest.raises(LimitExceeded, match="too large"):
        opened(compress_ztoc(bytes(2 << 20)))


def test_it_is_not_taken_for_a_ztoc_nor_the_other_way_round():
    ztoc = DRAFT.to_ztoc()
    with pytest.raises(Unsupported, match="unknown compression"):
        open_ztoc(ztoc, expected=Digest.of(ztoc), blob_size=len(BLOB))


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body[:-1],
        lambda body: body[:10],
        lambda _body: b"",
        lambda body: body[:16] + b"\xff" * 4 + body[20:],
        lambda body: body[:20] + body[52:],
        lambda body: body[:-8] + bytes(8),
    ],
)
def test_a_damaged_stored_table_is_told(change: Callable[[bytes], bytes]):
    body = DRAFT.open().table.to_bytes()[24:]
    with pytest.raises(StoreDamaged):
        open_span_table(seal(Kind.FRAMES, change(body)))


def test_runs_need_not_touch():
    """What lies between two runs is nobody's, and need not be fetched."""
    between = skippable(bytes(5000))
    parts = [frame(piece) + between for piece in PIECES]
    blob = b"".join(parts)
    starts = [0, *(len(b"".join(parts[: n + 1])) for n in range(2))]
    runs = [
        FrameRun(start, start + len(part) - len(between), position)
        for start, part, position in zip(starts, parts, range(0, len(TAR), 12_000), strict=True)
    ]
    digests = [sha256(blob[run.start : run.end]) for run in runs]
    ztoc = replace(DRAFT.ztoc, compressed_size=len(blob), digests=digests)
    table = FrameDraft(ztoc, runs, len(TAR)).open().table
    assert decode_all(table, blob) == TAR
    assert all(a.end < b.start for a, b in pairwise(runs))
    assert hashlib.sha256(blob[: runs[0].end]).hexdigest() == ztoc.digests[0][7:]
