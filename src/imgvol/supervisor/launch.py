"""How a process becomes a supervisor, and how one knows that it is a worker."""

import os
import sys
from collections.abc import Mapping, MutableMapping
from typing import Final, NoReturn

# Told to workers: whose they are, and how many there were before.
SUPERVISOR: Final = "IMGVOL_SUPERVISOR_PID"
RESTARTS: Final = "IMGVOL_WORKER_RESTARTS"


def is_worker(environ: Mapping[str, str]) -> bool:
    """Whether this process was started by a supervisor."""
    return environ.get(SUPERVISOR) == str(os.getppid())


def restarts_of(environ: MutableMapping[str, str]) -> int:
    """How many workers there were before this one; taken out of the environment."""
    is_ours = is_worker(environ)
    environ.pop(SUPERVISOR, None)
    told = environ.pop(RESTARTS, "")
    return int(told) if is_ours and told.isdecimal() else 0


def become_supervisor(run: str, ready_fd: int | None) -> NoReturn:
    """Goes on as a supervisor, whose workers run the command line of this process.

    A new program in the same process: whoever has started us sees no difference, and nothing that
    was imported so far stays in memory.

    Args:
        run: The run directory: 0700, and ours.
        ready_fd: Goes to the first worker.
    """
    command = [sys.executable, *sys.orig_argv[1:]]
    if ready_fd is not None:
        os.set_inheritable(ready_fd, True)
    inherited = "-" if ready_fd is None else str(ready_fd)
    program = [sys.executable, "-P", "-m", "imgvol.supervisor", run, inherited, *command]
    sys.stdout.flush()
    os.execv(sys.executable, program)  # noqa: S606 - there is nothing for a shell to do
