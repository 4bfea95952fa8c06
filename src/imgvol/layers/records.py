"""The records of a layer's nodes while it is being indexed: members in, `wire` records out.

Here is what one entry says, checked against what Linux can hold and what an image may bring; where
the entry stands in the tree is the builder's. Leaves get their record at once and are known by its
place from then on; strings, attributes and extents go to tables that only grow, so what a later
member replaces leaves some bytes behind.
"""

from typing import Final

from imgvol import limits
from imgvol.errors import InvalidLayer, LimitExceeded
from imgvol.layers import wire
from imgvol.layers.reserved import whole_seconds
from imgvol.layers.tar import MemberType, TarMember
from imgvol.layers.wire import FOREIGN_LINK, NODE, Flag, NodeType

_NODE_TYPES: Final = {
    MemberType.FILE: NodeType.FILE,
    MemberType.DIRECTORY: NodeType.DIRECTORY,
    MemberType.SYMLINK: NodeType.SYMLINK,
    MemberType.CHAR: NodeType.CHAR,
    MemberType.BLOCK: NodeType.BLOCK,
    MemberType.FIFO: NodeType.FIFO,
}
_FILE: Final = MemberType.FILE
_SYMLINK: Final = MemberType.SYMLINK
# 2^32 - 1 means "no change" to chown(2), so nobody can have it.
_OWNERS: Final = range((1 << 32) - 1)
# Linux: 12 bits of major and 20 bits of minor number.
_MAJORS: Final = range(1 << 12)
_MINORS: Final = range(1 << 20)
# containerd stores what its clock cannot hold as the epoch, and so do we.
_TIMES: Final = range(1 << 63)

_ACLS: Final = (b"system.posix_acl_access", b"system.posix_acl_default")
# What an image may not bring: overlayfs would obey its own in a view that is its lower layer, and
# SELinux labels are the host's to give.
_FORBIDDEN_XATTRS: Final = (b"trusted.", b"user.overlay.", b"security.selinux", b"system.")

IMPLICIT_DIRECTORY: Final = NODE.pack(
    NodeType.DIRECTORY, Flag.IMPLICIT, 0o755, 0, 0, 1, 0, 0, 0, 0, 0
)


