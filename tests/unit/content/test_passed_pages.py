"""What of the page cache is given back: what sequential readers have passed, and nothing else."""

import os

import pytest
import trio

from imgvol.content import in_place_layer, passed_pages
from imgvol.content.in_place_layer import InPlaceLayer
from imgvol.content.passed_pages import PassedPages
from imgvol.content.place import Place, PlacedFile
from imgvol.layers.index import ROOT
from imgvol.layers.tar import TarParser
from imgvol.oci.digest import Digest
from support import images
from support.spans import index_of

STEP = 100
FD = 5


@pytest.fixture
def dropped(monkeypatch) -> list[tuple[int, int]]:
    """Ranges that were given back."""
    ranges: list[tuple[int, int]] = []

    def note(_fd, start, size, advice):
        assert advice == os.POSIX_FADV_DONTNEED
        ranges.append((start, start + size))

    monkeypatch.setattr(os, "posix_fadvise", note)
    monkeypatch.setattr(passed_pages, "DROP_STEP", STEP)
    return ranges


def test_what_a_sequential_reader_has_passed_is_given_back_once(dropped):
    passed = PassedPages()
    for position in range(0, 1000, 50):
        passed.note(1, FD, position, 50)
    assert dropped == [(start, start + STEP) for start in range(0, 900, STEP)]


def test_what_is_near_the_reader_stays(dropped):
    passed, reached = PassedPages(), 0
    for position in (0, 50, 150, 100, 200):  # readahead comes slightly out of order
        passed.note(1, FD, position, 50)
        reached = max(reached, position + 50)
        assert all(end <= reached - STEP for _, end in dropped)
    assert dropped == [(0, 100)]


def test_reading_here_and_there_gives_nothing_back(dropped):
    passed = PassedPages()
    for position in (0, 5000, 300, 9000, 2000, 4000, 40, 7000):
        passed.note(1, FD, position, 50)
    assert dropped == []


def test_files_are_followed_apart_and_the_latest_ones_only(dropped, monkeypatch):
    monkeypatch.setattr(passed_pages, "SEQUENTIAL_READERS", 2)
    passed = PassedPages()
    for position in range(0, 250, 50):
        for file in (1, 2):
            passed.note(file, FD, position, 50)
    assert dropped == [(0, 100), (0, 100)]
    for file in (3, 4):
        passed.note(file, FD, 0, 50)
    assert len(passed._readers) == 2


@pytest.mark.parametrize("is_cached", [True, False])
async def test_large_files_in_place_are_given_back_as_the_stores_are(
    tmp_path, monkeypatch, is_cached
):
    if not is_cached:
        monkeypatch.setattr(in_place_layer, "pread_nowait", lambda *_: None)
    dropped = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: dropped.append(arguments[1:3]))
    large = bytes(range(256)) * (100 << 10)  # 25 MiB
    tar = images.tar_bytes([images.file("small", b"x" * 1000), images.file("large", large)])
    archive = tmp_path / "archive"
    archive.write_bytes(bytes(512) + tar)
    directory = tmp_path / "place"
    directory.mkdir()
    members = list(TarParser().feed(tar))
    (directory / "index").write_bytes(index_of(*members))
    digest, path = Digest.of(tar), os.fsencode(archive)
    place = Place(path=path, offset=512, size=len(tar), file=PlacedFile(path, digest).settle())
    layer = InPlaceLayer(directory, place, digest, 1, trio.CapacityLimiter(1))
    node = layer.index.child(ROOT, b"large")
    for offset in range(0, len(large), 1 << 20):
        assert await layer.read(node, offset, 1 << 20) == large[offset : offset + (1 << 20)]
    start = 512 + members[1].payload_offset
    assert dropped
    assert dropped[0] == (start, passed_pages.DROP_STEP)
    # The small one again and again: it is nobody's past.
    count = len(dropped)
    for _ in range(5):
        await layer.read(layer.index.child(ROOT, b"small"), 0, 1000)
    assert len(dropped) == count
