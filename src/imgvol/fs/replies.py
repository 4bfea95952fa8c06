"""What handlers answer, in no transport's terms: records for answers, one error for refusals."""

from collections.abc import Callable
from typing import Final, NamedTuple

from imgvol.layers.index import NodeType
from imgvol.view.chain import Attributes

# FUSE's number of the filesystem's root (include/uapi/linux/fuse.h, FUSE_ROOT_ID).
ROOT_INODE: Final = 1
# Seconds; the kernel stores what it can and takes it for "no limit".
FOR_EVER: Final = 10**9
BLOCK_SIZE: Final = 4096
SECTOR: Final = 512
ROOT_MODE: Final = 0o040755
NAME_MAX: Final = 255


class FSError(Exception):
    """Answers a request with an error. Made by `guard.failure` only.

    Args:
        errno: One of the module `errno`.
    """

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


class Entry(NamedTuple):
    """A name's inode, and for how long the kernel may believe it.

    Attributes:
        attributes: As stat(2) tells them; an `ino` of 0: there is no such name.
        entry_timeout: Seconds that the name means this inode.
        attr_timeout: Seconds that the attributes are true.
    """

    attributes: Attributes
    entry_timeout: int = FOR_EVER
    attr_timeout: int = FOR_EVER


class Opened(NamedTuple):
    """A file that was opened; it is read by its inode number.

    Attributes:
        is_recorded: Whether somebody wants to know what is read of it.
    """

    is_recorded: bool


class FilesystemSize(NamedTuple):
    """What statvfs(3) says of a filesystem that is full.

    Attributes:
        blocks: Of BLOCK_SIZE bytes, all of them used.
        files: All of them used.
    """

    blocks: int
    files: int


# Takes one name of a listing, its inode, and the cookie of what follows it; false: it is full, and
# has not taken this one.
AddEntry = Callable[[bytes, Entry, int], bool]

# A name that does not exist, for ever.
ABSENT: Final = Entry(Attributes(0, NodeType.FILE, 0, 0, 0, 0, 0, 0, 0))


def root(changed_ns: int) -> Entry:
    """The filesystem's root, whose names changed last at that time: nanoseconds since 1970.

    The kernel is told when they change again: `Transport.root_changed`.
    """
    attributes = Attributes(
        ROOT_INODE, NodeType.DIRECTORY, ROOT_MODE, nlink=1, uid=0, gid=0, size=0,
        mtime_ns=changed_ns, rdev=0,
    )  # fmt: skip
    return Entry(attributes)


def blocks_of(attributes: Attributes) -> int:
    """What st_blocks says: sectors."""
    return -(-attributes.size // SECTOR) if attributes.type is NodeType.FILE else 0
