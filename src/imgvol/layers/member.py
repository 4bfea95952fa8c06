"""What the members of a tar archive are, whoever finds them."""

import enum
from typing import NamedTuple

from imgvol.layers.sparse import Piece


class MemberType(enum.Enum):
    """What a member is; the value is the usual type flag of its header."""

    FILE = b"0"
    HARDLINK = b"1"
    SYMLINK = b"2"
    CHAR = b"3"
    BLOCK = b"4"
    DIRECTORY = b"5"
    FIFO = b"6"

    # Members are alone of their kind. The hash that they inherit is computed by Python code.
    __hash__ = object.__hash__


class TarMember(NamedTuple):
    """One member of an archive, as its headers give it: nothing is cleaned, mapped or clamped.

    A tuple and not a dataclass: layers have millions of members, and a frozen dataclass of this
    width takes several times as long to make.

    Attributes:
        name: The path as written, which may be empty, absolute, or lead out of the archive.
        type: What it is.
        mode: Permission, set-id and sticky bits.
        uid: Owner. Any 64-bit number: the archive decides.
        gid: Group, likewise.
        size: Size of a file's content, holes included; 0 for everything else.
        mtime_ns: Nanoseconds since 1970; may be negative or need more than 64 bits.
        linkname: Target of a hard or symbolic link, otherwise empty.
        devmajor: Of a character or block device, otherwise 0; 32 bits.
        devminor: Likewise.
        xattrs: Extended attributes, names without prefix, sorted.
        payload_offset: Where the stored content starts in the uncompressed archive.
        payload_size: How much is stored there.
        sparse: None, or for a file with holes: offset in the file and size of each stored piece,
            in order; they lie one after another from payload_offset.
    """

    name: bytes
    type: MemberType
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    linkname: bytes = b""
    devmajor: int = 0
    devminor: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    payload_offset: int = 0
    payload_size: int = 0
    sparse: tuple[Piece, ...] | None = None
