"""What follows when a worker has ended: nothing, or another one, and when."""

import signal
from typing import Final, NamedTuple

from imgvol import limits

# Of the daemon: it was told to end; it could not start or go on; it could not end in good order.
EXIT_STOPPED: Final = 0
EXIT_FAILED: Final = 1
EXIT_STUCK: Final = 3
# As shells tell that a program was ended by a signal.
_SIGNALLED: Final = 128


class End(NamedTuple):
    """How a worker ended.

    Attributes:
        status: Its exit code; minus a signal's number if that has ended it.
        ready_for: Seconds that it was ready; None: it never was.
        was_stopping: Whether it had said that it stops.
    """

    status: int
    ready_for: float | None
    was_stopping: bool = False

    @property
    def exit_code(self) -> int:
        """Whoever ends for the same reason ends with this."""
        return self.status if self.status >= 0 else _SIGNALLED - self.status

    def __str__(self) -> str:
        if self.status >= 0:
            return f"exit code {self.status}"
        try:
            return f"signal {-self.status} ({signal.Signals(-self.status).name})"
        except ValueError:  # a real-time signal
            return f"signal {-self.status}"


class History(NamedTuple):
    """What is remembered of the workers that have ended.

    Attributes:
        was_ready: Whether any of them ever was.
        failures: How many in a row did not live for long.
        unready: How many in a row did not even become ready.
    """

    was_ready: bool = False
    failures: int = 0
    unready: int = 0

    def after(self, end: End) -> "History":
        """With one more."""
        is_healthy = end.ready_for is not None and end.ready_for >= limits.WORKER_HEALTHY
        return History(
            was_ready=self.was_ready or end.ready_for is not None,
            failures=1 if is_healthy else self.failures + 1,
            unready=self.unready + 1 if end.ready_for is None else 0,
        )

    @property
    def pause(self) -> float:
        """Seconds until the next worker is due: none after the first crash for a while.

        Workers that at least became ready have answered whoever waited: the pauses after these stay
        short.
        """
        brief = min(_pause(self.failures - 1), limits.WORKER_PAUSE_BRIEF)
        return max(brief, min(_pause(self.unready), limits.WORKER_PAUSE_MOST))


def _pause(number: int) -> float:
    """The first one, the second one ...; none for 0."""
    if number <= 0:
        return 0.0
    # Beyond some powers it is the longest anyhow, and floats have an end.
    return limits.WORKER_PAUSE_FIRST * limits.WORKER_PAUSE_FACTOR ** min(number - 1, 64)


def is_final(history: History, end: End) -> bool:
    """Whether no other worker follows.

    Args:
        history: With this end in it.
        end: The last one.
    """
    # One that dies while it stops was told to, or could not go on and not stop either.
    is_crash = end.status == EXIT_FAILED or (end.status < 0 and not end.was_stopping)
    return not is_crash or not history.was_ready or history.unready >= limits.WORKER_TRIES
