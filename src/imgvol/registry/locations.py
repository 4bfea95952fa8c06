"""Where registries have sent us for blobs, so that the next range need not ask again.

Many registries answer every request for a blob with a redirect to an object store, whose URL is
good for minutes. A lazy reader wants one blob in hundreds of ranges: asking first would double each
round trip.
"""

import threading
from collections import OrderedDict

import httpx

from imgvol import limits


class Locations:
    """The latest of them. Safe in any thread. The URLs are signed: they are shown to nobody."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[httpx.URL, httpx.URL] = OrderedDict()

    def get(self, blob: httpx.URL) -> httpx.URL | None:
        """Where a blob was, the last time; it may have expired."""
        with self._lock:
            return self._known.get(blob)

    def note(self, blob: httpx.URL, location: httpx.URL) -> None:
        """A blob was found there."""
        with self._lock:
            self._known[blob] = location
            self._known.move_to_end(blob)
            if len(self._known) > limits.LOCATIONS:
                self._known.popitem(last=False)

    def forget(self, blob: httpx.URL, location: httpx.URL) -> None:
        """It is not there any more; another place that was found meanwhile stays."""
        with self._lock:
            if self._known.get(blob) == location:
                del self._known[blob]
