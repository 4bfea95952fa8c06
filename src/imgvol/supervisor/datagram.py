"""What a service says to its manager, sd_notify(3): bytes in, a record out."""

import re
from typing import Final, NamedTuple

from imgvol import limits

# fdname_is_valid of systemd.
_NAME: Final = re.compile(rf"[!-9;-~]{{1,{limits.DESCRIPTOR_NAME_LENGTH}}}", re.ASCII)
# Of our own, in the form that sd_notify(3) asks for.
UPGRADE: Final = "X_IMGVOL_UPGRADE"
# What systemd calls descriptors that come without a name.
_UNNAMED: Final = "stored"


class BadDatagram(ValueError):
    """Not a datagram of the protocol; the message says why."""


class Word(NamedTuple):
    """One datagram.

    Attributes:
        is_ready: The start is over.
        is_stopping: The end has begun.
        is_alive: The watchdog's sign of life.
        status: For people, one line; None when nothing was said.
        extend: Seconds that the start or the end may take from now on; None: not asked for.
        stores: The descriptors that come with it are to be kept, under `name`.
        removes: Those of that name are not needed any more.
        name: Of descriptors.
        upgrade: Another program is to go on, within so many seconds; None: not asked for. Not of
            the protocol, and not of workers alone: the descriptor that comes with it is told more.
    """

    is_ready: bool = False
    is_stopping: bool = False
    is_alive: bool = False
    status: str | None = None
    extend: float | None = None
    stores: bool = False
    removes: bool = False
    name: str = _UNNAMED
    upgrade: float | None = None


def is_name(text: str) -> bool:
    """Whether descriptors can have this name: printable ASCII without blanks and colons."""
    return _NAME.fullmatch(text) is not None


def parse(data: bytes) -> Word:
    """What a datagram says; assignments that are not known are passed over.

    Raises:
        BadDatagram: It is too large, no text, or has a value that its variable cannot have.
    """
    if len(data) > limits.NOTIFY_SIZE:
        raise BadDatagram(f"more than {limits.NOTIFY_SIZE} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise BadDatagram("not UTF-8") from error
    said = dict(line.partition("=")[::2] for line in text.split("\n"))
    word = Word(
        is_ready=said.get("READY") == "1",
        is_stopping=said.get("STOPPING") == "1",
        is_alive=said.get("WATCHDOG") == "1",
        status=_line(said.get("STATUS")),
        extend=_seconds(said.get("EXTEND_TIMEOUT_USEC")),
        stores=said.get("FDSTORE") == "1",
        removes=said.get("FDSTOREREMOVE") == "1",
        name=said.get("FDNAME", _UNNAMED),
        upgrade=_seconds(said.get(UPGRADE)),
    )
    if not is_name(word.name):
        raise BadDatagram("not a name of descriptors")
    if word.removes and "FDNAME" not in said:
        raise BadDatagram("it does not say which descriptors to remove")
    return word


def _line(text: str | None) -> str | None:
    if text is None:
        return None
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _seconds(microseconds: str | None) -> float | None:
    if microseconds is None:
        return None
    if not (microseconds.isascii() and microseconds.isdecimal() and len(microseconds) <= 20):
        raise BadDatagram("not a number of microseconds")
    return min(int(microseconds) / 1e6, limits.WORKER_START_MOST)
