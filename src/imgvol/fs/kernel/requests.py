"""From the bytes of one request to a record. Pure; any bytes give a record or MalformedRequest.

The kernel is trusted, but a request that it has cut short, or that came from another version of
the protocol, must not become an index error in the loop that serves every view.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from imgvol.fs.kernel.protocol import (
    BATCH_FORGET_IN,
    COMPAT_INIT_IN_SIZE,
    EXTENSION_UNIT,
    FORGET_IN,
    FORGET_ONE,
    GETXATTR_IN,
    IN_HEADER,
    INIT_IN,
    INTERRUPT_IN,
    OPEN_IN,
    READ_IN,
    InitFlag,
    Opcode,
    ReadFlag,
)

_FLAGS2_SHIFT: Final = 32


class MalformedRequest(Exception):  # never leaves this room
    """A request that is none.

    Args:
        reason: What is wrong with it.
        unique: Whom to answer; None when not even that can be read.
    """

    def __init__(self, reason: str, unique: int | None = None) -> None:
        super().__init__(reason)
        self.unique = unique


class Init(NamedTuple):
    """The first request. `flags` are those of both words, as in `InitFlag`."""

    major: int
    minor: int
    max_readahead: int
    flags: InitFlag


class Lookup(NamedTuple):
    """A name of the directory `nodeid`."""

    name: bytes


class Forget(NamedTuple):
    """Inodes, and how many references to each are given back. It gets no reply."""

    references: list[tuple[int, int]]


class Getattr(NamedTuple):
    """The attributes of `nodeid`."""


class Readlink(NamedTuple):
    """The target of `nodeid`."""


class Open(NamedTuple):
    """`flags` are those of open(2)."""

    flags: int


class Read(NamedTuple):
    """A range of the file `nodeid`.

    Attributes:
        offset: Where it begins.
        size: How many bytes.
        is_direct: It goes past the page cache, straight to the caller of read(2).
    """

    offset: int
    size: int
    is_direct: bool


class Statfs(NamedTuple):
    """The size of the filesystem."""


class Release(NamedTuple):
    """An open file is closed."""


class Getxattr(NamedTuple):
    """An extended attribute; a size of 0 asks for its length."""

    size: int
    name: bytes


class Listxattr(NamedTuple):
    """All of their names; a size of 0 asks for their length."""

    size: int


class Opendir(NamedTuple):
    """The directory `nodeid` is to be listed."""


class Readdir(NamedTuple):
    """A part of a listing.

    Attributes:
        cookie: Where it begins.
        size: How many bytes it may take.
        is_plus: Whether it comes with attributes, each of them a lookup.
    """

    cookie: int
    size: int
    is_plus: bool


class Releasedir(NamedTuple):
    """An open directory is closed."""


class Interrupt(NamedTuple):
    """Whoever made the request `unique` has been sent a signal. It gets no reply."""

    unique: int


class Destroy(NamedTuple):
    """The filesystem has been unmounted."""


class Other(NamedTuple):
    """What a read-only filesystem need not understand."""


Body = (
    Init
    | Lookup
    | Forget
    | Getattr
    | Readlink
    | Open
    | Read
    | Statfs
    | Release
    | Getxattr
    | Listxattr
    | Opendir
    | Readdir
    | Releasedir
    | Interrupt
    | Destroy
    | Other
)


class Request(NamedTuple):
    """One request.

    Attributes:
        opcode: See `Opcode`; it may be one that is not there.
        unique: Names the request in its reply.
        nodeid: The inode that it is about.
        body: What is asked.
        tid: The thread that asks; 0: none that we could know.
    """

    opcode: int
    unique: int
    nodeid: int
    body: Body
    tid: int


def decode(data: memoryview) -> Request:
    """Decodes one request: all that one read of /dev/fuse has returned.

    Raises:
        MalformedRequest: It is too short, or its parts do not fit together.
    """
    try:
        length, opcode, unique, nodeid, _, _, tid, extensions = IN_HEADER.unpack_from(data, 0)
    except struct.error as exc:
        raise MalformedRequest("it is shorter than its header") from exc
    if length != len(data):
        raise MalformedRequest(f"{len(data)} bytes, and it says {length}", unique)
    end = length - extensions * EXTENSION_UNIT
    decoder = _DECODERS.get(opcode)
    if decoder is None:
        return Request(opcode, unique, nodeid, _OTHER, tid)
    if end < IN_HEADER.size:
        raise MalformedRequest("its extensions are longer than it is", unique)
    try:
        body = decoder(nodeid, data[IN_HEADER.size : end])
    except (struct.error, ValueError) as exc:
        raise MalformedRequest(str(exc), unique) from exc
    return Request(opcode, unique, nodeid, body, tid)


# --- by opcode: the inode, and what follows the header -------------------------------------------


def _init(_nodeid: int, body: memoryview) -> Init:
    data = bytes(body)
    if len(data) == COMPAT_INIT_IN_SIZE:
        data = data.ljust(INIT_IN.size, b"\0")
    major, minor, max_readahead, flags, flags2 = INIT_IN.unpack_from(data, 0)
    if flags & InitFlag.INIT_EXT:
        flags |= flags2 << _FLAGS2_SHIFT
    return Init(major, minor, max_readahead, InitFlag(flags))


def _name(data: memoryview) -> bytes:
    name, nul, rest = bytes(data).partition(b"\0")
    if not name or not nul or rest:
        raise ValueError("a name does not end where it says")
    return name


def _lookup(_nodeid: int, body: memoryview) -> Lookup:
    return Lookup(_name(body))


def _forget(nodeid: int, body: memoryview) -> Forget:
    return Forget([(nodeid, FORGET_IN.unpack_from(body, 0)[0])])


def _batch_forget(_nodeid: int, body: memoryview) -> Forget:
    (count,) = BATCH_FORGET_IN.unpack_from(body, 0)
    one = FORGET_ONE.size
    if count * one > len(body) - BATCH_FORGET_IN.size:
        raise ValueError("fewer inodes are forgotten than it says")
    starts = range(BATCH_FORGET_IN.size, BATCH_FORGET_IN.size + count * one, one)
    references = []
    for start in starts:
        inode, number = FORGET_ONE.unpack_from(body, start)
        references.append((inode, number))
    return Forget(references)


def _open(_nodeid: int, body: memoryview) -> Open:
    return Open(OPEN_IN.unpack_from(body, 0)[0])


def _read(_nodeid: int, body: memoryview) -> Read:
    _, offset, size, flags, _, _ = READ_IN.unpack_from(body, 0)
    # The kernel names an owner of locks for what a caller reads, and not for what the cache does.
    return Read(offset, size, bool(flags & ReadFlag.LOCKOWNER))


def _readdir(_nodeid: int, body: memoryview) -> Readdir:
    _, offset, size, _, _, _ = READ_IN.unpack_from(body, 0)
    return Readdir(offset, size, is_plus=False)


def _readdirplus(_nodeid: int, body: memoryview) -> Readdir:
    _, offset, size, _, _, _ = READ_IN.unpack_from(body, 0)
    return Readdir(offset, size, is_plus=True)


def _getxattr(_nodeid: int, body: memoryview) -> Getxattr:
    (size,) = GETXATTR_IN.unpack_from(body, 0)
    return Getxattr(size, _name(body[GETXATTR_IN.size :]))


def _listxattr(_nodeid: int, body: memoryview) -> Listxattr:
    return Listxattr(GETXATTR_IN.unpack_from(body, 0)[0])


def _interrupt(_nodeid: int, body: memoryview) -> Interrupt:
    return Interrupt(INTERRUPT_IN.unpack_from(body, 0)[0])


def _always(body: Body) -> Callable[[int, memoryview], Body]:
    """For requests of which nothing but the inode counts."""
    return lambda _nodeid, _body: body


_OTHER: Final = Other()
_DECODERS: Final[Mapping[int, Callable[[int, memoryview], Body]]] = {
    Opcode.INIT: _init,
    Opcode.LOOKUP: _lookup,
    Opcode.FORGET: _forget,
    Opcode.BATCH_FORGET: _batch_forget,
    Opcode.GETATTR: _always(Getattr()),
    Opcode.READLINK: _always(Readlink()),
    Opcode.OPEN: _open,
    Opcode.READ: _read,
    Opcode.STATFS: _always(Statfs()),
    Opcode.RELEASE: _always(Release()),
    Opcode.GETXATTR: _getxattr,
    Opcode.LISTXATTR: _listxattr,
    Opcode.OPENDIR: _always(Opendir()),
    Opcode.READDIR: _readdir,
    Opcode.READDIRPLUS: _readdirplus,
    Opcode.RELEASEDIR: _always(Releasedir()),
    Opcode.INTERRUPT: _interrupt,
    Opcode.DESTROY: _always(Destroy()),
}
