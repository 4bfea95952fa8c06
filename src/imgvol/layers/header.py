"""One header block of a tar archive: 512 bytes in, its fields out.

Knows the five layouts (v7, ustar and PAX, GNU, STAR) and how numbers and names are written in
them. Knows nothing about what follows the block, nor about other blocks: that is `tar`.

The rules are those of Go's archive/tar, because every registry client reads layers with it: what it
accepts is what images contain, and where two readers differ an image can mean two things.
"""

import struct
from functools import lru_cache
from typing import Final, NamedTuple

from isal.isal_zlib import adler32

BLOCK: Final = 512

NANOSECONDS: Final = 1_000_000_000
INT64_MAX: Final = (1 << 63) - 1
INT64_MIN: Final = -(1 << 63)

# name; mode, uid and gid; size, mtime, checksum, type flag, link name; and all from the magic on.
_LAYOUT: Final = struct.Struct("100s24s12s12s8sc100s255s")
_OWNER: Final = struct.Struct("8s8s8s")
# magic and version, (user and group name), device major, device minor, and what the formats
# disagree about.
_TAIL: Final = struct.Struct("8s64x8s8s167s")
# Fields that most members of an archive share are read once for all of them.
_REMEMBERED: Final = 256

_USTAR_MAGIC: Final = b"ustar\0"
_GNU_MAGIC: Final = b"ustar  \0"
_STAR_TRAILER: Final = b"tar\0"

# Where the last part of the block, at byte 345, holds what.
_USTAR_PREFIX: Final = slice(0, 155)
_STAR_PREFIX: Final = slice(0, 131)
_STAR_ATIME: Final = slice(131, 143)
_STAR_CTIME: Final = slice(143, 155)
_STAR_MAGIC: Final = slice(163, 167)
_GNU_ATIME: Final = slice(0, 12)
_GNU_CTIME: Final = slice(12, 24)


class FormatError(ValueError):
    """A part of an archive breaks the format; `tar` knows where, and raises InvalidLayer."""


class Header(NamedTuple):
    """The fields of one header. PAX records and GNU long names replace some later.

    A tuple for the reason that TarMember is one.

    `size` is what is stored in the archive, hence how far the next header is.
    """

    flag: bytes
    name: bytes
    linkname: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    devmajor: int = 0
    devminor: int = 0
    is_gnu: bool = False
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


def parse_header(block: bytes) -> Header:
    """Read one header block.

    Raises:
        FormatError: The checksum is wrong, or a number cannot be read.
    """
    name, owner, size, mtime, checksum, flag, linkname, tail = _LAYOUT.unpack(block)
    # The low half of Adler-32 is one more than the sum of the bytes, exactly so for up to 256 of
    # them, and ten times quicker than sum().
    total = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2
    if total != _parse_sum(checksum):
        _check_signed_sum(block, total, checksum)
    mode, uid, gid = _parse_owner(owner)
    prefix, major, minor, is_gnu = _parse_tail(tail)
    name = name.partition(b"\0")[0]
    # As Header() does, in less than half the time.
    return tuple.__new__(
        Header,
        (
            flag,
            prefix + b"/" + name if prefix else name,
            linkname.partition(b"\0")[0] if linkname[0] else b"",
            mode,
            uid,
            gid,
            _parse_octal(size) if size[0] < 0x80 else _parse_base256(size),
            _parse_seconds(mtime),
            major,
            minor,
            is_gnu,
            (),
        ),
    )


@lru_cache(maxsize=_REMEMBERED)
def _parse_owner(fields: bytes) -> tuple[int, int, int]:
    """Mode, owner and group."""
    mode, uid, gid = _OWNER.unpack(fields)
    return parse_number(mode), parse_number(uid), parse_number(gid)


