"""OPEN and RELEASE: one reply each, decided by what is true when it is given."""

import errno
import os
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from imgvol import limits
from imgvol.fs.guard import failure
from imgvol.fs.kernel.backing import BackingFiles
from imgvol.fs.kernel.opens import Opens
from imgvol.fs.kernel.protocol import OPEN_OUT, OUT_HEADER, OpenFlag
from imgvol.fs.replies import Opened
from imgvol.tallies import RequestTallies

SMALL, LARGE, OTHER, STALE, BROKEN = 1, 2, 3, 4, 5
CACHED = (OpenFlag.KEEP_CACHE | OpenFlag.NOFLUSH, 0)
PASSED = OpenFlag.PASSTHROUGH | OpenFlag.NOFLUSH


class Connection:
    """Keeps what is written by request: an errno, flags and backing id, or None for RELEASE."""

    def __init__(self):
        self.replies = {}
        self.held = set()
        self.refusal = None
        self._last = 0

    def write(self, data):
        length, error, unique = OUT_HEADER.unpack_from(data, 0)
        assert length == len(data)
        assert unique not in self.replies, "a second reply"
        body = data[OUT_HEADER.size :]
        opened = OPEN_OUT.unpack_from(body, 0)[1:] if body else None
        self.replies[unique] = -error or opened

    def open_backing(self, _fd):
        if self.refusal:
            raise OSError(self.refusal, os.strerror(self.refusal))
        self._last += 1
        self.held.add(self._last)
        return self._last

    def close_backing(self, backing_id):
        self.held.remove(backing_id)


class Operations:
    """Files, by inode; those of the store come when `go` is set."""

    def __init__(self):
        self.requests = RequestTallies()
        self.go = trio.Event()
        self.is_recorded = False
        self.damaged = set()
        self.opened = 0

    def open(self, inode, flags):
        self.opened += 1
        if inode == SMALL and flags == os.O_RDWR:
            raise KeyError("a defect")
        if flags & os.O_ACCMODE:
            raise failure(errno.EROFS)
        return Opened(is_recorded=self.is_recorded)

    def has_backing_file(self, inode):
        if inode == STALE:
            raise failure(errno.ESTALE)
        return inode != SMALL and inode not in self.damaged

    def is_large(self, inode):
        return inode != SMALL

    def is_sound(self, inode):
        if inode == STALE:
            raise failure(errno.ESTALE)
        return inode not in self.damaged

    async def backing_file(self, inode):
        if inode == BROKEN:
            raise KeyError("a defect")
        await self.go.wait()
        return SimpleNamespace(fd=77)


@asynccontextmanager
async def opening(*, may_refuse=True, passes=True):
    connection, operations = Connection(), Operations()
    async with trio.open_nursery() as nursery:
        opens = Opens(
            connection,
            operations,
            nursery,
            may_refuse=may_refuse,
            backing=BackingFiles(connection) if passes else None,
        )
        yield connection, operations, opens, nursery


async def settled():
    await trio.testing.wait_all_tasks_blocked()


async def test_a_kernel_may_be_told_to_open_by_itself():
    async with opening(passes=False) as (connection, operations, opens, _):
        opens.take(7, LARGE, 0)
        assert connection.replies == {7: errno.ENOSYS}
        assert operations.opened == 0


async def test_without_passthrough_everything_is_answered_at_once():
    async with opening(may_refuse=False, passes=False) as (connection, operations, opens, _):
        opens.take(7, LARGE, 0)
        operations.is_recorded = True
        opens.take(8, LARGE, 0)
        opens.release(9, LARGE)
        opens.recheck()
        opens.close()
        assert connection.replies == {7: CACHED, 8: CACHED, 9: None}


async def test_opens_are_refused_once_nothing_is_passed_through_and_nothing_will_be():
    async with opening() as (connection, operations, opens, _):
        operations.go.set()
        opens.take(7, LARGE, 0)
        await settled()
        connection.refusal = errno.EPERM
        opens.take(8, OTHER, 0)
        await settled()
        opens.take(9, SMALL, 0)
        assert connection.replies == {7: (PASSED, 1), 8: CACHED, 9: CACHED}
        opens.release(10, LARGE)
        opens.take(11, SMALL, 0)
        assert connection.replies[11] == errno.ENOSYS, "nobody has to be told of closed any more"


async def test_a_file_that_cannot_be_held_just_now_does_not_end_it():
    async with opening() as (connection, operations, opens, _):
        operations.go.set()
        connection.refusal = errno.EMFILE
        opens.take(7, LARGE, 0)
        await settled()
        connection.refusal = None
        opens.take(8, OTHER, 0)
        await settled()
        assert connection.replies == {7: CACHED, 8: (PASSED, 1)}


async def test_what_has_no_file_of_its_own_is_answered_at_once():
    async with opening() as (connection, _, opens, _):
        opens.take(7, SMALL, 0)
        opens.take(8, STALE, 0)
        opens.take(9, SMALL, 1)
        assert connection.replies == {7: CACHED, 8: errno.ESTALE, 9: errno.EROFS}


