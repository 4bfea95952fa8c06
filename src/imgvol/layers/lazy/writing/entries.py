"""Entries of tables of contents: what a member's headers say, as JSON, in either dialect.

What the fields mean tells the reader, `imgvol.layers.lazy.toc`. The dialects differ in how exact
they are: eStargz has whole seconds, and each owner's name only once; zstd:chunked repeats the
headers as they are.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from imgvol.errors import Unsupported
from imgvol.layers.header import INT64_MAX, NANOSECONDS
from imgvol.layers.lazy.writing.fields import Fields
from imgvol.layers.lazy.writing.records import Record
from imgvol.layers.reserved import whole_seconds
from imgvol.layers.tar import MemberType, TarMember

_TYPES: Final = {
    MemberType.DIRECTORY: "dir",
    MemberType.FILE: "reg",
    MemberType.SYMLINK: "symlink",
    MemberType.HARDLINK: "hardlink",
    MemberType.CHAR: "char",
    MemberType.BLOCK: "block",
    MemberType.FIFO: "fifo",
}
_LOST: Final = "\N{REPLACEMENT CHARACTER}"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class EstargzEntries:
    """Writes entries as stargz does. Keeps what it has said of owners: use one per layer."""

    def __init__(self) -> None:
        self._owners: dict[int, bytes] = {}
        self._groups: dict[int, bytes] = {}

    def describe(self, member: TarMember, fields: Fields) -> tuple[bytes, bool]:
        """The part of an entry that does not depend on the blob, and whether it says all.

        Raises:
            Unsupported: A table of contents cannot say it.
        """
        entry = _common(member, member.mode)
        entry["modtime"] = format_time(whole_seconds(member.mtime_ns))
        entry["userName"] = self._first(self._owners, member.uid, fields.uname)
        entry["groupName"] = self._first(self._groups, member.gid, fields.gname)
        entry["xattrs"] = _xattrs(member, member.xattrs)
        return _open_json(entry), False

    def _first(self, said: dict[int, bytes], number: int, name: bytes) -> str:
        # Only where it changes; a name that is not UTF-8 is left out, nobody needs it.
        if not name or said.get(number) == name:
            return ""
        said[number] = name
        return name.decode("utf-8", "ignore")


class ContainersEntries:
    """Writes entries as containers/storage does."""

    def describe(self, member: TarMember, fields: Fields) -> tuple[bytes, bool]:
        """See EstargzEntries."""
        is_exact = fields.is_plain and fields.mode >= 0
        entry = _common(member, fields.mode if is_exact else member.mode)
        times = {
            "modtime": member.mtime_ns,
            "accesstime": fields.atime_ns or 0,
            "changetime": fields.ctime_ns or 0,
        }
        for name, nanoseconds in times.items():
            entry[name] = format_time(nanoseconds)
            is_exact = is_exact and bool(entry[name] or not nanoseconds)
        entry["xattrs"] = _xattrs(member, fields.xattrs)
        if member.type is not MemberType.FILE and fields.size:
            is_exact = False
        if is_exact:
            entry["linkName"] = _text(member, fields.linkname)
            entry["devMajor"], entry["devMinor"] = fields.devmajor, fields.devminor
            is_exact = 0 <= fields.devmajor <= INT64_MAX and 0 <= fields.devminor <= INT64_MAX
        return _open_json(entry), is_exact


def chunk_entries(
    record: Record, offsets: list[int], end: int, *, has_ends: bool
) -> Iterator[bytes]:
    """All entries of one member.

    Args:
        record: The member.
        offsets: Where each of its chunks starts in the blob.
        end: Where the last one ends.
        has_ends: Whether the dialect says where files end, and what are holes.
    """
    more: dict[str, object] = {}
    if record.digest is not None and (record.chunks or not has_ends):
        more["digest"] = _digest(record.digest)
    chunks = record.chunks
    if chunks:
        more["offset"] = offsets[0]
        if has_ends:
            more["endOffset"] = end
        if len(chunks) > 1:
            more["chunkSize"] = chunks[0].size
        if not has_ends or len(chunks) > 1:
            more["chunkDigest"] = _digest(chunks[0].digest)
        if chunks[0].is_hole:
            more["chunkType"] = "zeros"
    yield record.entry + _close_json(more)
    name = record.member.name.decode("utf-8")
    for chunk, offset in zip(chunks[1:], offsets[1:], strict=True):
        later: dict[str, object] = {
            "name": name,
            "type": "chunk",
            "offset": offset,
            "chunkOffset": chunk.offset,
            "chunkSize": chunk.size,
            "chunkDigest": _digest(chunk.digest),
        }
        if chunk.is_hole:
            later["chunkType"] = "zeros"
        if has_ends and chunk is chunks[-1]:
            # containers/storage looks for it here, too.
            later["endOffset"] = end
        yield dump_json(later)


def dump_json(document: Mapping[str, object]) -> bytes:
    """One object, without spaces."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


@lru_cache(maxsize=1024)
def format_time(nanoseconds: int) -> str:
    """A time as RFC 3339 has it; nothing for the epoch, and for years that it does not have."""
    seconds, fraction = divmod(nanoseconds, NANOSECONDS)
    try:
        text = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    except OverflowError:
        return ""
    if not nanoseconds:
        return ""
    decimals = f".{fraction:09}".rstrip("0") if fraction else ""
    return f"{text:0>19}{decimals}Z"


def _common(member: TarMember, mode: int) -> dict[str, object]:
    for number in (member.uid, member.gid):
        if not 0 <= number <= INT64_MAX:
            raise _unsupported("an owner that no table of contents can name", member)
    entry: dict[str, object] = {
        "name": _text(member, member.name),
        "type": _TYPES[member.type],
        "size": member.size,
        "linkName": _text(member, member.linkname),
        "mode": mode,
        "uid": member.uid,
        "gid": member.gid,
        "devMajor": member.devmajor,
        "devMinor": member.devminor,
    }
    return entry


def _text(member: TarMember, value: bytes) -> str:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        text = _LOST
    if _LOST in text:
        raise _unsupported("a name that no table of contents can tell: it is not UTF-8", member)
    return text


def _xattrs(member: TarMember, pairs: tuple[tuple[bytes, bytes], ...]) -> dict[str, str]:
    return {_text(member, name): base64.b64encode(value).decode("ascii") for name, value in pairs}


def _unsupported(problem: str, member: TarMember) -> Unsupported:
    return Unsupported(problem, path=member.name, offset=member.payload_offset)


def _digest(value: bytes) -> str:
    return f"sha256:{value.hex()}"


def _open_json(entry: dict[str, object]) -> bytes:
    """An object to be continued; what is nothing is left out, as Go does."""
    told = {name: value for name, value in entry.items() if value or name in ("name", "type")}
    return dump_json(told)[:-1]


def _close_json(more: dict[str, object]) -> bytes:
    return b"," + dump_json(more)[1:] if more else b"}"
