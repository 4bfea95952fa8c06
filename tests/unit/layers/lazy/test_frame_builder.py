"""Runs of zstd frames: where they are cut, what belongs to none, and what has no middle."""

import random
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard

from imgvol import limits
from imgvol.errors import InvalidLayer, LimitExceeded, Unsupported
from imgvol.layers.lazy.frame_builder import LARGE_FRAME, ONE_FRAME, FrameBuilder
from imgvol.layers.lazy.frames import FrameTable
from support.frames import as_pzstd, cut, frame, seek_table, seekable, skippable
from support.framings import in_every_framing
from support.lazy import decompress
from support.soci import decode_all

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures" / "lazy"
PLAIN = random.Random(4).randbytes(100_000)


def build(blob: bytes, span_size: int = 10_000, pieces: Iterable[bytes] = ()) -> FrameBuilder:
    builder = FrameBuilder(span_size)
    plain = b"".join(out for piece in pieces or [blob] for out in builder.feed(piece))
    builder.finish()
    library = zstandard.ZstdDecompressor().stream_reader(blob, read_across_frames=True)
    assert plain == library.read()
    return builder


def table_of(blob: bytes, span_size: int = 10_000, plain: bytes = PLAIN) -> FrameTable:
    """The table of a blob; what comes out of it is what was put in."""
    builder = build(blob, span_size)
    table = FrameTable(
        blob_size=len(blob),
        data_size=len(plain),
        digests=b"".join(builder.digests),
        packed_runs=builder.packed_runs,
    )
    assert decode_all(table, blob) == plain
    return table


def sizes(table: FrameTable) -> list[int]:
    """Plain bytes of each span."""
    places = [table.positions(span) for span in range(table.span_count)]
    return [end - start for ((start, end),) in places]


def ranges(table: FrameTable) -> list[tuple[int, int]]:
    return [table.compressed_range(span) for span in range(table.span_count)]


def test_frames_are_put_together_up_to_the_size_of_a_span():
    blob = b"".join(frame(piece) for piece in cut(PLAIN, 3000))
    assert sizes(table_of(blob)) == [9000] * 10 + [10_000]
    assert sizes(table_of(blob, 3000)) == [3000] * 33 + [1000]
    assert sizes(table_of(blob, 1 << 20)) == [100_000]


def test_a_frame_larger_than_a_span_is_one():
    blob = b"".join(frame(piece) for piece in (PLAIN[:2000], PLAIN[2000:90_000], PLAIN[90_000:]))
    assert sizes(table_of(blob)) == [2000, 88_000, 10_000]


def test_spans_that_touch_cover_the_blob():
    blob = b"".join(frame(piece) for piece in cut(PLAIN, 3000))
    found = ranges(table_of(blob))
    assert (found[0][0], found[-1][1]) == (0, len(blob))
    assert all(a[1] == b[0] for a, b in pairwise(found))


@pytest.mark.parametrize("has_size", [True, False])
@pytest.mark.parametrize("has_checksum", [True, False])
@pytest.mark.parametrize("level", [-5, 1, 19])
def test_any_kind_of_frame(has_size, has_checksum, level):
    frames = [
        frame(piece, level=level, has_size=has_size, has_checksum=has_checksum)
        for piece in cut(PLAIN, 3000)
    ]
    assert sizes(table_of(b"".join(frames))) == [9000] * 10 + [10_000]


def test_the_table_of_the_seekable_format_is_nobodys():
    blob = seekable(PLAIN, 3000)
    frames = b"".join(frame(piece) for piece in cut(PLAIN, 3000))
    table = table_of(blob)
    assert ranges(table) == ranges(table_of(frames))
    assert ranges(table)[-1][1] == len(frames) < len(blob)


