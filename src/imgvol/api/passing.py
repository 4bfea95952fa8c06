"""Open files that come with a request: SCM_RIGHTS of unix(7).

A command passes what it reads from, or writes to, as it is: no byte of an archive travels over the
socket or crosses the event loop, and the daemon needs no path to it and no right to open it.

The peer is this user or root (`server`): a file from them is theirs to give. A connection keeps one
at a time; more are closed at once.
"""

import array
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

# As many as fit into one message and are looked at: the kernel closes the rest.
_FILES: Final = 4
_SPACE: Final = socket.CMSG_SPACE(_FILES * array.array("i").itemsize)


@contextmanager
def owning(descriptor: int | None) -> Iterator[None]:
    """Closes a file that was taken, if there is one, after the block."""
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


class PassedFile:
    """The file that has come with a request, until that request is whole."""

    def __init__(self) -> None:
        self._descriptor = -1

    def take(self) -> int | None:
        """The open file, which is the caller's from then on; None: there is none.

        What comes later, while that request is being answered, is the next one's.
        """
        taken, self._descriptor = self._descriptor, -1
        return taken if taken >= 0 else None

    async def receive(self, stream: trio.SocketStream, size: int) -> bytes:
        """As `receive_some` of the stream, and keeps the file that comes along.

        Raises:
            trio.BrokenResourceError: The connection is broken.
        """
        try:
            data, messages, _, _ = await stream.socket.recvmsg(
                size, _SPACE, socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise trio.BrokenResourceError from error
        for level, kind, content in messages:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._take(content)
        return data

    def close(self) -> None:
        """Closes the file. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _take(self, content: bytes) -> None:
        descriptors = array.array("i")
        descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
        for descriptor in descriptors:
            if self._descriptor < 0:
                self._descriptor = descriptor
            else:
                os.close(descriptor)
