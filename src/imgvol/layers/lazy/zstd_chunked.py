"""zstd:chunked: a zstd blob whose table of contents hides in a frame that decoders skip.

Two families of tools write it and agree on all but details: which annotations say where the table
of contents is and what its (compressed) digest is, and how the footer looks. containers/storage
moved to names of its own; its older versions, in Debian's podman, and stargz-snapshotter share
others. Numbers in annotations are pinned by the manifest and win; the footer, which nothing pins,
is read only where they are missing, and a wrong one leads to bytes that fail their digest.
"""

import re
import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from imgvol import limits
from imgvol.errors import InvalidLayer, LimitExceeded, Unsupported
from imgvol.layers.compression import Compression, open_decoder

FRAME_HEADER_SIZE: Final = 8
"""Of a skippable frame: magic and size."""


class Family(NamedTuple):
    """The names of one family's annotations.

    Attributes:
        position: Where the table of contents is.
        checksum: The digest of its compressed form.
    """

    position: str
    checksum: str


CONTAINERS: Final = Family(
    "io.github.containers.zstd-chunked.manifest-position",
    "io.github.containers.zstd-chunked.manifest-checksum",
)
STARGZ: Final = Family(
    "io.containers.zstd-chunked.manifest-position",
    "io.containers.zstd-chunked.manifest-checksum",
)

TAR_SPLIT: Final = "io.github.containers.zstd-chunked.tarsplit-position"
"""Where the first family says that its tar-split is: offset, size and raw size."""

FOOTER_SIZE: Final = 40
CONTAINERS_FOOTER_SIZE: Final = 64

# offset, size and raw size of the table of contents, and its type
_FOOTER: Final = struct.Struct("<QQQQ")
_FOOTERS: Final = {FOOTER_SIZE: b"GnUlInUx", CONTAINERS_FOOTER_SIZE: b"GNUlInUx"}
_POSITION: Final = re.compile(r"(\d{1,19}):(\d{1,19}):(\d{1,19}):(\d{1,19})", re.ASCII)
_TYPE_CRFS: Final = 1


class Position(NamedTuple):
    """Where a table of contents lies in its blob.

    Attributes:
        offset: Of its first byte, behind the header of its frame.
        size: Its bytes.
        raw_size: Bytes of its JSON.
    """

    offset: int
    size: int
    raw_size: int


def family_of(annotations: Mapping[str, str]) -> Family | None:
    """Which family's annotations these are, None when they are nobody's.

    Raises:
        InvalidLayer: They are those of both: two tables of contents.
    """
    families = [
        family for family in (CONTAINERS, STARGZ) if not annotations.keys().isdisjoint(family)
    ]
    if len(families) > 1:
        raise InvalidLayer("a layer with two tables of contents", hint=two_tables_hint())
    return families[0] if families else None


def two_tables_hint() -> str:
    """What to do about a layer with two tables of contents."""
    return "Two readers could see two different layers here: build the image again."


def parse_position(text: str) -> Position:
    """Read the annotation.

    Raises:
        InvalidLayer: It is malformed.
        Unsupported: It is of a type that we do not know.
    """
    match = _POSITION.fullmatch(text)
    if match is None:
        raise InvalidLayer("malformed position of a table of contents", position=text[:96])
    return _position(*map(int, match.groups()))


def parse_footer(tail: bytes) -> Position | None:
    """Read the footer at the end of a blob; None when there is none.

    Raises:
        Unsupported: It is of a type that we do not know.
    """
    for size, magic in _FOOTERS.items():
        if len(tail) >= size and tail.endswith(magic):
            return _position(*_FOOTER.unpack_from(tail, len(tail) - size))
    return None


def format_position(position: Position) -> str:
    """Write the annotation."""
    return ":".join(map(str, (*position, _TYPE_CRFS)))


def format_footer(position: Position, tar_split: Position) -> bytes:
    """Write the footer of the first family, which has a place for a tar-split, too."""
    magic = _FOOTERS[CONTAINERS_FOOTER_SIZE]
    return _FOOTER.pack(*position, _TYPE_CRFS) + struct.pack("<QQQ", *tar_split) + magic


def _position(offset: int, size: int, raw_size: int, kind: int) -> Position:
    if kind != _TYPE_CRFS:
        raise Unsupported("a table of contents of an unknown type", type=kind)
    return Position(offset, size, raw_size)


def extract_json(data: bytes, raw_size: int) -> bytes:
    """Decompress a table of contents.

    Raises:
        InvalidLayer: It is no zstd, or not of the size that it should be.
        LimitExceeded: It is larger than limits.TOC_SIZE.
    """
    if raw_size > limits.TOC_SIZE:
        raise LimitExceeded(
            "table of contents too large", limit="TOC_SIZE", allowed=limits.TOC_SIZE
        )
    decoder = open_decoder(Compression.ZSTD)
    content = bytearray()
    for piece in decoder.feed(data):
        content += piece
        if len(content) > raw_size:
            break
    else:
        decoder.finish()
    if len(content) != raw_size:
        raise InvalidLayer("a table of contents of a wrong size", expected=raw_size)
    return bytes(content)
