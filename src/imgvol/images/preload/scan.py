"""What lies in the preload directory, and whether somebody is still writing it. Blocks.

Files count by the ends of their names, whatever the case of the letters; those whose names begin
with a dot do not, nor does what is below such directories. Links to files are followed, links to
directories are not: there would be no end to it.
"""

import contextlib
import enum
import fcntl
import os
import signal
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from imgvol import limits
from imgvol.images.preload.stamp import Stamp
from imgvol.sources.packing import Packing


class FileKind(enum.Enum):
    """What a file is for."""

    ARCHIVE = "archive"
    LIST = "list"


LIST_SUFFIX: Final = ".txt"


def kind_of(path: str) -> FileKind | None:
    """What a file is for, by its name; None: nothing to us."""
    name = os.path.basename(path)
    if name.startswith("."):
        return None
    if name.lower().endswith(LIST_SUFFIX):
        return FileKind.LIST
    return FileKind.ARCHIVE if Packing.named(name) is not None else None


def printable(path: str) -> str:
    """A path for a line of a log: names may have any letters, also those that end lines."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in path)


def is_within(path: str, directory: str) -> bool:
    """Whether a path is that of a directory, or of something below it."""
    return f"{path}/".startswith(f"{directory.rstrip('/')}/")


@dataclass(slots=True)
class Scan:
    """What a directory has.

    Attributes:
        files: Archives and lists, by path.
        problems: What could not be looked at, and why, by path.
        is_there: Whether the directory is.
        unwatched: Of what changes are not told, and why, by path.
    """

    files: dict[str, Stamp] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    is_there: bool = True
    unwatched: dict[str, str] = field(default_factory=dict)


def scan(top: str, on_directory: Callable[[str], None] = lambda _: None) -> Scan:
    """Looks at a directory and all below it.

    Args:
        top: The directory. One that is not there is empty.
        on_directory: Called with every directory before it is listed: what comes into one that is
            watched from then on is noticed, or listed, or both.
    """
    found = Scan()
    waiting = [top]
    seen = 0
    while waiting:
        path = waiting.pop()
        seen += 1
        if seen > limits.PRELOAD_DIRECTORIES:
            reason = f"there are more than {limits.PRELOAD_DIRECTORIES} directories"
            found.problems[top] = reason
            break
        try:
            on_directory(path)
            with os.scandir(path) as entries:
                below = [entry for entry in entries if _take(entry, found)]
        except (FileNotFoundError, NotADirectoryError):  # gone, or never there
            found.is_there = found.is_there and path != top
        except OSError as exc:
            found.problems[path] = exc.strerror or str(exc)
        else:
            waiting += [entry.path for entry in below]
        if len(found.files) > limits.PRELOAD_FILES:
            found.problems[top] = f"there are more than {limits.PRELOAD_FILES} files"
            break
    return found


def _take(entry: "os.DirEntry[str]", found: Scan) -> bool:
    """Notes a file that counts; returns whether the entry is a directory that does."""
    if entry.name.startswith("."):
        return False
    if entry.is_dir(follow_symlinks=False):
        return True
    if kind_of(entry.name) is None:
        return False
    if not is_text(entry.path):
        found.problems[entry.path] = "the name is not UTF-8"
        return False
    try:
        status = entry.stat()
    except OSError as exc:  # a link to nothing, or to itself
        found.problems[entry.path] = exc.strerror or str(exc)
        return False
    if stat.S_ISREG(status.st_mode):
        found.files[entry.path] = Stamp.of(status)
    return False


def is_text(path: str) -> bool:
    """Whether a path is UTF-8, and can be told in JSON and kept in records."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look at a file.

    Attributes:
        stamp: None: there is no such file, or it is no file.
        is_open: Whether somebody has it open for writing; None: cannot be told.
    """

    stamp: Stamp | None
    is_open: bool | None


def look(path: str) -> Look:
    """Looks at a file.

    Raises:
        OSError: It may not be looked at.
    """
    try:
        # It may be anything by now: no waiting for a pipe's other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        return Look(stamp=None, is_open=None)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return Look(stamp=None, is_open=None)
        is_open = _is_open_for_writing(descriptor)
        # Whoever has closed it in between has changed it before.
        return Look(stamp=Stamp.of(os.fstat(descriptor)), is_open=is_open)
    finally:
        os.close(descriptor)


def _is_open_for_writing(descriptor: int) -> bool | None:
    """Asks for a lease to read, which the kernel gives only when nobody writes (fcntl(2)).

    Who wants to write meanwhile waits until it is given back, at once; the signal that would tell
    us of that is one that is ignored unless asked for.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:  # not our file, or a file system without leases
        return None
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def read_bounded(path: str, limit: int) -> tuple[bytes, bool]:
    """A file's content up to a limit, and whether there is more.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    return data[:limit], len(data) > limit
