"""Which endpoints have failed lately, so that they are asked last.

In memory only, for all clients of a process. An endpoint that rests is still asked when nobody else
delivers; when its rest is over, it is asked in its turn again, and if it fails again, rests longer.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from imgvol import limits
from imgvol.registry.hosts import Endpoint


@dataclass(frozen=True, slots=True)
class _Failure:
    rest: float
    until: float


class Health:
    """Safe to use from any thread.

    Args:
        now: A monotonic clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._failures: OrderedDict[str, _Failure] = OrderedDict()

    def order(self, endpoints: Sequence[Endpoint]) -> tuple[Endpoint, ...]:
        """The same endpoints, those that rest at the end."""
        return tuple(sorted(endpoints, key=self.rests))

    def rests(self, endpoint: Endpoint) -> bool:
        """Whether an endpoint has failed so lately that others are asked first."""
        with self._lock:
            failure = self._failures.get(str(endpoint.base))
        return failure is not None and self._now() < failure.until

    def note_failure(self, endpoint: Endpoint) -> None:
        """It could not be reached, or is in trouble. Many at once count as one."""
        key = str(endpoint.base)
        with self._lock:
            known = self._failures.pop(key, None)
            if known is None or self._now() >= known.until:
                rest = limits.ENDPOINT_REST
                if known is not None:
                    rest = min(2 * known.rest, limits.ENDPOINT_LONGEST_REST)
                known = _Failure(rest, self._now() + rest)
            self._failures[key] = known
            if len(self._failures) > limits.ENDPOINTS_KNOWN:
                self._failures.popitem(last=False)

    def note_answer(self, endpoint: Endpoint) -> None:
        """It has delivered what was asked for."""
        with self._lock:
            self._failures.pop(str(endpoint.base), None)
