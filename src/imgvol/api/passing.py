"""Open files that come with a request: SCM_RIGHTS of unix(7).

A command passes what it reads from, or writes to, as it is: no byte of an archive travels over the
socket or crosses the event loop, and the daemon needs no path to it and no right to open it.

The peer is this user or root (`server`): a file from them is theirs to give. A connection keeps one
at a time; more are closed at once.
"""

import array
import os
import socket
from typing import Final

import trio

# As many as fit into one message and are looked at: the kernel closes the rest.
_FILES: Final = 4
_SPACE: Final = socket.CMSG_SPACE(_FILES * array.array("i").itemsize)


class PassedFile:
    """The file that has come with the present request, if one has."""

    def __init__(self) -> None:
        self._descriptor = -1

    @property
    def descriptor(self) -> int | None:
        """The open file; it stays this object's."""
        return self._descriptor if self._descriptor >= 0 else None

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
