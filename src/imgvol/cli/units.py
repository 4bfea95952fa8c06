"""Numbers for people: sizes in powers of 1000 with three digits, times and ages in words."""

import time
from typing import Final

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86400


def size(count: float) -> str:
    """`999 B`, `1.2 kB`, `34.5 MB`."""
    return f"{scaled(count, unit(count))} {unit(count)}"


def unit(count: float) -> str:
    """The unit that shows a count best."""
    index = 0
    # 999.95 would be shown as 1000.0.
    while abs(count) >= (999.5 if index == 0 else 999.95) and index < len(_UNITS) - 1:
        count /= 1000
        index += 1
    return _UNITS[index]


def scaled(count: float, in_unit: str) -> str:
    """The number alone, in a unit."""
    value = count / 1000 ** _UNITS.index(in_unit)
    return f"{value:.0f}" if in_unit == "B" else f"{value:.1f}"


def progress(done: int, total: int) -> str:
    """`4.5/34.5 MB`: both in the unit of the total."""
    if total <= 0:
        return size(done)
    shared = unit(total)
    return f"{scaled(done, shared)}/{scaled(total, shared)} {shared}"


def rate(per_second: float) -> str:
    """`12.3 MB/s`."""
    return f"{size(per_second)}/s"


def count(number: int) -> str:
    """`12,345`."""
    return f"{number:,}"


def plural(number: int, noun: str) -> str:
    """`1 layer`, `2 layers`, `3 entries`."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        noun = f"{noun[:-1]}ie"
    return f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """`340 us`, `12 ms`, `3.4 s`, `2 min 5 s`, `1 h 2 min`."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"


def countdown(seconds: int) -> str:
    """`5 s`, `2 min`, `3 h`: as exact as guesses are."""
    if seconds < 2 * _MINUTE:
        return f"{seconds} s"
    return f"{seconds // _MINUTE} min" if seconds < 2 * _HOUR else f"{seconds // _HOUR} h"


def age(since: float, now: float | None = None) -> str:
    """`5 s ago`, `3 min ago`, `2 days ago`; a time to come is `just now`: clocks are set back."""
    seconds = (time.time() if now is None else now) - since
    if seconds < 1:
        return "just now"
    if seconds < _MINUTE:
        return f"{int(seconds)} s ago"
    if seconds < _HOUR:
        return f"{int(seconds // _MINUTE)} min ago"
    if seconds < _DAY:
        return f"{int(seconds // _HOUR)} h ago"
    return f"{plural(int(seconds // _DAY), 'day')} ago"


def date(seconds: float) -> str:
    """`2024-05-01 12:30`, local time; seconds since the epoch when no calendar reaches there."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return f"@{int(seconds)}"
