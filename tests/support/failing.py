"""A daemon whose disk fails when a test says so, whose clock jumps, and that needs memory.

`Failing.prelude` is what `Imgvol.prelude` has to be. From then on a test turns faults on and off
while the daemon runs, and reads in a log which calls they have met: a fault that was never met
shows nothing.

The system calls are those that Python code makes. What sqlite does is one call here, a transaction,
and fails as sqlite says that it does: with an exception, and nothing of the transaction done.
"""

import errno
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WRITES = ("pwrite", "fsync", "mkdir", "rename", "link", "open", "transaction")
SHORT = "short"
_PAGE = 4096


class Failing:
    """Turns faults on and off.

    Args:
        base: Where the switch and the log are, outside of the store.
        root: The store: nothing else is touched.
    """

    def __init__(self, base: Path, root: Path) -> None:
        self._switch, self._log, self._root = base / "switch", base / "fired", root

    @property
    def prelude(self) -> str:
        """Python statements for the daemon to run first."""
        tests = str(Path(__file__).parents[1])
        arguments = (str(self._switch), str(self._log), str(self._root))
        return (
            f"import sys; sys.path.insert(0, {tests!r}); from support import failing; "
            f"failing.arm(*{arguments!r}); del sys.path[0]"
        )

    @contextmanager
    def of(self, *calls: str, error: str) -> Iterator[None]:
        """Inside the block these calls fail with this errno, or are done in part (SHORT)."""
        self.turn(**dict.fromkeys(calls, error))
        try:
            yield
        finally:
            self.turn()

    def turn(self, **faults: object) -> None:
        """Sets what is wrong from now on: errnos by call, `clock` in seconds, `eat` in bytes."""
        # One write of one page: who reads has all of the old or all of the new.
        fd = os.open(self._switch, os.O_WRONLY | os.O_CREAT, 0o600)
        os.pwrite(fd, json.dumps(faults).encode().ljust(_PAGE), 0)
        os.close(fd)

    @property
    def fired(self) -> list[str]:
        """Which calls have failed so far, and on what."""
        return self._log.read_text().splitlines() if self._log.exists() else []


def arm(switch: str, log: str, root: str) -> None:
    """Puts the failing calls in the place of the others; in the daemon."""
    watch = _Watch(switch, log, root)
    for name in ("pwrite", "fsync", "fdatasync", "pread", "preadv"):
        setattr(os, name, watch.on_descriptor(name, getattr(os, name)))
    for name in ("mkdir", "rename", "replace", "link", "open"):
        setattr(os, name, watch.on_path(name, getattr(os, name)))
    threading.Thread(target=_eat, args=(watch,), daemon=True).start()
    wall_clock = time.time
    time.time = lambda: wall_clock() + watch.faults().get("clock", 0)

    class FailingConnection(sqlite3.Connection):
        def __enter__(self) -> Any:
            self.changes = self.total_changes
            return super().__enter__()

        def __exit__(self, *exc_info: object) -> Any:
            code = watch.faults().get("transaction")
            # One that has changed nothing writes nothing.
            if code is not None and exc_info[0] is None and self.total_changes > self.changes:
                self.rollback()
                watch.note(f"transaction {code}")
                text, number = _SQLITE[code]
                failure = sqlite3.OperationalError(text)
                failure.sqlite_errorcode = number
                raise failure
            return super().__exit__(*exc_info)

    connect = sqlite3.connect
    sqlite3.connect = lambda *a, **k: connect(*a, **{"factory": FailingConnection, **k})


def _eat(watch: "_Watch") -> None:
    """Takes as much memory as it is told to, piece by piece, and keeps it."""
    eaten = []
    while True:
        if len(eaten) << 20 < watch.faults().get("eat", 0):
            eaten.append(b"x" * (1 << 20))
        else:
            time.sleep(0.05)


# What sqlite says of a disk that is in such a state.
_SQLITE = {
    "ENOSPC": ("database or disk is full", sqlite3.SQLITE_FULL),
    "EIO": ("disk I/O error", sqlite3.SQLITE_IOERR),
    "EROFS": ("attempt to write a readonly database", sqlite3.SQLITE_READONLY),
}
# What a test calls by one name.
_SAME = {"fdatasync": "fsync", "preadv": "pread", "replace": "rename"}


class _Watch:
    def __init__(self, switch: str, log: str, root: str) -> None:
        self._root = root
        self._write, self._pread = os.write, os.pread
        # Open from the beginning: a daemon without descriptors is one of the faults.
        self._switch = os.open(switch, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def faults(self) -> dict[str, Any]:
        return json.loads(self._pread(self._switch, _PAGE, 0) or b"{}")

    def on_descriptor(self, name: str, original: Any) -> Any:
        def call(fd: int, *arguments: Any) -> Any:
            code = self.faults().get(_SAME.get(name, name))
            if code is None:
                return original(fd, *arguments)
            path = os.readlink(f"/proc/self/fd/{fd}")
            if not self._is_below(path):
                return original(fd, *arguments)
            self.note(f"{name} {path}")
            if code == SHORT:
                data, position = arguments
                return original(fd, memoryview(data)[: max(1, len(data) // 2)], position)
            raise _error(code, path)

        return call

    def on_path(self, name: str, original: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            code = self.faults().get(_SAME.get(name, name))
            path = os.fsdecode(arguments[0]) if not isinstance(arguments[0], int) else ""
            makes = name != "open" or arguments[1] & os.O_CREAT
            if code is None or not makes or not self._is_below(path):
                return original(*arguments, **options)
            self.note(f"{name} {path}")
            raise _error(code, path)

        return call

    def note(self, line: str) -> None:
        self._write(self._log, f"{line}\n".encode(errors="backslashreplace"))

    def _is_below(self, path: str) -> bool:
        return path.startswith(f"{self._root}/")


def _error(code: str, path: str) -> OSError:
    number = getattr(errno, code)
    return OSError(number, os.strerror(number), path)
