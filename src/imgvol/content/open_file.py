"""A file descriptor that closes when its last user drops it, in whatever thread that is."""

import os
from pathlib import Path


class OpenFile:
    """One open file. Whoever holds it may use its `fd`; nobody closes it under anybody's hands."""

    __slots__ = ("fd",)

    def __init__(self, path: Path | bytes, flags: int) -> None:
        self.fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)
