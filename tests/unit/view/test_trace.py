"""Traces: what is read back is what was written, and nothing else is read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol import limits
from imgvol.errors import InvalidDocument, LimitExceeded
from imgvol.oci.digest import Digest
from imgvol.view.trace import Trace, TracedFile, TracedRange, decode_path, encode_path, parse_trace

IMAGE = Digest.of(b"manifest")
NAMES = st.binary(min_size=1, max_size=12).filter(
    lambda name: name not in (b".", b"..") and not set(name) & {0, 0x2F}
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(b"/".join)


@st.composite
def files(draw, first):
    """A file whose ranges do not touch, in any order of offsets."""
    offset, ranges = 0, []
    for gap, size in draw(st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99)), max_size=5)):
        ranges.append((offset + gap, size))
        offset += gap + size
    ranges = draw(st.permutations(ranges))
    times = sorted(draw(st.integers(first, first + 99)) for _ in ranges)
    return TracedFile(
        path=draw(PATHS),
        size=offset + draw(st.integers(0, 9)),
        first=first,
        ranges=tuple(TracedRange(*item, at) for item, at in zip(ranges, times, strict=True)),
    )


@st.composite
def traces(draw):
    firsts = sorted(draw(st.lists(st.integers(0, 10_000), max_size=6)))
    by_path = {}
    for first in firsts:
        file = draw(files(first))
        by_path.setdefault(file.path, file)
    return Trace(
        image=IMAGE,
        platform=draw(st.sampled_from(["", "linux/amd64", "linux/arm/v7"])),
        name=draw(st.sampled_from(["", "docker.io/library/x:1"])),
        seconds=draw(st.floats(0, 1e4)),
        files=tuple(by_path.values()),
    )


@given(traces())
def test_what_is_written_is_read_back(trace):
    assert parse_trace(trace.to_bytes()) == trace


@given(PATHS)
def test_paths_in_the_document_are_printable_and_mean_the_same(path):
    text = encode_path(path)
    assert text.isprintable()
    assert decode_path(text) == path


def document(**changes):
    file = {"path": "a", "size": 10, "first": 1, "ranges": [[0, 4, 1], [6, 2, 3]]}
    trace = {
        "version": 1,
        "image": str(IMAGE),
        "platform": "linux/amd64",
        "name": "x",
        "seconds": 2,
        "files": [file | changes.pop("file", {})],
    }
    return json.dumps(trace | changes).encode()


def test_the_document_is_what_the_design_says():
    trace = parse_trace(document())
    assert trace.files[0] == TracedFile(b"a", 10, 1, (TracedRange(0, 4, 1), TracedRange(6, 2, 3)))
    assert trace.read_bytes == 6
    assert json.loads(trace.to_bytes()) == json.loads(document())


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"version": 2}, "version"),
        ({"version": None}, "version"),
        ({"image": "sha256:no"}, "image"),
        ({"platform": "linux/amd64/v1/x"}, "platform"),
        ({"name": "x\u001b[31m"}, "name"),
        ({"seconds": -1}, "seconds"),
        ({"seconds": True}, "seconds"),
        ({"seconds": 86_401}, "seconds"),
        ({"files": {}}, "files"),
        ({"Files": []}, "Files"),
        ({"file": {"path": ""}}, "files[0].path"),
        ({"file": {"path": "/a"}}, "files[0].path"),
        ({"file": {"path": "a/../b"}}, "files[0].path"),
        ({"file": {"path": "a%2F..%2fb"}}, "files[0].path"),
        ({"file": {"path": "a%00"}}, "files[0].path"),
        ({"file": {"path": "a%4"}}, "files[0].path"),
        ({"file": {"path": "a\n"}}, "files[0].path"),
        ({"file": {"path": "a" * 256}}, "files[0].path"),
        ({"file": {"path": "a/" * 2048 + "a"}}, "files[0].path"),
        ({"file": {"path": "%41" * 4097}}, "files[0].path"),
        ({"file": {"size": -1}}, "files[0].size"),
        ({"file": {"first": 86_400_001}}, "files[0].first"),
        ({"file": {"ranges": [[0, 4]]}}, "files[0].ranges[0]"),
        ({"file": {"ranges": [[0, 0, 1]]}}, "files[0].ranges[0][1]"),
        ({"file": {"ranges": [[0, 4, 0]]}}, "files[0].ranges[0][2]"),
        ({"file": {"ranges": [[7, 4, 1]]}}, "files[0].ranges[0]"),
        ({"file": {"ranges": [[0, 4, 1], [4, 1, 1]]}}, "files[0].ranges"),
        ({"file": {"ranges": [[4, 4, 1], [0, 5, 1]]}}, "files[0].ranges"),
        ({"file": {"ranges": [[0, 4, 5], [6, 1, 4]]}}, "files[0].ranges"),
        (
            {"files": [{"path": "a", "size": 0, "first": n, "ranges": []} for n in (1, 2)]},
            "files[1]",
        ),
        (
            {
                "files": [
                    {"path": "a", "size": 0, "first": 2, "ranges": []},
                    {"path": "b", "size": 0, "first": 1, "ranges": []},
                ]
            },
            "files[1].first",
        ),
    ],
)
def test_what_is_no_trace_says_where(changes, place):
    with pytest.raises(InvalidDocument) as caught:
        parse_trace(document(**changes))
    assert caught.value.fields["path"] == place


def test_limits_are_named():
    many = [
        {"path": str(n), "size": 0, "first": 0, "ranges": []} for n in range(limits.TRACE_FILES + 1)
    ]
    with pytest.raises(LimitExceeded) as caught:
        parse_trace(document(files=many))
    assert caught.value.fields["limit"] == "TRACE_FILES"
    ranges = [[2 * n, 1, 1] for n in range(limits.TRACE_RANGES + 1)]
    with pytest.raises(LimitExceeded) as caught:
        parse_trace(document(file={"size": 1 << 20, "ranges": ranges}))
    assert caught.value.fields["limit"] == "TRACE_RANGES"
    with pytest.raises(LimitExceeded):
        parse_trace(document() + b" " * limits.TRACE_SIZE)


def test_a_trace_as_large_as_the_limits_allow_is_read_back():
    each = limits.TRACE_RANGES // limits.TRACE_FILES
    ranges = tuple(TracedRange(8 * n, 4, n) for n in range(each))
    trace = Trace(
        image=IMAGE,
        platform="linux/amd64",
        name="x",
        seconds=1.0,
        files=tuple(
            TracedFile(b"usr/lib/python3/dist-packages/some/where/%d.py" % n, 100, 0, ranges)
            for n in range(limits.TRACE_FILES)
        ),
    )
    assert parse_trace(trace.to_bytes()) == trace
