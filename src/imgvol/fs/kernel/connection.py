"""The descriptor of /dev/fuse: mounted, negotiated, read from and written to.

Rule 1: one reader, which is the event loop; replies are written there, too. Notifications may wait
in the kernel for a directory's lock, or a page's, which somebody may hold who waits for a reply:
they are written by threads, but for those about attributes alone, which take none of these.
Rule 2: the descriptor is closed by `close` alone, when no thread is in it any more. Until then what
is still asked is answered with EIO, so that such a thread comes out.
"""

import contextlib
import errno
import fcntl
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Sequence
from typing import Final, Self

from imgvol import limits
from imgvol.errors import LocalError
from imgvol.fs.kernel import negotiation, replies, requests
from imgvol.fs.kernel.mounting import Mounting
from imgvol.fs.kernel.negotiation import Negotiated
from imgvol.fs.kernel.protocol import (
    BACKING_ID_SIZE,
    BACKING_MAP,
    OUT_HEADER,
    DeviceIoctl,
    InitFlag,
)

log = logging.getLogger(__name__)

# The longest request of a filesystem that nobody writes to is a list of inodes to forget, which the
# kernel makes as long as there is room.
_BUFFER_SIZE: Final = 64 * limits.KIB
# Milliseconds between looks at whether threads have come out.
_CLOSING_CHECK: Final = 20
# The kernel does not wait for this reply any more: its caller is gone.
_NOT_WAITED_FOR: Final = {errno.ENOENT}
_ENDED: Final = {errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN}


class ConnectionEnded(Exception):
    """Somebody has unmounted the filesystem, or aborted its connection."""