def test_what_another_tool_writes_in_the_seekable_format():
    """By pyzstd: see tests/fixtures/lazy/README.md."""
    blob = (FIXTURES / "seekable.blob").read_bytes()
    plain = decompress(blob)
    table = table_of(blob, 10_000, plain)
    assert sizes(table) == [8000] * (len(plain) // 8000) + [len(plain) % 8000]
    assert blob.endswith((0x8F92EAB1).to_bytes(4, "little"))


def test_a_seekable_table_that_lies_changes_nothing():
    pieces = cut(PLAIN, 3000)
    frames = [frame(piece) for piece in pieces]
    lie = seek_table(pieces[::-1], [each + b"more" for each in frames[::-1]])
    assert ranges(table_of(b"".join(frames) + lie)) == ranges(table_of(b"".join(frames)))


def test_what_pzstd_puts_between_frames_is_bridged_within_a_span():
    table = table_of(as_pzstd(PLAIN, 3000))
    assert sizes(table) == [9000] * 10 + [10_000]
    assert all(b[0] - a[1] == 12 for a, b in pairwise(ranges(table)))


def test_long_gaps_end_a_span():
    for gap in (skippable(bytes(65_529)), skippable(bytes(1000)) * 70, frame(b"") * 8000):
        blob = gap.join(frame(piece) for piece in cut(PLAIN, 3000)[:4]) + gap
        table = table_of(blob, 1 << 20, PLAIN[:12_000])
        assert sizes(table) == [3000] * 4
        assert all(b[0] - a[1] == len(gap) for a, b in pairwise(ranges(table)))
    gap = skippable(bytes(65_528))
    blob = gap.join(frame(piece) for piece in cut(PLAIN, 3000)[:4]) + gap
    table = table_of(blob, 1 << 20, PLAIN[:12_000])
    assert ranges(table) == [(0, len(blob) - len(gap))]


def test_empty_frames_give_no_span():
    blob = frame(b"") + frame(PLAIN[:500]) + frame(b"") + frame(PLAIN[500:600]) + frame(b"")
    table = table_of(blob, 10_000, PLAIN[:600])
    empty = len(frame(b""))
    assert ranges(table) == [(empty, len(blob) - empty)]


def test_pieces_may_be_cut_anywhere():
    blob = skippable(b"first") + as_pzstd(PLAIN[:9000], 700) + frame(b"") + skippable(b"", 15)

    def run(pieces):
        builder = build(blob, 2000, pieces)
        return builder.packed_runs, builder.digests

    in_every_framing(blob, run)


# --- what is left out, or is none -----------------------------------------------------------------


@pytest.mark.parametrize(
    "blob",
    [
        frame(PLAIN),
        frame(PLAIN, has_size=False) + skippable(b"table", 14),
        skippable(b"\1\2\3\4") + frame(PLAIN),
        frame(b"") + frame(PLAIN) + frame(b""),
    ],
)
def test_one_frame_has_no_middle(blob):
    with pytest.raises(Unsupported, match=ONE_FRAME):
        build(blob)


def test_a_frame_that_no_reader_would_hold_has_none_either(monkeypatch):
    monkeypatch.setattr("imgvol.limits.SPAN_SIZE", 50_000)
    for blob in (
        frame(PLAIN) + frame(PLAIN),
        frame(PLAIN[:1000]) + frame(bytes(50_001), has_size=False),
        frame(PLAIN[:51_000], level=-5),
    ):
        with pytest.raises(Unsupported, match="can only be read from its beginning"):
            build(blob)
    assert len(build(frame(bytes(50_000)) * 2).digests) == 2


def test_reasons_tell_what_to_do():
    assert LARGE_FRAME.startswith("a zstd frame of more than 64 MiB: can only be read from its")
    assert ONE_FRAME.endswith("convert it")


def test_a_large_frame_is_not_read_to_its_end():
    """A layer of gigabytes in one frame is known for what it is after 64 MiB of it."""
    compressor = zstandard.ZstdCompressor().compressobj()
    builder = FrameBuilder(4 * limits.MIB)
    flush = zstandard.COMPRESSOBJ_FLUSH_BLOCK
    blocks = (compressor.compress(bytes(limits.MIB)) + compressor.flush(flush) for _ in range(200))
    produced = 0

    def run() -> None:
        nonlocal produced
        for data in blocks:
            produced += sum(map(len, builder.feed(data)))

    with pytest.raises(Unsupported, match=LARGE_FRAME):
        run()
    assert limits.SPAN_SIZE - limits.MIB <= produced <= limits.SPAN_SIZE


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        frame(PLAIN)[:-1],
        frame(PLAIN) + b"x",
        frame(PLAIN) + frame(PLAIN)[:7],
        frame(PLAIN) + skippable(b"abc")[:-1],
        skippable(b"abc"),
        frame(b"") * 3,
        b"plain tar",
    ],
)
def test_what_is_cut_off_or_no_zstd_is_an_error(blob):
    with pytest.raises(InvalidLayer):
        build(blob)


def test_damage_is_noticed():
    blob = bytearray(frame(PLAIN, has_checksum=True) * 2)
    blob[len(blob) // 2 + 500] ^= 0x55
    with pytest.raises(InvalidLayer):
        build(bytes(blob))


def test_too_many_spans_are_refused(monkeypatch):
    monkeypatch.setattr("imgvol.limits.ZTOC_SPANS", 5)
    blob = b"".join(frame(piece) for piece in cut(PLAIN, 3000))
    with pytest.raises(LimitExceeded, match="too many spans"):
        build(blob, 3000)
    assert len(build(blob, 21_000).digests) == 5
