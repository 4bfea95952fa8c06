"""The ChainView: a chain of layers as one directory tree, with attributes and identities.

A view is a MergedTree, which says what is where, plus what users see of each node. It keeps no
state but caches: the same layers in the same slots give the same answers, inode numbers included,
before and after a restart, and a NodeID that one view has given is understood by another.

Directories have their attributes from the topmost layer that describes them; one that is only
implied by the names below it looks through to the layers below. Their link count is 1, which tools
read as "not counted", as overlayfs has it for merged directories.

A file's inode is its layer's as long as the file looks as it does in every chain. When this chain
hides names of it or adds some, its link count is another one here: it becomes a file of this chain.
"""

import os
import stat
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from imgvol import limits
from imgvol.errors import LimitExceeded
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.index import ROOT, LayerIndex, NodeRecord, NodeType
from imgvol.view.inodes import encode_chain_inode, encode_layer_inode
from imgvol.view.links import NameCounter, resolve_foreign_links
from imgvol.view.merge import NODE_MASK, POSITION_SHIFT, Listing, MergedTree, NodeID

__all__ = ["Attributes", "ChainView", "Listing", "NodeID", "layer_attributes", "root_of"]

# Names in the listings that are kept, at 8 bytes each: readdir comes back for every few hundred.
_KEPT_NAMES: Final = 1 << 22
_KEPT_LISTINGS: Final = 256

_FORMATS: Final = {
    NodeType.FILE: stat.S_IFREG,
    NodeType.DIRECTORY: stat.S_IFDIR,
    NodeType.SYMLINK: stat.S_IFLNK,
    NodeType.CHAR: stat.S_IFCHR,
    NodeType.BLOCK: stat.S_IFBLK,
    NodeType.FIFO: stat.S_IFIFO,
}


class Attributes(NamedTuple):
    """What stat(2) says.

    Attributes:
        ino: See `inodes`.
        type: What it is.
        mode: With the bits of the type.
        nlink: Names in this view; 1 for directories.
        uid: Owner.
        gid: Group.
        size: Of a file or of a symbolic link's target; 0 for everything else.
        mtime_ns: Nanoseconds since 1970.
        rdev: Device number, as os.makedev makes it; 0 for what is no device.
    """

    ino: int
    type: NodeType
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    rdev: int


def root_of(layer_count: int) -> NodeID:
    """The root directory of any chain of so many layers: the topmost layer's."""
    return max(layer_count - 1, 0) << POSITION_SHIFT | ROOT


class ChainView(MergedTree):
    """The tree that a user sees.

        view = ChainView([base, application], chain_slot=1, layer_slots=[4, 7])
        node = view.lookup(view.root, b"etc")
        view.attributes(node).mode

    Args:
        layers: The bottom one first; none is an empty image.
        chain_slot: This chain's, for inode numbers.
        layer_slots: Of each layer; without, inode numbers are unique in this view only.

    Raises:
        InvalidLayer: A hard link leads nowhere.
        LimitExceeded: There are too many layers.
    """

    def __init__(
        self,
        layers: Sequence[LayerIndex],
        *,
        chain_slot: int = 0,
        layer_slots: Sequence[int] = (),
    ) -> None:
        if len(layers) > limits.LAYERS:
            raise LimitExceeded("too many layers", limit="LAYERS", allowed=limits.LAYERS)
        layers = layers or [LayerIndex(IndexBuilder().finish())]
        self._chain_slot = chain_slot
        self._layer_slots = tuple(layer_slots) or tuple(range(1, len(layers) + 1))
        assert len(self._layer_slots) == len(layers), "one slot for each layer"
        foreign = resolve_foreign_links(layers)
        super().__init__(layers, foreign)
        self._names = NameCounter(self, foreign)
        self._listings: dict[NodeID, Listing] = {}
        self._kept_names = 0

    def list(self, directory: NodeID) -> Listing:
        """All names of a directory, sorted, each with its node.

        Raises:
            NotFound: This is no directory of the view.
        """
        listing = self._listings.get(directory)
        if listing is None:
            listing = super().list(directory)
            if listing.is_stored:
                self._keep(directory, listing)
        return listing

    def known_names(self, directory: NodeID) -> Iterable[tuple[bytes, NodeID]]:
        """The names of a directory that anybody can have been told."""
        return self.list(directory)

    def attributes(self, node: NodeID) -> Attributes:
        """What stat(2) says about a node."""
        if self.is_directory(node):
            source = self._described(node)
            layer = self.layers[source >> POSITION_SHIFT]
            return _attributes(
                encode_chain_inode(self._chain_slot, node), layer.record(source & NODE_MASK), 1
            )
        record = self.layers[node >> POSITION_SHIFT].record(node & NODE_MASK)
        ino, nlink = self._identity(node, record.nlink)
        return _attributes(ino, record, nlink)

    def inode(self, node: NodeID) -> int:
        """The inode number of a node."""
        if self.is_directory(node):
            return encode_chain_inode(self._chain_slot, node)
        return self._identity(node, self.layers[node >> POSITION_SHIFT].nlink(node & NODE_MASK))[0]

    def xattrs(self, node: NodeID) -> tuple[tuple[bytes, bytes], ...]:
        """The extended attributes of a node, sorted by name."""
        source = self._described(node) if self.is_directory(node) else node
        return self.layers[source >> POSITION_SHIFT].xattrs(source & NODE_MASK)

    def content(self, node: NodeID) -> tuple[int, int]:
        """Where a file's content is: the layer's position, and the node there."""
        return node >> POSITION_SHIFT, node & NODE_MASK

    def _identity(self, node: NodeID, nlink: int) -> tuple[int, int]:
        """The inode number and the link count of a file that has `nlink` names in its layer."""
        is_linked = self._names.is_linked(node)
        visible = self._names.count(node) if nlink > 1 or is_linked else 1
        # A link from above is enough: the file may have as many names as in its layer, but others.
        if visible != nlink or is_linked:
            return encode_chain_inode(self._chain_slot, node), visible
        slot = self._layer_slots[node >> POSITION_SHIFT]
        return encode_layer_inode(slot, node & NODE_MASK), visible

    def _described(self, directory: NodeID) -> NodeID:
        """The contribution that a directory has its attributes from."""
        stack = self.stack(directory)
        for contributions in (stack, self.below(directory)):
            for contribution in contributions:
                layer = self.layers[contribution >> POSITION_SHIFT]
                if not layer.is_implicit(contribution & NODE_MASK):
                    return contribution
        return directory

    def _keep(self, directory: NodeID, listing: Listing) -> None:
        is_full = len(self._listings) >= _KEPT_LISTINGS
        if is_full or self._kept_names + len(listing) > _KEPT_NAMES:
            self._listings.clear()
            self._kept_names = 0
        self._listings[directory] = listing
        self._kept_names += len(listing)


def layer_attributes(layer: LayerIndex, node: int, inode: int) -> Attributes:
    """What stat(2) says about an inode of a layer, in whatever chain."""
    record = layer.record(node)
    return _attributes(inode, record, record.nlink)


def _attributes(ino: int, record: NodeRecord, nlink: int) -> Attributes:
    return Attributes(
        ino,
        record.type,
        _FORMATS[record.type] | record.mode,
        nlink,
        record.uid,
        record.gid,
        record.size,
        record.mtime_ns,
        os.makedev(record.major, record.minor),
    )
