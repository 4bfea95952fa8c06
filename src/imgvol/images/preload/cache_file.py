"""`.cache.json`: which files have been imported, so that a restart imports none of them again.

Whoever wants that makes the file, empty, beside the images. Its form is that of k3s,

    {"/path/of/app.tar": {"size": 1234, "modTime": "2024-05-01T10:00:00Z", "images": ["…"]}}

with what a file has brought, and the nanoseconds that `modTime` does not have, as members of our
own. A file of which it does not say what it has brought is imported again: its pins could not be
restored.
"""

import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from imgvol import limits
from imgvol.content.durable import sync_directory, write_all
from imgvol.errors import InvalidDocument
from imgvol.images.preload.stamp import Stamp
from imgvol.oci.json import JSONValue, Node

CACHE_NAME: Final = ".cache.json"
_SECOND: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry:
    """A file that has been imported.

    Attributes:
        size: In bytes.
        seconds: Of its last change, since the epoch.
        nanoseconds: Those beside the seconds; None: not said.
        images: Names of what it has brought, and digests of manifests without a name; None: not
            said.
    """

    size: int
    seconds: int
    nanoseconds: int | None = None
    images: tuple[str, ...] | None = None

    @classmethod
    def of(cls, stamp: Stamp, images: tuple[str, ...]) -> "CacheEntry":
        """What is to be said of a file."""
        seconds, nanoseconds = divmod(stamp.mtime_ns, _SECOND)
        return cls(size=stamp.size, seconds=seconds, nanoseconds=nanoseconds, images=images)

    def is_of(self, stamp: Stamp) -> bool:
        """Whether a file is still the one that was imported, as far as this tells."""
        seconds, nanoseconds = divmod(stamp.mtime_ns, _SECOND)
        return (
            self.size == stamp.size
            and self.seconds == seconds
            and self.nanoseconds in {None, nanoseconds}
        )


def parse_cache(data: bytes) -> dict[str, CacheEntry]:
    """Reads a cache file; an empty one says nothing.

    Raises:
        LimitExceeded: It is too large.
        InvalidDocument: It is damaged.
    """
    if not data.strip():
        return {}
    node = Node.parse(data, what="cache file", max_size=limits.PRELOAD_CACHE_SIZE)
    members = {path: node.require(path) for path in node.object()}
    # Go writes null for a time that it does not know.
    dated = {path: member for path, member in members.items() if member.get("modTime") is not None}
    return {path: _entry(member) for path, member in dated.items()}


def _entry(node: Node) -> CacheEntry:
    images, nanoseconds = node.get("images"), node.get("nanoseconds")
    return CacheEntry(
        size=node.require("size").integer(),
        seconds=_seconds(node.require("modTime")),
        nanoseconds=None if nanoseconds is None else nanoseconds.integer(maximum=_SECOND - 1),
        images=None if images is None else _names(images),
    )


def _seconds(node: Node) -> int:
    try:
        time = datetime.fromisoformat(node.string())
        if time.tzinfo is None:
            raise ValueError
        return int(time.timestamp() // 1)
    except (ValueError, OverflowError) as exc:
        raise node.error("not a time of RFC 3339") from exc


def _names(node: Node) -> tuple[str, ...] | None:
    """Others may say more of images than their names: that says nothing to us."""
    try:
        return node.strings()
    except InvalidDocument:
        return None


def render_cache(entries: Mapping[str, CacheEntry]) -> bytes:
    """Writes a cache file. Files of a time that no calendar has are left out."""
    document: dict[str, JSONValue] = {}
    for path, entry in sorted(entries.items()):
        time = _time(entry.seconds)
        if time is None:
            continue
        members: dict[str, JSONValue] = {"size": entry.size, "modTime": time}
        if entry.nanoseconds is not None:
            members["nanoseconds"] = entry.nanoseconds
        if entry.images is not None:
            members["images"] = list(entry.images)
        document[path] = members
    return json.dumps(document, indent=1).encode() + b"\n"


def _time(seconds: int) -> str | None:
    try:
        time = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ").rjust(len("2024-05-01T10:00:00Z"), "0")


def read_cache(directory: str) -> dict[str, CacheEntry] | None:
    """The cache file of a directory; None: nobody wants one.

    Blocks.

    Raises:
        LimitExceeded: It is too large.
        InvalidDocument: It is damaged.
        OSError: It cannot be read.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(os.path.join(directory, CACHE_NAME), flags)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidDocument("the cache file is not a file")
        return parse_cache(file.read(limits.PRELOAD_CACHE_SIZE + 1))


def write_cache(directory: str, entries: Mapping[str, CacheEntry]) -> bool:
    """Replaces the cache file, if there is one; whose it is and who may read it stay.

    Blocks. Durable, as a whole or not at all.

    Returns:
        Whether there is one.

    Raises:
        OSError: It cannot be written.
    """
    path = os.path.join(directory, CACHE_NAME)
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(status.st_mode):
        return False
    # A dot file, too: nobody takes it for an image.
    descriptor, temporary = tempfile.mkstemp(prefix=f"{CACHE_NAME}.", dir=directory)
    try:
        try:
            _keep_owner(descriptor, status)
            write_all(descriptor, render_cache(entries), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(Path(directory))
    return True


def _keep_owner(descriptor: int, status: os.stat_result) -> None:
    # The owner first: changing it takes special bits away.
    with contextlib.suppress(PermissionError):  # not ours, and we are not root: it becomes ours
        os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
