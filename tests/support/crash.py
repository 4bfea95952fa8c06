"""A daemon that dies at a chosen call that changes its store, and a disk that then loses what was
never made durable.

`arm` runs inside of the daemon before anything else (`Imgvol.prelude`). It counts the calls of a
kind over all threads, writes each into a log, and kills the process at the one that was asked for:
in the middle of it where it writes, before it otherwise, before and after a commit. The system
calls are those that Python code makes; what sqlite does is one call here, for that it is atomic is
its own promise.

After that `lose_unsynced` does what a power failure may do: everything that was written and not
synced since becomes zeros.
"""

import contextlib
import copy
import functools
import itertools
import os
import signal
import sqlite3
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from imgvol.content.ranges import Ranges

KINDS = ("write", "sync", "name", "commit")
# Parts of files that are given back: not many tests have any.
PUNCH = "punch"
_NAMES = ("rename", "replace", "link", "unlink", "rmdir", "mkdir", "ftruncate")


@dataclass(frozen=True, slots=True)
class Crash:
    """Which call kills.

    Attributes:
        kind: One of KINDS, or PUNCH.
        number: Which of that kind, from 1; 0 for none.
    """

    kind: str
    number: int


def prelude(crash: Crash, log: Path) -> str:
    """What `Imgvol.prelude` has to be."""
    tests = str(Path(__file__).parents[1])
    return (
        f"import sys; sys.path.insert(0, {tests!r}); from support import crash; "
        f"crash.arm({crash.kind!r}, {crash.number}, {str(log)!r}); del sys.path[0]"
    )


# --- in the daemon --------------------------------------------------------------------------------


def arm(kind: str, number: int, log: str) -> None:
    """Puts the dying calls in the place of the others."""
    watch = _Watch(Crash(kind, number), log)
    os.pwrite = watch.pwrite
    os.fsync = functools.partial(watch.sync, os.fsync)
    os.fdatasync = functools.partial(watch.sync, os.fdatasync)
    for name in _NAMES:
        setattr(os, name, functools.partial(watch.change_name, name, getattr(os, name)))

    # Not before: it may find other calls than those that count.
    from imgvol.content import punch

    punch._fallocate = functools.partial(watch.punch, punch._fallocate)

    class DyingConnection(sqlite3.Connection):
        def __exit__(self, *exc_info):
            watch.pass_by("commit", "begin")
            result = super().__exit__(*exc_info)
            watch.pass_by("commit", "end")
            return result

    sqlite3.connect = functools.partial(sqlite3.connect, factory=DyingConnection)


class _Watch:
    """Counts, notes and kills. `next` of a counter and a short write to a file are atomic."""

    def __init__(self, crash: Crash, log: str) -> None:
        self._crash = crash
        self._write, self._pwrite = os.write, os.pwrite
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._counters = {kind: itertools.count(1) for kind in (*KINDS, PUNCH)}
        self._tokens = itertools.count()

    def pwrite(self, fd: int, data, offset: int) -> int:
        inode = os.fstat(fd).st_ino
        if self._is_last("write", _name_of(fd)):
            half = len(data) // 2
            self._pwrite(fd, memoryview(data)[:half], offset)
            self._note("wrote", inode, offset, offset + half)
            self._die()
        written = self._pwrite(fd, data, offset)
        self._note("wrote", inode, offset, offset + written)
        return written

    def sync(self, original, fd: int) -> None:
        self.pass_by("sync", _name_of(fd))
        inode, token = os.fstat(fd).st_ino, next(self._tokens)
        self._note("syncing", inode, token)
        original(fd)
        self._note("synced", inode, token)

    def change_name(self, name: str, original, *args, **options):
        self.pass_by("name", f"{name} {args}")
        gone = {"unlink": args[0], "replace": args[-1]}.get(name)
        if gone is not None:
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(gone, dir_fd=options.get("dir_fd"))
                # Another file may have its inode from now on.
                if status.st_nlink == 1:
                    self._note("gone", status.st_ino)
        return original(*args, **options)

    def punch(self, original, fd: int, mode: int, offset, length) -> int:
        self.pass_by(PUNCH, _name_of(fd))
        start, end = offset.value, offset.value + length.value
        result = original(fd, mode, offset, length)
        self._note("punched", os.fstat(fd).st_ino, start, end)
        return result

    def pass_by(self, kind: str, what: str) -> None:
        if self._is_last(kind, what):
            self._die()

    def _is_last(self, kind: str, what: str) -> bool:
        number = next(self._counters[kind])
        self._note("call", kind, number, what)
        return self._crash == Crash(kind, number)

    def _die(self) -> None:
        self._note("killed", self._crash.kind, self._crash.number)
        os.kill(os.getpid(), signal.SIGKILL)

    def _note(self, *words: object) -> None:
        self._write(self._log, (" ".join(map(str, words)) + "\n").encode())


def _name_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


# --- in the test ----------------------------------------------------------------------------------


def calls(log: Path) -> Counter[str]:
    """How many calls of each kind there were."""
    lines = [line.split(" ", 2) for line in log.read_text().splitlines()]
    return Counter(words[1] for words in lines if words[0] == "call")


def has_fired(crash: Crash, log: Path) -> bool:
    """Whether the daemon says that it died at that call."""
    return f"\nkilled {crash.kind} {crash.number}\n" in log.read_text()


def lose_unsynced(root: Path, log: Path) -> int:
    """Overwrites what no sync covers with zeros; returns how many bytes.

    A sync covers what had been written when it began, and only once it has ended. What was durable
    and is written again stays: here only the same bytes are ever written again.
    """
    lost = _unsynced(log)
    count = 0
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            for start, end in lost.get(status.st_ino, ()):
                size = min(end, status.st_size) - start
                if size > 0:
                    with open(path, "r+b") as file:
                        file.seek(start)
                        file.write(bytes(size))
                    count += size
    return count


def _unsynced(log: Path) -> dict[int, list[tuple[int, int]]]:
    """What of each inode has been written and may be lost."""
    written: dict[int, Ranges] = {}
    durable: dict[int, Ranges] = {}
    covered: dict[str, Ranges] = {}  # by the token of a sync
    for line in log.read_text().splitlines():
        match line.split():
            case ["wrote", inode, start, end] if start != end:
                written.setdefault(int(inode), Ranges()).add(int(start), int(end))
            case ["syncing", inode, token]:
                covered[token] = copy.deepcopy(written.get(int(inode), Ranges()))
            case ["synced", inode, token]:
                for piece in covered[token]:
                    durable.setdefault(int(inode), Ranges()).add(*piece)
            case ["punched", inode, start, end]:
                # What is written there later has to be made durable again.
                for ranges in (written, durable):
                    ranges.setdefault(int(inode), Ranges()).discard(int(start), int(end))
            case ["gone", inode]:
                written.pop(int(inode), None)
                durable.pop(int(inode), None)
    return {
        inode: [hole for piece in ranges for hole in durable.get(inode, Ranges()).holes(*piece)]
        for inode, ranges in written.items()
    }
