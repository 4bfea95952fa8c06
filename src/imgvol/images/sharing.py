"""Pulls that several callers share: who asks for what is being pulled already waits for that pull.

A shared pull belongs to none of its callers. It goes on while one of them waits, is cancelled when
the last one has gone, and its failure is everybody's. What makes two requests the same is for the
caller to say, by a key.
"""

import copy
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from imgvol.content.records import ImageRecord
from imgvol.errors import DaemonUnavailable, ImgvolError, InternalError
from imgvol.images.pull import PullProgress

log = logging.getLogger(__name__)

Work = Callable[[PullProgress], Awaitable[ImageRecord]]


@dataclass(eq=False, slots=True)
class _Flight:
    progress: PullProgress = field(default_factory=PullProgress)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    waiters: int = 0
    record: ImageRecord | None = None
    error: ImgvolError | None = None


class SharedPulls:
    """The pulls under way, by key. Made by `open_shared_pulls`; used on the event loop.

    Args:
        nursery: Where they live.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._flights: dict[Hashable, _Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def join(self, key: Hashable, progress: PullProgress, work: Work) -> ImageRecord:
        """What the pull of this key brings; begins it if there is none.

        A caller who is cancelled leaves the pull to the others. The last one takes it along, and
        returns only when it has ended.

        Args:
            key: What is pulled, how, and for whom.
            progress: Shows how far the shared pull is, from now on.
            work: Pulls; called if nobody does so yet.

        Raises:
            ImgvolError: What the pull has raised, each time another object.
            DaemonUnavailable: The daemon stops.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            self._nursery.start_soon(self._fly, key, flight, work)
        progress.follow(flight.progress)
        flight.waiters += 1
        try:
            await flight.ended.wait()
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.ended.is_set():
                flight.scope.cancel()
                self._forget(key, flight)
                with trio.CancelScope(shield=True):
                    await flight.ended.wait()
        return _result_of(flight)

    async def _fly(self, key: Hashable, flight: _Flight, work: Work) -> None:
        try:
            with flight.scope:
                flight.record = await work(flight.progress)
        except ImgvolError as exc:
            flight.error = exc
        except Exception as exc:  # in the daemon's nursery it would end every view
            log.exception("a pull has failed: a defect of imgvol")
            flight.error = InternalError("the pull has failed", kind=type(exc).__name__)
        finally:
            self._forget(key, flight)
            flight.ended.set()

    def _forget(self, key: Hashable, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


def _result_of(flight: _Flight) -> ImageRecord:
    if flight.record is not None:
        return flight.record
    if flight.error is None:
        raise DaemonUnavailable("the daemon stops, and the pull with it")
    # Raising adds to an error where it has passed: those of several tasks must not mix.
    raise copy.copy(flight.error) from flight.error


@asynccontextmanager
async def open_shared_pulls() -> AsyncIterator[SharedPulls]:
    """Shared pulls; leaving the block cancels those under way."""
    async with trio.open_nursery() as nursery:
        yield SharedPulls(nursery)
        nursery.cancel_scope.cancel()
