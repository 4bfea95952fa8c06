"""Tar archives by hand, bit by bit: what no tool would write."""

from collections.abc import Iterable

from imgvol.layers.tar import TarMember, TarParser

END = bytes(1024)
USTAR = b"ustar\x0000"
GNU = b"ustar  \0"
V7 = bytes(8)


def octal(number: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, number)


def base256(number: int, width: int) -> bytes:
    marker = 1 << (8 * width - 1)
    return ((number % marker) | marker).to_bytes(width, "big")


def header(
    name: bytes = b"file",
    flag: bytes = b"0",
    *,
    size: int | bytes = 0,
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 1_700_000_000,
    linkname: bytes = b"",
    magic: bytes = USTAR,
    major: int | bytes = 0,
    minor: int | bytes = 0,
    tail: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """One header block; a number given as bytes is written as it is. `tail` starts at byte 345."""
    block = bytearray(512)
    fields: list[tuple[int, int, int | bytes]] = [
        (0, 100, name),
        (100, 8, mode),
        (108, 8, uid),
        (116, 8, gid),
        (124, 12, size),
        (136, 12, mtime),
        (148, 8, b" " * 8),
        (156, 1, flag),
        (157, 100, linkname),
        (257, 8, magic),
        (329, 8, major),
        (337, 8, minor),
        (345, 167, tail),
    ]
    for start, width, value in fields:
        raw = octal(value, width) if isinstance(value, int) else value
        assert len(raw) <= width
        block[start : start + len(raw)] = raw
    block[148:156] = b"%06o\0 " % sum(block) if checksum is None else checksum
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def member(name: bytes = b"file", data: bytes = b"", **fields) -> bytes:
    """A regular file."""
    return header(name, size=len(data), **fields) + padded(data)


def special(flag: bytes, body: bytes, **fields) -> bytes:
    """A header that describes the next one, with its body."""
    return header(b"special", flag, size=len(body), **fields) + padded(body)


def record(key: bytes, value: bytes) -> bytes:
    rest = b" %s=%s\n" % (key, value)
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d%s" % (length, rest)


def pax(*records: tuple[bytes, bytes], flag: bytes = b"x") -> bytes:
    return special(flag, b"".join(record(key, value) for key, value in records))


def parse(pieces: Iterable[bytes | memoryview]) -> list[TarMember]:
    """All members of an archive that arrives in pieces."""
    parser = TarParser()
    members = [member for piece in pieces for member in parser.feed(piece)]
    parser.finish()
    return members
