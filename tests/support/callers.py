"""Many processes that wait in one system call each: the test's side of `calling.py`."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support import calling
from support.programs import stop, wait_until


class Callers:
    """Processes that have begun, or are about to."""

    def __init__(self, process: subprocess.Popen) -> None:
        self._process = process
        self.pids: list[int] = self._line()["pids"]

    def _line(self) -> Any:
        return json.loads(self._process.stdout.readline())

    def wait_blocked(self) -> None:
        """Waits until each of them sleeps in the kernel, with one of its threads in the view."""
        wait_until(lambda: all(map(_is_blocked, self.pids)), seconds=20, what="all to wait")

    def send(self, number: signal.Signals) -> None:
        """Sends all a signal."""
        for pid in self.pids:
            os.kill(pid, number)

    def end(self, number: signal.Signals | None = None) -> tuple[list[str], float]:
        """Sends all a signal, if any; returns how they ended, and how many seconds that took."""
        self._process.stdin.write(f"{int(number or 0)}\n")
        self._process.stdin.flush()
        answer = self._line()
        return answer["ends"], answer["seconds"]


def _is_blocked(pid: int) -> bool:
    threads = Path(f"/proc/{pid}/task").iterdir()
    places = [(thread / "wchan").read_text() for thread in threads]
    # A thread that waits for another one of its process is no sign.
    is_waiting = any(not place.startswith("futex") for place in places)
    return is_waiting and not {"", "0"} & set(places)


@contextmanager
def running_callers(
    path: str, offset: int, count: int, flags: int = 0, how: str = "read"
) -> Iterator[Callers]:
    """So many processes that read a page, or do something else: `calling.WAYS`."""
    command = [sys.executable, calling.__file__, path, *map(str, (offset, count, flags)), how]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
    )
    try:
        yield Callers(process)
    finally:
        stop(process, seconds=5)
        process.stdin.close()
        process.stdout.close()
