"""A worker that does what a test says, under a real supervisor."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from support.programs import stop, wait_until

# Sets limits in the supervisor, which is a program of its own.
_PROGRAM = """
import os, sys
from imgvol import limits
{changes}
from imgvol.supervisor.loop import Supervisor
supervisor = Supervisor({run!r}, sys.argv[1:], dict(os.environ), stands_by={stands_by!r})
sys.exit(supervisor.run({ready_fd!r}))
"""
# What workers of tests begin with.
PRELUDE = """
import os, signal, socket, sys, time
from imgvol.service_manager import ServiceManager
manager = ServiceManager.from_environment(os.environ)
if (turn := manager.own_turn()) is not None:
    manager = manager.after(turn, "1.0") or sys.exit(0)
"""


@dataclass(slots=True)
class Supervised:
    """A supervisor in `run`, and what its workers run.

    Attributes:
        limits: Values that the supervisor shall have in `imgvol.limits`.
        environment: More variables for it.
        stands_by: Whether the next worker waits while the last one lives.
    """

    run: Path
    limits: dict[str, float] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    stands_by: bool = False
    process: subprocess.Popen | None = None

    def start(self, program: str, *, ready_fd: int | None = None, command=None) -> None:
        """Workers run a program, after `PRELUDE`; or another command."""
        changes = "\n".join(f"limits.{name} = {value!r}" for name, value in self.limits.items())
        source = _PROGRAM.format(
            changes=changes, run=str(self.run), ready_fd=ready_fd, stands_by=self.stands_by
        )
        worker = command or [sys.executable, "-P", "-c", PRELUDE + program]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", source, *worker],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                pass_fds=[] if ready_fd is None else [ready_fd],
            )

    @property
    def log(self) -> Path:
        return self.run.parent / "supervisor.log"

    def status(self) -> dict | None:
        with contextlib.suppress(OSError):
            return json.loads((self.run / "supervisor.json").read_text())
        return None

    def wait_for(self, **wanted: object) -> dict:
        """Its status, once it says all that."""

        def is_so():
            status = self.status()
            return status is not None and all(status[k] == v for k, v in wanted.items())

        try:
            wait_until(is_so, seconds=20, what=str(wanted))
        except AssertionError as error:
            error.add_note(f"it is {self.status()}, and has said: {self.said()}")
            raise
        return self.status()

    def said(self) -> str:
        return self.log.read_text()

    def open_descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextlib.contextmanager
def supervising(base: Path, **limits: float) -> Iterator[Supervised]:
    """A place for a supervisor; it is ended at the end, and leaves nothing."""
    run = base / "run"
    run.mkdir(mode=0o700)
    supervised = Supervised(run, limits)
    try:
        yield supervised
    finally:
        if supervised.process is not None and supervised.process.poll() is None:
            stop(supervised.process)


# --- the daemon itself as the worker ------------------------------------------------------------


def told(run_dir: Path) -> dict:
    """What the supervisor of a daemon tells of itself."""
    path = run_dir / "supervisor.json"
    wait_until(path.exists, what="the supervisor tells of itself")
    return json.loads(path.read_text())


def kill_worker(run_dir: Path) -> None:
    os.kill(told(run_dir)["worker"], signal.SIGKILL)


def wait_restarted(run_dir: Path, restarts: int) -> None:
    """Until so many workers have been followed by another, and that is ready."""

    def is_so() -> bool:
        found = told(run_dir)
        return found["restarts"] == restarts and found["state"] == "ready"

    wait_until(is_so, seconds=30, what=f"restart {restarts}")


def kept_devices(supervisor: int) -> int:
    """How many connections of filesystems a supervisor holds."""
    directory = Path(f"/proc/{supervisor}/fd")
    return sum(os.readlink(link) == "/dev/fuse" for link in directory.iterdir())
