"""Locks by key: one task at a time for each, and no trace of those that nobody wants."""

from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class _CountedLock:
    lock: trio.Lock = field(default_factory=trio.Lock)
    users: int = 0


class Turns(Generic[K]):
    """Whose turn it is, for each key; those who wait are served in order."""

    def __init__(self) -> None:
        self._locks: dict[K, _CountedLock] = {}

    def __len__(self) -> int:
        """How many keys somebody has, or waits for."""
        return len(self._locks)

    @asynccontextmanager
    async def turn(self, key: K) -> AsyncIterator[None]:
        """Waits for its turn, and has it inside the block."""
        counted = self._locks.setdefault(key, _CountedLock())
        counted.users += 1
        try:
            async with counted.lock:
                yield
        finally:
            counted.users -= 1
            if counted.users == 0:
                del self._locks[key]
