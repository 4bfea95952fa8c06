"""Finding and running the real programs that tests compare with."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable

import pytest

# Debian keeps some of them outside a user's PATH.
SEARCH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def require(*programs: str) -> None:
    """Skips the running test, naming the first program that is not installed."""
    for program in programs:
        if shutil.which(program, path=SEARCH) is None:
            pytest.skip(f"{program} is not installed (scripts/setup installs it)")


def require_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


def require_fuse() -> None:
    require_root()
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse")


def run(*command: str | os.PathLike[str], timeout: float = 120, check: bool = True, **options):
    """Runs a program to its end and returns it, output as text; a failure shows the output."""
    done = subprocess.run(
        [os.fspath(part) for part in command],
        capture_output=True,
        timeout=timeout,
        check=False,
        text=True,
        errors="surrogateescape",
        **options,
    )
    if check and done.returncode != 0:
        raise AssertionError(
            f"{command[0]} exited with {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until(
    condition: Callable[[], object], *, seconds: float = 10, what: str = "the condition"
) -> None:
    """Polls, because nothing tells; fails with `what` when time is up."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s for {what}")
        time.sleep(0.02)


def stop(process: subprocess.Popen, *, seconds: float = 10) -> int:
    """Ends a process: politely, then not."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(seconds)
