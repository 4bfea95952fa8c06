"""Checkpoints as they are made: where they lie, what spans decode to, and what windows keep."""

import gzip
import hashlib
import random
import zlib
from itertools import pairwise

import pytest

from imgvol.errors import InvalidLayer, LimitExceeded, MachineLacks
from imgvol.layers.lazy import checkpoint_builder, libz
from imgvol.layers.lazy.checkpoint_builder import CheckpointBuilder
from imgvol.layers.lazy.checkpoints import WINDOW, inflate_span, parse_checkpoints
from imgvol.layers.lazy.windows import trim_window
from support.framings import in_every_framing
from support.soci import checkpoints_of, ranges_of, sha256

KIB = 1024


USUAL = list(libz._candidates())
LIBRARIES = {"zlib-ng": USUAL[0], "zlib": USUAL[1]}


def choose(monkeypatch: pytest.MonkeyPatch, *names: str | None) -> None:
    """From now on only these libraries are tried."""
    monkeypatch.setattr(libz, "_candidates", lambda: iter(names))
    libz._load.cache_clear()


@pytest.fixture(autouse=True, params=LIBRARIES)
def _library(request, monkeypatch):
    """Each of the two, for all that is here."""
    choose(monkeypatch, LIBRARIES[request.param])
    yield
    libz._load.cache_clear()


