"""What bounds a piece of network work, and what can stop it.

Work here blocks a thread: it waits for sockets, for other threads, or for time to pass. Every such
wait goes through an `Operation`, which has a deadline for the whole and a cancel button that any
thread may press. Timeouts of single reads bound nothing by themselves: a server that sends one byte
a second passes them all.
"""

import contextlib
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

T = TypeVar("T")


class OperationCancelled(Exception):
    """The operation was cancelled. Internal to this room."""


class DeadlinePassed(Exception):
    """The operation took longer than it may. Internal to this room."""


class OpenSockets:
    """The sockets of one channel, so that another thread can shut them down.

    Closing and shutting down exclude each other: the kernel reuses the numbers of closed files, and
    a late shutdown would hit a stranger's.
    """

    def __init__(self) -> None:
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()

    def open(self, family: socket.AddressFamily) -> socket.socket:
        """A new non-blocking TCP socket."""
        opened = socket.socket(family, socket.SOCK_STREAM)
        opened.setblocking(False)
        with self._lock:
            self._sockets.add(opened)
        return opened

    def close(self, opened: socket.socket) -> None:
        """Close a socket; closing it again does nothing."""
        with self._lock:
            self._sockets.discard(opened)
            opened.close()

    def shut_down(self) -> None:
        """End every connection: whoever waits on one wakes up at once."""
        with self._lock:
            for opened in self._sockets:
                with contextlib.suppress(OSError):  # not connected, or the peer was quicker
                    opened.shutdown(socket.SHUT_RDWR)


class Operation:
    """One piece of work: a document, a token, a blob.

    `deadline` is of the monotonic clock; whoever does the work may move it. `has_alternative` says
    that somebody else can be asked, so that patience is of little use. `cancel` may be called from
    any thread, at any time and more than once; everything else is for the working thread.
    """

    def __init__(self, *, seconds: float = math.inf) -> None:
        self.deadline = time.monotonic() + seconds
        self.has_alternative = False
        self._cancelled: Future[None] = Future()
        self._lock = threading.Lock()
        self._sockets: OpenSockets | None = None

    def cancel(self) -> None:
        """Make the working thread raise OperationCancelled at its present or next wait."""
        with self._lock:
            if not self._cancelled.done():
                self._cancelled.set_result(None)
            if self._sockets is not None:
                self._sockets.shut_down()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.done()

    @contextlib.contextmanager
    def using(self, sockets: OpenSockets) -> Iterator[None]:
        """Let `cancel` reach these sockets, and only as long as they are ours."""
        with self._lock:
            self._sockets = sockets
        try:
            yield
        finally:
            with self._lock:
                self._sockets = None

    def allow_within(self, seconds: float) -> None:
        """Give what follows so many seconds from now, in all; `math.inf` lifts the deadline."""
        self.deadline = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left.

        Raises:
            OperationCancelled: Somebody cancelled it.
            DeadlinePassed: None are left.
        """
        if self.is_cancelled:
            raise OperationCancelled
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlinePassed
        return left

    def sleep(self, seconds: float) -> None:
        """Let time pass.

        Raises:
            OperationCancelled: It was cancelled meanwhile.
            DeadlinePassed: The deadline came first.
        """
        wait([self._cancelled], timeout=min(seconds, self.remaining()))
        self.remaining()

    def wait_for(self, future: Future[T], *, seconds: float = math.inf) -> bool:
        """Wait for another thread's result; False if it did not come within `seconds`.

        Raises:
            OperationCancelled: It was cancelled meanwhile.
            DeadlinePassed: The deadline came first.
        """
        if future.done():
            return True
        allowed = min(seconds, self.remaining())
        timeout = None if math.isinf(allowed) else allowed
        futures: list[Future[Any]] = [self._cancelled, future]
        wait(futures, timeout=timeout, return_when=FIRST_COMPLETED)
        if future.done():
            return True
        self.remaining()
        return False

    def call(self, work: Callable[[], T], *, name: str, seconds: float = math.inf) -> T:
        """The result of work that knows neither deadlines nor cancellation, done in its own thread.

        If that takes too long, the thread is left to itself: it ends when its work does.

        Args:
            work: What to do; what it raises is raised here.
            name: The thread's.
            seconds: How long to wait for it.

        Raises:
            TimeoutError: It took longer than `seconds`.
            OperationCancelled: It was cancelled meanwhile.
            DeadlinePassed: The deadline came first.
        """
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(work())
            except BaseException as error:  # noqa: BLE001 - handed to whoever waits
                result.set_exception(error)

        threading.Thread(target=run, name=name, daemon=True).start()
        if not self.wait_for(result, seconds=seconds):
            raise TimeoutError
        return result.result()
