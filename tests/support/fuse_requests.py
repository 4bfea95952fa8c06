"""Requests as the kernel writes them."""

from imgvol.fs.kernel.protocol import (
    BATCH_FORGET_IN,
    FORGET_IN,
    FORGET_ONE,
    GETXATTR_IN,
    IN_HEADER,
    INIT_IN,
    INTERRUPT_IN,
    OPEN_IN,
    READ_IN,
    Opcode,
)


def request(opcode: int, nodeid: int = 1, body: bytes = b"", unique: int = 2, extlen: int = 0):
    size = IN_HEADER.size + len(body)
    return IN_HEADER.pack(size, opcode, unique, nodeid, 0, 0, 7, extlen) + body


def name(text: bytes) -> bytes:
    return text + b"\0"


def samples() -> dict[Opcode, bytes]:
    """A good request of every kind that is understood."""
    bodies = {
        Opcode.LOOKUP: name(b"etc"),
        Opcode.FORGET: FORGET_IN.pack(3),
        Opcode.BATCH_FORGET: BATCH_FORGET_IN.pack(2)
        + FORGET_ONE.pack(7, 1)
        + FORGET_ONE.pack(8, 2),
        Opcode.OPEN: OPEN_IN.pack(0o100000, 0),
        Opcode.READ: READ_IN.pack(9, 4096, 8192, 0, 0, 0),
        Opcode.READDIR: READ_IN.pack(9, 3, 4096, 0, 0, 0),
        Opcode.READDIRPLUS: READ_IN.pack(9, 3, 4096, 0, 0, 0),
        Opcode.GETXATTR: GETXATTR_IN.pack(100) + name(b"user.x"),
        Opcode.LISTXATTR: GETXATTR_IN.pack(100),
        Opcode.INIT: INIT_IN.pack(7, 45, 1 << 20, 0xFFFFFFFF, 0xFF),
        Opcode.INTERRUPT: INTERRUPT_IN.pack(12),
    }
    plain = (
        *(Opcode.GETATTR, Opcode.READLINK, Opcode.STATFS, Opcode.RELEASE, Opcode.OPENDIR),
        *(Opcode.RELEASEDIR, Opcode.DESTROY, Opcode.FLUSH, Opcode.ACCESS),
    )
    return {
        **{opcode: request(opcode, 9, body) for opcode, body in bodies.items()},
        **{opcode: request(opcode, 9) for opcode in plain},
    }
