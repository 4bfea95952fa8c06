"""The filesystem's handlers: thin, over the views that are open. They know of no transport.

Theory of operation. The root shows one directory per published view, named by its chain ID. An
inode number says by itself what it means (view.inodes): a directory, or a file whose link count is
the view's own, belongs to a chain and names a node of its tree; everything else belongs to a layer
and is the same inode in every view that has the layer, so that these views share its pages. No
state is kept per inode, per open file or per listing: a handle is the inode number again, and a
listing's cookie is a position in a listing that never changes.

Views never change, so the kernel may keep what it learns for ever, names that do not exist
included. Only the root's own names come and go: they are never kept, and its time tells when they
last did.

Rule 1: handlers answer from memory, at once; only `read` may wait, for the disk or for a registry.
In a view whose layers stream (`view.settling`), lookups and listings are waited for first, where a
caller can be killed while it waits: `is_settled` says whether that is needed, `settle` does it.
Rule 2: a handler returns a record of `replies`, or raises FSError and nothing else (the guard).
"""

import errno
import logging
import os
from collections.abc import Sequence
from typing import NoReturn

import trio

from imgvol import limits
from imgvol.content.layer import Layer
from imgvol.content.open_file import OpenFile
from imgvol.errors import ImgvolError
from imgvol.fs.guard import failure, guarded, guarded_attempt, guarded_for, guarded_part
from imgvol.fs.replies import (
    ABSENT,
    BLOCK_SIZE,
    ROOT_INODE,
    AddEntry,
    Entry,
    FilesystemSize,
    Opened,
    root,
)
from imgvol.images.open_view import OpenView
from imgvol.images.views import Views
from imgvol.tallies import RequestTallies
from imgvol.view.chain import NodeID, layer_attributes
from imgvol.view.inodes import ChainInode, LayerInode, decode

log = logging.getLogger(__name__)


