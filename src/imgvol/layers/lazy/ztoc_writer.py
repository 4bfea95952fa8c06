"""Writes zTOCs, in the schema that `ztoc` reads.

In the buffer come, in this order: what there is one of, checkpoints, digests, members, their PAX
records, and all text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

from imgvol import limits
from imgvol.errors import LimitExceeded
from imgvol.layers.lazy.flatbuffer_writer import OFFSET, FlatBufferWriter, Layout, Text
from imgvol.layers.lazy.ztoc import VERSION, Algorithm
from imgvol.layers.lazy.ztoc_members import Records, ZtocMember

# The version of `zinfo.fbs` that soci-snapshotter writes.
_ZINFO_VERSION: Final = 2
_ZINFO_SIZE: Final = limits.KIB

# Slots of the schema; in stored order, what fills the gap behind a table's own offset first.
_ROOT: Final = Layout(
    6, (0, OFFSET), (2, "q"), (3, "q"), (1, OFFSET), (4, OFFSET), (5, OFFSET)
)  # version, sizes of blob and tar, tool, TOC, spans
_SPANS: Final = Layout(4, (1, "i"), (2, OFFSET), (3, OFFSET), (0, "B"))
_TOC: Final = Layout(1, (0, OFFSET))
_RECORD: Final = Layout(2, (0, OFFSET), (1, OFFSET))
_ZINFO: Final = Layout(3, (0, "i"), (1, "q"), (2, "q"))


def _member_layout(has_link: bool, has_device: bool, has_records: bool) -> Layout:
    fields = [(0, OFFSET), (2, "q"), (3, "q"), (5, "q")]  # name, offset, size, mode
    fields += [(11, "q"), (12, "q")] if has_device else []
    # type, owner, their names, time
    fields += [(1, OFFSET), (6, "I"), (7, "I"), (8, OFFSET), (9, OFFSET), (10, OFFSET)]
    fields += [(4, OFFSET)] if has_link else []
    fields += [(13, OFFSET)] if has_records else []
    return Layout(14, *fields)


_MEMBERS: Final = {shape: _member_layout(*shape) for shape in product((False, True), repeat=3)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ZtocParts:
    """What a zTOC says; see `ztoc.Ztoc`.

    Attributes:
        span_digests: SHA-256 of each span, as bytes.
        tool: Who has made it, for people.
    """

    members: Sequence[ZtocMember]
    compressed_size: int
    uncompressed_size: int
    algorithm: Algorithm
    span_digests: Sequence[bytes]
    checkpoints: bytes
    tool: bytes


def write_ztoc(parts: ZtocParts) -> bytes:
    """Write a zTOC.

    Raises:
        LimitExceeded: It would be larger than readers accept.
    """
    try:
        return _write(parts)
    except LimitExceeded as error:
        raise LimitExceeded(
            "the zTOC of the layer would be too large",
            hint="Choose larger spans: --span-size.",
            limit="ZTOC_SIZE",
            allowed=limits.ZTOC_SIZE,
        ) from error


def write_tar_zinfo(span_size: int, size: int) -> bytes:
    """The "checkpoints" of a layer that is not compressed: `zinfo.fbs`."""
    out = FlatBufferWriter(largest=_ZINFO_SIZE)
    out.fill(_ZINFO, out.reserve(_ZINFO), _ZINFO_VERSION, span_size, size)
    return bytes(out.data)


def _write(parts: ZtocParts) -> bytes:
    out = FlatBufferWriter(largest=limits.ZTOC_SIZE)
    root, spans, toc = (out.reserve(layout) for layout in (_ROOT, _SPANS, _TOC))
    checkpoints = out.add_bytes(parts.checkpoints)
    digests = out.reserve_vector(len(parts.span_digests))
    members = out.reserve_vector(len(parts.members))
    layouts = [_MEMBERS[_shape(member)] for member in parts.members]
    tables = [out.reserve(layout) for layout in layouts]
    records: dict[Records, _WrittenRecords] = {}
    for member in parts.members:
        if member.records and member.records not in records:
            records[member.records] = _WrittenRecords(out, member.records)
    text = out.begin_text()
    for member, layout, table in zip(parts.members, layouts, tables, strict=True):
        _fill_member(out, member, layout, table, text, records)
    for written in records.values():
        written.fill(out, text)
    out.fill_vector(members, tables)
    names = (b"sha256:" + digest.hex().encode() for digest in parts.span_digests)
    out.fill_vector(digests, [text.at(name) for name in names])
    out.fill(_TOC, toc, members)
    last = len(parts.span_digests) - 1
    out.fill(_SPANS, spans, last, digests, checkpoints, parts.algorithm)
    sizes = (parts.compressed_size, parts.uncompressed_size)
    out.fill(_ROOT, root, text.at(VERSION), *sizes, text.at(parts.tool), toc, spans)
    return out.finish(text)


def _shape(member: ZtocMember) -> tuple[bool, bool, bool]:
    has_device = bool(member.devmajor or member.devminor)
    return bool(member.linkname), has_device, bool(member.records)


def _fill_member(
    out: FlatBufferWriter,
    member: ZtocMember,
    layout: Layout,
    table: int,
    text: Text,
    records: dict[Records, "_WrittenRecords"],
) -> None:
    values = [text.at(member.name), member.offset, member.size, member.mode]
    if member.devmajor or member.devminor:
        values += member.devmajor, member.devminor
    values += (
        text.at(member.type),
        member.uid,
        member.gid,
        text.at(member.uname),
        text.at(member.gname),
        text.at(member.mtime),
    )
    if member.linkname:
        values.append(text.at(member.linkname))
    if member.records:
        values.append(records[member.records].vector)
    out.fill(layout, table, *values)


class _WrittenRecords:
    """PAX records in the buffer, which several members may share: each text comes later."""

    __slots__ = ("_records", "_tables", "vector")

    def __init__(self, out: FlatBufferWriter, records: Records) -> None:
        self._records = records
        self.vector = out.reserve_vector(len(records))
        self._tables = [out.reserve(_RECORD) for _ in records]

    def fill(self, out: FlatBufferWriter, text: Text) -> None:
        out.fill_vector(self.vector, self._tables)
        for table, (key, value) in zip(self._tables, self._records, strict=True):
            out.fill(_RECORD, table, text.at(key), text.at(value))
