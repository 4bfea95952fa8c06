"""Files that are opened and closed: what of them is passed through, and what we are asked for.

Rule 1: every OPEN that was taken gets one reply, also when the session ends.
Rule 2: where nothing can be passed through, OPEN is refused, and the kernel opens by itself for the
rest of the connection. It never tells that what was open then is closed.
Rule 3: an open is decided, counted and answered in one step on the event loop. What is awaited
before, a file of the store, decides nothing: all may have changed meanwhile.
"""

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import trio

from imgvol import limits
from imgvol.content.open_file import OpenFile
from imgvol.fs.guard import failure
from imgvol.fs.kernel import replies
from imgvol.fs.kernel.backing import BackingFiles, Withheld
from imgvol.fs.kernel.connection import Connection
from imgvol.fs.kernel.protocol import OpenFlag
from imgvol.fs.operations import Operations
from imgvol.fs.replies import FSError

log = logging.getLogger(__name__)

# The kernel takes no other flags together with this one.
_PASSED: Final = OpenFlag.PASSTHROUGH | OpenFlag.NOFLUSH
_CACHED: Final = OpenFlag.KEEP_CACHE | OpenFlag.NOFLUSH


@dataclass(slots=True)
class _Reply:
    body: bytes | None = None


class Opens:
    """The OPENs and RELEASEs of one connection. Used on the event loop.

    Args:
        connection: Where replies go.
        operations: The handlers.
        nursery: Where those live that wait for a file of the store.
        may_refuse: Whether the kernel can open by itself.
        backing: What is passed through; None: nothing ever is.
    """

    def __init__(
        self,
        connection: Connection,
        operations: Operations,
        nursery: trio.Nursery,
        *,
        may_refuse: bool,
        backing: BackingFiles | None,
    ) -> None:
        self._connection = connection
        self._operations = operations
        self._nursery = nursery
        self._may_refuse = may_refuse
        self._backing = backing
        self._waiting = 0

    def take(self, unique: int, inode: int, flags: int) -> None:
        """Answers an OPEN, now or later; `flags` are those of open(2)."""
        if self._may_refuse and (self._backing is None or self._backing.is_useless):
            self._connection.write(replies.error_reply(unique, errno.ENOSYS))
            return
        try:
            may_pass = self._may_pass(inode)
        except FSError as exc:
            self._connection.write(replies.error_reply(unique, exc.errno))
            return
        # Past the page cache the store's filesystem may want aligned buffers, or refuse: we do not.
        if may_pass and not flags & os.O_DIRECT:
            self._waiting += 1
            self._nursery.start_soon(self._answer_later, unique, inode, flags)
        else:
            with self._answering(unique) as reply:
                reply.body = self._decide(inode, flags, None)

    def release(self, unique: int, inode: int) -> None:
        """Answers a RELEASE."""
        # First: if it came again, to a successor, this open would be discounted twice.
        self._connection.write(replies.reply(unique))
        if self._backing is not None:
            self._backing.release(inode)
            self._operations.requests.backing_files = self._backing.count

    def recheck(self) -> None:
        """Something is known against a layer: lets nobody else open what must not be shown."""
        if self._backing is None:
            return
        if withheld := self._backing.withhold(self._is_sound):
            log.info("%d damaged files are open, and are still read by whoever has them", withheld)
        self._operations.requests.backing_files = self._backing.count

    def close(self) -> None:
        """The session ends: the kernel lets go of all files of the store."""
        if self._backing is not None:
            self._backing.close()
            self._operations.requests.backing_files = 0

    def _may_pass(self, inode: int) -> bool:
        return (
            self._backing is not None
            and self._waiting < limits.FUSE_TASKS
            and self._backing.may_pass(inode)
            and self._operations.has_backing_file(inode)
        )

    def _is_sound(self, inode: int) -> bool:
        try:
            return self._operations.is_sound(inode)
        except FSError:
            return False

    def _decide(self, inode: int, flags: int, file: OpenFile | None) -> bytes:
        """Counts an open, and gives its reply's body."""
        opened = self._operations.open(inode, flags)
        cached = replies.open_out(_CACHED)
        if self._backing is None:
            return cached
        # Who records a trace has to be asked for what is read.
        if file and (opened.is_recorded or not self._operations.has_backing_file(inode)):
            file = None
        try:
            is_large = self._operations.is_large(inode)
            backing_id = self._backing.open(inode, file.fd if file else None, is_large=is_large)
        except Withheld:
            raise failure(errno.EIO) from None
        if not backing_id:
            return cached
        tallies = self._operations.requests
        tallies.passed_opens += 1
        tallies.backing_files = self._backing.count
        return replies.open_out(_PASSED, backing_id)

    async def _answer_later(self, unique: int, inode: int, flags: int) -> None:
        try:
            with self._answering(unique) as reply:
                file = await self._operations.backing_file(inode)
                reply.body = self._decide(inode, flags, file)
        finally:
            self._waiting -= 1

    @contextmanager
    def _answering(self, unique: int) -> Iterator[_Reply]:
        """Sends one reply, whatever happens in the block."""
        reply = _Reply()
        code = errno.EIO  # unless we come to know better
        try:
            yield reply
        except FSError as exc:
            code = exc.errno
        except Exception:  # the handlers are guarded: this is ours
            log.exception("open: a defect of imgvol")
        finally:
            if reply.body is None:
                self._connection.write(replies.error_reply(unique, code))
            else:
                self._connection.write(replies.reply(unique, reply.body))
