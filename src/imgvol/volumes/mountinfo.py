"""What the kernel says is mounted: /proc/self/mountinfo, parsed (proc(5))."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from imgvol.errors import InternalError

FILESYSTEM_TYPE = "fuse.imgvol"


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


def by_target(table: Iterable[MountInfo]) -> dict[bytes, list[MountInfo]]:
    """What is mounted at each path, the topmost last."""
    found: dict[bytes, list[MountInfo]] = {}
    for mount in table:
        found.setdefault(mount.mount_point, []).append(mount)
    return found


def source_of(views: Path) -> bytes:
    """The name under which the filesystem at `views` stands in mountinfo: how we know our own."""
    return b"imgvol:" + bytes(views)


def is_ours(mount: MountInfo, views: Path) -> bool:
    """Whether a mount is the filesystem of the daemon at `views`, or a bind mount from it."""
    return mount.fstype == FILESYSTEM_TYPE and mount.source == source_of(views)


def _unescape(field: bytes) -> bytes:
    """Undoes the kernel's octal escapes of space, tab, newline, backslash and #."""
    if b"\\" not in field:
        return field
    head, *parts = field.split(b"\\")
    return head + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in parts)
