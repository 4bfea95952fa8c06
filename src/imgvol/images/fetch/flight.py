"""A flight: one range of a blob on its way, for whoever waits for the spans in it."""

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Final

import trio

from imgvol.errors import ImgvolError


class Purpose(StrEnum):
    """Why a range is fetched."""

    READ = "read"
    READAHEAD = "readahead"
    TRACE = "trace"
    PREFETCH = "prefetch"
    BACKGROUND = "background"


class Rank(IntEnum):
    """What comes first: the lowest number."""

    READ = 0
    READAHEAD = 1
    PREFETCH = 2
    BACKGROUND = 3


class Landing(StrEnum):
    """How a flight ended."""

    OK = "ok"
    FAILED = "failed"
    CANCELLED = "cancelled"


_RANK_WITHOUT_READER: Final = {
    Purpose.READ: Rank.READAHEAD,
    Purpose.READAHEAD: Rank.READAHEAD,
    Purpose.TRACE: Rank.PREFETCH,
    Purpose.PREFETCH: Rank.PREFETCH,
    Purpose.BACKGROUND: Rank.BACKGROUND,
}


@dataclass(eq=False, slots=True)
class Flight:
    """A range of a blob on its way, with the spans in it. Belongs to the event loop.

    Attributes:
        start: The first byte.
        end: One past the last.
        spans: Those whose bytes are within, in order.
        purpose: Why it was begun.
        waiters: Readers that wait for a span of it.
        reached: Up to which byte it has come; written by the thread that receives it.
        began: When it took off, by trio's clock; None while it waits for its turn.
        error: Why it failed.
        is_short: Whether there was neither room nor memory for what a reader waited for.
        landed: It has ended, whatever way.
        changed: Set, and replaced, when a span has come and when it has landed.
        scope: Cancelling it ends the flight.
    """

    start: int
    end: int
    spans: tuple[int, ...]
    purpose: Purpose
    waiters: int = 0
    reached: int = 0
    began: float | None = None
    error: ImgvolError | None = None
    is_short: bool = False
    landed: trio.Event = field(default_factory=trio.Event)
    changed: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def __post_init__(self) -> None:
        self.reached = self.start

    @property
    def rank(self) -> Rank:
        """How urgent it is now: a reader who waits makes it a read, whatever it was begun for.

        What a read has taken along is worth no more than what another reader might want.
        """
        return Rank.READ if self.waiters else _RANK_WITHOUT_READER[self.purpose]

    @property
    def remaining(self) -> int:
        """Bytes that have not come."""
        return self.end - self.reached

    def rate(self, now: float, least: float) -> float | None:
        """Bytes per second so far; None before it has been in the air for `least` seconds."""
        if self.began is None or now - self.began < least:
            return None
        return (self.reached - self.start) / (now - self.began)

    def note_change(self) -> None:
        """A span has come, or the flight has landed: whoever waits looks again."""
        changed, self.changed = self.changed, trio.Event()
        changed.set()
