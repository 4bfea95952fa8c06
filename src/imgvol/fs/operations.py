"""The filesystem's handlers: thin, over the views that are open.

Theory of operation. The root shows one directory per published view, named by its chain ID. An
inode number says by itself what it means (view.inodes): a directory, or a file whose link count is
the view's own, belongs to a chain and names a node of its tree; everything else belongs to a layer
and is the same inode in every view that has the layer, so that these views share its pages. No
state is kept per inode, per open file or per listing: a handle is the inode number again, and a
listing's cookie is a position in a listing that never changes.

Views never change, so the kernel may keep what it learns for ever, names that do not exist
included. Only the root's own names come and go: they are never kept.

Handlers answer from memory; only `read` may wait, for the disk.
"""

import errno
import os
from collections.abc import Sequence
from typing import Final, NoReturn, cast

import pyfuse3

from imgvol import limits
from imgvol.content.layer import Layer
from imgvol.fs.guard import failure, guarded, guarded_for
from imgvol.images.views import OpenView, Views
from imgvol.layers.index import NodeType
from imgvol.tallies import RequestTallies
from imgvol.view.chain import Attributes, NodeID, layer_attributes
from imgvol.view.inodes import ChainInode, LayerInode, decode

# Seconds; the kernel stores what it can and takes it for "no limit".
FOR_EVER: Final = 10.0**9
BLOCK_SIZE: Final = 4096
SECTOR: Final = 512
ROOT_MODE: Final = 0o040755