class Operations:
    """Answers the kernel's requests. One per session; used on the event loop.

    Attributes:
        requests: What has been asked, for the guard to count.
    """

    def __init__(self, views: Views, requests: RequestTallies | None = None) -> None:
        self.requests = requests or RequestTallies()
        self._views = views

    # --- names ---------------------------------------------------------------------------------

    @guarded
    def lookup(self, parent: int, name: bytes) -> Entry:
        """Finds a name in a directory; a name that does not exist is an answer, too.

        Unless its inode is 0, the kernel has one more reference to it then: see `forget`.
        """
        if parent == ROOT_INODE:
            view = self._views.by_name(name)
            if view is None:
                raise failure(errno.ENOENT)
            view.references_given += 1
            root = _entry(view, view.tree.root)
            return root._replace(entry_timeout=0)
        view, directory = self._directory(parent)
        node = view.tree.lookup(directory, name)
        if node is None:
            return ABSENT
        entry = _entry(view, node)
        self._count(entry.attributes.ino)
        return entry

    @guarded_part
    def is_settled(self, inode: int, name: bytes | None) -> bool:
        """Whether a lookup in a directory, or for None its listing, can be answered at once."""
        view, node = self._settling(inode)
        return view is None or view.settling is None or view.settling.tree.is_settled(node, name)

    def _settle_deadline(self, *_: object) -> float:
        return limits.STREAM_DEADLINE

    @guarded_for(_settle_deadline)
    async def settle(self, inode: int, name: bytes | None) -> None:
        """Waits until `is_settled`."""
        view, node = self._settling(inode)
        if view is not None and view.settling is not None:
            await view.settling.wait(node, name)

    def _settling(self, inode: int) -> tuple[OpenView | None, NodeID]:
        """The view of a directory, and its node there; None for what is no directory of a view."""
        meaning = None if inode == ROOT_INODE else decode(inode)
        if not isinstance(meaning, ChainInode):
            return None, 0
        return self._views.by_slot(meaning.chain_slot), meaning.node

    @guarded
    def forget(self, references: Sequence[tuple[int, int]]) -> None:
        """The kernel drops references that lookups and listings gave it: inodes and how many."""
        for inode, count in references:
            if inode != ROOT_INODE:
                meaning = decode(inode)
                if isinstance(meaning, ChainInode):
                    view = self._views.by_slot(meaning.chain_slot)
                    if view is not None:
                        self._views.forget(view, count)

    @guarded
    def readdir(
        self, inode: int, cookie: int, add: AddEntry, *, gives_references: bool = True
    ) -> None:
        """Lists a directory from a cookie on, with attributes; complete or an error.

        Args:
            inode: The directory.
            cookie: 0, or what `add` was given with the last name of the part before.
            add: Called with one name after the other until it is full.
            gives_references: Whether the kernel has one more reference to each inode then.
        """
        if inode == ROOT_INODE:
            self._list_root(cookie, add, gives_references)
            return
        view, directory = self._directory(inode)
        listing = view.tree.list(directory)
        for position in range(cookie, len(listing)):
            name, node = listing[position]
            attributes = view.tree.attributes(node)
            if not add(name, Entry(attributes), position + 1):
                break
            if gives_references:
                self._count(attributes.ino)

    def _list_root(self, cookie: int, add: AddEntry, gives_references: bool) -> None:
        # Slots grow and are never used again: a view that comes or goes moves no cookie.
        for view in self._views.published():
            if view.slot < cookie:
                continue
            entry = Entry(view.tree.attributes(view.tree.root), entry_timeout=0)
            if not add(view.name, entry, view.slot + 1):
                break
            if gives_references:
                view.references_given += 1

    # --- attributes
    # --------------------------------------------------------------------------------

    @guarded
    def getattr(self, inode: int) -> Entry:
        """The attributes of an inode."""
        if inode == ROOT_INODE:
            return root(self._views.changed_ns)
        meaning = decode(inode)
        if isinstance(meaning, LayerInode):
            store = self._layer(meaning.layer_slot)
            return Entry(layer_attributes(store.index, meaning.node, inode))
        view, node = self._directory(inode)
        return _entry(view, node)

    @guarded
    def readlink(self, inode: int) -> bytes:
        """The target of a symbolic link."""
        store, node = self._layer_node(inode)
        return store.index.symlink_target(node)

    @guarded
    def listxattr(self, inode: int) -> Sequence[bytes]:
        """The names of extended attributes."""
        return [name for name, _ in self._xattrs(inode)]

    @guarded
    def getxattr(self, inode: int, name: bytes) -> bytes:
        """One extended attribute."""
        for candidate, value in self._xattrs(inode):
            if candidate == name:
                return value
        raise failure(errno.ENODATA)

    @guarded
    def statfs(self) -> FilesystemSize:
        """A full, read-only filesystem of the size of what is published."""
        layers = {store for view in self._shown() for store in view.layers}
        return FilesystemSize(
            blocks=sum(-(-store.index.file_bytes // BLOCK_SIZE) for store in layers),
            files=sum(store.index.node_count for store in layers),
        )

    # --- content
    # -------------------------------------------------------------------------------------

    @guarded
    def open(self, inode: int, flags: int) -> Opened:
        """Nothing is kept per open file. The kernel need not tell of them: see `Transport`."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise failure(errno.EROFS)
        recordings = self._views.recordings
        return Opened(is_recorded=recordings is not None and recordings.note_open(inode))

    @guarded_part
    def has_backing_file(self, inode: int) -> bool:
        """Whether a file of the store may be read in the place of this one."""
        store, node = self._layer_node(inode)
        return store.has_backing_file(node)

    @guarded_part
    def is_large(self, inode: int) -> bool:
        """Whether there may be such a file now or later."""
        store, node = self._layer_node(inode)
        return store.index.record(node).size >= limits.LARGE_FILE

    @guarded_part
    def is_sound(self, inode: int) -> bool:
        """Whether nothing is known against the content of a file."""
        store, node = self._layer_node(inode)
        return store.is_sound(node)

    async def backing_file(self, inode: int) -> OpenFile | None:
        """The file of the store that may be read in the place of this one, if there is one.

        If it cannot be had there is none: reads say why, one by one.
        """
        store, node = self._layer_node(inode)
        try:
            with trio.move_on_after(limits.HANDLER_DEADLINE):
                return await store.backing_file(node)
        except ImgvolError as exc:
            log.debug("a file of the store is not passed through: %s", exc)
        return None

    def _read_deadline(self, inode: int, *_: object) -> float:
        meaning = decode(inode)
        if isinstance(meaning, LayerInode):
            return limits.HANDLER_DEADLINE + self._views.layers.patience(meaning.layer_slot)
        view = self._views.by_slot(meaning.chain_slot)
        if view is not None and view.settling is not None and not view.settling.tree.is_whole:
            return limits.STREAM_DEADLINE
        return limits.HANDLER_DEADLINE

    @guarded_for(_read_deadline)
    async def read(self, inode: int, offset: int, size: int) -> bytes | bytearray:
        """Exactly `size` bytes, fewer only at the end of the file, or an error."""
        store, node = self._layer_node(inode)
        if self._views.recordings is not None:
            self._views.recordings.note_read(inode, offset, size)
        data = await store.read(node, offset, size)
        self.requests.bytes_read += len(data)
        return data

    @guarded_attempt("read")
    def read_now(self, inode: int, offset: int, size: int) -> bytes | bytearray | None:
        """As `read`, if that takes no waiting; None: it would."""
        store, node = self._layer_node(inode)
        data = store.read_now(node, offset, size)
        if data is not None:
            if self._views.recordings is not None:
                self._views.recordings.note_read(inode, offset, size)
            self.requests.bytes_read += len(data)
        return data

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
        store = self._views.layers.by_slot(slot)
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
        if inode == ROOT_INODE:
            return ()
        meaning = decode(inode)
        if isinstance(meaning, LayerInode):
            return self._layer(meaning.layer_slot).index.xattrs(meaning.node)
        view, node = self._directory(inode)
        return view.tree.xattrs(node)

    def _shown(self) -> Sequence[OpenView]:
        return self._views.published()

    def _count(self, inode: int) -> None:
        """Counts a reference that the kernel was just given; only a chain's own inodes matter."""
        meaning = decode(inode)
        if isinstance(meaning, ChainInode):
            view = self._views.by_slot(meaning.chain_slot)
            if view is not None:
                view.references_given += 1


def _entry(view: OpenView, node: NodeID) -> Entry:
    attributes = view.tree.attributes(node)
    if view.settling is not None and not view.settling.tree.is_whole:
        return Entry(attributes, attr_timeout=0)
    return Entry(attributes)


def _stale() -> NoReturn:
    """The kernel asks for an inode of a view that is closed: its references were given back."""
    raise failure(errno.ESTALE)
