"""Times as tables of contents write them: RFC 3339, as Go's encoder does."""

import re
from datetime import date
from functools import lru_cache
from typing import Final

_FORMAT: Final = re.compile(
    rb"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))"
)
_EPOCH: Final = date(1970, 1, 1).toordinal()
# Python's calendar starts with the year 1. Year 4 is a leap year too, and as far before the epoch
# as matters: no file system has a time for either.
_STAND_IN_FOR_YEAR_0: Final = 4


# The files of a package share theirs.
@lru_cache(maxsize=1024)
def parse_rfc3339(text: bytes) -> int | None:
    """Nanoseconds since 1970; may be negative. None when the text is no time.

    Empty text is 1970 itself: Go's encoder writes nothing for years that RFC 3339 does not have,
    and for those the epoch stands in everywhere.
    """
    if not text:
        return 0
    match = _FORMAT.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    fraction, sign, zone_hours, zone_minutes = match.groups()[6:]
    if hour > 23 or minute > 59 or second > 59:
        return None
    try:
        days = date(year or _STAND_IN_FOR_YEAR_0, month, day).toordinal() - _EPOCH
    except ValueError:
        return None
    seconds = ((days * 24 + hour) * 60 + minute) * 60 + second
    if sign:
        if int(zone_hours) > 23 or int(zone_minutes) > 59:
            return None
        zone = (int(zone_hours) * 60 + int(zone_minutes)) * 60
        seconds += zone if sign == b"-" else -zone
    return seconds * 1_000_000_000 + int((fraction or b"").ljust(9, b"0"))


# The first moments of year 1, and of year 10000.
_EARLIEST: Final = -_EPOCH * 86_400 + 86_400
_LATEST: Final = (date.max.toordinal() + 1 - _EPOCH) * 86_400


@lru_cache(maxsize=1024)
def format_rfc3339(nanoseconds: int) -> bytes:
    """A time since 1970 as Go writes it in UTC: no fraction of zeros, nothing for strange years."""
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    if not _EARLIEST <= seconds < _LATEST:
        return b""
    days, rest = divmod(seconds, 86_400)
    day = date.fromordinal(days + _EPOCH)
    text = f"{day.isoformat()}T{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    if fraction:
        text += f".{fraction:09}".rstrip("0")
    return f"{text}Z".encode()
