"""Replies to all requests that need no waiting: from the record of a request to a reply's bytes.

It knows the handlers and the protocol, and neither descriptors nor tasks.
"""

import errno
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from imgvol.fs.guard import failure
from imgvol.fs.kernel import replies, requests
from imgvol.fs.kernel.protocol import OpenFlag
from imgvol.fs.kernel.requests import Request
from imgvol.fs.operations import Operations
from imgvol.fs.replies import ROOT_INODE, FSError

log = logging.getLogger(__name__)

_LISTED: Final = OpenFlag.KEEP_CACHE | OpenFlag.CACHE_DIR


class Answers:
    """Answers requests from memory. Used on the event loop.

    Args:
        operations: The handlers.
        has_opendirs: Whether the kernel is to tell of directories that are opened.
    """

    def __init__(self, operations: Operations, *, has_opendirs: bool) -> None:
        self._operations = operations
        self._has_opendirs = has_opendirs
        self._handlers: Mapping[type, Callable[[int, Any], bytes | bytearray | None]] = {
            requests.Lookup: self._lookup,
            requests.Forget: self._forget,
            requests.Getattr: self._getattr,
            requests.Readlink: self._readlink,
            requests.Opendir: self._opendir,
            requests.Readdir: self._readdir,
            requests.Releasedir: self._nothing,
            requests.Getxattr: self._getxattr,
            requests.Listxattr: self._listxattr,
            requests.Statfs: self._statfs,
            requests.Destroy: self._nothing,
        }

    def answer(self, request: Request) -> bytes | None:
        """The reply; None: this kind gets none."""
        handler = self._handlers.get(type(request.body))
        if handler is None:
            # FLUSH, which the kernel then never sends again, and all that changes something.
            return replies.error_reply(request.unique, errno.ENOSYS)
        try:
            body = handler(request.nodeid, request.body)
        except FSError as exc:
            return replies.error_reply(request.unique, exc.errno)
        except Exception:  # the handlers are guarded: this is ours
            log.exception("%s: a defect of imgvol", type(request.body).__name__)
            return replies.error_reply(request.unique, errno.EIO)
        return None if body is None else replies.reply(request.unique, body)

    def is_settled(self, request: Request) -> bool:
        """Whether `answer` can answer; otherwise `settle` comes first."""
        if not isinstance(request.body, requests.Lookup | requests.Readdir):
            return True
        try:
            return self._operations.is_settled(request.nodeid, _name(request))
        except FSError:
            return True  # it will be met again

    async def settle(self, request: Request) -> None:
        """Waits until it can.

        Raises:
            FSError: It takes too long.
        """
        await self._operations.settle(request.nodeid, _name(request))

    def _lookup(self, nodeid: int, asked: requests.Lookup) -> bytes:
        return replies.entry_out(self._operations.lookup(nodeid, asked.name))

    def _forget(self, _nodeid: int, asked: requests.Forget) -> None:
        try:
            self._operations.forget(asked.references)
        except FSError:
            log.error("the kernel has forgotten what cannot be forgotten: a defect of imgvol")

    def _getattr(self, nodeid: int, _asked: requests.Getattr) -> bytes:
        return replies.attr_out(self._operations.getattr(nodeid))

    def _readlink(self, nodeid: int, _asked: requests.Readlink) -> bytes:
        return self._operations.readlink(nodeid)

    def _opendir(self, nodeid: int, _asked: requests.Opendir) -> bytes:
        if not self._has_opendirs:
            # The kernel opens by itself from now on, and keeps what it has listed: the root's
            # listing, too, until the root has another time.
            raise failure(errno.ENOSYS)
        # Views never change; the root does, whenever one comes or goes.
        flags = OpenFlag(0) if nodeid == ROOT_INODE else _LISTED
        return replies.open_out(flags)

    def _readdir(self, nodeid: int, asked: requests.Readdir) -> bytearray:
        part = replies.ListingPart(asked.size, is_plus=asked.is_plus)
        self._operations.readdir(nodeid, asked.cookie, part.add, gives_references=asked.is_plus)
        return part.data

    def _getxattr(self, nodeid: int, asked: requests.Getxattr) -> bytes:
        return _sized(self._operations.getxattr(nodeid, asked.name), asked.size)

    def _listxattr(self, nodeid: int, asked: requests.Listxattr) -> bytes:
        names = self._operations.listxattr(nodeid)
        return _sized(b"".join(name + b"\0" for name in names), asked.size)

    def _statfs(self, _nodeid: int, _asked: requests.Statfs) -> bytes:
        return replies.statfs_out(self._operations.statfs())

    def _nothing(self, _nodeid: int, _asked: object) -> bytes:
        """Nothing is kept per open directory."""
        return b""


def _name(request: Request) -> bytes | None:
    return request.body.name if isinstance(request.body, requests.Lookup) else None


def _sized(value: bytes, room: int) -> bytes:
    """An extended attribute as it is asked for: its length, or itself."""
    if room == 0:
        return replies.getxattr_out(len(value))
    if len(value) > room:
        raise failure(errno.ERANGE)
    return value
