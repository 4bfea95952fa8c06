"""Who comes after the worker: one that stands by, and one of another program if that is wanted."""

import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

from imgvol import limits
from imgvol.supervisor.turn import Standby
from imgvol.supervisor.upgrade import Asker, Result, Upgrade
from imgvol.supervisor.verdict import End
from imgvol.supervisor.worker import Worker

_NEVER: Final = float("inf")


class Line:
    """The workers that wait. None of them takes anything before its turn.

    Args:
        start: Starts one.
        say: Writes a line of some level into the log.
        stands_by: Whether one waits at any time; if not, there are no upgrades either.
    """

    def __init__(
        self, start: Callable[[], Standby], say: Callable[[str, str], None], *, stands_by: bool
    ) -> None:
        self._start = start
        self._say = say
        self._stands_by = stands_by
        self._standby: Standby | None = None
        self._due = 0.0
        # Until there is one, the first worker has the machine for itself. Later, workers may be
        # killed again and again before they are ready: the one that loads meanwhile gets on.
        self._last_ready: int | None = None
        self._started_after: int | None = None
        self._dismissed: list[Standby] = []
        self._upgrade: Upgrade | None = None

    @property
    def channels(self) -> list[socket.socket]:
        """What becomes readable when one of them says something, or ends."""
        upgrade = self._upgrade
        loading = upgrade is not None and not upgrade.has_begun
        waiting = [self._standby, upgrade.standby if upgrade and loading else None]
        return [standby.channel for standby in waiting if standby is not None]

    @property
    def pid(self) -> int | None:
        """Of the one that stands by, once it is ready."""
        standby = self._standby
        return standby.pid if standby is not None and standby.is_ready else None

    @property
    def is_loading(self) -> bool:
        """Whether one stands by, and is not ready."""
        return self._standby is not None and not self._standby.is_ready

    def deadline(self, now: float) -> float:
        """When `tend` is to be called at the latest."""
        due = self._due if self._standby is None and self._due > now else _NEVER
        return min(due, _NEVER if self._upgrade is None else self._upgrade.deadline)

    def listen(self, now: float) -> None:
        """Takes what they have said."""
        standby = self._standby
        if standby is not None:
            standby.listen()
            if standby.refusal is not None:
                self._say("WARNING", f"the worker that stood by cannot go on: {standby.refusal}")
                # A worker that became ready after that one was started may have changed the reason.
                is_old = self._started_after != self._last_ready
                self._due = 0.0 if is_old else now + limits.STANDBY_AGAIN
                self._dismiss_standby()
                if self._upgrade is not None and not self._upgrade.has_begun:
                    self._fail(self._upgrade, "what would be the way back has ended")
        self._dismissed = [each for each in self._dismissed if not each.has_gone()]

    def tend(self, worker: Worker, now: float) -> None:
        """Does what is due while a worker lives."""
        self.listen(now)
        if self._upgrade is not None:
            self._tend_upgrade(self._upgrade, worker, now)
        if worker.is_ready and self._last_ready != worker.pid:
            self._last_ready = worker.pid
            self._due = 0.0  # what it has changed may be what was in the way
        has_served = self._last_ready is not None
        is_wanted = self._stands_by and has_served and not worker.is_stopping
        if is_wanted and self._standby is None and now >= self._due:
            self._started_after = self._last_ready
            try:
                self._standby = self._start()
            except OSError as error:
                self._say("WARNING", f"cannot start a process: {error.strerror}")
                self._due = now + limits.STANDBY_AGAIN

    def ask(self, asker: Asker, seconds: float, worker: Worker, now: float) -> None:
        """Somebody wants an upgrade."""
        reason = None
        if not self._stands_by:
            reason = "there is no worker that stands by"
        elif self._upgrade is not None:
            reason = "another upgrade is under way"
        elif not worker.is_serving:
            reason = "the daemon is starting or stopping"
        elif self._standby is None:
            reason = "no worker stands by that would be the way back: try again in a minute"
        else:
            try:
                self._upgrade = Upgrade(asker, self._start(), seconds, now)
            except OSError as error:
                reason = f"cannot start a process: {error.strerror}"
        if reason is not None:
            asker.tell(Result(reason=reason))

    def next(self, restarts: int, kept: Sequence[tuple[str, int]]) -> Standby | None:
        """Gives the turn to whoever has it, who is the caller's from now on; None: nobody waits.

        Args:
            restarts: How many workers there were before.
            kept: Descriptors by name, which it gets.
        """
        self._due = 0.0
        upgrade = self._upgrade
        if upgrade is not None and upgrade.has_begun:
            if upgrade.standby.take_turn(restarts, kept):
                upgrade.give_turn(time.monotonic())
                return upgrade.standby
            self._fail(upgrade, "the new daemon ended")
        standby = self._standby
        if standby is not None and not standby.take_turn(restarts, kept):
            self._dismiss_standby()
            return None
        self._standby = None
        return standby

    def explains(self, worker: Worker, end: End) -> bool:
        """Whether a worker has ended because of an upgrade: then the next one follows at once."""
        upgrade = self._upgrade
        if upgrade is None:
            return False
        if upgrade.has_begun and not upgrade.is_of(worker):
            return True
        self._fail(upgrade, upgrade.reason(end))
        return upgrade.has_begun

    def close(self) -> None:
        """There will be no other worker."""
        if self._upgrade is not None:
            self._fail(self._upgrade, "the daemon stops")
        self._dismiss_standby()

    def _fail(self, upgrade: Upgrade, reason: str) -> None:
        self._upgrade = None
        if not upgrade.has_turn:
            self._dismiss(upgrade.standby)
        upgrade.fail(reason)

    def _dismiss_standby(self) -> None:
        if self._standby is not None:
            self._dismiss(self._standby)
            self._standby = None

    def _dismiss(self, standby: Standby) -> None:
        standby.dismiss()
        self._dismissed.append(standby)

    def _tend_upgrade(self, upgrade: Upgrade, worker: Worker, now: float) -> None:
        is_late = now >= upgrade.deadline
        if upgrade.is_of(worker):
            if worker.is_ready:
                self._say("INFO", f"version {upgrade.standby.version} goes on")
                self._upgrade = None
                upgrade.succeed()
                # That was the way back: the next one is of the new program, too.
                self._dismiss_standby()
            elif is_late:
                upgrade.give_up(worker)
            return
        if upgrade.has_begun:
            return
        upgrade.standby.listen()
        reason = upgrade.standby.refusal
        if reason is None and is_late:
            who = "the new daemon" if not upgrade.standby.is_ready else "what would be the way back"
            reason = f"{who} was not loaded in time"
        if reason is not None:
            self._fail(upgrade, reason)
        elif upgrade.standby.is_ready and self.pid is not None:
            upgrade.begin(worker)
