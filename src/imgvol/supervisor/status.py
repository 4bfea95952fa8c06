"""`supervisor.json` in the run directory: what the supervisor tells while its worker cannot.

It is replaced as a whole, so that a reader finds the old one or the new one.
"""

import contextlib
import json
import os
from typing import Any, Final, NamedTuple

from imgvol import limits
from imgvol.supervisor.channel import is_alive

NAME: Final = "supervisor.json"
STATES: Final = ("starting", "ready", "waiting", "stopping")


class Status(NamedTuple):
    """How it goes.

    Attributes:
        pid: The supervisor's.
        state: One of `STATES`; `waiting` is the pause before the next worker.
        worker: The process ID of the worker, if there is one.
        restarts: How often a worker has followed another one.
        unready: How many workers in a row did not become ready.
        last_end: How the last one ended, in words.
        last_end_at: When, as Unix time.
        next_try_at: When the next one is due, as Unix time.
        standby: The process ID of the next worker, if that is loaded and waits for its turn.
    """

    pid: int
    state: str
    worker: int | None = None
    restarts: int = 0
    unready: int = 0
    last_end: str | None = None
    last_end_at: float | None = None
    next_try_at: float | None = None
    standby: int | None = None

    def is_down(self, now: float) -> bool:
        """Whether waiting for the worker is of no use at this Unix time."""
        if self.unready >= limits.WORKER_FAILING:
            return True
        return self.next_try_at is not None and self.next_try_at - now > limits.WORKER_PATIENCE


def write(run: str, status: Status) -> None:
    """Tells it. A run directory that has gone is nobody's to read: then nothing is told."""
    path = os.path.join(run, NAME)
    # Only who has the worker that serves tells. If it is killed here, the next one takes this away.
    temporary = f"{path}.new"
    with contextlib.suppress(OSError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(temporary, flags, 0o600), "w", encoding="ascii") as file:
            json.dump(status._asdict(), file)
        os.rename(temporary, path)


def remove(run: str) -> None:
    """There is no supervisor any more."""
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(run, NAME))


def read(run: str) -> Status | None:
    """What a supervisor that lives says; None when there is none, or it cannot be understood."""
    status = _load(run)
    return status if status is not None and is_alive(run, status.pid) else None


def left_behind(run: str) -> Status | None:
    """What a supervisor that was killed has said last; None when there was none."""
    status = _load(run)
    return None if status is None or is_alive(run, status.pid) else status


def _load(run: str) -> Status | None:
    try:
        with open(os.path.join(run, NAME), "rb") as file:
            return _status(json.loads(file.read(limits.SUPERVISOR_STATUS_SIZE)))
    except (OSError, ValueError, TypeError):
        return None


def _status(document: Any) -> Status:
    """Raises TypeError or ValueError for what is no such document."""
    if not isinstance(document, dict):
        raise TypeError("not an object")
    # A command of another version may read it: what it does not know is left out.
    status = Status(**{name: document[name] for name in Status._fields if name in document})
    # Tuples of Any: the document may hold anything.
    numbers: tuple[Any, ...] = (status.pid, status.restarts, status.unready)
    times: tuple[Any, ...] = (status.last_end_at, status.next_try_at)
    texts: tuple[Any, ...] = (status.last_end,)
    processes: tuple[Any, ...] = (status.worker, status.standby)
    is_sound = (
        all(type(number) is int for number in numbers)
        and all(isinstance(time, int | float | None) for time in times)
        and all(isinstance(text, str | None) for text in texts)
        and all(process is None or type(process) is int for process in processes)
        and status.state in STATES
    )
    if not is_sound:
        raise ValueError("not a status")
    return status