class Operations(pyfuse3.Operations):
    """Answers the kernel's requests. One per session.

    Attributes:
        requests: What has been asked, for the guard to count.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, views: Views, requests: RequestTallies | None = None) -> None:
        super().__init__()
        self.requests = requests or RequestTallies()
        self._views = views

    # --- names ---------------------------------------------------------------------------------

    @guarded
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Finds a name in a directory; a name that does not exist is an answer, too."""
        if parent_inode == pyfuse3.ROOT_INODE:
            view = self._views.by_name(name)
            if view is None:
                raise failure(errno.ENOENT)
            entry = _entry(view.tree.attributes(view.tree.root))
            entry.entry_timeout = 0
            view.kernel_references += 1
            return entry
        view, directory = self._directory(parent_inode)
        node = view.tree.lookup(directory, name)
        if node is None:
            return _absent()
        entry = _entry(view.tree.attributes(node))
        self._count(entry.st_ino)
        return entry

    @guarded
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The kernel drops references that lookups and listings gave it."""
        for inode, count in inode_list:
            if inode != pyfuse3.ROOT_INODE:
                meaning = decode(inode)
                if isinstance(meaning, ChainInode):
                    view = self._views.by_slot(meaning.chain_slot)
                    if view is not None:
                        self._views.forget(view, count)

    @guarded
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """The handle is the inode."""
        return inode

    @guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Lists a directory from a cookie on, with attributes; complete or an error."""
        if fh == pyfuse3.ROOT_INODE:
            self._list_root(start_id, token)
            return
        view, directory = self._directory(fh)
        listing = view.tree.list(directory)
        for position in range(start_id, len(listing)):
            name, node = listing[position]
            entry = _entry(view.tree.attributes(node))
            if not pyfuse3.readdir_reply(token, name, entry, position + 1):
                break
            self._count(entry.st_ino)

    def _list_root(self, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        # Slots grow and are never used again: a view that comes or goes moves no cookie.
        for view in self._views.published():
            if view.slot < start_id:
                continue
            entry = _entry(view.tree.attributes(view.tree.root))
            entry.entry_timeout = 0
            if not pyfuse3.readdir_reply(token, view.name, entry, view.slot + 1):
                break
            view.kernel_references += 1

    @guarded
    async def releasedir(self, fh: int) -> None:
        """Nothing is kept per open directory."""

    # --- attributes
    # --------------------------------------------------------------------------------

    @guarded
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """The attributes of an inode."""
        if inode == pyfuse3.ROOT_INODE:
            return _root_entry()
        meaning = decode(inode)
        if isinstance(meaning, LayerInode):
            store = self._layer(meaning.layer_slot)
            return _entry(layer_attributes(store.index, meaning.node, inode))
        view, node = self._directory(inode)
        return _entry(view.tree.attributes(node))

    @guarded
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        """The target of a symbolic link."""
        store, node = self._layer_node(inode)
        return store.index.symlink_target(node)

    @guarded
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """The names of extended attributes."""
        return [name for name, _ in self._xattrs(inode)]

    @guarded
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """One extended attribute."""
        for candidate, value in self._xattrs(inode):
            if candidate == name:
                return value
        raise failure(errno.ENODATA)

    @guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """A full, read-only filesystem of the size of what is published; from memory."""
        layers = {store for view in self._views.published() for store in view.layers}
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK_SIZE
        data.f_blocks = sum(-(-store.index.file_bytes // BLOCK_SIZE) for store in layers)
        data.f_bfree = data.f_bavail = 0
        data.f_files = sum(store.index.node_count for store in layers)
        data.f_ffree = data.f_favail = 0
        data.f_namemax = 255
        return data

    # --- content
    # -------------------------------------------------------------------------------------

    @guarded
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """The handle is the inode; pages stay valid, as no file ever changes."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise failure(errno.EROFS)
        recordings = self._views.recordings
        # What the kernel has of the file would be read unseen.
        is_recorded = recordings is not None and recordings.note_open(inode)
        return pyfuse3.FileInfo(fh=inode, keep_cache=not is_recorded)

    def _read_deadline(self, fh: int, *_: object) -> float:
        meaning = decode(fh)
        if isinstance(meaning, LayerInode):
            return limits.HANDLER_DEADLINE + self._views.patience(meaning.layer_slot)
        return limits.HANDLER_DEADLINE

    @guarded_for(_read_deadline)
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Exactly `size` bytes, fewer only at the end of the file, or an error."""
        store, node = self._layer_node(fh)
        if self._views.recordings is not None:
            self._views.recordings.note_read(fh, off, size)
        data = await store.read(node, off, size)
        self.requests.bytes_read += len(data)
        # pyfuse3 takes anything that has a buffer, whatever its stub says: no copy is made.
        return cast("bytes", data)

    @guarded
    async def release(self, fh: int) -> None:
        """Nothing is kept per open file."""

    # --- from inode numbers to nodes
    # ---------------------------------------------------------------------

    def _directory(self, inode: int) -> tuple[OpenView, NodeID]:
        meaning = decode(inode)
        if isinstance(meaning, LayerInode):
            raise failure(errno.ENOTDIR)
        view = self._views.by_slot(meaning.chain_slot)
        if view is None:
            _stale()
        return view, meaning.node

    def _layer(self, slot: int) -> Layer:
        store = self._views.layer_by_slot(slot)
        if store is None:
            _stale()
        return store

    def _layer_node(self, inode: int) -> tuple[Layer, int]:
        """Where what is no directory lies: its layer, and its node there."""
        meaning = decode(inode)
        if isinstance(meaning, LayerInode):
            return self._layer(meaning.layer_slot), meaning.node
        view, node = self._directory(inode)
        position, layer_node = view.tree.content(node)
        return view.layers[position], layer_node

    def _xattrs(self, inode: int) -> Sequence[tuple[bytes, bytes]]:
        if inode == pyfuse3.ROOT_INODE:
            return ()
        meaning = decode(inode)
        if isinstance(meaning, LayerInode):
            return self._layer(meaning.layer_slot).index.xattrs(meaning.node)
        view, node = self._directory(inode)
        return view.tree.xattrs(node)

    def _count(self, inode: int) -> None:
        """Counts a reference that the kernel was just given; only a chain's own inodes matter."""
        meaning = decode(inode)
        if isinstance(meaning, ChainInode):
            view = self._views.by_slot(meaning.chain_slot)
            if view is not None:
                view.kernel_references += 1


def _stale() -> NoReturn:
    """The kernel asks for an inode of a view that is closed: its references were given back."""
    raise failure(errno.ESTALE)


def _entry(attributes: Attributes) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = attributes.ino
    entry.st_mode = attributes.mode
    entry.st_nlink = attributes.nlink
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_rdev = attributes.rdev
    entry.st_size = attributes.size
    entry.st_blocks = -(-attributes.size // SECTOR) if attributes.type is NodeType.FILE else 0
    entry.st_blksize = BLOCK_SIZE
    # Layers carry one time. All three show it, so that they are the same after every restart.
    entry.st_atime_ns = entry.st_ctime_ns = entry.st_mtime_ns = attributes.mtime_ns
    entry.entry_timeout = entry.attr_timeout = FOR_EVER
    return entry


def _root_entry() -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.ROOT_INODE
    entry.st_mode = ROOT_MODE
    entry.st_nlink = 1
    entry.entry_timeout = entry.attr_timeout = FOR_EVER
    return entry


def _absent() -> pyfuse3.EntryAttributes:
    """A name that does not exist, for ever: inode 0 makes the kernel remember that."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = FOR_EVER
    return entry
