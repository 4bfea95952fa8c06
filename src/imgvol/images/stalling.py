"""Whether a pull still gets anything: no byte for too long, while it waits for some, ends it.

Only time that is spent waiting for a source counts. A pull that unpacks, writes, or waits for its
turn or for another pull's layer asks nobody for anything, and may take as long as it takes. The
client of a registry has timeouts of its own, for single reads and answers, and tries again; this
is about all of that together, however it goes on.
"""

import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

from imgvol import limits
from imgvol.errors import ImgvolError, RegistryUnavailable

T = TypeVar("T")


class PullWatch:
    """What a pull waits for, and since when nothing has come. Safe to use from any thread.

    Args:
        timeout: Seconds without a byte after which the pull has stalled; None: it never does.
    """

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()
        self._waits: dict[object, str] = {}
        self._latest = time.monotonic()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Around the time that a request needs."""
        wait = object()
        with self._lock:
            if not self._waits:
                self._latest = time.monotonic()
            self._waits[wait] = what
        try:
            yield
        finally:
            with self._lock:
                del self._waits[wait]

    def note_bytes(self) -> None:
        """Something has come."""
        with self._lock:
            self._latest = time.monotonic()

    def stalled(self) -> RegistryUnavailable | None:
        """The error of a pull that has stalled."""
        with self._lock:
            waits, silent = sorted(self._waits.values()), time.monotonic() - self._latest
        if self._timeout is None or not waits or silent < self._timeout:
            return None
        return RegistryUnavailable(
            f"the pull has stalled: no byte for {self._timeout:g} s",
            hint="What has come is kept for a day: pull again to go on.",
            waiting_for=waits[0],
            others=len(waits) - 1 or None,
        )

    async def guard(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of a pull, which is cancelled once it has stalled.

        Raises:
            RegistryUnavailable: It has, on what is said there.
            ImgvolError: What `work` raises.
        """
        if self._timeout is None:
            return await work()
        failure: ImgvolError | None = None
        results: list[T] = []
        async with trio.open_nursery() as nursery:

            async def look() -> None:
                nonlocal failure
                failure = await self._wait_stalled()
                nursery.cancel_scope.cancel()

            nursery.start_soon(look)
            try:
                results.append(await work())
            except ImgvolError as exc:  # a nursery would make a group of it
                failure = exc
            nursery.cancel_scope.cancel()
        if results:
            return results[0]
        assert failure is not None  # nothing else cancels the nursery
        raise failure

    async def _wait_stalled(self) -> RegistryUnavailable:
        assert self._timeout is not None
        # As containerd: looked at more often where there is less time.
        pause = min(limits.PULL_PROGRESS_CHECK, self._timeout / 2)
        while (stalled := self.stalled()) is None:  # noqa: ASYNC110 - threads note what comes
            await trio.sleep(pause)
        return stalled
