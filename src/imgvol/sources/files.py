"""Files of local sources: named byte ranges, in a directory or inside an archive.

`ImageFiles` is the seam: layouts and docker-archives are read the same way wherever their files
are. All of this blocks and belongs in worker threads. What the system refuses is translated here.
"""

import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

from imgvol import limits
from imgvol.errors import (
    ImgvolError,
    InvalidArgument,
    InvalidDocument,
    LimitExceeded,
    LocalError,
    NotFound,
    PermissionDenied,
    RegistryUnavailable,
    StoreFull,
)
from imgvol.registry.body import BlobReader

# A FIFO that somebody put there must not hang us: O_NONBLOCK opens it at once, and is refused.
_OPEN_FILE: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
_DENIED: Final = frozenset({errno.EACCES, errno.EPERM})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class ImageFiles(Protocol):
    """The files of a layout or an archive, by path relative to its top. Safe in several threads."""

    @property
    def path(self) -> str:
        """Where they are, for messages."""
        ...

    def open(self, path: str) -> "FileRange | None":
        """Open a file; None when there is none of this name.

        Raises:
            InvalidDocument: The name leads to something else than a regular file.
            LocalError: The system refuses.
        """
        ...

    def close(self) -> None:
        """Let go of everything but of ranges that are open. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class BlobPlace:
    """Where bytes lie in a file that has a name: absolute, without symbolic links."""

    path: bytes
    offset: int
    size: int


class FileRange:
    """Some consecutive bytes of a file, and a file descriptor that it owns.

    Attributes:
        size: How many bytes.
    """

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        self.size = size
        self._descriptor = descriptor
        self._offset = offset

    def read(self, position: int, size: int) -> bytes:
        """Up to `size` bytes at `position` of the range; fewer at its end only.

        Raises:
            InvalidDocument: The file has become shorter than it was.
            LocalError: The system cannot read it.
        """
        wanted = max(0, min(size, self.size - position))
        data = b""
        while len(data) < wanted:
            start = self._offset + position + len(data)
            with local_errors():
                piece = os.pread(self._descriptor, wanted - len(data), start)
            if not piece:
                raise InvalidDocument("the file became shorter while it was read")
            data = data + piece if data else piece
        return data

    def place(self) -> BlobPlace | None:
        """Where the bytes lie; None when no name leads to the file, for it is temporary."""
        try:
            path = os.readlink(b"/proc/self/fd/%d" % self._descriptor)
            if not os.path.samestat(os.lstat(path), os.fstat(self._descriptor)):
                return None
        except OSError:
            return None
        return BlobPlace(path, self._offset, self.size)

    def detach(self) -> int:
        """Give the file descriptor away: the caller closes it."""
        descriptor, self._descriptor = self._descriptor, -1
        return descriptor

    def close(self) -> None:
        """Close the file. Idempotent."""
        descriptor = self.detach()
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class RangeReader(BlobReader):
    """A BlobReader over a range, which it owns.

    Args:
        opened: The bytes.
        offset: Where in them to start.
        end: Where to stop; None: at their end.
        stop: What `cancel` sets; one event may end many readers.
    """

    def __init__(
        self,
        opened: FileRange,
        *,
        offset: int = 0,
        end: int | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self._range = opened
        self._position = offset
        self._end = opened.size if end is None else min(end, opened.size)
        self._stop = stop or threading.Event()

    def iter_pieces(self) -> Iterator[bytes]:
        """The bytes from the start position to the end position."""
        while self._position < self._end:
            if self._stop.is_set():
                raise RegistryUnavailable("reading was cancelled")
            size = min(limits.BODY_PIECE, self._end - self._position)
            piece = self._range.read(self._position, size)
            self._position += len(piece)
            yield piece

    def cancel(self) -> None:
        """Make `iter_pieces` raise before its next piece."""
        self._stop.set()

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._range.close()


class DirectoryFiles:
    """The files below a directory. No symbolic link below it is followed, on no component.

    Raises:
        NotFound: There is no such directory.
        PermissionDenied: We may not look into it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        with local_errors(path):
            self._descriptor = os.open(path, _OPEN_DIRECTORY)

    def open(self, path: str) -> FileRange | None:
        """Open a regular file of the directory; None when it does not exist."""
        *parents, name = path.split("/")
        with local_errors(f"{self.path}/{path}"), ExitStack() as opened:
            directory = self._descriptor
            try:
                for parent in parents:
                    directory = os.open(parent, _OPEN_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                    opened.callback(os.close, directory)
                descriptor = os.open(name, _OPEN_FILE | os.O_NOFOLLOW, dir_fd=directory)
            except FileNotFoundError:
                return None
            except NotADirectoryError as error:
                raise _link_refused(path) from error
            return _as_range(descriptor, InvalidDocument("not a regular file", path=path))

    def close(self) -> None:
        """Close the directory. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def open_file(path: str) -> FileRange:
    """Open a file that the user named, following symbolic links.

    Raises:
        NotFound: There is none.
        InvalidArgument: It is no regular file.
        PermissionDenied: We may not read it.
    """
    with local_errors(path):
        descriptor = os.open(path, _OPEN_FILE)
        return _as_range(descriptor, InvalidArgument("not a regular file", path=path))


def read_whole(opened: FileRange, *, what: str, max_size: int) -> bytes:
    """All bytes of a small range.

    Raises:
        LimitExceeded: It is not small.
    """
    if opened.size > max_size:
        raise LimitExceeded(f"{what} is too large", limit="size", allowed=max_size)
    return opened.read(0, opened.size)


@contextmanager
def local_errors(path: str | None = None) -> Iterator[None]:
    """Translate what the system refuses into our errors."""
    try:
        yield
    except OSError as error:
        raise _translate(error, path) from error


def _translate(error: OSError, path: str | None) -> ImgvolError:
    reason = (error.strerror or "input/output error").lower()
    if error.errno in _ABSENT:
        return NotFound(reason, path=path)
    if error.errno in _DENIED:
        return PermissionDenied(reason, path=path)
    if error.errno in _FULL:
        return StoreFull(reason, path=path)
    if error.errno == errno.ELOOP:
        return _link_refused(path)
    return LocalError(f"cannot read the file: {reason}", path=path)


def _link_refused(path: str | None) -> InvalidDocument:
    return InvalidDocument(
        "symbolic links inside a layout are not followed",
        hint="Make a copy without links: cp -rL SOURCE COPY.",
        path=path,
    )


def _as_range(descriptor: int, refusal: ImgvolError) -> FileRange:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise refusal
    return FileRange(descriptor, 0, status.st_size)
