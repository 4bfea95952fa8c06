"""Text for terminals: what comes from images and registries may not steer them.

Names in images are bytes of anybody's choice, escape sequences included. Everything that is not
printable is shown as a backslash escape, as `ls -b` does; only pipes get raw bytes.
"""

import os
import sys
from typing import Final

_ESCAPES: Final = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r"}


def visible_name(name: str | bytes) -> str:
    r"""A name as it can be shown, unambiguously: `\` becomes `\\`.

    Bytes that are not UTF-8, controls, and marks that reorder text become `\ooo` or `\n`.
    """
    text = decode(name) if isinstance(name, bytes) else name
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return "".join("\\\\" if c == "\\" else c if c.isprintable() else _escaped(c) for c in text)


def visible(text: str) -> str:
    """Prose as it can be shown, in one line; backslashes stay, they may be escapes already."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def decode(name: bytes) -> str:
    """Bytes of a path as text; surrogate escapes where it is not UTF-8."""
    return name.decode("utf-8", "surrogateescape")


def encode(name: str) -> bytes:
    """The inverse of `decode`."""
    return name.encode("utf-8", "surrogateescape")


def _escaped(character: str) -> str:
    data = character.encode("utf-8", "surrogateescape")
    return "".join(_ESCAPES.get(byte, f"\\{byte:03o}") for byte in data)


def cell_width(text: str) -> int:
    """Columns that a printable text takes."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def shortened(text: str, width: int) -> str:
    """At most `width` columns; the end of a name tells more than its start, both more than none."""
    if cell_width(text) <= width:
        return text
    head = max(0, (width - 1) // 2)
    tail = max(0, width - 1 - head)
    while cell_width(text[:head]) + cell_width(text[len(text) - tail :]) > width - 1:
        head, tail = max(0, head - 1), max(0, tail - 1)
    return f"{text[:head]}…{text[len(text) - tail :]}"


def terminal_width() -> int:
    """Columns of the terminal behind standard output; 80 when it does not say."""
    if os.environ.get("COLUMNS", "").isdecimal():
        return max(20, int(os.environ["COLUMNS"]))
    try:
        return max(20, os.get_terminal_size(sys.stdout.fileno()).columns or 80)
    except (OSError, ValueError):
        return 80


def has_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def has_colour() -> bool:
    """Whether standard output takes colours (and https://no-color.org does not object)."""
    return has_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
