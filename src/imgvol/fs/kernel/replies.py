"""From what handlers answer to the bytes of a reply, or of a notification. Pure."""

from typing import Final

from imgvol.fs.kernel.protocol import (
    ATTR_OUT,
    DIRENT,
    DIRENT_ALIGN,
    DIRENTPLUS,
    ENTRY_OUT,
    GETXATTR_OUT,
    NOTIFY_INVAL_ENTRY_OUT,
    NOTIFY_INVAL_INODE_OUT,
    OPEN_OUT,
    OUT_HEADER,
    STATFS_OUT,
    NotifyCode,
    OpenFlag,
)
from imgvol.fs.replies import BLOCK_SIZE, NAME_MAX, Entry, FilesystemSize, blocks_of
from imgvol.view.chain import Attributes

_NANOSECONDS: Final = 10**9
# The kernel has 32 bits for a device number, of which the low ones are as os.makedev makes them.
_RDEV_MASK: Final = 0xFFFFFFFF
# Handles are not used: every request names its inode.
_NO_HANDLE: Final = 0
_TYPE_SHIFT: Final = 12  # from st_mode to d_type


def header(unique: int, body_size: int) -> bytes:
    """What comes before the body of a reply that is no error."""
    return OUT_HEADER.pack(OUT_HEADER.size + body_size, 0, unique)


def reply(unique: int, body: bytes | bytearray = b"") -> bytes:
    """A whole reply that is no error."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body


def error_reply(unique: int, errno: int) -> bytes:
    """A whole reply that is an error."""
    return OUT_HEADER.pack(OUT_HEADER.size, -errno, unique)


# --- bodies --------------------------------------------------------------------------------------


def _attr(attributes: Attributes) -> tuple[int, ...]:
    # Layers carry one time. All three show it, so that they are the same after every restart.
    seconds, nanoseconds = divmod(attributes.mtime_ns, _NANOSECONDS)
    return (
        attributes.ino,
        attributes.size,
        blocks_of(attributes),
        *(seconds, seconds, seconds),
        *(nanoseconds, nanoseconds, nanoseconds),
        attributes.mode,
        attributes.nlink,
        attributes.uid,
        attributes.gid,
        attributes.rdev & _RDEV_MASK,
        BLOCK_SIZE,
        0,
    )


def entry_out(entry: Entry) -> bytes:
    """The answer to LOOKUP."""
    attributes = entry.attributes
    return ENTRY_OUT.pack(
        attributes.ino, 0, entry.entry_timeout, entry.attr_timeout, 0, 0, *_attr(attributes)
    )


def attr_out(entry: Entry) -> bytes:
    """The answer to GETATTR."""
    return ATTR_OUT.pack(entry.attr_timeout, 0, *_attr(entry.attributes))


def open_out(flags: OpenFlag, backing_id: int = 0) -> bytes:
    """The answer to OPEN and OPENDIR."""
    return OPEN_OUT.pack(_NO_HANDLE, flags, backing_id)


def statfs_out(size: FilesystemSize) -> bytes:
    """The answer to STATFS: nothing is free."""
    return STATFS_OUT.pack(size.blocks, 0, 0, size.files, 0, BLOCK_SIZE, NAME_MAX, BLOCK_SIZE)


def getxattr_out(length: int) -> bytes:
    """The answer to GETXATTR and LISTXATTR that ask for the length."""
    return GETXATTR_OUT.pack(length)


class ListingPart:
    """The answer to READDIR and READDIRPLUS: names, one behind the other, while there is room.

    Args:
        size: The room, in bytes.
        is_plus: Whether attributes come with them.
    """

    def __init__(self, size: int, *, is_plus: bool) -> None:
        self.data = bytearray()
        self._room = size
        self._is_plus = is_plus

    def add(self, name: bytes, entry: Entry, cookie: int) -> bool:
        """Appends a name; false: there is no room for it."""
        attributes = entry.attributes
        fixed = DIRENTPLUS.size if self._is_plus else DIRENT.size
        padding = -(fixed + len(name)) % DIRENT_ALIGN
        if len(self.data) + fixed + len(name) + padding > self._room:
            return False
        kind = attributes.mode >> _TYPE_SHIFT
        if self._is_plus:
            self.data += DIRENTPLUS.pack(
                *(attributes.ino, 0, entry.entry_timeout, entry.attr_timeout, 0, 0),
                *_attr(attributes),
                *(attributes.ino, cookie, len(name), kind),
            )
        else:
            self.data += DIRENT.pack(attributes.ino, cookie, len(name), kind)
        self.data += name + bytes(padding)
        return True


# --- notifications -------------------------------------------------------------------------------


def _notification(code: NotifyCode, body: bytes = b"") -> bytes:
    # No request has the number 0: what would be an error is what it is about.
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), code, 0) + body


def inval_entry(parent: int, name: bytes) -> bytes:
    """The kernel is to forget a name."""
    body = NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), 0)
    return _notification(NotifyCode.INVAL_ENTRY, body + name + b"\0")


def inval_inode(inode: int, *, attributes_only: bool = False) -> bytes:
    """The kernel is to forget an inode's attributes and all of its pages, or not the pages."""
    start = -1 if attributes_only else 0  # from 0 on, to the end
    body = NOTIFY_INVAL_INODE_OUT.pack(inode, start, 0)
    return _notification(NotifyCode.INVAL_INODE, body)


def resend() -> bytes:
    """The kernel is to send all requests again that have had no reply. Needs HAS_RESEND."""
    return _notification(NotifyCode.RESEND)
