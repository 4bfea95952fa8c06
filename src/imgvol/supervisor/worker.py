"""One worker, as its supervisor sees it: whether it lives, and until when it has to show that."""

import os
import signal
import socket

from imgvol import limits
from imgvol.supervisor.datagram import Word
from imgvol.supervisor.verdict import End


class Worker:
    """A process that was just started.

    Args:
        pid: Of our child.
        now: On the monotonic clock, as everywhere here.
        turn: Where it was told to go on, if it stood by; closed once it must have heard that.

    Attributes:
        pid: Its process ID.
        pidfd: Readable once it has ended.
        complaints: How many of its datagrams were refused.
    """

    def __init__(self, pid: int, now: float, turn: socket.socket | None = None) -> None:
        self.pid = pid
        self._turn = turn
        self.pidfd = os.pidfd_open(pid)
        self.complaints = 0
        self._ready_at: float | None = None
        self._stops = False
        self._kills = False
        self._deadline = now + limits.WORKER_START
        self._late = "not ready in time"

    @property
    def is_ready(self) -> bool:
        """Whether it has said so."""
        return self._ready_at is not None

    @property
    def is_serving(self) -> bool:
        """Whether it is ready, and has not begun to stop."""
        return self.is_ready and not self._stops

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop, or does so by itself."""
        return self._stops

    @property
    def deadline(self) -> float:
        """When `overdue` is to be called."""
        return self._deadline

    def hear(self, word: Word, now: float) -> None:
        """What it says moves its deadline; nothing does once it has been told to stop."""
        if self._stops or self._kills:
            return
        if word.is_stopping:
            # Its watchdog is one of the things that it stops; it has a deadline of its own.
            self.stops(now)
        elif word.is_ready and not self.is_ready:
            self._ready_at = now
            self._end_turn()
            self._expect_life(now)
        elif self.is_ready and word.is_alive:
            self._expect_life(now)
        elif not self.is_ready and word.extend is not None:
            self._deadline = now + word.extend

    def stops(self, now: float) -> None:
        """It was told to stop, or does so by itself."""
        if not self._stops:
            self._stops = True
            self._deadline = now + limits.WORKER_STOP
            self._late = "not stopped in time"

    def forgive(self, seconds: float) -> None:
        """We were late ourselves: it may have been kept from running, too."""
        self._deadline += seconds

    def overdue(self, now: float) -> str:
        """Ends it, as its deadline has passed: with its stacks in the log, then without.

        Returns:
            What it has failed to do.
        """
        if self._stops or self._kills:
            self.send(signal.SIGKILL)
            self._deadline = float("inf")
        else:
            self.send(signal.SIGABRT)
            self._kills = True
            self._deadline = now + limits.WORKER_ABORT
        return self._late

    def kill(self) -> None:
        """Ends it at once, whatever it says."""
        self._kills = True
        self._deadline = float("inf")
        self.send(signal.SIGKILL)

    def send(self, number: int) -> None:
        """A signal; to nobody else, as nobody but us could have waited for it."""
        os.kill(self.pid, number)

    def reap(self, now: float) -> End:
        """Waits for its end, which has come, and says how it ended."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self._end_turn()
        code = os.waitstatus_to_exitcode(status)
        ready_for = None if self._ready_at is None else now - self._ready_at
        return End(code, ready_for, was_stopping=self._stops)

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._turn.close()
            self._turn = None

    def _expect_life(self, now: float) -> None:
        self._deadline = now + limits.WORKER_WATCHDOG
        self._late = "no sign of life"
