"""Going on with another program: who asks for it, and how far it is.

The new program's worker loads beside the old one, and says whether it could go on with what is
there. Then the old one is killed, which is what all of this stands anyhow, and the new one has its
turn. A worker of the old program stands by until the new one is ready: that is the way back, and it
needs nothing of what is on the disk now.
"""

import array
import contextlib
import json
import os
import select
import socket
from typing import Final, NamedTuple

from imgvol import limits
from imgvol.supervisor.channel import reach
from imgvol.supervisor.datagram import UPGRADE
from imgvol.supervisor.turn import Standby
from imgvol.supervisor.verdict import End
from imgvol.supervisor.worker import Worker

# Beyond the two deadlines of the supervisor.
_PATIENCE: Final = 5.0


class Result(NamedTuple):
    """What has come of it.

    Attributes:
        version: Of the program that goes on now; None: the old one does.
        reason: Why that is so.
    """

    version: str | None = None
    reason: str | None = None


class Asker:
    """Whoever has asked, and waits to be told.

    Args:
        descriptor: Where, a socket; ours from now on.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def tell(self, result: Result) -> None:
        """The last word."""
        with contextlib.suppress(OSError):  # it may have gone
            os.set_blocking(self._descriptor, False)
            os.write(self._descriptor, json.dumps(result._asdict()).encode())
        os.close(self._descriptor)


class Upgrade:
    """One of them, under way.

    Args:
        asker: Who wants it.
        standby: The new program's worker, which loads.
        seconds: How long it may take to load, and then again to become ready.
        now: On the monotonic clock.

    Attributes:
        standby: The same.
        has_begun: Whether the old worker was told to go, and so has no part in it any more.
        deadline: Of the present one of the two steps.
    """

    def __init__(self, asker: Asker, standby: Standby, seconds: float, now: float) -> None:
        self.standby = standby
        self.has_begun = False
        self.deadline = now + seconds
        self._asker = asker
        self._seconds = seconds
        self._successor: int | None = None
        self._is_late = False

    def begin(self, worker: Worker) -> None:
        """The old worker goes."""
        self.has_begun = True
        self.deadline = float("inf")
        worker.kill()

    def give_turn(self, now: float) -> None:
        """The new one goes on."""
        self._successor = self.standby.pid
        self.deadline = now + self._seconds

    def give_up(self, worker: Worker) -> None:
        """The new one has not become ready."""
        self._is_late = True
        self.deadline = float("inf")
        worker.kill()

    @property
    def has_turn(self) -> bool:
        """Whether the new one is the worker now, or was it."""
        return self._successor is not None

    def is_of(self, worker: Worker) -> bool:
        """Whether that is the new one."""
        return worker.pid == self._successor

    def succeed(self) -> None:
        """The new one is ready."""
        self._asker.tell(Result(version=self.standby.version))

    def fail(self, reason: str) -> None:
        """The old one goes on, or another one like it."""
        self._asker.tell(Result(reason=reason))

    def reason(self, end: End) -> str:
        """Why it fails, now that a worker has ended that should not have."""
        if not self.has_turn:
            return f"the daemon ended with {end}"
        how = f"was not ready within {self._seconds:g} s" if self._is_late else f"ended with {end}"
        return f"the new daemon {how}"


def ask_for_upgrade(run: str, pid: int, seconds: float) -> Result:
    """Asks a supervisor for an upgrade, and waits for its result.

    Args:
        run: The run directory.
        pid: The supervisor's.
        seconds: How long each of the two steps may take.

    Raises:
        OSError: There is no supervisor, or it has gone.
        ValueError, TypeError: Its answer is none.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs, reach(run, pid) as supervisor:
            words = f"{UPGRADE}={int(seconds * 1e6)}".encode()
            rights = array.array("i", [theirs.fileno()])
            supervisor.sendmsg([words], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        poll = select.poll()
        poll.register(ours, select.POLLIN)
        if not poll.poll((2 * seconds + _PATIENCE) * 1000):
            raise TimeoutError("the supervisor does not answer")
        data = ours.recv(limits.TURN_LINE)
    if not data:
        raise ConnectionResetError("the supervisor knows of no upgrades now")
    return Result(**json.loads(data))
