"""Who may receive at once: a few ranges, fewer of one host, the most urgent first."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from imgvol.images.fetch.flight import Flight
from imgvol.tallies import QueueLength


@dataclass(eq=False, slots=True)
class _Waiting:
    flight: Flight
    host: str
    admitted: trio.Event = field(default_factory=trio.Event)


class FlightSlots:
    """Admits flights. Used on the event loop.

    The rank is looked at when a slot becomes free, not when a flight comes: one that a reader has
    joined meanwhile goes first.

    Args:
        total: Flights in the air at once.
        per_host: Of these, at one host.
    """

    def __init__(self, total: int, per_host: int) -> None:
        self._total = total
        self._per_host = per_host
        self._flying: Counter[str] = Counter()
        self._waiting: list[_Waiting] = []

    @property
    def queue(self) -> QueueLength:
        """Flights in the air, and those that wait for their turn."""
        return QueueLength(self._flying.total(), len(self._waiting))

    @asynccontextmanager
    async def slot(self, flight: Flight, host: str) -> AsyncIterator[None]:
        """Waits for this flight's turn, and holds its place inside the block."""
        waiting = _Waiting(flight, host)
        self._waiting.append(waiting)
        self._admit()
        try:
            await waiting.admitted.wait()
            yield
        finally:
            if waiting.admitted.is_set():
                self._flying[host] -= 1
                self._admit()
            else:
                self._waiting.remove(waiting)

    def _admit(self) -> None:
        # Sorting keeps the order of those that are equally urgent.
        for waiting in sorted(self._waiting, key=lambda waiting: waiting.flight.rank):
            if self._flying.total() >= self._total:
                return
            if self._flying[waiting.host] < self._per_host:
                self._flying[waiting.host] += 1
                self._waiting.remove(waiting)
                waiting.admitted.set()
