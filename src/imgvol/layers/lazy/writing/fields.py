"""What the headers of a member say beyond a TarMember: as written, for who repeats it exactly.

A TarMember is what a filesystem needs. The tables of contents of zstd:chunked repeat the headers as
Go's archive/tar reads them, for their readers compare the two, field by field.
"""

from dataclasses import dataclass
from typing import Final

from imgvol.layers.header import BLOCK, parse_header, parse_text
from imgvol.layers.pax import apply_records, parse_records, parse_time

_MAGIC: Final = slice(257, 265)
_UNAME: Final = slice(265, 297)
_GNAME: Final = slice(297, 329)
_GNU_TIMES: Final = slice(345, 369)
_STAR: Final = slice(508, 512)
# No type that Go turns into another one, nor any that it does not know.
_PLAIN_FLAGS: Final = frozenset(b"0123456\0")
_XATTR: Final = b"SCHILY.xattr."


@dataclass(slots=True, kw_only=True)
class Fields:
    """One member's headers.

    Attributes:
        mode: All of it, also the type bits that some tools put there.
        size: Also of members that have no content.
        atime_ns: Nanoseconds since 1970; None when there is none.
        ctime_ns: Likewise.
        xattrs: Also those with an empty value.
        is_plain: Whether all readers agree on what they have read: no global header, no type and
            no layout that only some of them know.
    """

    mode: int
    size: int
    linkname: bytes
    devmajor: int
    devminor: int
    uname: bytes = b""
    gname: bytes = b""
    atime_ns: int | None = None
    ctime_ns: int | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    is_plain: bool = True


def read_fields(raw: bytes) -> Fields:
    """Reads the headers of one member, which the TarParser has accepted."""
    records: dict[bytes, bytes] = {}
    long_link = b""
    is_plain = True
    position = 0
    while True:
        block = raw[position : position + BLOCK]
        header = parse_header(block)
        position += BLOCK
        if header.flag not in b"xgLK":
            break
        body = raw[position : position + header.size]
        position += header.size + -header.size % BLOCK
        match header.flag:
            case b"x":
                records = parse_records(body)
            case b"K":
                long_link = parse_text(body)
            case b"g":
                records, long_link, is_plain = {}, b"", False
    is_plain = is_plain and header.flag[0] in _PLAIN_FLAGS and not _has_odd_layout(block)
    is_ustar = block[_MAGIC].startswith(b"ustar")
    if records:
        header = apply_records(records, header)
    return Fields(
        mode=header.mode,
        size=header.size,
        linkname=long_link or header.linkname,
        devmajor=header.devmajor,
        devminor=header.devminor,
        uname=records.get(b"uname") or (parse_text(block[_UNAME]) if is_ustar else b""),
        gname=records.get(b"gname") or (parse_text(block[_GNAME]) if is_ustar else b""),
        atime_ns=_time(records.get(b"atime")),
        ctime_ns=_time(records.get(b"ctime")),
        xattrs=tuple(
            sorted(
                (key[len(_XATTR) :], value)
                for key, value in records.items()
                if key.startswith(_XATTR)
            )
        ),
        is_plain=is_plain,
    )


def _has_odd_layout(block: bytes) -> bool:
    """Whether there are times in the block itself: GNU's and star's layouts have a place there."""
    if block[_STAR] == b"tar\0":
        return True
    return block[_MAGIC] == b"ustar  \0" and any(block[_GNU_TIMES])


def _time(value: bytes | None) -> int | None:
    return parse_time(value) if value else None
