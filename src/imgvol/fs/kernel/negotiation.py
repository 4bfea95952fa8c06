"""What the two sides agree on in INIT, the first exchange of a connection. Pure.

What was agreed on holds for the life of the connection, which may be longer than that of a process:
`Negotiated` is all that a successor on the same descriptor has to know.
"""

from dataclasses import dataclass
from typing import Final

from imgvol import limits
from imgvol.errors import MachineLacks
from imgvol.fs.kernel.protocol import (
    INIT_OUT,
    KERNEL_MINOR_VERSION,
    KERNEL_VERSION,
    InitFlag,
)
from imgvol.fs.kernel.requests import Init

# Linux 5.12, without which there are no binds either (mount_setattr).
OLDEST_MINOR: Final = 33
_FLAGS2_SHIFT: Final = 32
_FLAGS_MASK: Final = 0xFFFFFFFF
# Nobody writes; the kernel takes no less.
_MAX_WRITE: Final = 4096
_NANOSECOND: Final = 1

# Why each: docs/design/transport.md.
WANTED: Final = (
    InitFlag.ASYNC_READ
    | InitFlag.AUTO_INVAL_DATA
    | InitFlag.DO_READDIRPLUS
    | InitFlag.READDIRPLUS_AUTO
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.ABORT_ERROR
    | InitFlag.MAX_PAGES
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.NO_OPEN_SUPPORT
    | InitFlag.NO_OPENDIR_SUPPORT
    | InitFlag.INIT_EXT
    | InitFlag.ALLOW_IDMAP
    | InitFlag.HAS_RESEND
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Negotiated:
    """What holds on a connection.

    Attributes:
        minor: The version of the protocol: 7 and this.
        flags: What both sides have.
        max_readahead: Bytes that the kernel reads ahead, at most.
        max_background: Requests that nobody waits for directly, readahead above all, at once.
        max_pages: Pages in one request.
    """

    minor: int
    flags: InitFlag
    max_readahead: int
    max_background: int
    max_pages: int


def negotiate(asked: Init, wanted: InitFlag = WANTED) -> Negotiated:
    """What a kernel offers of what we want.

    Raises:
        MachineLacks: Its protocol is too old, or another one.
    """
    if asked.major != KERNEL_VERSION or asked.minor < OLDEST_MINOR:
        raise MachineLacks(
            "the kernel speaks another version of FUSE",
            hint="imgvol serve --transport pyfuse3 may still work.",
            version=f"{asked.major}.{asked.minor}",
            oldest=f"{KERNEL_VERSION}.{OLDEST_MINOR}",
        )
    return Negotiated(
        minor=min(asked.minor, KERNEL_MINOR_VERSION),
        flags=asked.flags & wanted,
        max_readahead=min(asked.max_readahead, limits.READAHEAD_KIB * limits.KIB),
        max_background=limits.FUSE_BACKGROUND,
        max_pages=limits.FUSE_PAGES,
    )


def init_out(agreed: Negotiated) -> bytes:
    """The answer to INIT."""
    return INIT_OUT.pack(
        KERNEL_VERSION,
        agreed.minor,
        agreed.max_readahead,
        agreed.flags & _FLAGS_MASK,
        agreed.max_background,
        agreed.max_background * 3 // 4,  # congested from here on, as the kernel's own default is
        _MAX_WRITE,
        _NANOSECOND,
        agreed.max_pages,
        0,
        agreed.flags >> _FLAGS2_SHIFT,
        1 if agreed.flags & InitFlag.PASSTHROUGH else 0,
    )
