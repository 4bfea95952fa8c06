"""The zTOC of SOCI: a FlatBuffer in, members and the description of spans out.

Schema: `ztoc/fbs/ztoc.fbs` of soci-snapshotter, version 0.9, the only one so far. A zTOC lists the
members of a layer's tar as Go's archive/tar saw them, which is what `tar` sees too, each with the
offset of its payload in the uncompressed tar.

A tar leaves little room for lies about offsets, and all of it is checked: each payload starts at a
block, after at least one block of header that comes after the payload before; none ends after the
archive. So members cannot overlap, and sorting by offset gives the order of the tar.

One thing a zTOC cannot say is where the holes of a sparse file are; a layer with one is refused.
"""

import enum
from dataclasses import dataclass
from typing import Final

from imgvol import limits
from imgvol.errors import InvalidDigest, InvalidLayer, LimitExceeded, Unsupported
from imgvol.layers.header import BLOCK
from imgvol.layers.lazy.flatbuffer import (
    I32,
    I64,
    U8,
    U32,
    BudgetExceeded,
    FlatBuffer,
    FlatBufferError,
    Table,
)
from imgvol.layers.lazy.rfc3339 import parse_rfc3339
from imgvol.layers.tar import MemberType, TarMember
from imgvol.oci.digest import Digest

VERSION: Final = b"0.9"

_TYPES: Final = {
    b"reg": MemberType.FILE,
    b"dir": MemberType.DIRECTORY,
    b"symlink": MemberType.SYMLINK,
    b"hardlink": MemberType.HARDLINK,
    b"char": MemberType.CHAR,
    b"block": MemberType.BLOCK,
    b"fifo": MemberType.FIFO,
}
_LINKS: Final = frozenset({MemberType.SYMLINK, MemberType.HARDLINK})
_DEVICES: Final = frozenset({MemberType.CHAR, MemberType.BLOCK})
_DEVICE_NUMBERS: Final = range(1 << 32)

_XATTR_PREFIX: Final = b"SCHILY.xattr."
_SPARSE_PREFIX: Final = b"GNU.sparse."


class Algorithm(enum.IntEnum):
    """How the blob is compressed; the numbers are the schema's, but for the last."""

    GZIP = 1
    UNCOMPRESSED = 2
    ZSTD_FRAMES = 100  # in documents of our own: see `zstd_frames`


