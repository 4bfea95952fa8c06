"""Changes of a directory, and of all below it, as the kernel tells them (inotify(7)).

The directory need not be there: as long as it is not, the nearest one above it that is there is
watched for the next part of its path. What the kernel tells about directories, or that it had more
to tell than it has kept, all means one thing: look at everything again. A look watches each
directory before it lists it, so that nothing falls in between.
"""

import enum
import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio
from inotify_simple import INotify, flags, parse_events

from imgvol.errors import LocalError
from imgvol.images.preload.scan import Scan, scan

_BELOW: Final = (
    flags.CREATE
    | flags.CLOSE_WRITE
    | flags.ATTRIB
    | flags.MOVED_TO
    | flags.MOVED_FROM
    | flags.DELETE
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
)
_ABOVE: Final = flags.CREATE | flags.MOVED_TO | flags.DELETE_SELF | flags.MOVE_SELF | flags.ONLYDIR
# Of the watched directory itself, or of what the kernel has to say: what is known is worth nothing.
_STALE: Final = flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.Q_OVERFLOW
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
_READ_SIZE: Final = 256 * 1024


class NoticeKind(enum.Enum):
    """What has happened to a file."""

    CHANGED = "changed"
    CLOSED = "closed after writing"
    ARRIVED = "moved in"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something has happened to a file. Its name may be any."""

    kind: NoticeKind
    path: str


@dataclass(slots=True)
class Notices:
    """What the kernel has told at once.

    Attributes:
        files: In order.
        is_stale: Whether everything has to be looked at again.
        has_overflown: Whether that is because the kernel had more to tell than it keeps.
    """

    files: list[Notice]
    is_stale: bool = False
    has_overflown: bool = False


class DirectoryWatch:
    """The watch on one directory. Made by `open_watch`.

    Args:
        directory: Absolute.
        inotify: Open, and not blocking.
    """

    def __init__(self, directory: str, inotify: INotify) -> None:
        self._directory = os.path.normpath(directory)
        self._inotify = inotify
        # What is watched, by the kernel's number for it.
        self._below: dict[int, str] = {}
        # As long as the directory is not there: by that number, the next part of its path.
        self._above: dict[int, str] = {}
        # What cannot be watched, and why.
        self._unwatched: dict[str, str] = {}

    def scan(self) -> Scan:
        """Looks at everything, and watches what is there from now on. Blocks.

        What cannot be watched is said in the scan.
        """
        before = {**self._below, **self._above}
        while True:
            self._below, self._above, self._unwatched = {}, {}, {}
            found = scan(self._directory, self._watch)
            # What has come into being before the watch on the way to it is not told of.
            if found.is_there or not self._watch_above():
                break
        for number in before.keys() - self._below.keys() - self._above.keys():
            self._forget(number)
        found.unwatched = self._unwatched
        return found

    def _watch(self, path: str) -> None:
        mask = _BELOW if path == self._directory else _BELOW | flags.DONT_FOLLOW
        try:
            self._below[self._inotify.add_watch(path, mask)] = path
        except OSError as exc:
            if exc.errno in _NOT_THERE:
                raise
            self._note_unwatched(path, exc)

    def _watch_above(self) -> bool:
        """Watches what is there of the way to the directory; True when there is more by now."""
        above, step = os.path.split(self._directory)
        while step:
            try:
                self._above = {self._inotify.add_watch(above, _ABOVE): step}
                return os.path.isdir(os.path.join(above, step))
            except OSError as exc:
                if exc.errno not in _NOT_THERE:
                    self._note_unwatched(above, exc)
                    return False
            above, step = os.path.split(above)
        return False

    def _note_unwatched(self, path: str, exc: OSError) -> None:
        reason = exc.strerror or str(exc)
        if exc.errno == errno.ENOSPC:
            reason = "too many watches; raise the limit: sysctl fs.inotify.max_user_watches"
        self._unwatched[path] = f"cannot be watched: {reason}"

    def _forget(self, number: int) -> None:
        try:
            self._inotify.rm_watch(number)
        except OSError as exc:
            if exc.errno != errno.EINVAL:  # the kernel has forgotten it itself
                raise

    async def wait(self) -> Notices:
        """The next things that happen, as soon as there are any."""
        while True:
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                data = os.read(self._inotify.fd, _READ_SIZE)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._inotify.fd)
                continue
            # What has been read must not be lost.
            await trio.lowlevel.cancel_shielded_checkpoint()
            told = self._read(data)
            if told.files or told.is_stale:
                return told

    def _read(self, data: bytes) -> Notices:
        told = Notices(files=[])
        for number, mask, _, name in parse_events(data):
            if mask & flags.Q_OVERFLOW:
                told.is_stale = told.has_overflown = True
            elif number in self._above:
                # Only what is on our way: not `images-old` beside `images`.
                told.is_stale |= bool(mask & _STALE) or name == self._above[number]
            elif number in self._below:
                if mask & _STALE or (mask & flags.ISDIR and not mask & flags.ATTRIB):
                    told.is_stale = True
                elif name and not mask & (flags.ISDIR | flags.IGNORED):
                    path = os.path.join(self._below[number], name)
                    told.files.append(Notice(_kind(mask), path))
        return told


def _kind(mask: int) -> NoticeKind:
    if mask & flags.CLOSE_WRITE:
        return NoticeKind.CLOSED
    if mask & flags.MOVED_TO:
        return NoticeKind.ARRIVED
    if mask & (flags.MOVED_FROM | flags.DELETE):
        return NoticeKind.GONE
    return NoticeKind.CHANGED


@asynccontextmanager
async def open_watch(directory: str) -> AsyncIterator[DirectoryWatch]:
    """Opens a watch; `DirectoryWatch.scan` begins it.

    Raises:
        LocalError: The kernel gives this user no more of them.
    """
    try:
        # It looks for the C library first, and may run a program for that.
        inotify = await trio.to_thread.run_sync(lambda: INotify(nonblocking=True))
    except OSError as exc:
        raise LocalError(
            f"cannot watch a directory: {exc.strerror}",
            hint="Raise the limit: sysctl fs.inotify.max_user_instances=1024",
            path=directory,
        ) from exc
    try:
        yield DirectoryWatch(directory, inotify)
    finally:
        trio.lowlevel.notify_closing(inotify.fd)
        inotify.close()
