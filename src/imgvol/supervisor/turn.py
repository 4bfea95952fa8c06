"""Waiting for one's turn: what a worker that stands by and its supervisor say to each other.

    to it    names of what is kept; then, when its turn has come, the same with the descriptors
    from it  `ready VERSION`: it has loaded all that it needs, and could go on; or `refused REASON`

The worker's end is the only descriptor that it inherits, by the name of `NAME`.
"""

import array
import contextlib
import os
import select
import signal
import socket
from collections.abc import Sequence
from typing import Final, NamedTuple

from imgvol import limits

NAME: Final = "imgvol.turn"
_READY: Final = "ready"
_REFUSED: Final = "refused"


class Given(NamedTuple):
    """What a worker is told.

    Attributes:
        restarts: How many workers there were before.
        kept: Descriptors by name; none before its turn has come.
        names: Of all that is kept.
    """

    restarts: int
    kept: list[tuple[str, int]]
    names: list[str]


class Standby:
    """A worker that waits for its turn, as its supervisor sees it.

    Args:
        pid: Of our child, which was just started.
        channel: Our end.
        names: Of what is kept.

    Attributes:
        pid: Its process ID.
        channel: Readable when it has said something, or ended.
        version: Of the program, once it is ready.
        refusal: Why it could not go on; None: nothing is in its way, as far as it has said.
    """

    def __init__(self, pid: int, channel: socket.socket, names: Sequence[str]) -> None:
        self.pid = pid
        self.channel = channel
        self.version: str | None = None
        self.refusal: str | None = None
        channel.setblocking(False)
        _say(channel, 0, names, ())

    @property
    def is_ready(self) -> bool:
        """Whether it waits for nothing but its turn."""
        return self.version is not None and self.refusal is None

    def listen(self) -> None:
        """Takes what it has said; never waits."""
        try:
            said = self.channel.recv(limits.TURN_LINE).decode(errors="replace")
        except BlockingIOError:
            return
        except OSError:
            said = ""
        word, _, text = said.partition(" ")
        if word == _READY:
            self.version = text
        elif word == _REFUSED:
            self.refusal = text
        elif self.refusal is None:
            self.refusal = "it ended" if not said else "it said what cannot be understood"

    def take_turn(self, restarts: int, kept: Sequence[tuple[str, int]]) -> bool:
        """It goes on with what is kept, as soon as it is ready; False: it has ended.

        `pid` and `channel` are the caller's from now on.
        """
        return _say(
            self.channel, restarts, [name for name, _ in kept], [number for _, number in kept]
        )

    def dismiss(self) -> None:
        """Ends it. It has nothing that could be lost. `has_gone` is to be asked from now on."""
        self.channel.close()
        os.kill(self.pid, signal.SIGKILL)

    def has_gone(self) -> bool:
        """Whether one that was dismissed has been waited for; never waits."""
        return os.waitpid(self.pid, os.WNOHANG) != (0, 0)


class Turn:
    """The same, as the worker sees it. `refuse` or `wait` must follow.

    Args:
        descriptor: Our end.
    """

    def __init__(self, descriptor: int) -> None:
        self._channel = socket.socket(fileno=descriptor)
        # Of what the supervisor keeps, before anything was taken over.
        self.names = (self._hear() or Given(0, [], [])).names

    def refuse(self, reason: str) -> None:
        """We could not go on."""
        self._tell(_REFUSED, reason)
        self._channel.close()

    def wait(self, version: str) -> Given | None:
        """Blocks until our turn has come; None: it never will."""
        self._tell(_READY, version)
        given = self._hear()
        self._channel.close()
        return given

    def _tell(self, word: str, text: str) -> None:
        # A supervisor that has gone is noticed by what it does not say.
        with contextlib.suppress(OSError):
            line = " ".join(f"{word} {text}".split("\n")).encode()
            self._channel.send(line[: limits.TURN_LINE])

    def _hear(self) -> Given | None:
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        poll.poll()
        try:
            data, descriptors, _, _ = socket.recv_fds(
                self._channel, limits.TURN_SIZE, limits.DESCRIPTORS_KEPT
            )
        except OSError:
            return None
        if not data:
            return None
        restarts, _, text = data.decode().partition(" ")
        names = text.split(":") if text else []
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        return Given(int(restarts), list(zip(names, descriptors, strict=False)), names)


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _say(
    channel: socket.socket, restarts: int, names: Sequence[str], descriptors: Sequence[int]
) -> bool:
    data = f"{restarts} {':'.join(names)}".encode()
    passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    try:
        channel.sendmsg([data], passed if descriptors else [])
    except OSError:
        return False
    return True
