"""How fast the background may receive."""

import threading
import time


class Pace:
    """Spreads bytes over time, for all flights of the background together. Safe in any thread.

    Args:
        rate: Bytes per second; None: as fast as they come.
    """

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0

    def pause_after(self, size: int) -> float:
        """Seconds to wait now that so many bytes have come."""
        if self._rate is None:
            return 0.0
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + size / self._rate
            return self._free_at - now
