"""The transport that speaks the kernel's protocol itself: docs/design/transport.md.

One task reads requests and answers on the spot what needs no waiting, which is nearly all. It has
what libfuse lacks: listings that the kernel keeps, callers that can be killed while they wait, any
number of sessions in a process.
"""

import errno
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from imgvol.fs.kernel import negotiation, replies, requests
from imgvol.fs.kernel.answers import Answers
from imgvol.fs.kernel.backing import BackingFiles
from imgvol.fs.kernel.callers import Caller
from imgvol.fs.kernel.connection import Connection, ConnectionEnded
from imgvol.fs.kernel.keeping import ConnectionKeeper
from imgvol.fs.kernel.mounting import Mounting
from imgvol.fs.kernel.negotiation import Negotiated
from imgvol.fs.kernel.open_table import OpenTable
from imgvol.fs.kernel.opens import Opens
from imgvol.fs.kernel.protocol import InitFlag
from imgvol.fs.kernel.reads import Reads, Work
from imgvol.fs.kernel.requests import Request
from imgvol.fs.operations import Operations
from imgvol.fs.replies import ROOT_INODE

log = logging.getLogger(__name__)

# Requests that are answered before other tasks get their turn.
_BURST = 16
# Opens directories by itself, and has to know when the root's names have changed.
_OWN_OPENDIR = InitFlag.NO_OPENDIR_SUPPORT | InitFlag.AUTO_INVAL_DATA


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What can be switched.

    Attributes:
        wanted: What is asked of the kernel in INIT.
        passthrough: Whether large files that are complete are read in the store by the kernel
            itself, if it can. Only then it tells of files that are opened: a round trip for each.
    """

    wanted: InitFlag = negotiation.WANTED
    passthrough: bool = True


DEFAULTS = Settings()


class KernelTransport:
    """A `Transport`.

    Args:
        operations: The handlers.
        mounting: Where to mount, and how.
        settings: What can be switched.
        keeper: Has the connection outlive this process, and may have found that of the one before.
        root: The inode that the kernel's root is: that of all views, or a file or directory of one.
    """

    def __init__(
        self,
        operations: Operations,
        mounting: Mounting,
        settings: Settings = DEFAULTS,
        keeper: ConnectionKeeper | None = None,
        root: int = ROOT_INODE,
    ) -> None:
        self._operations = operations
        self._mounting = mounting
        self._settings = settings
        self._keeper = keeper
        self._root = root
        self._connection: Connection | None = None
        # What a successor has to know of open files.
        self._table: OpenTable | None = None
        self._opens: Opens | None = None

    @property
    def agreed(self) -> Negotiated:
        """What holds on the connection, once it is mounted."""
        return self._mounted.agreed

    @property
    def _mounted(self) -> Connection:
        assert self._connection is not None, "`mount` comes first"
        return self._connection

    def mount(self) -> None:
        """See `Transport.mount`. A connection that was found is mounted already."""
        keeper, settings = self._keeper, self._settings
        if keeper is not None and keeper.found is not None:
            self._connection = keeper.found.connection
            self._table = keeper.found.table
            return
        passed = InitFlag.PASSTHROUGH if settings.passthrough else InitFlag(0)
        wanted = settings.wanted | passed
        self._connection = Connection.mount(self._mounting, wanted)
        if keeper is not None:
            self._table = keeper.keep(self._connection)

    async def serve(self) -> None:
        """See `Transport.serve`."""
        connection = self._mounted
        flags = connection.agreed.flags
        passes = InitFlag.PASSTHROUGH in flags
        log.debug("large files are %s", "passed through" if passes else "not passed through")
        # A process before us may have told the kernel what is in it.
        self.root_changed()
        answers = Answers(self._operations, has_opendirs=_OWN_OPENDIR not in flags)
        async with trio.open_nursery() as nursery:
            reads = Reads(connection, self._operations, nursery)
            opens = Opens(
                connection,
                self._operations,
                nursery,
                may_refuse=InitFlag.NO_OPEN_SUPPORT in flags,
                backing=BackingFiles(connection, table=self._table) if passes else None,
            )
            self._opens = opens
            # What the process before had passed through may have turned out to be damaged since.
            opens.recheck()
            try:
                while True:
                    await trio.lowlevel.wait_readable(connection.fd)
                    self._answer_some(connection, answers, reads, opens)
            except ConnectionEnded:
                log.debug("the connection has ended")
            finally:
                reads.refuse_line()
                opens.close()
                # It knows the nursery, and this us: a circle would keep layers open for a while.
                self._opens = None
                nursery.cancel_scope.cancel()

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        """See `Transport.invalidate_entry`."""
        self._mounted.notify(replies.inval_entry(self._known_as(parent), name))

    def invalidate_inode(self, inode: int, *, attributes_only: bool = False) -> None:
        """See `Transport.invalidate_inode`."""
        known = self._known_as(inode)
        self._mounted.notify(replies.inval_inode(known, attributes_only=attributes_only))

    def root_changed(self) -> None:
        """See `Transport.root_changed`."""
        self._mounted.notify_at_once(replies.inval_inode(ROOT_INODE, attributes_only=True))

    def recheck(self) -> None:
        """See `Transport.recheck`."""
        if self._opens is not None:
            self._opens.recheck()

    def close(self) -> None:
        """See `Transport.close`."""
        if self._connection is not None:
            # First: a successor that finds it must not find it half unmounted.
            if self._keeper is not None:
                self._keeper.release()
            self._connection.close()
        if self._table is not None:
            self._table.close()

    def _known_as(self, inode: int) -> int:
        """What the kernel calls an inode: it has one number for every root."""
        return ROOT_INODE if inode == self._root else inode

    def _answer_some(
        self, connection: Connection, answers: Answers, reads: Reads, opens: Opens
    ) -> None:
        for _ in range(_BURST):
            data = connection.read()
            if data is None:
                return
            try:
                request = requests.decode(data)
            except requests.MalformedRequest as exc:
                log.error("a request that is none: %s", exc)
                if exc.unique is not None:
                    connection.write(replies.error_reply(exc.unique, errno.EIO))
                continue
            if request.nodeid == ROOT_INODE:
                request = request._replace(nodeid=self._root)
            try:
                _take(request, connection, answers, reads, opens)
            except Exception:  # the handlers are guarded: this is ours, and not everybody's end
                log.exception("%s: a defect of imgvol", type(request.body).__name__)
                # If it was answered before, the kernel does not know it any more.
                connection.write(replies.error_reply(request.unique, errno.EIO))


def _take(
    request: Request, connection: Connection, answers: Answers, reads: Reads, opens: Opens
) -> None:
    """Answers a request, now or later."""
    body = request.body
    if isinstance(body, requests.Read):
        caller = Caller(request.tid, body.is_direct)
        reads.take(request.unique, request.nodeid, body.offset, body.size, caller)
    elif isinstance(body, requests.Interrupt):
        reads.interrupt(body.unique)
    elif isinstance(body, requests.Open):
        opens.take(request.unique, request.nodeid, body.flags)
    elif isinstance(body, requests.Release):
        opens.release(request.unique, request.nodeid)
    elif not answers.is_settled(request):
        reads.wait(request.unique, Caller(request.tid, False), _later(answers, request))
    else:
        reply = answers.answer(request)
        if reply is not None:
            connection.write(reply)


def _later(answers: Answers, request: Request) -> Work:
    """The answer to a request that has to wait for it."""

    async def answer() -> Sequence[bytes | bytearray]:
        await answers.settle(request)
        reply = answers.answer(request)
        assert reply is not None, "lookups and listings get one"
        return (reply,)

    return answer
