"""What a service tells its manager, and where: sd_notify(3), sd_watchdog_enabled(3)."""

import array
import os
import socket
from collections.abc import MutableMapping, Sequence
from typing import Final, NamedTuple

VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Manager(NamedTuple):
    """systemd, a supervisor, or whoever else listens; nobody, when there is no address.

    Attributes:
        address: Of its socket, as sockets take it.
        watchdog: Seconds after which a service that has not said that it lives is taken for dead;
            None: it need not say so.
    """

    address: str | None = None
    watchdog: float | None = None


def manager_of(environ: MutableMapping[str, str]) -> Manager:
    """Whom the environment names; taken out of it: what we start is not that manager's service."""
    address, period, pid = (environ.pop(name, "") for name in VARIABLES)
    is_meant = pid in {"", str(os.getpid())}
    return Manager(
        address="\0" + address[1:] if address.startswith("@") else address or None,
        watchdog=int(period) / 1e6 if is_meant and period.isdecimal() and int(period) else None,
    )


def tell(
    address: str | None,
    *assignments: str,
    descriptors: Sequence[int] = (),
    patience: float = 0.0,
) -> bool:
    """Whether it was taken: a manager that does not listen, or is slow, is nobody's failure.

    Args:
        address: Of the manager's socket; None: there is no manager.
        assignments: What is said.
        descriptors: What goes with it.
        patience: Seconds to wait for room in its queue, which may hold no more than ten datagrams
            (net.unix.max_dgram_qlen).
    """
    if address is None:
        return False
    passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.settimeout(patience)
            # Only one that is connected can be waited for: poll(2) calls any other writable.
            notify.connect(address)
            notify.sendmsg(["\n".join(assignments).encode()], passed if descriptors else [])
    except OSError:
        return False
    return True
