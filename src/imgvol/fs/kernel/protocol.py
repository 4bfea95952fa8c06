"""Structures and numbers of the kernel's FUSE protocol, as include/uapi/linux/fuse.h has them.

A table, and nothing that happens: names are the header's, without the prefixes that all of a kind
share. A test compares sizes, offsets and values with the header of the machine it runs on.

Only what a read-only filesystem meets is here. All numbers are in the machine's own byte order.
"""

import struct
from collections.abc import Mapping
from enum import IntEnum, IntFlag
from typing import Any, Final

KERNEL_VERSION: Final = 7
# What we know of the protocol; the kernel then leaves out what came later.
KERNEL_MINOR_VERSION: Final = 41
ROOT_ID: Final = 1
# A read of /dev/fuse with less room fails.
MIN_READ_BUFFER: Final = 8192


class Layout:
    """One structure.

        READ_IN = Layout("fuse_read_in", fh="Q", offset="Q", size="I", ...)
        fh, offset, size, *_ = READ_IN.unpack_from(buffer, 40)

    Args:
        name: In the header.
        fields: Each by the code that the module `struct` has for it, `x` for what nobody reads; or
            another structure, whose fields take its place.

    Attributes:
        places: Offset and size of each field, in bytes.
    """

    def __init__(self, name: str, /, **fields: "str | Layout") -> None:
        self.name = name
        codes = "="
        places: dict[str, tuple[int, int]] = {}
        for field, kind in fields.items():
            code = kind if isinstance(kind, str) else kind.codes
            start = struct.calcsize(codes)
            codes += code
            places[field] = (start, struct.calcsize(codes) - start)
        self.places: Mapping[str, tuple[int, int]] = places
        self.codes: str = codes[1:]
        compiled = struct.Struct(codes)
        self.size = compiled.size
        self.pack = compiled.pack
        self._compiled = compiled

    def unpack_from(self, buffer: bytes | bytearray | memoryview, offset: int) -> tuple[Any, ...]:
        """The fields that are not padding, in order.

        Raises:
            struct.error: The buffer ends before the structure does.
        """
        return self._compiled.unpack_from(buffer, offset)


# --- around every request and every reply --------------------------------------------------------

IN_HEADER: Final = Layout(
    "fuse_in_header",
    len="I",
    opcode="I",
    unique="Q",
    nodeid="Q",
    uid="I",
    gid="I",
    pid="I",
    total_extlen="H",  # of extensions behind the request, in units of EXTENSION_UNIT
    padding="2x",
)
EXTENSION_UNIT: Final = 8
OUT_HEADER: Final = Layout("fuse_out_header", len="I", error="i", unique="Q")

# --- requests ------------------------------------------------------------------------------------

INIT_IN: Final = Layout(
    "fuse_init_in", major="I", minor="I", max_readahead="I", flags="I", flags2="I", unused="44x"
)
# What kernels send that do not offer INIT_EXT.
COMPAT_INIT_IN_SIZE: Final = 16
FORGET_IN: Final = Layout("fuse_forget_in", nlookup="Q")
FORGET_ONE: Final = Layout("fuse_forget_one", nodeid="Q", nlookup="Q")
BATCH_FORGET_IN: Final = Layout("fuse_batch_forget_in", count="I", dummy="4x")
GETATTR_IN: Final = Layout("fuse_getattr_in", getattr_flags="I", dummy="4x", fh="Q")
OPEN_IN: Final = Layout("fuse_open_in", flags="I", open_flags="I")
READ_IN: Final = Layout(
    "fuse_read_in",
    fh="Q",
    offset="Q",
    size="I",
    read_flags="I",
    lock_owner="Q",
    flags="I",
    padding="4x",
)
RELEASE_IN: Final = Layout("fuse_release_in", fh="Q", flags="I", release_flags="I", lock_owner="Q")
GETXATTR_IN: Final = Layout("fuse_getxattr_in", size="I", padding="4x")
INTERRUPT_IN: Final = Layout("fuse_interrupt_in", unique="Q")

# --- replies -------------------------------------------------------------------------------------

