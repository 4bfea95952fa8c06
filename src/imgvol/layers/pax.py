"""PAX extended headers: the records of one `x` or `g` body, and what they change in a header.

Knows nothing of blocks and offsets. As in Go's archive/tar an empty value leaves the header's own
field alone, and extended attributes are read from `SCHILY.xattr.*` only: `LIBARCHIVE.xattr.*`
repeats them in base64, and the unpackers that images are made for do not look at it.
"""

from collections.abc import Mapping
from typing import Final

from imgvol.layers.header import NANOSECONDS, FormatError, Header, parse_decimal

# The shortest record that Go's reader takes, "5 k=\n".
_SHORTEST_RECORD: Final = 5
_NEWLINE: Final = 0x0A
_POINT: Final = 0x2E
# The usual lengths, as text.
_LENGTHS: Final = {b"%d" % length: length for length in range(_SHORTEST_RECORD, 512)}

_XATTR_PREFIX: Final = b"SCHILY.xattr."
_TEXT_KEYS: Final = frozenset({b"path", b"linkpath", b"uname", b"gname"})

SPARSE_MAP: Final = b"GNU.sparse.map"
_SPARSE_OFFSET: Final = b"GNU.sparse.offset"
_SPARSE_SIZE: Final = b"GNU.sparse.numbytes"
_SPARSE_KEYS: Final = frozenset({_SPARSE_OFFSET, _SPARSE_SIZE})


def parse_records(body: bytes) -> dict[bytes, bytes]:
    r"""Read records `<length> <key>=<value>\n`, where the length counts the whole record.

    The map of GNU sparse 0.0, one record each for offset and size of every piece, becomes the one
    record of 0.1. Of several records with one key the last is kept.

    Raises:
        FormatError: A record breaks the format.
    """
    records: dict[bytes, bytes] = {}
    sparse_map: list[bytes] = []
    has_nul = b"\0" in body
    position, size = 0, len(body)
    while position < size:
        space = body.find(b" ", position)
        if space < 0:
            raise FormatError("PAX record without a length")
        text = body[position:space]
        length = _LENGTHS.get(text) or parse_decimal(text)
        end = position + length
        # A length that does not even cover itself would have a reader go round for ever.
        if length < _SHORTEST_RECORD or end <= space + 1 or end > size:
            raise FormatError("PAX record with a wrong length")
        if body[end - 1] != _NEWLINE:
            raise FormatError("PAX record without a newline at its end")
        equals = body.find(b"=", space + 1, end - 1)
        if equals <= space + 1:
            raise FormatError("PAX record without a key")
        key, value = body[space + 1 : equals], body[equals + 1 : end - 1]
        if has_nul and b"\0" in (value if key in _TEXT_KEYS else key):
            raise FormatError("PAX record with a NUL in a name")
        position = end
        if key in _SPARSE_KEYS:
            if (key == _SPARSE_SIZE) != len(sparse_map) % 2 or b"," in value:
                raise FormatError("GNU sparse records out of order")
            sparse_map.append(value)
        else:
            records[key] = value
    if sparse_map:
        records[SPARSE_MAP] = b",".join(sparse_map)
    return records


def apply_records(records: Mapping[bytes, bytes], header: Header) -> Header:
    """A header with the fields that records name replaced.

    Raises:
        FormatError: A value is not what its key asks for.
    """
    (flag, name, linkname, mode, uid, gid, size, mtime_ns, devmajor, devminor, is_gnu, _) = header
    xattrs: list[tuple[bytes, bytes]] = []
    for key, value in records.items():
        if not value:
            continue
        match key:
            case b"path":
                name = value
            case b"mtime":
                mtime_ns = _parse_time(value)
            case b"linkpath":
                linkname = value
            case b"size":
                size = parse_decimal(value)
            case b"uid":
                uid = parse_decimal(value)
            case b"gid":
                gid = parse_decimal(value)
            case b"atime" | b"ctime":
                _parse_time(value)  # unused, yet it must be a time, as in Go
            case _ if key.startswith(_XATTR_PREFIX):
                xattrs.append((_xattr_name(key), value))
    return tuple.__new__(
        Header,
        (
            flag,
            name,
            linkname,
            mode,
            uid,
            gid,
            size,
            mtime_ns,
            devmajor,
            devminor,
            is_gnu,
            tuple(sorted(xattrs)) if xattrs else (),
        ),
    )


def _xattr_name(key: bytes) -> bytes:
    name = key[len(_XATTR_PREFIX) :]
    if not name:
        raise FormatError("extended attribute without a name")
    return name


def _parse_time(text: bytes) -> int:
    """Seconds with a decimal fraction, as exact nanoseconds; further digits are cut off."""
    if 10 < len(text) < 28 and text[-10] == _POINT:
        digits = text[:-10] + text[-9:]  # as most are written
        if digits.isdigit():
            return int(digits)
    seconds, _, fraction = text.partition(b".")
    whole = parse_decimal(seconds) * NANOSECONDS
    if not fraction:
        return whole
    if not fraction.isdigit():
        raise FormatError("time that is not decimal")
    part = int(fraction[:9].ljust(9, b"0"))
    return whole - part if seconds.startswith(b"-") else whole + part
