"""Starting a worker: fork, descriptors in the places where systemd would put them, exec."""

import ctypes
import fcntl
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from imgvol.supervisor.descriptors import FIRST

_PR_SET_PDEATHSIG: Final = 1
# As shells say that a program cannot be run.
EXIT_NOT_RUN: Final = 127


def spawn(
    command: Sequence[str],
    environment: Mapping[str, str],
    kept: Sequence[tuple[str, int]],
) -> int:
    """Starts a worker that dies with us.

    This process must have one thread: the kernel watches the thread that forks.

    Args:
        command: A program, by its path, and its arguments.
        environment: Without the variables of sd_listen_fds(3).
        kept: Descriptors by name, which it inherits.

    Returns:
        Its process ID.

    Raises:
        OSError: There is no room for another process.
    """
    parent = os.getpid()
    # Until exec, the child would take a signal by our handlers, and forget it.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _become(command, environment, kept, parent)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return pid


def _become(
    command: Sequence[str],
    environment: Mapping[str, str],
    kept: Sequence[tuple[str, int]],
    parent: int,
) -> NoReturn:
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has died before it could be watched
            os._exit(EXIT_NOT_RUN)
        # What a terminal sends to its group is for us, who pass it on: a worker gets it once, and
        # one that waits for its turn not at all.
        os.setpgid(0, 0)
        # So it is in the terminal's background, and would be stopped for writing there (`stty
        # tostop`).
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        # What Python ignores would stay ignored after exec.
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _place([descriptor for _, descriptor in kept])
        listen = {
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": str(len(kept)),
            "LISTEN_FDNAMES": ":".join(name for name, _ in kept),
        }
        environment = {**environment, **listen} if kept else environment
        os.execve(command[0], list(command), environment)  # noqa: S606 - nothing for a shell to do
    except BaseException as error:  # noqa: BLE001 - two processes must not go on as one
        print(f"cannot run {command[0]}: {error}", file=sys.stderr, flush=True)  # noqa: T201
    finally:
        os._exit(EXIT_NOT_RUN)


def _place(descriptors: Sequence[int]) -> None:
    """Makes them 3, 4, 5 ..., inheritable, whatever was there."""
    behind = FIRST + len(descriptors)
    # Out of the way first: one may be in the place of another.
    away = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, behind) for fd in descriptors]
    for place, descriptor in enumerate(away, FIRST):
        os.dup2(descriptor, place, inheritable=True)
