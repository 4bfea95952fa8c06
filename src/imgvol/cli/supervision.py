"""The supervisor as commands meet it: becoming one, and what one says of a worker that is down."""

import os
import signal
import stat
import time

from imgvol.config import Config, TransportChoice, supervisor_is_wanted
from imgvol.errors import DaemonUnavailable
from imgvol.fs.choice import choose
from imgvol.supervisor import launch, status


def supervise_if_wanted(config: Config, is_wanted: bool | None, ready_fd: int | None) -> int | None:
    """Goes on as a supervisor, or returns, as a worker or as a daemon without one.

    Args:
        config: Where the run directory is, and what carries the kernel's requests.
        is_wanted: What the command line says; None: the environment decides, or else whether the
            filesystem can be handed over to the next worker.
        ready_fd: Where to tell whoever has started us that there is a daemon.

    Returns:
        The same; None for a worker that is not the first one: that descriptor is another file now.
    """
    if launch.is_worker(os.environ):
        return ready_fd if os.environ.get(launch.RESTARTS) == "0" else None
    if is_wanted is None:
        is_wanted = supervisor_is_wanted(os.environ)
    if is_wanted is None:
        chosen = choose(config.transport, release=os.uname().release)
        is_wanted = chosen.transport is TransportChoice.KERNEL
    # What is in the way is in the way of the daemon, too, which says so as it always did.
    if is_wanted and _is_private(str(config.run)):
        launch.become_supervisor(str(config.run), ready_fd)
    return ready_fd


def _is_private(run: str) -> bool:
    """Whether the run directory, made if it is missing, is ours alone."""
    try:
        os.makedirs(run, mode=0o700, exist_ok=True)
        found = os.lstat(run)
    except OSError:
        return False
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return is_ours and not found.st_mode & 0o077


def stop_if_down(config: Config, process: int | None) -> bool:
    """Ends a supervisor whose worker cannot answer; whether there was one.

    Args:
        config: Where the run directory is.
        process: A descriptor of the process to stop.
    """
    found = status.read(str(config.run))
    if process is None or found is None or not found.is_down(time.time()):
        return False
    signal.pidfd_send_signal(process, signal.SIGTERM)
    return True


def raise_if_down(run: str) -> None:
    """Says why there will be no answer soon, if that is known.

    Raises:
        DaemonUnavailable: A supervisor has no worker that lives.
    """
    found = status.read(run)
    now = time.time()
    if found is None or not found.is_down(now):
        return
    raise DaemonUnavailable(
        "the daemon crashes again and again",
        hint="Its log tells why (imgvol doctor). When that is mended: imgvol stop, and try again.",
        restarts=found.restarts,
        last_end=found.last_end,
        next_try=_next_try(found, now),
    )


def _next_try(found: status.Status, now: float) -> str | None:
    """When, in words; None: there is to be none."""
    if found.next_try_at is not None:
        return f"in {max(found.next_try_at - now, 0):.0f} s"
    # A pause without an end is the wait for the worker that is to stand by.
    return {"starting": "under way", "waiting": "once it is loaded"}.get(found.state)
