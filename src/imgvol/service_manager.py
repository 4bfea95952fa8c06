"""What is told to the service manager that has started us: sd_notify(3), sd_watchdog_enabled(3)."""

import contextlib
import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Final, Self

VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceManager:
    """systemd, or whoever else listens; nobody, when there is no address.

    Attributes:
        address: Of its socket, as sockets take it.
        watchdog: Seconds after which a daemon that has not said that it lives is taken for dead;
            None: it need not say so.
    """

    address: str | None = None
    watchdog: float | None = None

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Self:
        """What the environment says; taken out of it: programs that we start are not the daemon."""
        address, period, pid = (environ.pop(name, "") for name in VARIABLES)
        is_meant = pid in {"", str(os.getpid())}
        return cls(
            address="\0" + address[1:] if address.startswith("@") else address or None,
            watchdog=int(period) / 1e6 if is_meant and period.isdecimal() and int(period) else None,
        )

    def starting(self, what: str, seconds: float) -> None:
        """A stage of the start begins that may take so long."""
        self._tell(f"STATUS={what}\nEXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def ready(self, what: str) -> None:
        """The start is over."""
        self._tell(f"READY=1\nSTATUS={what}")

    def stopping(self, what: str) -> None:
        """The end has begun, or goes on."""
        self._tell(f"STOPPING=1\nSTATUS={what}")

    def alive(self) -> None:
        """The event loop turns."""
        self._tell("WATCHDOG=1")

    def _tell(self, state: str) -> None:
        if self.address is None:
            return
        # A manager that does not listen, or is slow, is not our failure: nothing waits for it.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify,
        ):
            notify.setblocking(False)
            notify.sendto(state.encode(), self.address)