@lru_cache(maxsize=_REMEMBERED)
def _parse_tail(tail: bytes) -> tuple[bytes, int, int, bool]:
    """Prefix of the name, device numbers, and whether the format is GNU's."""
    magic, major, minor, rest = _TAIL.unpack(tail)
    is_gnu = magic == _GNU_MAGIC
    if magic[:6] == _USTAR_MAGIC:
        prefix = _ustar_prefix(rest)
    elif is_gnu:
        prefix = _gnu_prefix(rest)
    else:
        return b"", 0, 0, False  # v7 ends here: the rest of the block means nothing
    return prefix, parse_number(major), parse_number(minor), is_gnu


def parse_text(field: bytes) -> bytes:
    """A text field: up to the first NUL, or all of it."""
    return field.partition(b"\0")[0]


def parse_number(field: bytes) -> int:
    """A number field: octal, or GNU's base-256 when the top bit is set."""
    return _parse_base256(field) if field[0] & 0x80 else _parse_octal(field)


def _parse_octal(field: bytes) -> int:
    digits = field.strip(b" \0")
    # isdigit() keeps out what int() would let through: signs, underscores, "0o".
    if not digits.isdigit():
        digits = parse_text(digits)
        if not digits:
            return 0
        if not digits.isdigit():
            raise FormatError("number that is not octal")
    try:
        return int(digits, 8)
    except ValueError:
        raise FormatError("number that is not octal") from None


def parse_decimal(text: bytes) -> int:
    """A decimal number of PAX records and sparse maps: an optional sign, digits, 64 bits.

    Raises:
        FormatError: Anything else.
    """
    if len(text) < 19 and text.isdigit():
        return int(text)
    sign, digits = (text[:1], text[1:]) if text[:1] in (b"-", b"+") else (b"+", text)
    if not digits.isdigit():
        raise FormatError("number that is not decimal")
    # Python takes quadratic time over long numbers, and these may have a million digits.
    digits = digits.lstrip(b"0")[:20]
    value = int(sign + (digits or b"0"))
    if not INT64_MIN <= value <= INT64_MAX:
        raise FormatError("number of more than 64 bits")
    return value


@lru_cache(maxsize=1024)
def _parse_seconds(field: bytes) -> int:
    """A time, in nanoseconds."""
    return parse_number(field) * NANOSECONDS


def _parse_base256(field: bytes) -> int:
    # Two's complement, big endian, whose sign is the bit after the marker.
    value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
    if field[0] & 0x40:
        value -= 1 << (8 * len(field) - 1)
    if not INT64_MIN <= value <= INT64_MAX:
        raise FormatError("number of more than 64 bits")
    return value


@lru_cache(maxsize=2048)
def _parse_sum(checksum: bytes) -> int:
    """What the bytes of a block add up to that has this checksum.

    It was made with eight spaces in its own place.
    """
    return _parse_octal(checksum) + sum(checksum) - 8 * 0x20


def _check_signed_sum(block: bytes, total: int, checksum: bytes) -> None:
    """Sun's tar summed signed bytes."""
    negative = sum(byte >= 0x80 for byte in block[:148] + block[156:])
    if total - 256 * negative != _parse_sum(checksum):
        raise FormatError("wrong header checksum")


def _ustar_prefix(rest: bytes) -> bytes:
    if rest[_STAR_MAGIC] != _STAR_TRAILER:
        return parse_text(rest[_USTAR_PREFIX])
    parse_number(rest[_STAR_ATIME])  # unused, yet they must be numbers, as in Go
    parse_number(rest[_STAR_CTIME])
    return parse_text(rest[_STAR_PREFIX])


def _gnu_prefix(rest: bytes) -> bytes:
    """GNU's layout has no prefix; Go before 1.8 wrote one all the same (golang.org/issue/12594).

    It lies over the access and change times: it is taken for a prefix when they are no numbers.
    """
    if not (rest[0] or rest[_GNU_CTIME.start]):
        return b""
    try:
        for field in (rest[_GNU_ATIME], rest[_GNU_CTIME]):
            if field[0]:
                parse_number(field)
    except FormatError:
        prefix = parse_text(rest[_USTAR_PREFIX])
        return prefix if prefix.isascii() else b""
    return b""
