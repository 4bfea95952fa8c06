"""A listener that outlives the process: docs/design/supervision.md."""

import contextlib
import logging
import os
import socket
import stat
from collections.abc import Callable

from imgvol.service_manager import ServiceManager

log = logging.getLogger(__name__)


class Keeper:
    """Has the service manager keep one listener. All calls block for a moment at most.

    Args:
        manager: Who keeps it, if it can.
        name: Under which.
        is_over: Whether the service ends, and not only this process: asked at the end.

    Attributes:
        is_kept: Whether the next process will get it.
    """

    def __init__(self, manager: ServiceManager, name: str, is_over: Callable[[], bool]) -> None:
        self._manager = manager
        self._name = name
        self._is_over = is_over
        self.is_kept = False

    def take(self, path: str) -> socket.socket | None:
        """The listener of the process before, if there is one that can still be reached at `path`.

        Its caller closes it.
        """
        candidates = self._manager.take(self._name)
        found = None
        for descriptor in candidates:
            try:
                listener = socket.socket(fileno=descriptor)
            except OSError:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
                continue
            if found is None and _listens(listener) and _is_socket(path):
                found = listener
            else:
                listener.close()
        if found is not None:
            found.setblocking(False)
            self.is_kept = True
            log.info("took over the listener %s", self._name)
        elif candidates:
            log.warning("the kept listener %s is of no use: a new one takes its place", self._name)
            self._manager.drop(self._name)
        return found

    def keep(self, listener: socket.socket) -> None:
        """Has it kept, unless it is."""
        if not self.is_kept:
            self.is_kept = self._manager.keep(self._name, listener.fileno())

    def release(self) -> None:
        """Has it kept no longer, if the service ends."""
        if self.is_kept and self._is_over():
            self._manager.drop(self._name)
            self.is_kept = False


def _listens(listener: socket.socket) -> bool:
    try:
        is_listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    except OSError:
        return False
    return (
        listener.family == socket.AF_UNIX and listener.type == socket.SOCK_STREAM and is_listening
    )


def _is_socket(path: str) -> bool:
    """Whether the name is still that of a socket. Nobody else can have put another one there."""
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False
