"""The transport over pyfuse3, and so libfuse: it also mounts for users, by fusermount3.

It translates between pyfuse3's records and those of `replies`, and knows nothing of the filesystem.
libfuse allows one session in a process, and cannot tell us that a caller has gone.
"""

import contextlib
import errno
import functools
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import pyfuse3

from imgvol import limits
from imgvol.errors import LocalError, MachineLacks
from imgvol.fs.operations import Operations
from imgvol.fs.replies import BLOCK_SIZE, NAME_MAX, ROOT_INODE, Entry, FSError, blocks_of
from imgvol.fs.transport import check_restricted
from imgvol.volumes.mountinfo import source_of

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class Pyfuse3Transport:
    """A `Transport`. One in the life of a process.

    Args:
        operations: The handlers.
        mount_point: Where to mount.
        is_system: Let every user of the machine see what the kernel's own permission checks allow;
            needs root. Otherwise only the user who runs the daemon sees anything.
    """

    def __init__(self, operations: Operations, mount_point: Path, *, is_system: bool) -> None:
        self._operations = operations
        self._mount_point = mount_point
        self._is_system = is_system

    def mount(self) -> None:
        """See `Transport.mount`."""
        # Without default_permissions the kernel would give one user what it has cached for another.
        options = set(pyfuse3.default_options)
        assert "default_permissions" in options
        options |= {f"fsname={os.fsdecode(source_of(self._mount_point))}", "subtype=imgvol", "ro"}
        options.add("noatime")
        if self._is_system:
            options.add("allow_other")
        try:
            pyfuse3.init(Adaptor(self._operations), os.fspath(self._mount_point), options)
        except RuntimeError as exc:
            raise MachineLacks(
                "the filesystem cannot be mounted here",
                hint="The daemon's log has the reason; imgvol doctor says what this machine lacks.",
                mount_point=self._mount_point,
            ) from exc
        try:
            check_restricted(self._mount_point)
        except LocalError:
            pyfuse3.close()
            raise

    async def serve(self) -> None:
        """See `Transport.serve`."""
        await pyfuse3.main(min_tasks=1, max_tasks=limits.FUSE_TASKS)

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        """See `Transport.invalidate_entry`."""
        pyfuse3.invalidate_entry(parent, name)

    def invalidate_inode(self, inode: int, *, attributes_only: bool = False) -> None:
        """See `Transport.invalidate_inode`."""
        pyfuse3.invalidate_inode(inode, attr_only=attributes_only)

    def root_changed(self) -> None:
        """See `Transport.root_changed`."""
        with contextlib.suppress(OSError):  # it has just been unmounted
            pyfuse3.invalidate_inode(ROOT_INODE, attr_only=True)

    def recheck(self) -> None:
        """See `Transport.recheck`: there is nothing."""

    def close(self) -> None:
        """See `Transport.close`."""
        pyfuse3.close()


Method = Callable[P, Coroutine[Any, Any, R]]


def _translated(method: Method[P, R]) -> Method[P, R]:
    """Lets nothing out but FUSEError: anything else would end pyfuse3's main loop."""

    @functools.wraps(method)
    async def translate(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await method(*args, **kwargs)
        except FSError as exc:
            code = exc.errno
        except Exception:  # the handlers are guarded: this is ours
            log.exception("%s: a defect of imgvol", method.__name__)
            code = errno.EIO
        raise pyfuse3.FUSEError(code)

    return translate


class Adaptor(pyfuse3.Operations):
    """Makes pyfuse3's handlers of ours. What is absent here, libfuse refuses with ENOSYS."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self._operations = operations

    @_translated
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """See `Operations.lookup`."""
        return _entry(self._operations.lookup(parent_inode, name))

    @_translated
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """See `Operations.forget`."""
        self._operations.forget(inode_list)

    @_translated
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """The handle is the inode."""
        return inode

    @_translated
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """See `Operations.readdir`."""

        def add(name: bytes, entry: Entry, cookie: int) -> bool:
            return pyfuse3.readdir_reply(token, name, _entry(entry), cookie)

        self._operations.readdir(fh, start_id, add)

    @_translated
    async def releasedir(self, fh: int) -> None:
        """Nothing is kept per open directory."""

    @_translated
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """See `Operations.getattr`."""
        return _entry(self._operations.getattr(inode))

    @_translated
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        """See `Operations.readlink`."""
        return self._operations.readlink(inode)

    @_translated
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """See `Operations.listxattr`."""
        return self._operations.listxattr(inode)

    @_translated
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """See `Operations.getxattr`."""
        return self._operations.getxattr(inode, name)

    @_translated
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """See `Operations.statfs`."""
        size = self._operations.statfs()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK_SIZE
        data.f_blocks = size.blocks
        data.f_bfree = data.f_bavail = 0
        data.f_files = size.files
        data.f_ffree = data.f_favail = 0
        data.f_namemax = NAME_MAX
        return data

    @_translated
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """The handle is the inode."""
        self._operations.open(inode, flags)
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    @_translated
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """See `Operations.read`."""
        # pyfuse3 takes anything that has a buffer, whatever its stub says: no copy is made.
        return cast("bytes", await self._operations.read(fh, off, size))

    @_translated
    async def release(self, fh: int) -> None:
        """Nothing is kept per open file."""


def _entry(found: Entry) -> pyfuse3.EntryAttributes:
    attributes = found.attributes
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = attributes.ino
    entry.st_mode = attributes.mode
    entry.st_nlink = attributes.nlink
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_rdev = attributes.rdev
    entry.st_size = attributes.size
    entry.st_blocks = blocks_of(attributes)
    entry.st_blksize = BLOCK_SIZE
    # Layers carry one time. All three show it, so that they are the same after every restart.
    entry.st_atime_ns = entry.st_ctime_ns = entry.st_mtime_ns = attributes.mtime_ns
    entry.entry_timeout = found.entry_timeout
    entry.attr_timeout = found.attr_timeout
    return entry