async def test_reads_past_the_page_cache_are_not_passed_through_unless_the_file_is():
    async with opening() as (connection, operations, opens, _):
        operations.go.set()
        opens.take(7, LARGE, os.O_DIRECT)
        opens.take(8, OTHER, 0)
        await settled()
        opens.take(9, OTHER, os.O_DIRECT)
        assert connection.replies == {7: CACHED, 8: (PASSED, 1), 9: (PASSED, 1)}


async def test_those_who_open_at_once_have_one_file_and_it_is_counted():
    async with opening() as (connection, operations, opens, _):
        opens.take(7, LARGE, 0)
        opens.take(8, LARGE, 0)
        opens.take(9, LARGE, 1)
        await settled()
        assert connection.replies == {}
        operations.go.set()
        await settled()
        assert connection.replies == {7: (PASSED, 1), 8: (PASSED, 1), 9: errno.EROFS}
        opens.take(10, LARGE, 0)
        assert connection.replies[10] == (PASSED, 1), "without waiting"
        tallies = operations.requests
        assert (tallies.passed_opens, tallies.backing_files) == (3, 1)
        for unique in (11, 12, 13):
            opens.release(unique, LARGE)
        assert not connection.held
        assert (tallies.passed_opens, tallies.backing_files) == (3, 0)


async def test_a_recording_that_begins_meanwhile_sees_the_reads():
    async with opening() as (connection, operations, opens, _):
        opens.take(7, LARGE, 0)
        await settled()
        operations.is_recorded = True
        operations.go.set()
        await settled()
        assert connection.replies == {7: CACHED}
        assert not connection.held
        operations.is_recorded = False
        opens.take(8, LARGE, 0)
        assert connection.replies[8] == CACHED, "of one mode as long as it is open"


async def test_what_is_passed_through_when_a_recording_begins_stays_so():
    async with opening() as (connection, operations, opens, _):
        operations.go.set()
        opens.take(7, LARGE, 0)
        await settled()
        operations.is_recorded = True
        opens.take(8, LARGE, 0)
        assert connection.replies == {7: (PASSED, 1), 8: (PASSED, 1)}
        assert operations.opened == 2, "it is noted as open"


async def test_damage_that_is_found_meanwhile_counts():
    async with opening() as (connection, operations, opens, _):
        opens.take(7, LARGE, 0)
        await settled()
        operations.damaged.add(LARGE)
        operations.go.set()
        await settled()
        assert connection.replies == {7: CACHED}


async def test_what_is_found_damaged_while_open_is_opened_by_nobody_else():
    async with opening() as (connection, operations, opens, _):
        operations.go.set()
        opens.take(7, LARGE, 0)
        opens.take(8, OTHER, 0)
        await settled()
        operations.damaged.add(LARGE)
        opens.recheck()
        assert operations.requests.backing_files == 1
        operations.damaged.clear()  # repaired: those who have it open have the old one
        opens.take(9, LARGE, 0)
        opens.take(10, OTHER, 0)
        assert connection.replies[9] == errno.EIO
        assert connection.replies[10] == connection.replies[8]
        opens.release(11, LARGE)
        opens.take(12, LARGE, 0)
        await settled()
        assert connection.replies[12][0] == PASSED


async def test_too_many_that_wait_are_too_many(monkeypatch):
    monkeypatch.setattr(limits, "FUSE_TASKS", 2)
    async with opening() as (connection, operations, opens, _):
        for unique in (7, 8, 9):
            opens.take(unique, LARGE, 0)
        await settled()
        assert connection.replies == {9: CACHED}
        operations.go.set()
        await settled()
        assert connection.replies == dict.fromkeys((7, 8, 9), CACHED), "one mode for all"


@pytest.mark.expects_log("a defect of imgvol")
async def test_a_defect_is_an_answer_at_once_too():
    async with opening() as (connection, _, opens, _):
        opens.take(7, SMALL, os.O_RDWR)
        assert connection.replies == {7: errno.EIO}


@pytest.mark.expects_log("a defect of imgvol")
async def test_a_defect_is_an_answer_and_the_end_of_that_open_alone():
    async with opening() as (connection, operations, opens, _):
        opens.take(7, BROKEN, 0)
        opens.take(8, LARGE, 0)
        await settled()
        operations.go.set()
        await settled()
        assert connection.replies == {7: errno.EIO, 8: (PASSED, 1)}


async def test_all_get_an_answer_when_the_session_ends_and_nothing_is_held():
    async with opening() as (connection, operations, opens, nursery):
        operations.go.set()
        opens.take(7, LARGE, 0)
        await settled()
        operations.go = trio.Event()
        opens.take(8, OTHER, 0)
        opens.take(9, BROKEN + 1, 0)
        await settled()
        opens.close()
        assert not connection.held
        nursery.cancel_scope.cancel()
    assert connection.replies == {7: (PASSED, 1), 8: errno.EIO, 9: errno.EIO}
