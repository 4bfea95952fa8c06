"""Starting a daemon on demand: spawn it, wait for its word, leave it behind.

Commands that start at once each spawn one; the lock on the store lets one of them live, and the
others' commands wait for that one's socket.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from typing import Final

from imgvol.cli.client import NotRunning, connect, error_from_document
from imgvol.config import Config
from imgvol.errors import DaemonUnavailable, ImgvolError
from imgvol.service_manager import VARIABLES

IDLE_EXIT: Final = 300
# Opening a store after a crash, with mounts to recover, takes a few seconds at most.
START_DEADLINE: Final = 30.0
# After it has lost against another one, which listens soon if it is starting.
_WINNER_DEADLINE: Final = 1.0
_POLL: Final = 0.02
_REAP_DEADLINE: Final = 5.0
_LOG_SIZE: Final = 8 << 20
# A socket of another daemon, or its lock on the store.
_LOST: Final = frozenset({"store-locked", "conflict"})
_REPORT_SIZE: Final = 64 << 10


def start_daemon(config: Config) -> None:
    """Start a daemon for `config`, detached; returns once somebody listens on its socket.

    Raises:
        ImgvolError: What the daemon says about why it cannot start, or DaemonUnavailable.
    """
    deadline = time.monotonic() + START_DEADLINE
    while (failure := _try_to_start(config)) is not None:
        # The one that it lost against is starting, or is still ending: then it is our turn again.
        if failure.code not in _LOST or time.monotonic() > deadline:
            raise failure
        if _wait_for_winner(config):
            return


def _try_to_start(config: Config) -> ImgvolError | None:
    """None when a daemon is ready; else why it is not."""
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as report:
        try:
            process = _spawn(config, writing)
        finally:
            os.close(writing)
        failure = _wait_until_ready(report.fileno(), process, config)
    if failure is not None:
        _reap(process)
    # It outlives us on purpose: this keeps Popen from warning that nobody waited for it.
    process.returncode = 0
    return failure


def _reap(process: "subprocess.Popen[bytes]") -> None:
    """It has said why it ends, or is dead; one that lingers is not waited for."""
    try:
        process.wait(_REAP_DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def daemon_arguments(config: Config, ready_fd: int) -> list[str]:
    """The command line of an on-demand daemon."""
    directories = ["--root", str(config.root), "--run", str(config.run)]
    habits = ["--idle-exit", str(IDLE_EXIT), "--ready-fd", str(ready_fd)]
    return [sys.executable, "-P", "-m", "imgvol", *directories, "serve", *habits]


def _spawn(config: Config, ready_fd: int) -> "subprocess.Popen[bytes]":
    with contextlib.suppress(OSError):
        os.makedirs(config.log.parent, mode=0o700, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        log = os.open(config.log, flags, 0o600)
    except OSError as error:
        raise DaemonUnavailable(
            f"cannot write the daemon's log: {error.strerror}",
            hint="Choose directories that you may write to with --root and --run.",
            path=str(config.log),
        ) from error
    try:
        if os.fstat(log).st_size > _LOG_SIZE:
            os.ftruncate(log, 0)
        return subprocess.Popen(
            daemon_arguments(config, ready_fd),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            # Whoever watches the command does not watch the daemon.
            env={name: value for name, value in os.environ.items() if name not in VARIABLES},
            pass_fds=[ready_fd],
            start_new_session=True,
        )
    finally:
        os.close(log)


def _wait_until_ready(
    report: int, process: "subprocess.Popen[bytes]", config: Config
) -> ImgvolError | None:
    """None when the daemon is ready; else why it is not."""
    word = _read_line(report, time.monotonic() + START_DEADLINE)
    if word is None:
        process.kill()
        return _failure(f"the daemon was not ready after {START_DEADLINE:g} s", config)
    if word == b"ready":
        return None
    try:
        return error_from_document(json.loads(word))
    except (ValueError, KeyError, TypeError):
        return _failure("the daemon ended while it started", config)


def _read_line(descriptor: int, deadline: float) -> bytes | None:
    """A line without its end, or what came before end-of-file; None after the deadline."""
    data = b""
    while b"\n" not in data and len(data) < _REPORT_SIZE:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            return None
        piece = os.read(descriptor, 4096)
        if not piece:
            break
        data += piece
    return data.partition(b"\n")[0]


def _failure(message: str, config: Config) -> DaemonUnavailable:
    return DaemonUnavailable(message, hint=f"Its log tells why: {config.log}")


def _wait_for_winner(config: Config) -> bool:
    deadline = time.monotonic() + _WINNER_DEADLINE
    while time.monotonic() < deadline:
        try:
            connect(str(config.socket), timeout=START_DEADLINE).close()
        except NotRunning:
            time.sleep(_POLL)
        else:
            return True
    return False
