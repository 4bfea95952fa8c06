"""The locks of an open lazy layer, which all of its parts share."""

import threading


class LayerLocks:
    """The locks of one lazy layer, the first to be taken first; `KeptBlob.writing` follows them.

    Attributes:
        saving: Held while the map is made durable. Threads only.
        storing: Held while the data file is written, or parts of it are given back. Threads only.
        bookkeeping: Never held while the disk works: the event loop takes it, too.
    """

    def __init__(self) -> None:
        self.saving = threading.Lock()
        self.storing = threading.Lock()
        self.bookkeeping = threading.Lock()