class Connection:
    """One mounted filesystem. Made by `mount` or `resume`; `close` must follow.

    Attributes:
        fd: Of the device; never blocks.
        agreed: What holds on this connection.
    """

    def __init__(self, fd: int, mounting: Mounting, agreed: Negotiated) -> None:
        self.fd = fd
        self.agreed = agreed
        self._mounting = mounting
        self._buffer = bytearray(_BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self._lock = threading.Lock()
        self._writers = 0
        self._is_closing = False

    @classmethod
    def mount(cls, mounting: Mounting, wanted: InitFlag) -> Self:
        """Mounts a filesystem, and agrees with the kernel. Blocks.

        Raises:
            MachineLacks: The kernel or fusermount3 refuses, or speaks another protocol.
            ImgvolError: As `Mounting.mount` and `Mounting.check`.
        """
        fd = mounting.mount()
        try:
            agreed = _negotiate(fd, wanted)
            mounting.check()
        except BaseException:
            try:
                mounting.detach()
            finally:
                os.close(fd)
            raise
        return cls(fd, mounting, agreed)

    @classmethod
    def resume(cls, fd: int, mounting: Mounting, agreed: Negotiated) -> Self:
        """Goes on with a connection that another process has begun, and that nobody reads now.

        What that process has read and not answered comes again.

        Raises:
            OSError: The kernel does not send it again, or the connection has ended.
        """
        os.write(fd, replies.resend())
        return cls(fd, mounting, agreed)

    def known(self, inodes: Sequence[int]) -> set[int]:
        """Those inodes that the kernel has in its memory. Blocks, but needs no reply of ours."""
        found = set()
        for inode in inodes:
            # To forget attributes is the least that an inode can be asked for.
            with contextlib.suppress(FileNotFoundError):
                self.notify(replies.inval_inode(inode, attributes_only=True))
                found.add(inode)
        return found

    def read(self) -> memoryview | None:
        """The next request, which is good until the next call; None: there is none at the moment.

        Raises:
            ConnectionEnded: There will be no more.
        """
        while True:
            try:
                size = os.readv(self.fd, [self._buffer])
            except BlockingIOError:
                return None
            except OSError as exc:
                if exc.errno in _ENDED:
                    raise ConnectionEnded from exc
                if exc.errno != errno.ENOENT:  # ENOENT: it was withdrawn while we read it
                    raise
            else:
                return self._view[:size]

    def write(self, *pieces: bytes | bytearray) -> None:
        """Sends a reply; one that the kernel does not take is a defect, and becomes EIO."""
        try:
            os.writev(self.fd, pieces)
        except OSError as exc:
            # An ended connection is found by whoever reads.
            if exc.errno in _NOT_WAITED_FOR | _ENDED:
                return
            log.error("the kernel refuses a reply: a defect of imgvol: %s", exc.strerror)
            _, _, unique = OUT_HEADER.unpack_from(pieces[0], 0)
            with contextlib.suppress(OSError):
                os.write(self.fd, replies.error_reply(unique, errno.EIO))

    def notify(self, data: bytes) -> None:
        """Sends a notification. Blocks, possibly until requests are answered.

        Raises:
            OSError: ENOENT: the kernel does not know what it is about; ENOTCONN: it is too late.
        """
        with self._lock:
            if self._is_closing:
                raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
            self._writers += 1
        try:
            os.write(self.fd, data)
        finally:
            with self._lock:
                self._writers -= 1

    def notify_at_once(self, data: bytes) -> None:
        """Sends a notification about attributes alone. Used on the event loop; never blocks."""
        with contextlib.suppress(OSError):  # it has just been unmounted
            os.write(self.fd, data)

    def open_backing(self, fd: int) -> int:
        """Has the kernel hold a file, to be read in the place of inodes; returns its backing id.

        Raises:
            OSError: The kernel refuses: without CAP_SYS_ADMIN, or on that filesystem.
        """
        backing_id: int = fcntl.ioctl(
            self.fd, DeviceIoctl.BACKING_OPEN, bytearray(BACKING_MAP.pack(fd, 0, 0))
        )
        return backing_id

    def close_backing(self, backing_id: int) -> None:
        """The kernel holds it no longer than it is open.

        Raises:
            OSError: There is no such id.
        """
        number = backing_id.to_bytes(BACKING_ID_SIZE, sys.byteorder)
        fcntl.ioctl(self.fd, DeviceIoctl.BACKING_CLOSE, number)

    def close(self) -> None:
        """Unmounts, and ends the connection: whoever still waits gets an error. Blocks."""
        try:
            self._mounting.detach()
        finally:
            self._end()

    def _end(self) -> None:
        with self._lock:
            self._is_closing = True
        try:
            while self._is_written_to():
                self._refuse_next()
        finally:
            os.close(self.fd)

    def _is_written_to(self) -> bool:
        with self._lock:
            return self._writers > 0

    def _refuse_next(self) -> None:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        poll.poll(_CLOSING_CHECK)
        try:
            data = self.read()
            if data is not None:
                self.write(replies.error_reply(requests.decode(data).unique, errno.EIO))
        except ConnectionEnded:
            time.sleep(_CLOSING_CHECK / 1000)  # there is nothing left to wait for by the descriptor
        except requests.MalformedRequest as exc:
            log.error("a request that is none: %s", exc)
            if exc.unique is not None:
                self.write(replies.error_reply(exc.unique, errno.EIO))


def _negotiate(fd: int, wanted: InitFlag) -> Negotiated:
    """Answers the request that the kernel has sent when it mounted."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(limits.FUSE_INIT_DEADLINE * 1000):
        raise LocalError("the kernel has mounted the filesystem, and does not begin to use it")
    request = requests.decode(memoryview(os.read(fd, _BUFFER_SIZE)))
    assert isinstance(request.body, requests.Init), "the first request of every connection"
    agreed = negotiation.negotiate(request.body, wanted)
    os.write(fd, replies.reply(request.unique, negotiation.init_out(agreed)))
    log.debug("FUSE 7.%d, %r", agreed.minor, agreed.flags)
    return agreed
