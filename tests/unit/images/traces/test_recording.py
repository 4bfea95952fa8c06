"""Notes of reads: exact, bounded, and never a reason for a read to fail."""

import logging
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol import limits
from imgvol.images.traces.recording import FileKey, NotedFile, Recording, Recordings
from imgvol.layers.index import NodeType
from imgvol.view.inodes import encode_chain_inode, encode_layer_inode

READS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30)), max_size=30)


@given(READS, st.integers(0, 70))
def test_ranges_are_the_bytes_that_were_read(reads, size):
    file = NotedFile(size, 0)
    read: dict[int, int] = {}
    for at, (offset, length) in enumerate(reads):
        file.add(offset, length, at)
        for byte in range(offset, min(offset + length, size)):
            read.setdefault(byte, at)
    ranges = file.ranges()
    assert {b for r in ranges for b in range(r.offset, r.end)} == set(read)
    assert file.read_bytes == len(read)
    assert len(file) == len(ranges)
    in_order = sorted(ranges, key=lambda r: r.offset)
    assert all(a.end < b.offset for a, b in pairwise(in_order))
    assert [r.milliseconds for r in ranges] == sorted(r.milliseconds for r in ranges)
    for item in ranges:
        # As early as its first byte, or as a read that touched it.
        assert item.milliseconds <= min(read[b] for b in range(item.offset, item.end))


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def make(files=10, *, slot=7):
    records = {n: SimpleNamespace(type=NodeType.FILE, size=10_000) for n in range(files)}
    records[files] = SimpleNamespace(type=NodeType.FIFO, size=0)
    layer = SimpleNamespace(slot=slot, index=SimpleNamespace(record=records.__getitem__))
    tree = SimpleNamespace(content=lambda node: (node >> 32, node & 0xFFFFFFFF))
    clock = Clock()
    return Recording(tree, 3, (layer,), clock), clock


def test_files_of_the_view_are_noted_in_their_order():
    recording, clock = make()
    recordings = Recordings()
    recordings.add(recording)
    assert recordings.note_open(encode_layer_inode(7, 4))
    clock.now = 1.5
    # A file whose link count is the chain's own belongs to the chain.
    assert recordings.note_open(encode_chain_inode(3, 2))
    recordings.note_read(encode_layer_inode(7, 4), 100, 50)
    assert not recordings.note_open(encode_layer_inode(8, 4)), "another layer's"
    assert not recordings.note_open(encode_chain_inode(4, 2)), "another view's"
    recordings.note_read(encode_layer_inode(7, 10), 0, 10)  # no regular file
    assert list(recording.files) == [FileKey(0, 4), FileKey(0, 2)]
    assert recording.files[FileKey(0, 4)].first == 0
    (found,) = recording.files[FileKey(0, 4)].ranges()
    assert (found.offset, found.size, found.milliseconds) == (100, 50, 1500)
    assert recording.files[FileKey(0, 2)].ranges() == ()


def test_what_was_open_before_is_noted_when_it_is_read():
    recording, clock = make()
    clock.now = 2.0
    recording.note_read(FileKey(0, 1), 0, 10)
    assert recording.files[FileKey(0, 1)].first == 2000


def test_notes_are_bounded(monkeypatch):
    monkeypatch.setattr(limits, "TRACE_FILES", 3)
    monkeypatch.setattr(limits, "TRACE_RANGES", 4)
    recording, clock = make()
    for node in range(6):
        recording.note_open(FileKey(0, node))
    assert (len(recording.files), recording.dropped) == (3, 3)
    for number in range(100):
        recording.note_read(FileKey(0, 0), 20 * number, 10)
    assert len(recording.files[FileKey(0, 0)]) == 4
    assert recording.dropped == 3 + 96
    recording.files.clear()
    clock.now = limits.TRACE_SECONDS + 1
    recording.note_open(FileKey(0, 5))
    assert recording.files == {}


@pytest.mark.expects_log("ends early")
def test_a_defect_ends_the_notes_and_nothing_else(caplog):
    recording, _ = make(files=1)
    recordings = Recordings()
    recordings.add(recording)
    with caplog.at_level(logging.ERROR):
        assert not recordings.note_open(encode_layer_inode(7, 999))
        recordings.note_read(encode_layer_inode(7, 999), 0, 1)
    assert len(caplog.records) == 1
    assert len(recordings) == 0
