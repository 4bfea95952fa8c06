"""When a file that has appeared or changed is finished.

Whoever closes a file after writing, or moves one in, says so; nobody says it of a file that was
there before or was linked in. Such a file is finished when nobody has it open for writing; where
that cannot be told, as on file systems of other machines, when it has not changed between two
looks.
"""

from dataclasses import dataclass

from imgvol import limits
from imgvol.images.preload.scan import Look
from imgvol.images.preload.stamp import Stamp


@dataclass(slots=True)
class _Wait:
    """One file that may not be finished: when to look, and what was seen at the last look."""

    due: float
    is_closed: bool
    seen: Stamp | None = None


class Settling:
    """The files that may not be finished. Times are of one clock that never goes back."""

    def __init__(self) -> None:
        self._waits: dict[str, _Wait] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._waits

    def change(self, path: str, now: float) -> None:
        """A file has appeared or changed: it is looked at now, and again before it counts."""
        wait = self._waits.get(path)
        if wait is None:
            self._waits[path] = _Wait(due=now, is_closed=False)

    def close(self, path: str, now: float) -> None:
        """A file was closed after writing."""
        self._waits[path] = _Wait(due=now + limits.PRELOAD_GRACE, is_closed=True)

    def arrive(self, path: str, now: float) -> None:
        """A file was moved in."""
        self._waits[path] = _Wait(due=now, is_closed=True)

    def forget(self, path: str) -> None:
        """A file has gone."""
        self._waits.pop(path, None)

    def next_due(self) -> float | None:
        """When the next file is to be looked at; None: there is none."""
        return min((wait.due for wait in self._waits.values()), default=None)

    def due(self, now: float) -> list[str]:
        """The files that are to be looked at, in the order of their names."""
        return sorted(path for path, wait in self._waits.items() if wait.due <= now)

    def is_settled(self, path: str, found: Look, *, now: float, wall_ns: int) -> bool:
        """Whether a file is finished, by what a look at it has found; if so, it waits no more.

        Args:
            path: One of `due`.
            found: The look.
            now: When that was.
            wall_ns: The same by the clock that files' times are of, nanoseconds since the epoch.
        """
        wait = self._waits.get(path)
        stamp = found.stamp
        if wait is None or stamp is None:
            self.forget(path)
            return False
        is_closed = wait.is_closed or found.is_open is False
        if found.is_open or not (is_closed or _is_old(wait, stamp, wall_ns)):
            wait.seen, wait.is_closed = stamp, False
            wait.due = now + limits.PRELOAD_SETTLE
            return False
        self.forget(path)
        return True


def _is_old(wait: _Wait, stamp: Stamp, wall_ns: int) -> bool:
    """Whether a file has been as it is since the last look, or for long; not in times to come."""
    age = (wall_ns - stamp.mtime_ns) / 1e9
    return wait.seen == stamp or (wait.seen is None and age > limits.PRELOAD_SETTLE)
