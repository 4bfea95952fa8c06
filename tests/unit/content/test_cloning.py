"""Copies that share blocks: when that is tried, and what happens where it cannot be.

The filesystem is played: the request copies bytes. A real one is in tests/integration.
"""

import errno
import hashlib
import os
import struct

import pytest

from imgvol import limits
from imgvol.content import cloning
from imgvol.content.cloning import clone_part, shared_range
from imgvol.content.copy_sources import Candidate
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.open_file import OpenFile
from imgvol.errors import StoreDamaged, StoreFull
from imgvol.layers.lazy.spans import Part
from imgvol.oci.digest import Digest
from support.copying import Machine, check_content, fill, noise, present_files
from support.images import file

BLOCK = 4096
LEAST = limits.CLONE_LEAST
DIGEST = Digest.of(b"source")
MEDIUM, LARGE = 100_000, 1_300_000
OLD = [
    file("small", noise(0, 4000)),  # in the tar, what follows lies across blocks
    file("medium", noise(10_000, MEDIUM)),
    file("large", noise(200_000, LARGE)),
]
NEW = [file("before", noise(50, 777)), *OLD]


class Reflinks:
    """A filesystem that can; it counts what was asked of it.

    Attributes:
        error: What it says instead.
        before: Called before it shares anything.
    """

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int, int]] = []
        self.tries = 0
        self.error = 0
        self.before = lambda _source: None

    def ioctl(self, target: int, request: int, argument: bytes) -> int:
        assert request == 0x4020940D
        source, start, size, position = struct.unpack("=qQQQ", argument)
        self.tries += 1
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        self.before(source)
        assert start % BLOCK == size % BLOCK == position % BLOCK == 0 < size
        os.pwrite(target, os.pread(source, size, start), position)
        self.ranges.append((start, size, position))
        return 0

    @property
    def size(self) -> int:
        return sum(size for _, size, _ in self.ranges)


@pytest.fixture
def reflinks(monkeypatch):
    played = Reflinks()
    monkeypatch.setattr(cloning.fcntl, "ioctl", played.ioctl)
    return played


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("start", "position", "size", "expected"),
    [
        (0, 0, LEAST, (0, LEAST)),
        (0, 0, LEAST - 1, None),
        (0, 0, LEAST + BLOCK - 1, (0, LEAST)),
        (1, 1, LEAST + BLOCK - 2, None),
        (1, 1, LEAST + BLOCK + BLOCK - 1, (BLOCK, BLOCK * 2 + LEAST)),
        (7, BLOCK * 5 + 7, LEAST * 2, (BLOCK * 6, BLOCK * 5 + LEAST * 2)),
        (512, 0, LEAST * 2, None),
        (0, 512, LEAST * 2, None),
    ],
)
def test_shared_are_whole_blocks_that_lie_alike(start, position, size, expected):
    assert shared_range(start, position, size) == (expected or (position, position))


def clone(tmp_path, start, position, size, held):
    """Clones a part of a source that holds some bytes into a file of 0xEE."""
    (tmp_path / "source").write_bytes(held)
    source = OpenFile(tmp_path / "source", os.O_RDONLY)
    part = Part(position, size, hashlib.sha256(noise(start, size)).digest())
    (tmp_path / "target").write_bytes(b"\xee" * 300_000)
    target = OpenFile(tmp_path / "target", os.O_RDWR)
    return clone_part(source, start, DIGEST, target.fd, part)


def test_a_part_is_shared_and_written_and_its_neighbours_stay(reflinks, tmp_path):
    start, position, size = 5000, 5000 + 3 * BLOCK, 100_000
    assert clone(tmp_path, start, position, size, noise(0, 200_000))
    content = (tmp_path / "target").read_bytes()
    assert content[position : position + size] == noise(start, size)
    assert set(content[:position]) == set(content[position + size :]) == {0xEE}
    assert size - 2 * BLOCK < reflinks.size < size


@pytest.mark.parametrize("place", [5000, 8192, 50_000, 104_999])
def test_a_part_with_a_wrong_byte_anywhere_is_told(reflinks, tmp_path, place):
    held = bytearray(noise(0, 200_000))
    held[place] ^= 1
    assert not clone(tmp_path, 5000, 5000, 100_000, held)


