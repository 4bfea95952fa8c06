"""The short cut through a tar archive: members that are nothing out of the ordinary.

A usual member is a file, a directory or a link, in one header, or in a PAX header with its body and
one header after it. Where the headers are whole in the input, one loop takes one member after
another, which is twice as quick as going by steps (`tar`). At the first that is anything else
(another type, a pending name, a hole, a cut, a mistake, a limit), it stops in front of it and has
changed nothing: to judge it is the parser's.
"""

from typing import Final

from imgvol import limits
from imgvol.layers.header import BLOCK, FormatError, parse_header
from imgvol.layers.member import MemberType, TarMember
from imgvol.layers.pax import apply_records, parse_records
from imgvol.layers.sparse import is_sparse

_FLAG: Final = 156
_FILE: Final = MemberType.FILE
_DIRECTORY: Final = MemberType.DIRECTORY
_KINDS: Final = {
    ord(kind.value): kind for kind in (_FILE, _DIRECTORY, MemberType.SYMLINK, MemberType.HARDLINK)
}
_RECORDS: Final = ord("x")


def take_plain(data: bytes, position: int, base: int, members: list[TarMember], taken: int) -> int:
    """Take the usual members that follow, up to the first that is not, or not whole.

    Args:
        data: A piece of the archive.
        position: Where in it a header is due, with nothing pending from special ones.
        base: Where in the archive the piece starts.
        members: The members are put at its end.
        taken: How many members the archive had before.

    Returns:
        Where the next header is due: behind the payload of the last member, which may be beyond
        the end of the piece; the old position, if there is none to take.
    """
    size = len(data)
    allowed = limits.TAR_ENTRIES - taken + len(members)
    while position + BLOCK <= size and len(members) < allowed:
        start = position
        flag = data[position + _FLAG]
        try:
            records = None
            if flag == _RECORDS:
                length = parse_header(data[position : position + BLOCK]).size
                body = position + BLOCK
                position = body + length + -length % BLOCK
                if not 0 < length <= limits.TAR_SPECIAL_SIZE or position + BLOCK > size:
                    return start
                records = parse_records(data[body : body + length])
                flag = data[position + _FLAG]
            kind = _KINDS.get(flag)
            if kind is None:
                return start
            header = parse_header(data[position : position + BLOCK])
            if records:
                if header.size < 0 or is_sparse(records):
                    return start
                header = apply_records(records, header)
        except FormatError:
            return start
        _, name, linkname, mode, uid, gid, stored, mtime_ns, _, _, _, xattrs = header
        position += BLOCK
        if kind is _FILE:
            if not 0 <= stored <= limits.TAR_SIZE - (base + position):
                return start
            linkname = b""
        else:
            stored = 0  # whatever the header gives
            if kind is _DIRECTORY:
                linkname = b""
        members.append(
            tuple.__new__(
                TarMember,
                (
                    name,
                    kind,
                    mode & 0o7777,
                    uid,
                    gid,
                    stored,
                    mtime_ns,
                    linkname,
                    0,
                    0,
                    xattrs,
                    base + position,
                    stored,
                    None,
                ),
            )
        )
        position += stored + -stored % BLOCK
    return position
