"""`.cache.json`, as k3s has it."""

import json
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol import limits
from imgvol.errors import ContentError, InvalidDocument
from imgvol.images.preload.cache_file import (
    CACHE_NAME,
    CacheEntry,
    parse_cache,
    read_cache,
    render_cache,
    write_cache,
)
from imgvol.images.preload.stamp import Stamp

STAMP = Stamp(size=7, mtime_ns=1_714_557_600_123_456_789)
ENTRY = CacheEntry.of(STAMP, ("docker.io/library/app:1",))

stamps = st.builds(
    Stamp,
    size=st.integers(0, 1 << 60),
    # From the year 1 to 9999: what the form can tell.
    mtime_ns=st.integers(-62_135_596_800 * 10**9, 253_402_300_799 * 10**9),
)
entries = st.builds(CacheEntry.of, stamps, st.lists(st.text(max_size=9), max_size=3).map(tuple))


def test_what_k3s_writes_is_read():
    data = b"""{"/images/a.tar": {"size": 7, "modTime": "2024-05-01T10:00:00Z"},
     "/images/b.tar": {"size": 8, "modTime": "2024-05-01T12:00:00+02:00", "images": ["x:1"]},
     "/images/c.tar": {"size": 9, "modTime": null},
     "/images/d.tar": {"size": 9, "modTime": "2024-05-01T10:00:00Z", "images": [{"name": "x"}]}}"""
    found = parse_cache(data)
    assert found["/images/a.tar"] == CacheEntry(size=7, seconds=1_714_557_600)
    assert found["/images/b.tar"].seconds == 1_714_557_600
    assert found["/images/b.tar"].images == ("x:1",)
    assert "/images/c.tar" not in found
    assert found["/images/d.tar"].images is None


def test_what_is_written_is_what_k3s_writes_and_more():
    document = json.loads(render_cache({"/images/a.tar": ENTRY}))
    entry = document["/images/a.tar"]
    assert (entry["size"], entry["modTime"]) == (7, "2024-05-01T10:00:00Z")


def test_a_file_is_another_one_when_its_size_or_its_time_is():
    """k3s wants both, and a later time: what was replaced by something as large is never read."""
    assert ENTRY.is_of(STAMP)
    assert not ENTRY.is_of(Stamp(size=8, mtime_ns=STAMP.mtime_ns))
    assert not ENTRY.is_of(Stamp(size=7, mtime_ns=STAMP.mtime_ns - 10**9))
    assert not ENTRY.is_of(Stamp(size=7, mtime_ns=STAMP.mtime_ns + 1))
    of_k3s = CacheEntry(size=7, seconds=1_714_557_600)
    assert of_k3s.is_of(STAMP)
    assert not of_k3s.is_of(Stamp(size=7, mtime_ns=STAMP.mtime_ns + 10**9))


@given(st.dictionaries(st.text(max_size=20), entries, max_size=4))
def test_what_is_written_is_read_again(cache):
    assert parse_cache(render_cache(cache)) == cache


@given(st.binary(max_size=200))
def test_whatever_it_holds_it_says_something_or_is_refused(data):
    try:
        found = parse_cache(data)
    except ContentError:
        return
    assert all(isinstance(entry, CacheEntry) for entry in found.values())


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b'{"a": 1}',
        b'{"a": {"size": -1, "modTime": "2024-05-01T10:00:00Z"}}',
        b'{"a": {"size": 1, "modTime": "yesterday"}}',
        b'{"a": {"size": 1, "modTime": "2024-05-01T10:00:00"}}',
        b'{"a": {"modTime": "2024-05-01T10:00:00Z"}}',
    ],
)
def test_a_damaged_one_is_refused(data):
    with pytest.raises(InvalidDocument):
        parse_cache(data)


def test_a_time_that_no_calendar_has_is_left_out():
    far = CacheEntry.of(Stamp(size=1, mtime_ns=(1 << 62)), ())
    further = CacheEntry(size=1, seconds=1 << 62)
    assert set(parse_cache(render_cache({"a": far, "b": further}))) == {"a"}


def test_without_the_file_nobody_wants_one(tmp_path):
    assert read_cache(str(tmp_path)) is None
    assert read_cache(str(tmp_path / "nothing")) is None
    assert not write_cache(str(tmp_path), {"a": ENTRY})
    assert not list(tmp_path.iterdir())


def test_an_empty_one_says_nothing(tmp_path):
    (tmp_path / CACHE_NAME).touch()
    assert read_cache(str(tmp_path)) == {}


def test_it_is_replaced_and_stays_whose_it_was(tmp_path):
    path = tmp_path / CACHE_NAME
    path.touch(mode=0o640)
    path.chmod(0o640)
    if os.getuid() == 0:
        os.chown(path, 12, 34)
    before = path.stat()
    assert write_cache(str(tmp_path), {"a": ENTRY})
    after = path.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert stat.S_IMODE(after.st_mode) == 0o640
    assert read_cache(str(tmp_path)) == {"a": ENTRY}
    assert [entry.name for entry in tmp_path.iterdir()] == [CACHE_NAME]


def test_one_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / CACHE_NAME
    path.write_bytes(b"{}")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_cache(str(tmp_path), {"a": ENTRY})
    assert path.read_bytes() == b"{}"
    assert [entry.name for entry in tmp_path.iterdir()] == [CACHE_NAME]


def test_a_link_or_a_pipe_is_none(tmp_path):
    target = tmp_path / "secret"
    target.write_bytes(b"{}")
    (tmp_path / CACHE_NAME).symlink_to(target)
    with pytest.raises(OSError):
        read_cache(str(tmp_path))
    assert not write_cache(str(tmp_path), {"a": ENTRY})
    (tmp_path / CACHE_NAME).unlink()
    os.mkfifo(tmp_path / CACHE_NAME)
    with pytest.raises(InvalidDocument):
        read_cache(str(tmp_path))


def test_a_huge_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "PRELOAD_CACHE_SIZE", 8)
    (tmp_path / CACHE_NAME).write_bytes(b'{"a": {}}')
    with pytest.raises(ContentError):
        read_cache(str(tmp_path))
