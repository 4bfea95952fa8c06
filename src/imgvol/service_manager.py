"""The service manager that has started us: what it is told, and what it keeps for us.

It is systemd, or our own supervisor, which speaks the same: sd_notify(3), sd_listen_fds(3).
"""

import contextlib
import os
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Self

from imgvol import limits
from imgvol.supervisor import descriptors as fds
from imgvol.supervisor import notify
from imgvol.supervisor.launch import RESTARTS, SUPERVISOR, restarts_of
from imgvol.supervisor.turn import NAME, Turn

VARIABLES: Final = (*notify.VARIABLES, *fds.VARIABLES, SUPERVISOR, RESTARTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceManager:
    """systemd, or whoever else listens; nobody, when there is no address.

    Attributes:
        address: Of its socket, as sockets take it.
        watchdog: Seconds after which a daemon that has not said that it lives is taken for dead;
            None: it need not say so.
        inherited: Descriptors that earlier processes of this service have kept, by name.
        restarts: How many of those there were, as far as a supervisor has told.
    """

    address: str | None = None
    watchdog: float | None = None
    inherited: dict[str, list[int]] = field(default_factory=dict)
    restarts: int = 0

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Self:
        """What the environment says; taken out of it: programs that we start are not the daemon."""
        manager = notify.manager_of(environ)
        inherited: dict[str, list[int]] = {}
        for name, descriptor in fds.inherited(environ):
            inherited.setdefault(name, []).append(descriptor)
        return cls(
            address=manager.address,
            watchdog=manager.watchdog,
            inherited=inherited,
            restarts=restarts_of(environ),
        )

    def own_turn(self) -> Turn | None:
        """What this process waits for, if it was started to stand by; None: it was not."""
        found = self.take(NAME)
        return Turn(found[0]) if found else None

    def after(self, turn: Turn, version: str) -> Self | None:
        """Waits for our turn; None: it never comes. Blocks."""
        given = turn.wait(version)
        if given is None:
            return None
        inherited: dict[str, list[int]] = {}
        for name, descriptor in given.kept:
            inherited.setdefault(name, []).append(descriptor)
        return replace(self, inherited=inherited, restarts=given.restarts)

    @property
    def is_there(self) -> bool:
        """Whether anybody listens, and so may keep descriptors."""
        return self.address is not None

    def starting(self, what: str, seconds: float) -> None:
        """A stage of the start begins that may take so long."""
        self._tell(f"STATUS={what}", f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def ready(self, what: str) -> None:
        """The start is over. Waits a little, if it has to: this one must arrive."""
        self._insist("READY=1", f"STATUS={what}")

    def stopping(self, what: str) -> None:
        """The end has begun, or goes on."""
        self._tell("STOPPING=1", f"STATUS={what}")

    def alive(self) -> None:
        """The event loop turns."""
        self._tell("WATCHDOG=1")

    # --- descriptors that outlive the daemon ----------------------------------------------------

    def keep(self, name: str, *descriptors: int) -> bool:
        """Has descriptors kept for the next process, should this one die; whether they were taken.

        Waits a little, if it has to.

        Args:
            name: Printable ASCII without blanks and colons. Several descriptors may share one.
            descriptors: All of them or none is kept. They stay ours, too: they can be closed here
                without any effect there.
        """
        return self._insist("FDSTORE=1", f"FDNAME={name}", descriptors=descriptors)

    def take(self, name: str) -> list[int]:
        """The descriptors that were kept under a name, ours from now on; they stay kept."""
        return self.inherited.pop(name, [])

    def take_all(self, prefix: str) -> list[tuple[str, int]]:
        """As `take`, of every name that begins so; with the names."""
        names = [name for name in self.inherited if name.startswith(prefix)]
        return [(name, descriptor) for name in names for descriptor in self.take(name)]

    def drop(self, name: str) -> None:
        """Nobody will need the descriptors of that name. Waits a little, if it has to."""
        self._insist("FDSTOREREMOVE=1", f"FDNAME={name}")

    def drop_rest(self) -> None:
        """What was kept and nobody has taken is of another version or configuration: it goes."""
        while self.inherited:
            name, unwanted = self.inherited.popitem()
            self.drop(name)
            for descriptor in unwanted:
                with contextlib.suppress(OSError):
                    os.close(descriptor)

    def _tell(self, *assignments: str) -> None:
        notify.tell(self.address, *assignments)

    def _insist(self, *assignments: str, descriptors: Sequence[int] = ()) -> bool:
        return notify.tell(
            self.address,
            *assignments,
            descriptors=descriptors,
            patience=limits.NOTIFY_PATIENCE,
        )
