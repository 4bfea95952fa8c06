"""What this process needs of the store at this moment: views that are open, mounts and pulls.

Whoever needs a thing holds it first and looks whether it is there second; whoever removes one looks
here inside of the transaction that removes its record. Either the one sees the hold, or the other
sees that the thing has gone: never neither.

Used on the event loop and asked in the database's thread. The lock is held for bookkeeping only.
"""

import threading
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from imgvol.content.reachability import Root, Thing


class Pins:
    """Things that are held, each by any number of roots, each any number of times."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[Root, Counter[Thing]] = {}

    def hold(self, root: Root, things: Collection[Thing]) -> None:
        """Holds things once more. `release` must follow."""
        with self._lock:
            self._held.setdefault(root, Counter()).update(things)

    def release(self, root: Root, things: Collection[Thing]) -> None:
        """Ends one hold."""
        with self._lock:
            counts = self._held[root]
            counts.subtract(things)
            counts = +counts
            if counts:
                self._held[root] = counts
            else:
                del self._held[root]

    @contextmanager
    def holding(self, root: Root, things: Collection[Thing]) -> Iterator[None]:
        """Holds things inside the block."""
        self.hold(root, things)
        try:
            yield
        finally:
            self.release(root, things)

    def snapshot(self) -> dict[Root, frozenset[Thing]]:
        """What is held now, by whom."""
        with self._lock:
            return {root: frozenset(things) for root, things in self._held.items()}

    def __contains__(self, thing: Thing) -> bool:
        with self._lock:
            return any(thing in things for things in self._held.values())