SOCI_ALGORITHMS: Final = frozenset({Algorithm.GZIP, Algorithm.UNCOMPRESSED})
"""What a zTOC may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ztoc:
    """What a zTOC says. Sizes are checked against each other, spans are not looked into.

    Attributes:
        members: Those of the tar, in its order.
        compressed_size: Bytes of the blob.
        uncompressed_size: Bytes of the tar up to where its reader stopped: padding that tools put
            after the end is not counted.
        algorithm: How the blob is compressed.
        span_digests: SHA-256 of the compressed bytes of each span.
        checkpoints: How to start in the middle; what it is depends on the algorithm.
    """

    members: list[TarMember]
    compressed_size: int
    uncompressed_size: int
    algorithm: Algorithm
    span_digests: tuple[Digest, ...]
    checkpoints: bytes


def parse_ztoc(data: bytes, *, algorithms: frozenset[Algorithm] = SOCI_ALGORITHMS) -> Ztoc:
    """Read a zTOC, which is not verified here.

    Args:
        data: Its bytes.
        algorithms: How the blob may be compressed.

    Raises:
        InvalidLayer: It is none, or contradicts itself.
        LimitExceeded: It is too large, or describes too much.
        Unsupported: Another version or compression, spans without digests, or sparse files.
    """
    if len(data) > limits.ZTOC_SIZE:
        raise _too_large()
    try:
        return _parse(FlatBuffer(data, budget=limits.ZTOC_SIZE).root(), algorithms)
    except FlatBufferError as error:
        raise InvalidLayer(f"damaged zTOC: {error}") from error
    except BudgetExceeded as error:
        raise _too_large() from error


def _parse(root: Table, algorithms: frozenset[Algorithm]) -> Ztoc:
    version = root.string(0)
    if version != VERSION:
        raise Unsupported("zTOC of an unknown version", version=version[:16])
    toc, spans = root.table(4), root.table(5)
    if toc is None or spans is None:
        raise FlatBufferError("a part is missing")
    compressed, uncompressed = root.integer(2, I64), root.integer(3, I64)
    if compressed <= 0 or uncompressed < 0:
        raise InvalidLayer("zTOC with an impossible size")
    if max(compressed, uncompressed) > limits.TAR_SIZE:
        raise LimitExceeded("layer too large", limit="TAR_SIZE", allowed=limits.TAR_SIZE)
    algorithm = spans.integer(0, U8, Algorithm.GZIP)
    if algorithm not in algorithms:
        raise Unsupported("zTOC of an unknown compression", algorithm=algorithm)
    return Ztoc(
        members=_parse_members(toc, uncompressed),
        compressed_size=compressed,
        uncompressed_size=uncompressed,
        algorithm=Algorithm(algorithm),
        span_digests=_parse_digests(spans),
        checkpoints=spans.string(3),
    )


def _parse_digests(spans: Table) -> tuple[Digest, ...]:
    digests = tuple(map(_parse_digest, spans.strings(2)))
    if not digests:
        raise Unsupported("zTOC without digests: nothing could be verified")
    if len(digests) != spans.integer(1, I32) + 1:
        raise InvalidLayer("zTOC with a digest missing, or one too many")
    return digests


def _parse_digest(text: bytes) -> Digest:
    try:
        digest = Digest.parse(text.decode("ascii"))
    except (InvalidDigest, UnicodeDecodeError) as error:
        raise InvalidLayer("zTOC with a malformed digest", digest=text[:80]) from error
    if digest.algorithm != "sha256":
        raise Unsupported("zTOC with digests other than SHA-256", digest=digest)
    return digest


# --- members --------------------------------------------------------------------------------------


def _parse_members(toc: Table, archive_size: int) -> list[TarMember]:
    members: list[TarMember] = []
    for table in toc.tables(0):
        if len(members) == limits.TAR_ENTRIES:
            raise LimitExceeded(
                "too many members in one layer", limit="TAR_ENTRIES", allowed=limits.TAR_ENTRIES
            )
        members.append(_parse_member(table))
    members.sort(key=lambda member: member.payload_offset)
    _check_offsets(members, archive_size)
    return members


def _check_offsets(members: list[TarMember], archive_size: int) -> None:
    header = 0
    for member in members:
        offset = member.payload_offset
        end = offset + member.payload_size
        if offset < header + BLOCK or offset % BLOCK or end > archive_size:
            raise InvalidLayer(
                "zTOC with a member where none can be", path=member.name, offset=offset
            )
        header = -(-end // BLOCK) * BLOCK


def _parse_member(table: Table) -> TarMember:
    name = table.string(0)
    kind = _TYPES.get(table.string(1))
    if kind is None:
        raise InvalidLayer("zTOC with a member of unknown type", path=name)
    # Other members may state a size; as in a tar, nothing is stored for them.
    size = table.integer(3, I64) if kind is MemberType.FILE else 0
    if size < 0:
        raise InvalidLayer("zTOC with a member of negative size", path=name)
    mtime = parse_rfc3339(table.string(10))
    if mtime is None:
        raise InvalidLayer("zTOC with a malformed time", path=name)
    major, minor = _parse_device(table, name) if kind in _DEVICES else (0, 0)
    return TarMember(
        name,
        kind,
        table.integer(5, I64) & 0o7777,
        table.integer(6, U32),
        table.integer(7, U32),
        size,
        mtime,
        table.string(4) if kind in _LINKS else b"",
        major,
        minor,
        _parse_xattrs(table, name),
        table.integer(2, I64),
        size,
    )


def _parse_device(table: Table, name: bytes) -> tuple[int, int]:
    major, minor = table.integer(11, I64), table.integer(12, I64)
    if major not in _DEVICE_NUMBERS or minor not in _DEVICE_NUMBERS:
        raise InvalidLayer("zTOC with a device number out of range", path=name)
    return major, minor


def _parse_xattrs(table: Table, name: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The extended attributes among the PAX records, which the schema calls `xattrs`."""
    found: dict[bytes, bytes] = {}
    for record in table.tables(13):
        key = record.string(0)
        if key.startswith(_SPARSE_PREFIX):
            raise Unsupported("zTOC with a sparse file, whose holes it does not tell", path=name)
        if not key.startswith(_XATTR_PREFIX):
            continue
        attribute = key[len(_XATTR_PREFIX) :]
        if not attribute or b"\0" in attribute:
            raise InvalidLayer("zTOC with an extended attribute without a name", path=name)
        value = record.string(1)
        if value:
            found[attribute] = value
    return tuple(sorted(found.items())) if found else ()


def _too_large() -> LimitExceeded:
    return LimitExceeded("zTOC is too large", limit="ZTOC_SIZE", allowed=limits.ZTOC_SIZE)
