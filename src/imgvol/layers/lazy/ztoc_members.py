"""What a zTOC says of a tar's members, beside what a TarMember says of them.

A zTOC repeats the fields of Go's `tar.Header`: the names of owners, the whole number of the mode,
device numbers whether or not it is a device, and all PAX records, not only extended attributes.
TarParser has no use for those and drops them. They are read once more here, from the bytes between
the payloads, which are the headers: cheap, for everything in them repeats from member to member.

Where the two disagree, TarMember counts: it is what a pulled layer shows.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from imgvol import limits
from imgvol.errors import LimitExceeded, Unsupported
from imgvol.layers.header import BLOCK, parse_number, parse_text
from imgvol.layers.lazy.rfc3339 import format_rfc3339
from imgvol.layers.pax import parse_records
from imgvol.layers.tar import MemberType, TarMember

_TYPES: Final = {
    MemberType.FILE: b"reg",
    MemberType.DIRECTORY: b"dir",
    MemberType.SYMLINK: b"symlink",
    MemberType.HARDLINK: b"hardlink",
    MemberType.CHAR: b"char",
    MemberType.BLOCK: b"block",
    MemberType.FIFO: b"fifo",
}

# Where in a header block.
_MODE: Final = slice(100, 108)
_SIZE: Final = slice(124, 136)
_FLAG: Final = slice(156, 157)
_MAGIC: Final = slice(257, 265)
_NAMES: Final = slice(265, 329)
_NAME_SIZE: Final = 32
_DEVICES: Final = slice(329, 345)
_DEVICE_SIZE: Final = 8

_MAGICS: Final = (b"ustar\0", b"ustar ")
_ZERO_BLOCK: Final = bytes(BLOCK)
_UINT32: Final = (1 << 32) - 1
# Special headers before one member: some of TAR_SPECIAL_SIZE each, and most often none.
_HEADERS_SIZE: Final = 8 * limits.TAR_SPECIAL_SIZE

Records = tuple[tuple[bytes, bytes], ...]


class ZtocMember(NamedTuple):
    """One member as a zTOC has it; names of fields as in its schema, text as bytes."""

    name: bytes
    type: bytes
    offset: int
    size: int
    linkname: bytes
    mode: int
    uid: int
    gid: int
    uname: bytes
    gname: bytes
    mtime: bytes
    devmajor: int
    devminor: int
    records: Records


class MemberCollector:
    """Follows a TarParser over the same bytes and makes ZtocMembers.

        for piece in pieces:
            collector.feed(piece, parser.feed(piece), is_ended=parser.is_ended)

    Attributes:
        members: So far, in the order of the tar.
    """

    def __init__(self) -> None:
        self.members: list[ZtocMember] = []
        self._position = 0
        # Where the headers of the next member begin, and those bytes of them that have passed.
        self._start = 0
        self._kept = b""
        self._end: int | None = None

    def feed(self, piece: bytes, members: Iterable[TarMember], *, is_ended: bool) -> None:
        """Take the next bytes of the tar, and the members whose headers end in them.

        Raises:
            LimitExceeded: The headers of a member are too large.
            Unsupported: A zTOC cannot describe a member.
        """
        if self._end is not None:
            return
        base = self._position - len(self._kept)
        data = self._kept + piece if self._kept else piece
        self._position += len(piece)
        for member in members:
            headers = data[self._start - base : member.payload_offset - base]
            self.members.append(_describe(member, headers))
            self._start = -(-(member.payload_offset + member.payload_size) // BLOCK) * BLOCK
        self._kept = data[self._start - base :] if self._start < self._position else b""
        if is_ended:
            self._end = self._start + _find_end(self._kept)
            self._kept = b""
        if len(self._kept) > _HEADERS_SIZE:
            raise LimitExceeded(
                "too many extended headers before a member",
                limit="TAR_SPECIAL_SIZE",
                allowed=_HEADERS_SIZE,
                offset=self._start,
            )

    @property
    def archive_size(self) -> int:
        """Bytes up to where Go's reader stops: after two blocks of zeros, or at the end."""
        return self._position if self._end is None else self._end


def _describe(member: TarMember, headers: bytes) -> ZtocMember:
    if member.sparse is not None:
        raise Unsupported(
            "a zTOC cannot tell where the holes of a sparse file are", path=member.name
        )
    if not 0 <= member.uid <= _UINT32 or not 0 <= member.gid <= _UINT32:
        raise Unsupported("a zTOC has 32 bits for an owner", path=member.name)
    block = headers[-BLOCK:]
    records = _read_records(headers) if len(headers) > BLOCK else {}
    uname = gname = b""
    devices = (0, 0)
    if block[_MAGIC].startswith(_MAGICS):
        uname, gname = _parse_names(block[_NAMES])
        devices = _parse_devices(block[_DEVICES])
    return ZtocMember(
        member.name,
        _TYPES[member.type],
        member.payload_offset,
        member.size,
        member.linkname,
        _parse_mode(block[_MODE]),
        member.uid,
        member.gid,
        records.get(b"uname") or uname,
        records.get(b"gname") or gname,
        format_rfc3339(member.mtime_ns),
        *devices,
        tuple(sorted(records.items())) if records else (),
    )


def _read_records(headers: bytes) -> dict[bytes, bytes]:
    """The PAX records that are the member's: of several headers the last one's."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(headers) - BLOCK:
        flag, size = headers[at:][_FLAG], parse_number(headers[at : at + BLOCK][_SIZE])
        body = at + BLOCK
        if flag == b"x":
            records = parse_records(headers[body : body + size])
        elif flag == b"g":
            records = {}  # which Go takes for a member of its own
        at = body + -(-size // BLOCK) * BLOCK
    return records


def _find_end(headers: bytes) -> int:
    """Where the archive ends, whose last headers are these: after the second block of zeros."""
    at = 0
    while headers[at : at + BLOCK] != _ZERO_BLOCK:
        size = parse_number(headers[at : at + BLOCK][_SIZE])
        at += BLOCK + -(-size // BLOCK) * BLOCK
    return at + 2 * BLOCK


# What repeats from member to member.
_parse_mode = lru_cache(maxsize=256)(parse_number)


@lru_cache(maxsize=1024)
def _parse_names(field: bytes) -> tuple[bytes, bytes]:
    return parse_text(field[:_NAME_SIZE]), parse_text(field[_NAME_SIZE:])


@lru_cache(maxsize=256)
def _parse_devices(field: bytes) -> tuple[int, int]:
    return parse_number(field[:_DEVICE_SIZE]), parse_number(field[_DEVICE_SIZE:])
