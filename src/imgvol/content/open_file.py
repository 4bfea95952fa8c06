"""A file descriptor that closes when its last user drops it, in whatever thread that is."""

import errno
import os
import stat
from pathlib import Path


class OpenFile:
    """One open file. Whoever holds it may use its `fd`; nobody closes it under anybody's hands.

    Only a regular file will do. Whoever can write to the store may put a FIFO there, and opening
    that would wait for ever.

    Raises:
        OSError: It cannot be opened, or is a link or anything else than a file.
    """

    __slots__ = ("fd",)

    def __init__(self, path: Path | bytes, flags: int) -> None:
        self.fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class OpenDirectory:
    """An open directory, by which it is known again; closed when its last user drops it.

    Raises:
        OSError: It cannot be opened, or is none.
    """

    __slots__ = ("fd",)

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)

    def is_at(self, path: Path) -> bool:
        """Whether a path leads to it, and not to nothing or to another that took its place."""
        try:
            return os.path.samestat(os.stat(path), os.fstat(self.fd))
        except FileNotFoundError:
            return False


def read_whole(path: Path) -> bytes:
    """All bytes of a regular file.

    Raises:
        OSError: As for `OpenFile`, or the disk fails.
    """
    file = OpenFile(path, os.O_RDONLY)
    with open(file.fd, "rb", closefd=False) as stream:
        return stream.read()
