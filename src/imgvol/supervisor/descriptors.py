"""Descriptors by name: those that were inherited, and those that are kept for who comes next."""

import contextlib
import os
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Final

from imgvol import limits
from imgvol.supervisor.datagram import is_name

VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
# SD_LISTEN_FDS_START of sd_listen_fds(3).
FIRST: Final = 3
# What systemd calls those that its configuration gives no name.
_UNNAMED: Final = "unknown"


def inherited(environ: MutableMapping[str, str]) -> list[tuple[str, int]]:
    """What whoever has started this process has given it, sd_listen_fds_with_names(3).

    The variables are taken out of the environment, and nobody inherits the descriptors by accident.
    Beyond `limits.DESCRIPTORS_KEPT` they are closed.
    """
    pid, number, text = (environ.pop(name, "") for name in VARIABLES)
    if pid != str(os.getpid()) or not (number.isascii() and number.isdecimal()):
        return []
    names = text.split(":")
    found = []
    for position in range(min(int(number), os.sysconf("SC_OPEN_MAX"))):
        descriptor = FIRST + position
        name = names[position] if position < len(names) else _UNNAMED
        with contextlib.suppress(OSError):  # it was closed on the way here
            os.set_inheritable(descriptor, False)
            if position < limits.DESCRIPTORS_KEPT:
                found.append((name if is_name(name) else _UNNAMED, descriptor))
            else:
                os.close(descriptor)
    return found


class Descriptors:
    """Those that are kept; several may have one name. They are closed when they are removed.

    Args:
        kept: What there is at the beginning.
    """

    def __init__(self, kept: Iterable[tuple[str, int]] = ()) -> None:
        self._kept = list(kept)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, name: str, descriptors: list[int]) -> bool:
        """Keeps all of them; False, and closes them, when there is no room for all."""
        if len(self._kept) + len(descriptors) > limits.DESCRIPTORS_KEPT:
            close_all(descriptors)
            return False
        self._kept += [(name, descriptor) for descriptor in descriptors]
        return True

    def remove(self, name: str) -> None:
        """Closes those of that name, if there are any."""
        close_all(descriptor for found, descriptor in self._kept if found == name)
        self._kept = [kept for kept in self._kept if kept[0] != name]


def close_all(descriptors: Iterable[int]) -> None:
    """Closes descriptors, whatever their files say to that."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
