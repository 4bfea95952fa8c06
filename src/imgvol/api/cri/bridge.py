"""From asyncio, where gRPC is served, to trio, where everything else happens, and back.

gRPC for Python has no trio. It serves on an asyncio loop, which has a thread of its own; a call's
work runs as a task of trio meanwhile, and takes no thread while it waits. docs/design/cri.md tells
why. The two loops know of each other here only.

Rule 1: A call that is cancelled in asyncio (its client left, its deadline passed, the server ends)
        is cancelled in trio at once. Nobody waits for its end but the nursery that holds it.
Rule 2: Nothing is shared. Arguments and results go over as immutable values or as messages that
        one side has done with.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import outcome
import trio

T = TypeVar("T")


class Bridge:
    """Runs the work of calls in trio.

    Args:
        nursery: Holds the tasks. Its owner decides how long they may take to end.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._token = trio.lowlevel.current_trio_token()
        self._crossings: set[_Crossing[Any]] = set()

    async def call(self, work: Callable[[], Awaitable[T]]) -> T:
        """Runs `work` in trio, and returns or raises what it does. To be awaited in asyncio."""
        crossing = _Crossing(work)
        self._crossings.add(crossing)
        self._token.run_sync_soon(self._begin, crossing)
        try:
            return await crossing.future
        finally:
            self._crossings.remove(crossing)
            if not crossing.is_settled:
                self._token.run_sync_soon(crossing.scope.cancel)

    async def drain(self, seconds: float, error: Exception) -> None:
        """Waits for the calls in progress, and lets those that take longer raise `error`."""
        futures = {crossing.future for crossing in self._crossings}
        if futures:
            await asyncio.wait(futures, timeout=seconds)
        for crossing in self._crossings:
            if not crossing.future.done():
                crossing.future.set_exception(error)

    def notify(self, event: trio.Event) -> None:
        """Sets an event of trio's, from asyncio."""
        self._token.run_sync_soon(event.set)

    def _begin(self, crossing: "_Crossing[Any]") -> None:
        self._nursery.start_soon(crossing.run)


class _Crossing(Generic[T]):
    """One call's work, on both sides. Made in asyncio."""

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self._loop.create_future()
        self.scope = trio.CancelScope()
        self.is_settled = False

    async def run(self) -> None:
        """In trio: works, and sends the result over, unless nobody wants it any more."""
        with self.scope:
            result: outcome.Outcome[T]
            try:
                result = outcome.Value(await self._work())
            except Exception as exc:  # noqa: BLE001 - raised on the other side
                result = outcome.Error(exc)
            # A loop that has been closed has no callers left.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._settle, result)

    def _settle(self, result: "outcome.Outcome[T]") -> None:
        """In asyncio: lets the caller go on."""
        self.is_settled = True
        if self.future.done():
            return  # given up
        if isinstance(result, outcome.Error):
            self.future.set_exception(result.error)
        else:
            self.future.set_result(result.unwrap())
