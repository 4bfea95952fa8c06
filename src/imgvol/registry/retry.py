"""When to ask again, and when to stop: policy only, no clock and no sleep of its own.

A failure has a kind, and a kind has a number of retries. The count is of failures since the last
progress, whatever their kinds; a server that alternates between two kinds gains nothing. Beside
that, all requests to one registry share a budget, so that a registry in trouble is not also
flooded by its clients.
"""

import enum
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import Random
from typing import Final

from imgvol.errors import ImgvolError
from imgvol.registry.bounds import Bounds

# 408, 429 and what gateways say when what is behind them is away: the same request may succeed.
RETRIED_STATUSES: Final = frozenset((408, 425, 429, 500, 502, 503, 504))
# Answers that pay for one retry: the tenth of a retry each.
_REFUND: Final = 0.1


class Kind(enum.Enum):
    """How a request failed, as far as trying again is concerned."""

    PERMANENT = "the same request gets the same answer"
    CONNECT = "nobody was reached"
    STALL = "nothing came for a long time"
    TRANSIENT = "anything that may be over in a moment"


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed request: what to raise if nobody tries again, and whether to try.

    `retry_after` is the wait in seconds that the server asked for.
    """

    error: ImgvolError
    kind: Kind
    retry_after: float | None = None


class RetryBudget:
    """Retries that all requests to one registry share. Safe to use from any thread."""

    def __init__(self, capacity: int) -> None:
        self._capacity = float(capacity)
        self._left = self._capacity
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Spend one retry; False when none is left."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True

    def refund(self) -> None:
        """Note an answer that was no failure."""
        with self._lock:
            self._left = min(self._capacity, self._left + _REFUND)


class Attempts:
    """The tries of one piece of work.

    >>> while isinstance(result := try_once(), Failure):       # doctest: +SKIP
    ...     sleep(attempts.delay_after(result, remaining=deadline - now()))
    """

    def __init__(self, bounds: Bounds, budget: RetryBudget, random: Random) -> None:
        self._bounds = bounds
        self._budget = budget
        self._random = random
        self._failures = 0
        self._allowed: Mapping[Kind, int] = {
            Kind.PERMANENT: 0,
            Kind.CONNECT: bounds.connect_retries,
            Kind.STALL: bounds.stall_retries,
            Kind.TRANSIENT: bounds.retries,
        }

    def progressed(self) -> None:
        """Forget the failures: the work has come on since."""
        self._failures = 0

    def delay_after(self, failure: Failure, *, remaining: float) -> float:
        """Seconds to wait before the next try.

        Args:
            failure: What went wrong.
            remaining: Seconds until the deadline.

        Raises:
            ImgvolError: The failure's error, when there is to be no next try.
        """
        self._failures += 1
        delay = self._delay(failure)
        is_over = self._failures > self._allowed[failure.kind] or delay >= remaining
        if is_over or not self._budget.take():
            raise failure.error
        return delay

    def _delay(self, failure: Failure) -> float:
        bounds = self._bounds
        if failure.retry_after is not None:
            if failure.retry_after > bounds.retry_after:
                raise failure.error
            # Everybody was told the same: do not come back all at once.
            return failure.retry_after + self._random.uniform(0, bounds.retry_first_delay)
        ceiling = min(bounds.retry_delay, bounds.retry_first_delay * 2.0 ** (self._failures - 1))
        return ceiling * self._random.uniform(0.5, 1.0)


def parse_retry_after(header: str | None, *, now: datetime) -> float | None:
    """The wait that a `Retry-After` header asks for, in seconds; None when there is none to read.

    RFC 9110, 10.2.3: seconds, or a date. A date that has passed asks for no wait.
    """
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - now).total_seconds())
