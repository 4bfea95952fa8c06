"""The SettlingView: a ChainView whose layers are still coming, as far as they settle what it says.

A layer has *ended* when it has been verified and its LayerIndex is known; until then it is open,
and may be *growing*. A later member of an open layer may add any name, replace what was there, hide
lower names. So:

Rule 1: A name is settled when every layer above the one that decides it has ended. Only one open
layer can be seen, therefore: the topmost, the *frontier*. What lies below it is not looked at.

Rule 2: The frontier settles the names that it has, at once. It never settles that there is no name:
a whiteout may yet get company, a directory names. Whether a name is absent is settled by the layers
that have ended, where they hide the frontier's directory, or hide the name in it.

Rule 3: What lacks a part is not settled: a directory whose attributes nobody has told yet, a hard
link to a lower layer's file. A listing is settled when no open layer can add to its directory, and
all its names are: mostly when all layers have ended, sooner in what an ended layer makes opaque.

Rule 4: An answer, once given, stands: same inode, same attributes. When the frontier ends, all
answers that it was asked for are looked up again in what has been verified. If one is another now
(an archive that has a name twice may do that), the view *fails*: nobody is told two truths.

What is not known is waited for, by whoever asks (`Unsettled`). Two answers may change until all
layers have ended, and are given as such (`is_whole`): the number of a file's names, which grows
with hard links; and the root's attributes, if no layer so far describes it, as most never do.

All inodes are of the chain, none of a layer: what was seen early keeps its early number (see
`layers.growing`), and no other view must meet that.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from types import MappingProxyType
from typing import Final, NoReturn

from imgvol.errors import ImgvolError, InvalidLayer, NotFound
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.growing import EARLY, GrowingIndex
from imgvol.layers.index import ROOT, WHITEOUT, LayerIndex
from imgvol.view.chain import Attributes, ChainView, layer_attributes, root_of
from imgvol.view.inodes import encode_chain_inode
from imgvol.view.merge import NODE_MASK, POSITION_SHIFT, Listing, MergedTree, NodeID, Stack

_EMPTY: Final = LayerIndex(IndexBuilder().finish())
_NOTHING: Final[Mapping[int, int]] = MappingProxyType({})

_Lasting = tuple[Attributes, tuple[tuple[bytes, bytes], ...]]


class Unsettled(ImgvolError):
    """The layers that have come so far do not say."""


class _FreshTree(MergedTree):
    """A tree of which one layer grows: no stack is remembered."""

    def _remember(self, stack: Stack) -> None:
        """Does not."""


class SettlingView(ChainView):
    """See the module.

        view = SettlingView(2, chain_slot=7)
        view.begin(0, growing)
        view.end(1, index)
        view.lookup(view.root, b"etc")           # as soon as `growing` has it

    Used on one thread; only the GrowingIndexes have members added to them in others.

    Args:
        layer_count: Of the image; at least one.
        chain_slot: Of this view alone.

    Attributes:
        failure: Why nothing can be looked up any more; None while all is well.
    """

    def __init__(self, layer_count: int, *, chain_slot: int) -> None:
        super().__init__([_EMPTY] * layer_count, chain_slot=chain_slot)
        self.failure: ImgvolError | None = None
        self.root = root_of(layer_count)
        self._slot = chain_slot
        self._frontier = layer_count - 1
        self._ended: dict[int, LayerIndex] = {}
        self._growing: dict[int, GrowingIndex] = {}
        self._early: dict[NodeID, NodeID] = {}
        self._final: dict[NodeID, NodeID] = {}
        # Of the frontier, by directory and name.
        self._answers: dict[tuple[NodeID, bytes], tuple[NodeID, _Lasting]] = {}
        self._asked: dict[NodeID, set[bytes]] = {}
        self._inner: MergedTree = self._tree()

    # --- layers -----------------------------------------------------------------------------

    @property
    def is_whole(self) -> bool:
        """Whether all layers have ended: from now on this is a view like others."""
        return self._frontier < 0

    def begin(self, position: int, index: GrowingIndex) -> None:
        """A layer has begun to grow."""
        self._growing[position] = index
        if position == self._frontier:
            self._inner = self._tree()

    def end(
        self, position: int, index: LayerIndex, final_nodes: Mapping[int, int] = _NOTHING
    ) -> None:
        """A layer has ended.

        Args:
            position: Which.
            index: What has been verified of it.
            final_nodes: See `GrowingIndex.final_nodes`; nothing if it did not grow.

        Raises:
            InvalidLayer: It says something else than it did, or a hard link leads nowhere. The view
                has failed.
            ImgvolError: The view had failed before.
        """
        self._refuse_failed()
        base = position << POSITION_SHIFT
        for early, node in final_nodes.items():
            self._early[base | node] = base | early
            self._final[base | early] = base | node
        self._ended[position] = index
        self._growing.pop(position, None)
        is_seen = position == self._frontier
        while self._frontier in self._ended:
            self._frontier -= 1
        if not is_seen:
            return
        try:
            self._inner = self._tree()
            self._check_answers()
        except ImgvolError as error:
            if self.is_whole and not isinstance(self._inner, ChainView):
                # A hard link leads nowhere: what can be told without links still can.
                self._inner = MergedTree([self._ended[n] for n in range(len(self.layers))], {})
            self.fail(error)
            raise

    def fail(self, error: ImgvolError) -> None:
        """Nothing is looked up from now on; the first reason counts."""
        self.failure = self.failure or error.anew()

    def replace_layer(self, position: int, layer: LayerIndex) -> None:
        """See MergedTree."""
        self._ended[position] = layer
        self._inner.replace_layer(position, layer)

    # --- what users see ---------------------------------------------------------------------

    def lookup(self, directory: NodeID, name: bytes) -> NodeID | None:
        """See MergedTree.

        Raises:
            Unsettled: Nobody can know yet.
            ImgvolError: The view has failed.
        """
        self._refuse_failed()
        try:
            found = self._find(directory, name)
        except NotFound:  # the directory was another one until now
            if not self.is_whole:
                self.fail(_contradiction(name))
                self._refuse_failed()
            raise
        if found is None or self.is_whole:
            return found
        self._asked.setdefault(directory, set()).add(name)
        answer = found, self._lasting(found)
        if self._answers.setdefault((directory, name), answer) != answer:
            self.fail(_contradiction(name))
            self._refuse_failed()
        return found

    def list(self, directory: NodeID) -> Listing:
        """See ChainView.

        Raises:
            Unsettled: A layer has not ended.
            ImgvolError: The view has failed.
        """
        self._refuse_failed()
        return _OuterListing(self._list(directory), self)

    def is_settled(self, directory: NodeID, name: bytes | None) -> bool:
        """Whether `lookup`, or for None `list`, has an answer, an error included."""
        if self.is_whole or self.failure is not None:
            return True
        try:
            if name is None:
                self._list(directory)
            else:
                self._find(directory, name)
        except Unsettled:
            return False
        except ImgvolError:
            return True  # which will be met again
        return True

    def known_names(self, directory: NodeID) -> Iterator[tuple[bytes, NodeID]]:
        """See ChainView: what has been looked up, if that is not a whole view."""
        if self.is_whole and self.failure is None:
            yield from self.list(directory)
            return
        for name in self._asked.get(directory, ()):
            answer = self._answers.get((directory, name))
            if answer is not None:
                yield name, answer[0]

    def attributes(self, node: NodeID) -> Attributes:
        """See ChainView. Until the view is whole, `nlink` may be too small."""
        inner = self._final_of(node)
        ino = encode_chain_inode(self._slot, node)
        if self.is_whole and self.failure is None:
            return self._whole.attributes(inner)._replace(ino=ino)
        source = self._described(inner)
        layer = self._inner.layers[source >> POSITION_SHIFT]
        return layer_attributes(layer, source & NODE_MASK, ino)

    def inode(self, node: NodeID) -> int:
        """See ChainView; of a node of a layer that has ended, too."""
        return encode_chain_inode(self._slot, self.outer_of(node))

    def xattrs(self, node: NodeID) -> tuple[tuple[bytes, bytes], ...]:
        """See ChainView."""
        source = self._described(self._final_of(node))
        return self._inner.layers[source >> POSITION_SHIFT].xattrs(source & NODE_MASK)

    def content(self, node: NodeID) -> tuple[int, int]:
        """See ChainView: an early number as long as the layer grows."""
        inner = self._final_of(node)
        return inner >> POSITION_SHIFT, inner & NODE_MASK

    def is_directory(self, node: NodeID) -> bool:
        """See MergedTree; what has been replaced is none."""
        try:
            return self._inner.is_directory(self._final_of(node))
        except ImgvolError:
            return False

    def is_symlink(self, node: NodeID) -> bool:
        """See MergedTree."""
        return self._inner.is_symlink(self._final_of(node))

    def symlink_target(self, node: NodeID) -> bytes:
        """See MergedTree."""
        return self._inner.symlink_target(self._final_of(node))

    def given(self) -> Iterator[NodeID]:
        """The nodes that were seen while their layer grew."""
        yield from self._final
        yield from (node for node, _ in self._answers.values() if node & EARLY)

    def outer_of(self, node: NodeID) -> NodeID:
        """What a node of a layer that has ended is called in this view."""
        return self._early.get(node, node)

    # --- rules ------------------------------------------------------------------------------

    @property
    def _whole(self) -> ChainView:
        assert isinstance(self._inner, ChainView), "only once all layers have ended"
        return self._inner

    def _refuse_failed(self) -> None:
        if self.failure is not None:
            raise self.failure.anew()

    def _final_of(self, node: NodeID) -> NodeID:
        final = self._final.get(node, node)
        if final & EARLY and final >> POSITION_SHIFT in self._ended:
            self._refuse_failed()
            raise NotFound("its layer has not kept what was there", node=node)
        return final

    def _tree(self) -> MergedTree:
        """What is settled, and the frontier."""
        count = len(self.layers)
        if self.is_whole:
            return ChainView([self._ended[position] for position in range(count)])
        frontier = self._growing.get(self._frontier, _EMPTY)
        above = [self._ended[position] for position in range(self._frontier + 1, count)]
        return _FreshTree([*[_EMPTY] * self._frontier, frontier, *above], {})

    def _find(self, directory: NodeID, name: bytes) -> NodeID | None:
        """What a name means; rules 1 to 3."""
        inner = self._final_of(directory)
        if self.is_whole:
            whole = self._whole.lookup(inner, name)
            return None if whole is None else self.outer_of(whole)
        for contribution in self._inner.stack(inner):
            layer = self._inner.layers[contribution >> POSITION_SHIFT]
            node = layer.child(contribution & NODE_MASK, name)
            if node is None:
                continue
            if node == WHITEOUT:
                return None
            inner_found = contribution & ~NODE_MASK | node
            if layer.is_foreign_link(node):
                _unsettled(name)
            if layer.is_directory(node) and self._source(inner_found) is None:
                _unsettled(name)
            return self.outer_of(inner_found)
        if self._may_grow(inner):
            _unsettled(name)
        return None

    def _list(self, directory: NodeID) -> Listing:
        """What a directory holds; rule 3."""
        inner = self._final_of(directory)
        if not self.is_whole and self._may_grow(inner):
            raise Unsettled("a layer that may have more names has not ended", node=directory)
        listing = self._inner.list(inner)
        if not self.is_whole:
            for name, _ in listing:
                self._find(directory, name)
        return listing

    def _described(self, node: NodeID) -> NodeID:
        """See ChainView; of anything, and of the frontier's tree."""
        if not self._inner.is_directory(node):
            return node
        source = self._source(node)
        return node if source is None else source

    def _source(self, directory: NodeID) -> NodeID | None:
        """The contribution that a directory has its attributes from, if that has come."""
        tree = self._inner
        for contribution in chain(tree.stack(directory), tree.below(directory)):
            layer = tree.layers[contribution >> POSITION_SHIFT]
            if not layer.is_implicit(contribution & NODE_MASK):
                return contribution
        return None

    def _may_grow(self, directory: NodeID) -> bool:
        """Whether the frontier, or what is below it, can have names in a directory."""
        layer = self._inner.layers[directory >> POSITION_SHIFT]
        node = directory & NODE_MASK
        names = []
        while node != ROOT:
            names.append(layer.name_of(node))
            node = layer.parent(node)
        above = [
            self._inner.layers[position]
            for position in range(self._frontier + 1, len(self._inner.layers))
        ]
        if any(layer.is_opaque(ROOT) for layer in above):
            return False
        holders = [(layer, ROOT) for layer in above]
        for name in reversed(names):
            found = [
                (layer, child)
                for layer, holder in holders
                if (child := layer.child(holder, name)) is not None
            ]
            if any(
                child == WHITEOUT or not layer.is_directory(child) or layer.is_opaque(child)
                for layer, child in found
            ):
                return False
            holders = found
        return True

    def _lasting(self, node: NodeID) -> _Lasting:
        """What has to stay as it is of a node; a leaf's other properties are its number's."""
        return self.attributes(node)._replace(nlink=0), self.xattrs(node)

    def _check_answers(self) -> None:
        """Rule 4, when the frontier has ended."""
        for (directory, name), (node, lasting) in self._answers.items():
            try:
                found = self._find(directory, name)
            except (Unsettled, NotFound):
                found = None
            if found != node or self._lasting(node) != lasting:
                raise _contradiction(name)
        if self.is_whole:
            self._answers.clear()
            self._asked.clear()


class _OuterListing(Listing):
    """A listing whose nodes have the names of the view."""

    __slots__ = ("_listing", "_view")

    def __init__(self, listing: Listing, view: SettlingView) -> None:
        self._listing = listing
        self._view = view

    def __len__(self) -> int:
        return len(self._listing)

    def __getitem__(self, place: int) -> tuple[bytes, NodeID]:
        name, node = self._listing[place]
        return name, self._view.outer_of(node)

    def __iter__(self) -> Iterator[tuple[bytes, NodeID]]:
        return ((name, self._view.outer_of(node)) for name, node in self._listing)

    @property
    def is_stored(self) -> bool:
        """See Listing."""
        return self._listing.is_stored


def _unsettled(name: bytes) -> NoReturn:
    raise Unsettled("a layer that may have the name has not ended", name=name)


def _contradiction(name: bytes) -> InvalidLayer:
    return InvalidLayer(
        "a layer says something else of a file than when it was first asked",
        hint="Its archive has a name twice, perhaps. Unmount it, and mount it with --wait=index.",
        name=name,
    )
