"""Sizes as people type them."""

import re
from typing import Final

from imgvol import limits
from imgvol.errors import InvalidArgument

_SIZE: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([kmgt]?)i?b?", re.IGNORECASE | re.ASCII)
_POWERS: Final = {"": 1, "k": limits.KIB, "m": limits.MIB, "g": limits.GIB, "t": 1024 * limits.GIB}


def parse_size(text: str, *, may_be_zero: bool = False) -> int:
    """Bytes: a number, with K, M, G or T behind it for the powers of 1024.

    Raises:
        InvalidArgument: It is something else, or nothing.
    """
    match = _SIZE.fullmatch(text)
    size = int(float(match[1]) * _POWERS[match[2].lower()]) if match else -1
    if size < 0 or not (size or may_be_zero):
        raise InvalidArgument("not a size", hint="Bytes, such as 65536, 64K or 4M.", value=text)
    return size
