"""The helper process of `worker`: reads one request, does one job, says how it went.

A job is a function in a module of its own, imported only here:

    def run(request, source, output, progress) -> result

`request` is what the daemon asks, `source` a binary stream (standard input after the request),
`output` the directory for its files, `progress(bytes)` tells how much of the source is done, and
the result is something that JSON can hold. It raises the project's errors, which the daemon raises
again.
"""

import contextlib
import ctypes
import errno
import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final, Protocol

from imgvol import limits
from imgvol.errors import ImgvolError, InternalError, LocalError, StoreFull

# The jobs, and the module with the `run` of each.
JOBS: Final[Mapping[str, str]] = {
    "convert": "imgvol.publish.convert_job",
    "index": "imgvol.publish.index_job",
}

_NICE: Final = 10
_PR_SET_PDEATHSIG: Final = 1
# Of malloc.h. Pieces of half a MiB come and go thousands of times: the heap keeps their pages,
# which the kernel would otherwise take back and clear each time.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_KEPT_HEAP: Final = 32 * limits.MIB
# Objects between two looks for cycles. Members are millions of tuples, which are in none.
_COLLECTED_AFTER: Final = 50_000
# Seconds between words about progress.
_PROGRESS_INTERVAL: Final = 0.2
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Job(Protocol):
    """What a job's module has as `run`."""

    def __call__(
        self,
        request: Mapping[str, Any],
        source: IO[bytes],
        output: Path,
        progress: Callable[[int], None],
    ) -> Mapping[str, Any]:
        """Does it; blocks."""


def main(arguments: list[str]) -> int:
    """Does the job that the command line names; returns the exit status."""
    source = sys.stdin.buffer
    line = source.readline(limits.WORKER_LINE_SIZE)
    with contextlib.suppress(BrokenPipeError):
        try:
            document = json.loads(line)
            _become_a_helper(int(document["parent"]))
            job: Job = importlib.import_module(JOBS[arguments[0]]).run
            result = job(document["request"], source, Path.cwd(), _Progress())
        except Exception as error:  # noqa: BLE001 - the daemon is told, whatever it is
            _say({"error": describe(error)})
        else:
            _say({"result": result})
        return 0
    return 1


def _become_a_helper(parent: int) -> None:
    """Ends with the daemon's thread that has started us; stays out of everybody's way."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise InternalError("a helper process without its daemon")  # which ended meanwhile
    os.nice(_NICE)
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if hasattr(libc, "mallopt"):  # glibc's
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_HEAP)
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_HEAP)
    gc.set_threshold(_COLLECTED_AFTER)


class _Progress:
    """Says how far the job is, now and then."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self._last >= _PROGRESS_INTERVAL:
            self._last = now
            _say({"progress": done})


def describe(error: Exception) -> dict[str, Any]:
    """An error as the daemon is told of it."""
    if isinstance(error, MemoryError):
        error = LocalError("not enough memory for a helper process")
    elif isinstance(error, OSError):
        kind = StoreFull if error.errno in _NO_ROOM else LocalError
        error = kind(f"a helper process cannot work: {error.strerror or error}")
    elif not isinstance(error, ImgvolError):
        error = InternalError(f"a defect in a helper process: {error!r}"[: limits.KIB])
    assert isinstance(error, ImgvolError)
    return {
        "class": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "fields": {name: _plain(value) for name, value in error.fields.items()},
    }


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value if isinstance(value, int | float | str) else str(value)


def _say(message: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