@pytest.mark.parametrize("size", [0, 5000, 104_998])
def test_a_source_that_is_cut_off_is_damage_and_not_a_filesystem_that_cannot(
    reflinks, tmp_path, size
):
    with pytest.raises(StoreDamaged):
        clone(tmp_path, 5000, 5000, 100_000, noise(0, size))


def test_files_of_their_own_are_shared_and_the_others_written(machine, reflinks):
    layer = machine.lazy("new", NEW)
    plan = machine.plan(layer, machine.store("old", OLD))
    counts = plan.copy(plan.spans)
    assert present_files(layer) == {"small", "medium", "large"}
    assert 0.8 * LARGE < counts.cloned == reflinks.size < LARGE
    check_content(layer, NEW)


def test_between_lazy_layers_medium_files_are_shared_too(machine, reflinks):
    old = machine.lazy("old", OLD)
    fill(old, OLD)
    layer = machine.lazy("new", NEW)
    plan = machine.plan(layer, Candidate(old.record, None, old))
    counts = plan.copy(plan.spans)
    assert present_files(layer) == {"small", "medium", "large"}
    assert 0.8 * (MEDIUM + LARGE) < counts.cloned == reflinks.size
    check_content(layer, NEW)
    layer.intake.flush()
    check_content(machine.reopen(LazyLayerStore, layer.record), NEW)


@pytest.mark.parametrize(
    "error", [errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.EPERM]
)
def test_where_blocks_cannot_be_shared_everything_is_written_and_it_is_tried_once(
    machine, reflinks, error
):
    reflinks.error = error
    layer = machine.lazy("new", NEW)
    plan = machine.plan(layer, machine.store("old", OLD))
    counts = plan.copy(plan.spans)
    assert present_files(layer) == {"small", "medium", "large"}
    assert (reflinks.tries, counts.cloned, counts.unlike, counts.damaged) == (1, 0, 0, ())
    check_content(layer, NEW)


def own_file(machine, source):
    (path,) = (machine.layout.layer(source.record.digest) / "files").iterdir()
    return path


def test_a_source_that_changes_in_the_last_moment_is_refused(machine, reflinks):
    source = machine.store("old", OLD)
    layer = machine.lazy("new", NEW)
    plan = machine.plan(layer, source)
    path = own_file(machine, source)
    reflinks.before = lambda _source: path.write_bytes(bytes(LARGE))
    counts = plan.copy(plan.spans)
    assert reflinks.ranges, "the blocks came, and were looked at then"
    assert "large" not in present_files(layer)
    assert counts.cloned == 0
    assert counts.unlike == LARGE // 60_000 + 1
    check_content(layer, NEW)
    fill(layer, NEW, is_kept=False)  # fetched instead
    assert len(present_files(layer)) == len(NEW)
    check_content(layer, NEW)


def test_a_refused_place_leaves_the_next(machine, reflinks):
    bad, good = machine.lazy("bad", OLD), machine.store("good", OLD)
    fill(bad, OLD)
    layer = machine.lazy("new", NEW)
    # First by its digest, from the lazy one; else by its path, from the other.
    plan = machine.plan(layer, good, Candidate(bad.record, None, bad))
    data = bad.directory / "data"
    data.write_bytes(bytes(data.stat().st_size))
    counts = plan.copy(plan.spans)
    assert "large" in present_files(layer)
    assert counts.unlike > LARGE // 60_000
    assert 0.8 * LARGE < counts.cloned < LARGE
    check_content(layer, NEW)


def test_what_is_present_is_not_overwritten_by_what_is_not_verified_yet(machine):
    layer = machine.lazy("new", NEW)
    fill(layer, NEW, is_kept=False)
    before = machine.space.level.used
    for span in layer.present:
        assert layer.intake.put_copy(span, [], lambda _target: pytest.fail("shared"))
    assert machine.space.level.used == before
    check_content(layer, NEW)


def test_a_span_that_was_not_shared_stays_missing_and_takes_no_space(machine):
    layer = machine.lazy("new", NEW)
    assert not layer.intake.put_copy(0, [], lambda _target: False)
    with pytest.raises(StoreFull):
        layer.intake.put_copy(0, [], no_room)
    assert 0 not in layer.present
    assert machine.space.level.used == 0
    assert not layer.forgoes_proof


def no_room(_target: int) -> bool:
    raise OSError(errno.ENOSPC, "no room")
