"""When each image was used last: noted in memory, written down now and then."""

import time
from collections.abc import Callable

from imgvol.oci.digest import Digest


class ImageUses:
    """The uses that are not written down yet. On the event loop.

    Args:
        clock: Seconds since the epoch: it orders, and bounds nothing.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._uses: dict[Digest, float] = {}

    def note(self, manifest: Digest) -> None:
        """An image is mounted or looked into, or was until now."""
        self._uses[manifest] = self._clock()

    def take(self) -> dict[Digest, float]:
        """What is to be written down; it is forgotten here."""
        taken, self._uses = self._uses, {}
        return taken
