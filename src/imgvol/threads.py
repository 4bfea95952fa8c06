"""Blocking work in threads that the caller's cancellation really ends."""

from collections.abc import Callable
from typing import TypeVar

import outcome
import trio

T = TypeVar("T")


async def run_cancellable(
    work: Callable[[], T], cancel: Callable[[], None], *, limiter: trio.CapacityLimiter
) -> T:
    """Runs blocking work in a thread; a cancelled caller ends it and waits until it has gone.

    Args:
        work: Blocks; whatever it raises is raised here.
        cancel: Thread-safe; makes `work` return or raise soon, also when it comes before `work`
            has begun. Called at most once, and only when the caller has been cancelled.
        limiter: How many threads of this kind may run at once.
    """
    result: outcome.Outcome[T] | None = None

    async def pass_cancellation_on() -> None:
        try:
            await trio.sleep_forever()
        finally:
            if result is None:
                cancel()

    try:
        async with limiter, trio.open_nursery() as nursery:
            nursery.start_soon(pass_cancellation_on)
            with trio.CancelScope(shield=True):
                result = await trio.to_thread.run_sync(
                    outcome.capture, work, limiter=trio.CapacityLimiter(1)
                )
            nursery.cancel_scope.cancel()
        # What a cancelled piece of work raised is a consequence: the caller gets Cancelled from
        # here.
        await trio.lowlevel.checkpoint_if_cancelled()
    except BaseException:  # cancelled, or several times so: a group
        if isinstance(result, outcome.Error):
            # It knows the calls of the thread, and those know it: they would keep each other, and
            # what the work had, until Python's collector comes by.
            result.error.__traceback__ = None
        raise
    assert result is not None
    try:
        return result.unwrap()
    finally:
        # So would the error and this call.
        result = None
