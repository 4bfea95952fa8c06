"""What may wait: reads, and lookups and listings of views whose layers stream.

What need not wait is answered at once, anything else in a task of its own.

Rule 1: every request that was taken gets one reply, also when the session ends.
Rule 2: no more than a bounded number of tasks; what comes beyond waits in line.
Rule 3: whoever may leave (see `callers`) gets EINTR at once, and nobody else is disturbed.
"""

import errno
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from imgvol import limits
from imgvol.fs.kernel import replies
from imgvol.fs.kernel.callers import Caller
from imgvol.fs.kernel.connection import Connection
from imgvol.fs.operations import Operations
from imgvol.fs.replies import FSError

log = logging.getLogger(__name__)


# Waits for an answer, and gives the reply, in pieces.
Work = Callable[[], Awaitable[Sequence[bytes | bytearray]]]


@dataclass(eq=False, slots=True)
class _Waiting:
    unique: int
    caller: Caller
    work: Work
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Reads:
    """The requests of one connection that may wait. Used on the event loop.

    Args:
        connection: Where replies go.
        operations: The handlers.
        nursery: Where those live that wait.
    """

    def __init__(
        self, connection: Connection, operations: Operations, nursery: trio.Nursery
    ) -> None:
        self._connection = connection
        self._operations = operations
        self._nursery = nursery
        self._running: dict[int, _Waiting] = {}
        self._line: OrderedDict[int, _Waiting] = OrderedDict()

    def take(self, unique: int, inode: int, offset: int, size: int, caller: Caller) -> None:
        """Answers a read, now or later."""
        try:
            data = self._operations.read_now(inode, offset, size)
        except FSError as exc:
            self._connection.write(replies.error_reply(unique, exc.errno))
            return
        if data is not None:
            self._connection.write(replies.header(unique, len(data)), data)
            return

        async def read() -> Sequence[bytes | bytearray]:
            data = await self._operations.read(inode, offset, size)
            return replies.header(unique, len(data)), data

        self.wait(unique, caller, read)

    def wait(self, unique: int, caller: Caller, work: Work) -> None:
        """Answers a request when its work is done; `work` raises FSError and nothing else."""
        waiting = _Waiting(unique, caller, work)
        if len(self._running) < limits.FUSE_TASKS:
            self._start(waiting)
        else:
            self._line[unique] = waiting

    def interrupt(self, unique: int) -> None:
        """Whoever reads was sent a signal; what has been answered meanwhile is no read any more."""
        waiting = self._running.get(unique) or self._line.get(unique)
        if waiting is None:
            return
        if waiting.caller.may_leave():
            self._give_up(waiting)
        else:
            self._nursery.start_soon(self._give_up_later, waiting)

    def refuse_line(self) -> None:
        """Answers all that no task has begun with: the session ends."""
        for unique in self._line:
            self._connection.write(replies.error_reply(unique, errno.EIO))
        self._line.clear()

    def _give_up(self, waiting: _Waiting) -> None:
        if self._line.pop(waiting.unique, None) is None:
            waiting.scope.cancel()
        else:
            self._connection.write(replies.error_reply(waiting.unique, errno.EINTR))

    async def _give_up_later(self, waiting: _Waiting) -> None:
        # The kernel tells of the first signal only.
        while waiting.unique in self._running or waiting.unique in self._line:
            if waiting.caller.may_leave():
                self._give_up(waiting)
                return
            await trio.sleep(limits.FUSE_CALLER_CHECK)

    def _start(self, waiting: _Waiting) -> None:
        self._running[waiting.unique] = waiting
        self._nursery.start_soon(self._answer, waiting)

    async def _answer(self, waiting: _Waiting) -> None:
        code = errno.EIO  # unless we come to know better
        try:
            with waiting.scope:
                try:
                    reply = await waiting.work()
                except FSError as exc:
                    code = exc.errno
                else:
                    code = 0
                    self._connection.write(*reply)
            if waiting.scope.cancelled_caught:
                code = errno.EINTR
        except Exception:  # the handlers are guarded: this is ours
            log.exception("a request that waits: a defect of imgvol")
        finally:
            del self._running[waiting.unique]
            if code:
                self._connection.write(replies.error_reply(waiting.unique, code))
            if self._line and len(self._running) < limits.FUSE_TASKS:
                self._start(self._line.popitem(last=False)[1])
