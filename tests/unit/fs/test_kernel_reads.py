"""Reads that wait: how many at once, who may leave, and that each gets exactly one reply."""

import errno
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from imgvol import limits
from imgvol.fs.guard import failure
from imgvol.fs.kernel.protocol import OUT_HEADER
from imgvol.fs.kernel.reads import Reads

WAITS, READY, FAILS, BROKEN = 1, 2, 3, 4


class Connection:
    """Keeps what is written: errno, or the bytes, by request."""

    def __init__(self):
        self.replies = {}

    def write(self, *pieces):
        data = b"".join(pieces)
        length, error, unique = OUT_HEADER.unpack_from(data, 0)
        assert length == len(data)
        assert unique not in self.replies, "a second reply"
        self.replies[unique] = -error or data[OUT_HEADER.size :]


class Operations:
    """Waits, answers, fails or has a defect, by inode."""

    def __init__(self):
        self.go = trio.Event()
        self.waiting = 0

    def read_now(self, inode, offset, size):
        if inode == FAILS:
            raise failure(errno.ESTALE)
        return b"now" if inode == READY else None

    async def read(self, inode, offset, size):
        if inode == BROKEN:
            raise KeyError("a defect")
        self.waiting += 1
        try:
            await self.go.wait()
        finally:
            self.waiting -= 1
        return b"later"


class Caller:
    """Leaves or stays."""

    def __init__(self, leaves):
        self.leaves = leaves

    def may_leave(self):
        return self.leaves


LEAVES = Caller(True)


@asynccontextmanager
async def reading():
    connection, operations = Connection(), Operations()
    async with trio.open_nursery() as nursery:
        yield connection, operations, Reads(connection, operations, nursery), nursery


async def settled():
    await trio.testing.wait_all_tasks_blocked()


async def test_what_is_there_is_answered_at_once():
    async with reading() as (connection, _, reads, _):
        reads.take(7, READY, 0, 10, LEAVES)
        reads.take(8, FAILS, 0, 10, LEAVES)
        assert connection.replies == {7: b"now", 8: errno.ESTALE}


async def test_what_is_not_there_is_answered_when_it_is():
    async with reading() as (connection, operations, reads, _):
        reads.take(7, WAITS, 0, 10, LEAVES)
        await settled()
        assert connection.replies == {}
        operations.go.set()
    assert connection.replies == {7: b"later"}


@pytest.mark.expects_log("a defect of imgvol")
async def test_a_defect_is_an_answer_and_the_end_of_that_read_alone():
    async with reading() as (connection, operations, reads, _):
        reads.take(7, BROKEN, 0, 10, LEAVES)
        reads.take(8, WAITS, 0, 10, LEAVES)
        await settled()
        operations.go.set()
    assert connection.replies == {7: errno.EIO, 8: b"later"}


async def test_an_interrupted_read_ends_alone():
    async with reading() as (connection, operations, reads, _):
        for unique in (7, 8):
            reads.take(unique, WAITS, 0, 10, LEAVES)
        reads.interrupt(8)  # before its task has begun
        await settled()
        assert connection.replies == {8: errno.EINTR}
        reads.take(9, WAITS, 0, 10, LEAVES)
        await settled()
        reads.interrupt(9)
        reads.interrupt(9)
        reads.interrupt(77)
        await settled()
        assert connection.replies == {8: errno.EINTR, 9: errno.EINTR}
        operations.go.set()
    assert connection.replies[7] == b"later"


async def until(condition):
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.001)


@pytest.mark.parametrize("tasks", [0, 10], ids=["in line", "under way"])
async def test_who_may_not_leave_yet_is_asked_again(monkeypatch, tasks):
    monkeypatch.setattr(limits, "FUSE_TASKS", 1 + tasks)
    monkeypatch.setattr(limits, "FUSE_CALLER_CHECK", 0.001)
    callers = {7: Caller(True), 8: Caller(False), 9: Caller(False)}
    async with reading() as (connection, operations, reads, _):
        reads.take(1, WAITS, 0, 10, LEAVES)  # if there is a line, the others stand in it
        for unique in (7, 8, 9):
            reads.take(unique, WAITS, 0, 10, callers[unique])
        for unique in (7, 8, 9):
            reads.interrupt(unique)
        await settled()
        assert connection.replies == {7: errno.EINTR}
        callers[8].leaves = True  # of which the kernel does not tell
        await until(lambda: len(connection.replies) == 2)
        assert connection.replies == {7: errno.EINTR, 8: errno.EINTR}
        operations.go.set()
    assert connection.replies == {
        1: b"later", 7: errno.EINTR, 8: errno.EINTR, 9: b"later"
    }  # fmt: skip


async def test_more_than_there_may_be_tasks_wait_in_line(monkeypatch):
    monkeypatch.setattr(limits, "FUSE_TASKS", 3)
    async with reading() as (connection, operations, reads, _):
        for unique in range(10):
            reads.take(unique, WAITS, 0, 10, LEAVES)
        await settled()
        assert operations.waiting == 3
        reads.interrupt(9)  # in line
        reads.interrupt(0)  # under way: the next one takes its place
        await settled()
        assert connection.replies == {9: errno.EINTR, 0: errno.EINTR}
        assert operations.waiting == 3
        reads.take(50, READY, 0, 10, LEAVES)
        assert connection.replies[50] == b"now", "what need not wait does not wait in line"
        operations.go.set()
    assert [connection.replies[unique] for unique in range(1, 9)] == [b"later"] * 8


async def test_all_get_an_answer_when_the_session_ends(monkeypatch):
    monkeypatch.setattr(limits, "FUSE_TASKS", 3)
    async with reading() as (connection, _, reads, nursery):
        for unique in range(6):
            reads.take(unique, WAITS, 0, 10, LEAVES)
        await settled()
        reads.refuse_line()
        nursery.cancel_scope.cancel()
    assert connection.replies == dict.fromkeys(range(6), errno.EIO)


async def test_all_get_an_answer_when_the_session_is_cancelled_first(monkeypatch):
    monkeypatch.setattr(limits, "FUSE_TASKS", 3)
    async with reading() as (connection, _, reads, nursery):
        for unique in range(6):
            reads.take(unique, WAITS, 0, 10, LEAVES)
        await settled()
        nursery.cancel_scope.cancel()
    assert connection.replies == dict.fromkeys(range(6), errno.EIO)
