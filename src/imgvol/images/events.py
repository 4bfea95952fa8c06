"""What happens to images and volumes, told to whoever follows.

Publishing never waits: each follower has a queue of its own, and one that is too slow loses the
oldest of what it has not taken, and is told how many. Nothing is kept for those who come later:
whoever follows and then looks has everything.
"""

from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from imgvol import limits
from imgvol.errors import Conflict
from imgvol.oci.digest import Digest
from imgvol.oci.json import JSONValue

IMAGE_CREATED: Final = "image.created"
IMAGE_UPDATED: Final = "image.updated"
IMAGE_REMOVED: Final = "image.removed"
IMAGE_EVICTED: Final = "image.evicted"
PULL_PROGRESS: Final = "pull.progress"
PULL_FAILED: Final = "pull.failed"
KINDS: Final = (
    IMAGE_CREATED,
    IMAGE_UPDATED,
    IMAGE_REMOVED,
    IMAGE_EVICTED,
    PULL_PROGRESS,
    PULL_FAILED,
)

# Followers have so long to take what is left for them when the daemon ends.
_FAREWELL: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that has happened.

    Attributes:
        kind: One of KINDS.
        at: When, seconds since the epoch.
        image: Its name, as it was asked for.
        id: Its ID; None while that is not known.
        data: What else there is to say, by kind. No secrets.
    """

    kind: str
    at: float
    image: str
    id: Digest | None
    data: Mapping[str, JSONValue]


@dataclass(frozen=True, slots=True)
class Lost:
    """So many events were not delivered: their follower was too slow."""

    count: int


@dataclass(eq=False, slots=True)
class Subscription:
    """One follower's queue. Made by `Events.subscribe`; used on the event loop."""

    kinds: frozenset[str]
    _queue: deque[Event] = field(default_factory=deque)
    _lost: int = 0
    _is_over: bool = False
    _changed: trio.Event = field(default_factory=trio.Event)

    async def receive(self) -> Event | Lost | None:
        """The next one, waiting for it; None when there will be no more.

        What was lost is told before what came after it.
        """
        while not (self._lost or self._queue or self._is_over):
            self._changed = trio.Event()
            await self._changed.wait()
        if self._lost:
            lost, self._lost = Lost(self._lost), 0
            return lost
        return self._queue.popleft() if self._queue else None

    def put(self, event: Event) -> None:
        """Takes an event of a wanted kind, instead of the oldest one if there are too many."""
        if self.kinds and event.kind not in self.kinds:
            return
        if len(self._queue) >= limits.EVENT_QUEUE:
            self._queue.popleft()
            self._lost += 1
        self._queue.append(event)
        self._changed.set()

    def end(self) -> None:
        """There will be no more than what is queued."""
        self._is_over = True
        self._changed.set()


class Events:
    """The events of one daemon; used on the event loop.

    Example:
        async with events.subscribe() as subscription:
            while (event := await subscription.receive()) is not None:
                ...
    """

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self._is_over = False
        self._left = trio.Event()

    def publish(self, event: Event) -> None:
        """Tells every follower; never waits."""
        for subscription in self._subscriptions:
            subscription.put(event)

    @asynccontextmanager
    async def subscribe(self, kinds: Collection[str] = ()) -> AsyncIterator[Subscription]:
        """Follows what happens inside of the block.

        Args:
            kinds: Of which kinds; none: all.

        Raises:
            Conflict: Too many follow already.
        """
        if len(self._subscriptions) >= limits.EVENT_SUBSCRIBERS:
            raise Conflict(
                "too many follow the events",
                hint="End one of them, and try again.",
                limit=limits.EVENT_SUBSCRIBERS,
            )
        subscription = Subscription(frozenset(kinds))
        if self._is_over:
            subscription.end()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            self._left.set()

    @asynccontextmanager
    async def closing(self) -> AsyncIterator[None]:
        """Afterwards followers have been told that there is no more, and most have gone."""
        try:
            yield
        finally:
            self._is_over = True
            for subscription in self._subscriptions:
                subscription.end()
            with trio.move_on_after(_FAREWELL):
                while self._subscriptions:
                    self._left = trio.Event()
                    await self._left.wait()