class Records:
    """The records of leaves, and the tables that all records refer to.

    Attributes:
        leaves: NODE records, one after another.
        extents: EXTENT records.
        strings: Targets of links.
        xattrs: Encoded sets of extended attributes.
        dropped_xattrs: How many were left out because no image may bring them.
    """

    def __init__(self) -> None:
        self.leaves = bytearray()
        self.extents = bytearray()
        self.strings = bytearray()
        self.xattrs = bytearray()
        self.dropped_xattrs = 0
        self._xattr_sets: dict[tuple[tuple[bytes, bytes], ...], int] = {}
        self._spent = 0

    def add_leaf(self, member: TarMember, own_file: int | None) -> int:
        """Record a member that is neither a directory nor a hard link; its place is returned."""
        kind = member.type
        if kind is _FILE:
            record = self._describe_file(member, own_file)
        elif kind is _SYMLINK:
            record = self._describe_symlink(member)
        else:
            record = self._describe(member, value=_device(member))
        return self._append(record)

    def add_foreign_link(self, path: bytes) -> int:
        """Record a hard link to what only a lower layer can have; its place is returned."""
        at = self._string(path)
        return self._append(NODE.pack(FOREIGN_LINK, 0, 0, 0, 0, 1, 0, 0, 0, len(path), at))

    def describe_directory(self, member: TarMember) -> bytes:
        """The record of a directory."""
        return self._describe(member)

    def link_target(self, leaf: int) -> bytes | None:
        """Where a leaf points to, if it is a symbolic link."""
        if self.leaves[leaf * NODE.size] != NodeType.SYMLINK:
            return None
        *_, size, at = NODE.unpack_from(self.leaves, leaf * NODE.size)
        return bytes(self.strings[at : at + size])

    def is_file(self, leaf: int) -> bool:
        """Whether a leaf is a regular file."""
        return self.leaves[leaf * NODE.size] == NodeType.FILE

    def round_times(self) -> None:
        """Makes the times of all leaves whole seconds."""
        for at in range(0, len(self.leaves), NODE.size):
            self.leaves[at : at + NODE.size] = rounded(self.leaves[at : at + NODE.size])

    def spend(self, count: int) -> None:
        """Count bytes that the index will hold beside its records.

        Raises:
            LimitExceeded: They are too many.
        """
        self._spent += count
        if self._spent > limits.INDEX_STRINGS_SIZE:
            raise exceeded("INDEX_STRINGS_SIZE", limits.INDEX_STRINGS_SIZE)

    def _append(self, record: bytes) -> int:
        leaf = len(self.leaves) // NODE.size
        self.leaves += record
        return leaf

    def _describe(
        self, member: TarMember, *, flags: int = 0, size: int = 0, value: int = 0
    ) -> bytes:
        _, kind, mode, uid, gid, _, mtime_ns, _, _, _, xattrs, _, _, _ = member
        if uid not in _OWNERS or gid not in _OWNERS:
            raise InvalidLayer("an owner that cannot be", uid=uid, gid=gid)
        return NODE.pack(
            _NODE_TYPES[kind],
            flags,
            mode & 0o7777,
            uid,
            gid,
            1,
            0,
            self._xattr_set(xattrs) if xattrs else 0,
            mtime_ns if mtime_ns in _TIMES else 0,
            size,
            value,
        )

    def _describe_file(self, member: TarMember, own_file: int | None) -> bytes:
        if not 0 <= member.size <= limits.TAR_SIZE:
            raise exceeded("TAR_SIZE", limits.TAR_SIZE, size=member.size)
        flags, value = 0, member.payload_offset
        if own_file is not None:
            flags, value = int(Flag.OWN_FILE), own_file
        if member.sparse is not None:
            flags, value = flags | Flag.SPARSE, self._extent_run(member, own_file)
        return self._describe(member, flags=flags, size=member.size, value=value)

    def _describe_symlink(self, member: TarMember) -> bytes:
        target = member.linkname
        if not target or b"\0" in target:
            raise InvalidLayer("a symbolic link without a usable target", target=target)
        if len(target) > limits.SYMLINK_LENGTH:
            raise exceeded("SYMLINK_LENGTH", limits.SYMLINK_LENGTH)
        # Linux has no other mode for them, whatever the archive says.
        member = member._replace(mode=0o777)
        return self._describe(member, size=len(target), value=self._string(target))

    def _extent_run(self, member: TarMember, own_file: int | None) -> int:
        pieces = [piece for piece in member.sparse or () if piece[1]]
        self.spend((len(pieces) + 1) * wire.EXTENT.size)
        start = len(self.extents) // wire.EXTENT.size
        number, position = (0, member.payload_offset) if own_file is None else (own_file + 1, 0)
        self.extents += wire.EXTENT.pack(len(pieces), number, 0)
        for offset, size in pieces:
            self.extents += wire.EXTENT.pack(offset, size, position)
            position += size
        return start

    def _string(self, text: bytes) -> int:
        self.spend(len(text))
        at = len(self.strings)
        self.strings += text
        return at

    def _xattr_set(self, xattrs: tuple[tuple[bytes, bytes], ...]) -> int:
        """Where a set of attributes is stored, plus one; 0 for the empty set."""
        kept = tuple(sorted(pair for pair in xattrs if _is_allowed_xattr(pair[0])))
        self.dropped_xattrs += len(xattrs) - len(kept)
        if not kept:
            return 0
        known = self._xattr_sets.get(kept)
        if known is None:
            encoded = _encode_xattrs(kept)
            self.spend(len(encoded))
            known = self._xattr_sets[kept] = len(self.xattrs) + 1
            self.xattrs += encoded
        return known


def rounded(record: bytes | bytearray) -> bytes:
    """A NODE with a time of whole seconds."""
    fields = list(NODE.unpack(record))
    fields[wire.MTIME_FIELD] = whole_seconds(fields[wire.MTIME_FIELD])
    return NODE.pack(*fields)


def exceeded(limit: str, allowed: int, *, size: int | None = None) -> LimitExceeded:
    """The error for a layer that is beyond a limit."""
    return LimitExceeded("a layer exceeds a limit", limit=limit, allowed=allowed, actual=size)


def _device(member: TarMember) -> int:
    """Major and minor number in one; 0 for what is no device."""
    major, minor = member.devmajor, member.devminor
    if major not in _MAJORS or minor not in _MINORS:
        raise InvalidLayer("a device that Linux cannot have", major=major, minor=minor)
    return major << 32 | minor


def _is_allowed_xattr(name: bytes) -> bool:
    return name in _ACLS or not name.startswith(_FORBIDDEN_XATTRS)


def _encode_xattrs(xattrs: tuple[tuple[bytes, bytes], ...]) -> bytes:
    names_size = sum(len(name) + 1 for name, _ in xattrs)
    if names_size > limits.XATTR_LIST_SIZE:
        raise exceeded("XATTR_LIST_SIZE", limits.XATTR_LIST_SIZE, size=names_size)
    encoded = [wire.XATTR_COUNT.pack(len(xattrs))]
    for name, value in xattrs:
        if not name or b"\0" in name:
            raise InvalidLayer("an extended attribute without a usable name", xattr=name)
        if len(name) > limits.XATTR_NAME_LENGTH:
            raise exceeded("XATTR_NAME_LENGTH", limits.XATTR_NAME_LENGTH, size=len(name))
        if len(value) > limits.XATTR_VALUE_SIZE:
            raise exceeded("XATTR_VALUE_SIZE", limits.XATTR_VALUE_SIZE, size=len(value))
        encoded += (wire.XATTR.pack(len(name), len(value)), name, value)
    return b"".join(encoded)