def text(size: int, seed: int = 1) -> bytes:
    noise = random.Random(seed)
    known = [noise.randbytes(noise.randint(2, 40)) for _ in range(3000)]
    return b"".join(noise.choices(known, k=size // 10))[:size]


def build(blob: bytes, span_size: int, *, piece: int = 10_000):
    builder = CheckpointBuilder(span_size)
    plain = b"".join(
        out for at in range(0, len(blob), piece) for out in builder.feed(blob[at : at + piece])
    )
    builder.finish()
    return plain, builder.spans()


def check(blob: bytes, plain: bytes, span_size: int, **options):
    """Every span by our own reader; returns the checkpoints and the spans."""
    found, spans = build(blob, span_size, **options)
    assert found == plain
    points = parse_checkpoints(spans.checkpoints)
    assert len(points) == len(spans.digests)
    for number, point in enumerate(points):
        following = points[number + 1] if number + 1 < len(points) else None
        end = following.compressed if following else len(blob)
        stop = following.position if following else len(plain)
        data = blob[point.start : end]
        assert hashlib.sha256(data).digest() == spans.digests[number]
        wanted = plain[point.position : stop]
        if wanted:
            assert inflate_span(data, point, spans.checkpoints, len(wanted)) == wanted
        # Whoever decodes several spans at once goes on over the next checkpoint.
        rest = plain[point.position :]
        if rest:
            assert inflate_span(blob[point.start :], point, spans.checkpoints, len(rest)) == rest
    return points, spans


def _encode(plain: bytes, strategy: int) -> bytes:
    encoder = zlib.compressobj(6, zlib.DEFLATED, 31, 9, strategy)
    return encoder.compress(plain) + encoder.flush()


def _named(plain: bytes) -> bytes:
    """A header with a file name, as `gzip FILE` writes, an extra field, a comment and its CRC."""
    head = b"\x1f\x8b\x08\x1e\0\0\0\0\0\x03" + b"\x04\0ab\0\0" + b"layer.tar\0" + b"made by hand\0"
    head += (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little")
    return head + gzip.compress(plain, 6, mtime=0)[10:]


def _flushed(plain: bytes) -> bytes:
    """Blocks that end at bytes, with empty ones between them, as pigz puts its pieces together."""
    encoder = zlib.compressobj(6, zlib.DEFLATED, 31)
    pieces = []
    for at in range(0, len(plain), 30_000):
        pieces += encoder.compress(plain[at : at + 30_000]), encoder.flush(zlib.Z_SYNC_FLUSH)
    return b"".join(pieces) + encoder.flush()


BLOBS = {
    "fast": lambda plain: gzip.compress(plain, 1),
    "usual": lambda plain: gzip.compress(plain, 6),
    "best": lambda plain: gzip.compress(plain, 9),
    "stored": lambda plain: gzip.compress(plain, 0),
    "fixed": lambda plain: _encode(plain, zlib.Z_FIXED),
    "huffman": lambda plain: _encode(plain, zlib.Z_HUFFMAN_ONLY),
    "rle": lambda plain: _encode(plain, zlib.Z_RLE),
    "named": _named,
    "flushed": _flushed,
    "members": lambda plain: b"".join(
        gzip.compress(plain[start:end], 6)
        for start, end in pairwise([0, 0, 1, 40_000, 40_001, 200_000, len(plain), len(plain)])
    ),
    "many": lambda plain: b"".join(
        gzip.compress(plain[at : at + 700], 6) for at in range(0, len(plain), 700)
    ),
}


@pytest.mark.parametrize("span_size", [4 * KIB, 64 * KIB, 4096 * KIB])
@pytest.mark.parametrize("name", BLOBS)
def test_every_span_decodes(name, span_size):
    plain = text(400_000)
    blob = BLOBS[name](plain)
    points, _ = check(blob, plain, span_size)
    assert [(p.compressed, p.position, p.bits) for p in points] == [
        (p.compressed, p.position, p.bits) for p in _reference(blob, span_size)
    ]


def _reference(blob: bytes, span_size: int):
    points = checkpoints_of(blob, span_size)
    return points[:1] + [point for point in points[1:] if point.position]


def test_digests_are_those_of_the_reader(tmp_path):
    plain = text(300_000)
    blob = gzip.compress(plain, 6)
    _, spans = check(blob, plain, 16 * KIB)
    points = checkpoints_of(blob, 16 * KIB)
    expected = [sha256(blob[start:end]) for start, end in ranges_of(points, len(blob))]
    assert [f"sha256:{digest.hex()}" for digest in spans.digests] == expected


def test_any_framing_gives_the_same():
    blob = BLOBS["members"](text(30_000))

    def run(pieces):
        builder = CheckpointBuilder(2 * KIB)
        plain = b"".join(out for piece in pieces for out in builder.feed(piece))
        builder.finish()
        spans = builder.spans()
        # A window is kept whole where the next checkpoint comes before it is known what it takes.
        heads = [spans.checkpoints[at : at + 17] for at in range(12, len(spans.checkpoints), 32785)]
        return plain, heads, spans.digests

    in_every_framing(blob, run)


def test_windows_keep_only_what_is_used_and_compress():
    plain = text(3_000_000)
    blob = gzip.compress(plain, 6)
    _, spans = check(blob, plain, 256 * KIB)
    windows = [
        spans.checkpoints[at : at + WINDOW] for at in range(29, len(spans.checkpoints), 32785)
    ]
    assert not spans.untrimmed
    kept = [WINDOW - window.count(0) for window in windows[1:]]
    assert all(0 < count < WINDOW // 2 for count in kept)
    assert len(zlib.compress(spans.checkpoints)) < len(spans.checkpoints) / 4


def test_a_byte_that_is_used_is_never_lost():
    """A window of which nearly all is copied: zlib's encoder reaches no further back."""
    noise = random.Random(3)
    window = noise.randbytes(WINDOW)
    encoder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, window)
    following = window[1000:]
    data = encoder.compress(following) + encoder.flush()
    assert trim_window(window, data, 0, following) == bytes(1000) + following


def test_what_cannot_be_proven_is_kept_whole():
    window = random.Random(4).randbytes(WINDOW)
    encoder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, window)
    following = window[2000:7000]
    data = encoder.compress(following) + encoder.flush()
    assert trim_window(window, data, 0, following) != window
    assert trim_window(window, data, 0, b"something else" * 300) == window
    assert trim_window(window, data[: len(data) // 2], 0, following) == window
    assert trim_window(window, b"\xff" * 50, 3, following) == window


def test_a_span_after_the_end_of_a_member_needs_no_window():
    plain = text(200_000)
    blob = gzip.compress(plain[:100_000], 6) + gzip.compress(plain[100_000:], 6)
    points, spans = check(blob, plain, 99_000)
    border = [p for p in points if p.position == 100_000]
    assert border
    at = border[0].window
    assert not any(spans.checkpoints[at : at + WINDOW])


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\x1f",
        gzip.compress(text(50_000))[:-1],
        gzip.compress(text(50_000))[:9],
        gzip.compress(text(50_000)) + b"\x1f\x8b",
    ],
    ids=["nothing", "one byte", "cut off", "half a header", "half a second header"],
)
def test_a_stream_that_is_cut_off_is_refused(blob):
    with pytest.raises(InvalidLayer, match="cut off"):
        build(blob, 4 * KIB)


@pytest.mark.parametrize(
    ("blob", "text_"),
    [
        (b"ustar" * 100, "not gzip"),
        (gzip.compress(text(50_000)) + b"garbage", "header"),
        (gzip.compress(text(50_000))[:-8] + bytes(8), "check"),
        (gzip.compress(text(50_000))[:30] + b"\xff" * 500, "damaged"),
    ],
    ids=["something else", "garbage behind", "wrong checksum", "damage"],
)
def test_what_is_no_gzip_is_refused(blob, text_):
    with pytest.raises(InvalidLayer, match=text_) as caught:
        build(blob, 4 * KIB)
    assert 0 <= caught.value.fields["offset"] <= len(blob)


def test_too_many_spans_are_refused(monkeypatch):
    monkeypatch.setattr(checkpoint_builder.limits, "ZTOC_SPANS", 3)
    with pytest.raises(LimitExceeded, match="spans"):
        build(gzip.compress(text(400_000)), 4 * KIB)


def test_a_machine_without_zlib_is_told_of(monkeypatch):
    choose(monkeypatch, "libnone.so.7")
    with pytest.raises(MachineLacks, match="zlib"):
        CheckpointBuilder(4 * KIB)


def test_zlib_ng_comes_first_then_zlib_then_what_the_interpreter_has(monkeypatch):
    assert "zlib_ng" in USUAL[0]
    assert USUAL[1] == "libz.so.1"
    choose(monkeypatch, "libnone.so.7", "libm.so.6", *USUAL[2:])  # none, and one without inflate
    check(gzip.compress(text(9000)), text(9000), 4 * KIB)


def test_zlib_and_zlib_ng_make_the_same_checkpoints(monkeypatch):
    plain = text(300_000) + bytes(100_000) + random.Random(7).randbytes(100_000)
    blob = gzip.compress(plain) + gzip.compress(plain, 1)
    made = []
    for name in LIBRARIES.values():
        choose(monkeypatch, name)
        made.append(build(blob, 32 * KIB))
    assert made[0] == made[1]
    assert len(made[0][1].digests) > 10