INIT_OUT: Final = Layout(
    "fuse_init_out",
    major="I",
    minor="I",
    max_readahead="I",
    flags="I",
    max_background="H",
    congestion_threshold="H",
    max_write="I",
    time_gran="I",
    max_pages="H",
    map_alignment="H",
    flags2="I",
    max_stack_depth="I",  # since 7.40; headers before that have 28 unused bytes here
    unused="24x",
)
ATTR: Final = Layout(
    "fuse_attr",
    ino="Q",
    size="Q",
    blocks="Q",
    # Declared unsigned, and taken for signed: there were years before 1970.
    atime="q",
    mtime="q",
    ctime="q",
    atimensec="I",
    mtimensec="I",
    ctimensec="I",
    mode="I",
    nlink="I",
    uid="I",
    gid="I",
    rdev="I",
    blksize="I",
    flags="I",
)
ENTRY_OUT: Final = Layout(
    "fuse_entry_out",
    nodeid="Q",
    generation="Q",
    entry_valid="Q",
    attr_valid="Q",
    entry_valid_nsec="I",
    attr_valid_nsec="I",
    attr=ATTR,
)
ATTR_OUT: Final = Layout(
    "fuse_attr_out", attr_valid="Q", attr_valid_nsec="I", dummy="4x", attr=ATTR
)
OPEN_OUT: Final = Layout("fuse_open_out", fh="Q", open_flags="I", backing_id="i")
KSTATFS: Final = Layout(
    "fuse_kstatfs",
    blocks="Q",
    bfree="Q",
    bavail="Q",
    files="Q",
    ffree="Q",
    bsize="I",
    namelen="I",
    frsize="I",
    padding="4x",
    spare="24x",
)
STATFS_OUT: Final = Layout("fuse_statfs_out", st=KSTATFS)
GETXATTR_OUT: Final = Layout("fuse_getxattr_out", size="I", padding="4x")
# Their names follow, then zeros up to a multiple of DIRENT_ALIGN.
DIRENT: Final = Layout("fuse_dirent", ino="Q", off="Q", namelen="I", type="I")
DIRENTPLUS: Final = Layout("fuse_direntplus", entry_out=ENTRY_OUT, dirent=DIRENT)
DIRENT_ALIGN: Final = 8

# --- notifications -------------------------------------------------------------------------------

NOTIFY_INVAL_INODE_OUT: Final = Layout("fuse_notify_inval_inode_out", ino="Q", off="q", len="q")
NOTIFY_INVAL_ENTRY_OUT: Final = Layout(
    "fuse_notify_inval_entry_out", parent="Q", namelen="I", flags="I"
)

# --- ioctls --------------------------------------------------------------------------------------

BACKING_MAP: Final = Layout("fuse_backing_map", fd="i", flags="I", padding="Q")  # since 7.40
# Of a backing file; no structure.
BACKING_ID_SIZE: Final = 4

LAYOUTS: Final = tuple(each for each in list(globals().values()) if isinstance(each, Layout))


class Opcode(IntEnum):
    """FUSE_x: what a request asks for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    GETXATTR = 22
    LISTXATTR = 23
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    ACCESS = 34
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    READDIRPLUS = 44


class InitFlag(IntFlag):
    """FUSE_x: what the two sides agree on; bits from 32 on are those of `flags2`."""

    ASYNC_READ = 1 << 0
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    INIT_EXT = 1 << 30
    PASSTHROUGH = 1 << 37
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40


class ReadFlag(IntFlag):
    """FUSE_READ_x: how a read is meant."""

    LOCKOWNER = 1 << 1


class OpenFlag(IntFlag):
    """FOPEN_x: how the kernel treats what was opened."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3
    NOFLUSH = 1 << 5
    PASSTHROUGH = 1 << 7


class DeviceIoctl(IntEnum):
    """FUSE_DEV_IOC_x: ioctls of /dev/fuse."""

    BACKING_OPEN = 0x4010E501
    BACKING_CLOSE = 0x4004E502


class NotifyCode(IntEnum):
    """FUSE_NOTIFY_x: what we tell the kernel unasked."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    RESEND = 7
