"""What the kernel says is mounted: /proc/self/mountinfo, parsed (proc(5)).

A mount of ours is known by its source, which anybody may choose, and by who mounted it, which
nobody may: fusermount3 gives its caller's user ID to the kernel, takes none from the caller, and
mount(2) takes root. So another user can make no mount that we would take for ours, and then unmount
by a path that this user can change, or look for our filesystem's number at.
"""

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from imgvol.errors import InternalError

FILESYSTEM_TYPE = "fuse.imgvol"
_USER_ID = "user_id="


@dataclass(frozen=True, slots=True, kw_only=True)
class MountInfo:
    """One line of mountinfo.

    Attributes:
        root: The directory of the filesystem that is mounted here; b"/" unless it is a bind mount.
        options: Per-mount options, such as "ro" and "nosuid".
        super_options: The filesystem's own options.
    """

    mount_id: int
    parent_id: int
    major: int
    minor: int
    root: bytes
    mount_point: bytes
    options: frozenset[str]
    fstype: str
    source: bytes
    super_options: frozenset[str]

    @property
    def device(self) -> tuple[int, int]:
        """The filesystem's number: no other has it for as long as this one is mounted anywhere."""
        return self.major, self.minor

    @property
    def user_id(self) -> int | None:
        """Who has mounted a FUSE filesystem; None: it is of another kind."""
        for option in self.super_options:
            if option.startswith(_USER_ID):
                return int(option.removeprefix(_USER_ID))
        return None

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Parses one line, without its newline."""
        try:
            before, after = line.split(b" - ", 1)
            mount_id, parent_id, device, root, mount_point, options, *_ = before.split(b" ")
            fstype, source, super_options = after.split(b" ")
            major, minor = device.split(b":")
        except ValueError as exc:
            raise InternalError("mountinfo has a line of an unknown form", line=line) from exc
        return cls(
            mount_id=int(mount_id),
            parent_id=int(parent_id),
            major=int(major),
            minor=int(minor),
            root=_unescape(root),
            mount_point=_unescape(mount_point),
            options=frozenset(options.decode().split(",")),
            fstype=fstype.decode(),
            source=_unescape(source),
            super_options=frozenset(super_options.decode().split(",")),
        )


def read_mountinfo(path: Path = Path("/proc/self/mountinfo")) -> list[MountInfo]:
    """Every mount of this process's namespace, in the order in which they were made."""
    return [MountInfo.parse(line) for line in path.read_bytes().splitlines()]


def mounts_at(
    targets: Collection[bytes], path: Path = Path("/proc/self/mountinfo")
) -> list[MountInfo]:
    """What is mounted at some paths, the topmost last; and, anywhere, whole filesystems.

    With a thousand binds, parsing all of them takes twenty times as long.
    """
    found = []
    for line in path.read_bytes().splitlines():
        root, mount_point = line.split(b" ", 5)[3:5]
        if root == b"/" or _unescape(mount_point) in targets:
            found.append(MountInfo.parse(line))
    return found


def find_again(mount: MountInfo, path: Path = Path("/proc/self/mountinfo")) -> MountInfo | None:
    """A mount's line as it is now: a directory on the way may have been renamed; None: it is gone.

    The number of a mount that is gone may be another's by now, so what it shows must be the same.
    """
    begin = b"%d " % mount.mount_id
    for line in path.read_bytes().splitlines():
        if line.startswith(begin):
            now = MountInfo.parse(line)
            is_it = (now.device, now.root, now.source) == (mount.device, mount.root, mount.source)
            return now if is_it else None
    return None


def by_target(table: Iterable[MountInfo]) -> dict[bytes, list[MountInfo]]:
    """What is mounted at each path, the topmost last."""
    found: dict[bytes, list[MountInfo]] = {}
    for mount in table:
        found.setdefault(mount.mount_point, []).append(mount)
    return found


def source_of(views: Path) -> bytes:
    """The name under which the filesystem at `views` stands in mountinfo: how we know our own."""
    return b"imgvol:" + bytes(views)


def target_source_of(views: Path) -> bytes:
    """The name of those filesystems that a user's daemon has at targets of volumes."""
    return b"imgvol-target:" + bytes(views)


def is_ours(mount: MountInfo, views: Path, *, user_id: int | None = None) -> bool:
    """Whether a mount is of the daemon at `views`: its filesystem, a bind mount from it, a target.

    Targets that are filesystems of their own are those of daemons that may not bind.

    Args:
        mount: Any.
        views: Where that daemon's filesystem is.
        user_id: Whose daemon it is; None: ours.
    """
    is_known = mount.source in (source_of(views), target_source_of(views))
    if mount.fstype != FILESYSTEM_TYPE or not is_known:
        return False
    return mount.user_id == (os.geteuid() if user_id is None else user_id)


def is_target_session(mount: MountInfo, views: Path) -> bool:
    """Whether a mount is a filesystem of the daemon at `views` for one target alone."""
    return is_ours(mount, views) and mount.source == target_source_of(views)


def is_filesystem(mount: MountInfo, views: Path) -> bool:
    """Whether a mount is the whole filesystem of the daemon at `views`."""
    return is_ours(mount, views) and mount.source == source_of(views) and mount.root == b"/"


def find_filesystem(table: Iterable[MountInfo], views: Path) -> MountInfo | None:
    """Our filesystem itself. Not by its mount point: the kernel tells that without links.

    Binds of dead filesystems of ours are still there when it is mounted: their root is a view. A
    dead filesystem is, too, if somebody has mounted over it: it was mounted before.
    """
    whole = [mount for mount in table if is_filesystem(mount, views)]
    return whole[-1] if whole else None


def _unescape(field: bytes) -> bytes:
    """Undoes the kernel's octal escapes of space, tab, newline, backslash and #."""
    if b"\\" not in field:
        return field
    head, *parts = field.split(b"\\")
    return head + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in parts)
