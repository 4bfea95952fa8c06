"""What the store takes at this moment, and how much it may: for any thread, from memory.

The truth is measured now and then (`images/usage.py`); in between, everything that is written is
counted before it is written, and what is given back after it was. A measurement does not know
whether it has seen what is being written or given back at its time, so both count as taken until
the next one. So the count may be too high for a moment, never too low by more than what nobody
counts: documents, the database, blocks that are not full. Three lines divide it, computed by
`SpaceLimits.lines` from the quota and from what is free on the filesystem:

    0 ──────── low ──────── high ──────── hard
               eviction     eviction      nothing is written: whoever wants to waits for eviction,
               ends here    begins, the   and is refused if that finds nothing more
                            background
                            stops filling

Nobody waits while holding space: a writer takes all that it needs in one piece, or nothing.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from imgvol import limits
from imgvol.config import UNLIMITED, SpaceLimits
from imgvol.errors import StoreFull

# Rounds of eviction that a writer waits for: another one may take what the first has freed.
_ROUNDS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceLevel:
    """What is taken, and the lines; in bytes.

    Attributes:
        low: Eviction ends here; None: there is no limit, as for the others.
        high: It begins above this.
        hard: Nothing is written beyond this.
        seconds_above: How long it has been above the high line, of all its life.
    """

    used: int
    low: int | None
    high: int | None
    hard: int | None
    seconds_above: float


class SpaceLedger:
    """The count of one store. A store without limits counts, too, and refuses nothing.

    Attributes:
        limits: What the store may take.
        on_pressure: Called in any thread when it is above the high line, or somebody waits. It must
            not block. None: nobody evicts, and so nobody waits.
    """

    def __init__(self) -> None:
        self.limits: SpaceLimits = UNLIMITED
        self.on_pressure: Callable[[], None] | None = None
        self._lines = UNLIMITED.lines(0, 0)
        self._used = 0
        # All that was ever counted, what of it is on the disk by now, and what has gone: whether a
        # measurement has seen what was added to the last two since it began, nobody knows.
        self._taken = self._written = self._given = 0
        self._measurements = 0
        # What writers wait for.
        self._wanted = 0
        self._rounds_begun = self._rounds_ended = 0
        self._hopeless_until = 0.0
        self._spare = 0
        self._above_since: float | None = None
        self._seconds_above = 0.0
        self._changed = threading.Condition()

    @property
    def level(self) -> SpaceLevel:
        """What is taken now."""
        with self._changed:
            lines, above = self._lines, self._seconds_above
            if self._above_since is not None:
                above += time.monotonic() - self._above_since
            return SpaceLevel(
                used=self._used,
                low=lines.low,
                high=lines.high,
                hard=lines.hard,
                seconds_above=above,
            )

    @property
    def excess(self) -> int:
        """How much has to go: down to the low line, and to make room for whoever waits."""
        with self._changed:
            lines = self._lines
            if lines.high is None or lines.low is None or lines.hard is None:
                return 0
            is_above = self._used > lines.high or self._used + self._wanted > lines.hard
            goal = min(lines.low, lines.hard - self._wanted)
            return max(0, self._used - max(0, goal)) if is_above else 0

    def has_room(self, size: int) -> bool:
        """Whether something fits below the high line."""
        with self._changed:
            return self._lines.high is None or self._used + size <= self._lines.high

    @contextlib.contextmanager
    def writing(self, size: int) -> Iterator[None]:
        """Counts what is written in the block, unless that fails.

        Blocks while there is no room, for some seconds.

        Raises:
            StoreFull: No room: nothing more can be evicted, or not in time. Nothing was counted.
        """
        with self._changed:
            if not self._fits(size):
                self._wait(size)
            self._add(size)
            is_above = self._above_since is not None
        if is_above and (tell := self.on_pressure) is not None:
            tell()
        with self._under_way(size):
            yield

    @contextlib.contextmanager
    def writing_ahead(self, size: int) -> Iterator[bool]:
        """As `writing`, of what nobody needs yet: only below the high line, and without a wait.

        Yields:
            Whether there is room: nothing was counted if not, and nothing may be written.
        """
        with self._changed:
            has_room = self._lines.high is None or self._used + size <= self._lines.high
            if has_room:
                self._add(size)
        if has_room:
            with self._under_way(size):
                yield True
        else:
            yield False

    @contextlib.contextmanager
    def _under_way(self, size: int) -> Iterator[None]:
        """What was counted is written in the block."""
        try:
            yield
        except BaseException:
            self.give(size)
            raise
        finally:
            with self._changed:
                self._written += size

    def begin_giving(self) -> int:
        """A mark for `give`, before anything goes from the disk."""
        with self._changed:
            return self._measurements

    def give(self, size: int, mark: int | None = None) -> None:
        """Something has gone from the disk.

        Args:
            size: Its bytes.
            mark: From before it went. If a measurement has ended since, that may have missed these
                bytes already: they stay counted until the next one. None: they were never there.
        """
        with self._changed:
            if mark is None or mark == self._measurements:
                self._used = max(0, self._used - size)
            self._given += size
            self._note_level()
            self._changed.notify_all()

    def begin_measuring(self) -> tuple[int, int]:
        """A mark for `settle`: what comes and goes from now on may be measured, or not."""
        with self._changed:
            return self._written, self._given

    def settle(self, measured: int, mark: tuple[int, int], free: int) -> None:
        """Corrects the count by a measurement.

        While it was measured some was written, also of what had been counted before, and some has
        gone: nobody knows how much of that was seen. So a measurement tells the least and the most
        that the store can take now, and the count stays if it lies between them. If nothing has
        changed, it tells it to the byte.

        Args:
            measured: What the store takes.
            mark: From before it was measured.
            free: What is left on its filesystem.
        """
        with self._changed:
            least = max(0, measured - (self._given - mark[1]))
            most = measured + self._taken - mark[0]
            self._measurements += 1
            self._used = min(max(self._used, least), most)
            self._lines = self.limits.lines(measured, free)
            self._note_level()
            self._changed.notify_all()

    def begin_round(self) -> None:
        """A round of eviction begins."""
        with self._changed:
            self._rounds_begun += 1

    def end_round(self, *, is_hopeless: bool = False) -> None:
        """It has ended: whoever waited through some of them is told that there is no room.

        Args:
            is_hopeless: Whether it has found nothing: for a moment nobody need wait at all.
        """
        with self._changed:
            self._rounds_ended = self._rounds_begun
            if is_hopeless:
                self._hopeless_until = time.monotonic() + limits.SPACE_HOPELESS
            self._changed.notify_all()

    def borrow_memory(self, size: int) -> bool:
        """Whether so much may be kept in memory for want of room. `repay_memory` must follow."""
        with self._changed:
            if self._spare + size > limits.SPARE_SPANS:
                return False
            self._spare += size
            return True

    def repay_memory(self, size: int) -> None:
        """It is not needed any more."""
        with self._changed:
            self._spare -= size

    def _fits(self, size: int) -> bool:
        return self._lines.hard is None or self._used + size <= self._lines.hard

    def _wait(self, size: int) -> None:
        last = self._rounds_begun + _ROUNDS
        deadline = time.monotonic() + limits.SPACE_WAIT
        self._wanted += size
        try:
            while not self._fits(size):
                now, tell = time.monotonic(), self.on_pressure
                left = deadline - now
                is_over = left <= 0 or now < self._hopeless_until or self._rounds_ended >= last
                if tell is None or is_over:
                    raise StoreFull(
                        "no room in the store, within the size that it may have",
                        hint="Unmount or remove images, or give the store more: "
                        "imgvol serve --quota.",
                        used=self._used,
                        allowed=self._lines.hard,
                    )
                tell()
                self._changed.wait(left)
        finally:
            self._wanted -= size

    def _add(self, size: int) -> None:
        self._used += size
        self._taken += size
        self._note_level()

    def _note_level(self) -> None:
        is_above = self._lines.high is not None and self._used > self._lines.high
        if is_above and self._above_since is None:
            self._above_since = time.monotonic()
        elif not is_above and self._above_since is not None:
            self._seconds_above += time.monotonic() - self._above_since
            self._above_since = None
