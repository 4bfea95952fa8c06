"""The views that are open: merged trees in memory, each shared by whoever uses its chain.

A view stays open while somebody holds it (a volume, a listing) or the kernel still refers to one of
its directories (`is_referred_to`: a file that is open in a detached mount keeps its directories,
and these keep the view). Its layers are in a table of their own (`OpenLayers`): other views may
have them, too.

The filesystem finds views and layers by their slots, the numbers in inode numbers.
"""

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from imgvol.content.layer import Layer
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.reachability import Root, RootKind, Thing, ThingKind
from imgvol.content.records import ImageRecord, LayerRecord
from imgvol.content.store import Store
from imgvol.content.streamed_layer import StreamedLayer
from imgvol.errors import NotFound
from imgvol.images.open_layers import OpenLayers, refuse_failed
from imgvol.images.open_view import OpenView
from imgvol.images.settling import Settling
from imgvol.images.traces.recording import Recordings
from imgvol.oci.digest import Digest
from imgvol.view.chain import ChainView
from imgvol.view.settling import SettlingView

# Indexes being loaded and merged at once.
VIEW_THREADS: Final = 2


async def _nothing_to_do() -> None:
    """For views that no filesystem shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewStatistics:
    """What is open at one moment.

    Attributes:
        published: Views in the filesystem's root.
        looked_into: Other views that somebody on our side holds.
        lingering: Views that only the kernel still refers to.
        complete: Layers that are here and verified.
        settled: Layers that are here by digests of their tables, without a proof of the whole.
        lazy: Layers of which a part may be missing.
        bad: Layers that turned out not to be what they had promised.
        missing: Bytes of lazy layers, as the registry stores them, that are not here.
        waiting: Lazy layers whose registry failed when it was last asked.
        unsafe: Lazy layers of which the disk has lost writes: fetched again after a restart.
    """

    published: int
    looked_into: int
    lingering: int
    complete: int
    settled: int
    lazy: int
    bad: int
    missing: int
    waiting: int
    unsafe: int


@dataclass(eq=False, slots=True)
class Views:
    """The table of open views. One per daemon; used on the event loop only.

    Attributes:
        layers: Those of the open views.
        on_withdrawn: Called when a view leaves the filesystem's root, with its name.
        on_changed: Called when a view was shown in the filesystem's root or has left it.
        on_opened: Called when the layers of a view have been opened, before anybody reads them.
        on_condemned: Called, each of them, when a layer turns out to be bad, or damaged, to drop
            what is cached of it.
        on_recorded: Called, each of them, when what is read of a view is recorded from now on.
        on_failed: Called, each of them, when a view whose layers stream has failed.
        on_mounted: Called when a view has been mounted anew, with its image.
        recordings: What is recorded of reads at this moment; None: nothing is.
        changed_ns: When `on_changed` was last called: nanoseconds since 1970, never the same twice.
    """

    store: Store
    layers: OpenLayers = field(init=False)
    on_changed: Callable[[], None] = lambda: None
    on_withdrawn: Callable[[bytes], None] = lambda _name: None
    on_opened: Callable[[], Awaitable[None]] = _nothing_to_do
    on_condemned: list[Callable[[Layer], None]] = field(default_factory=list)
    on_recorded: list[Callable[[OpenView], Awaitable[None]]] = field(default_factory=list)
    on_failed: list[Callable[[OpenView], None]] = field(default_factory=list)
    on_mounted: Callable[[OpenView, ImageRecord], None] = lambda _view, _image: None
    recordings: Recordings | None = None
    changed_ns: int = field(default_factory=time.time_ns)
    _by_slot: dict[int, OpenView] = field(default_factory=dict)
    _published: dict[bytes, OpenView] = field(default_factory=dict)
    _limiter: trio.CapacityLimiter = field(
        default_factory=lambda: trio.CapacityLimiter(VIEW_THREADS)
    )

    def __post_init__(self) -> None:
        self.layers = OpenLayers(self.store, on_completed=self._drop_lazy_index)

    @asynccontextmanager
    async def hold(self, image: ImageRecord) -> AsyncIterator[OpenView]:
        """Keeps an image's view open inside the block."""
        view = await self.acquire(image)
        try:
            yield view
        finally:
            self.release(view)

    async def acquire(self, image: ImageRecord, view_id: Digest | None = None) -> OpenView:
        """Opens an image's view, or takes the open one. `release` must follow.

        Args:
            image: Which image.
            view_id: What its view was known by when it was first opened; None: now.

        Raises:
            StoreDamaged: A layer cannot be read.
            ContentError: A layer turned out to be bad, or a hard link's target is in no layer.
        """
        view_id = view_id or image.view_id
        digests = [layer.digest for layer in image.layers]
        needed = _things(image, view_id)
        # Held before the first wait, and only then looked for: what a collection removes meanwhile
        # is either seen to be gone, or stays.
        with self.store.pins.holding(Root(RootKind.MOUNT, str(view_id)), needed):
            slot = await self._slot_of(view_id)
            async with self.layers.turn_to_open(digests):
                view = self._by_slot.get(slot)
                if view is None:
                    view = await self._open(image, view_id, slot)
                    self._by_slot[slot] = view
                else:
                    for layer in view.layers:
                        refuse_failed(layer)
                view.holders += 1
                self.store.uses.note(image.manifest)
                self._hold(view, needed)
                return view

    async def _slot_of(self, view_id: Digest) -> int:
        for view in self._by_slot.values():
            if view.id == view_id:
                return view.slot
        return await self.store.records.view_slot(view_id)

    async def _open(self, image: ImageRecord, view_id: Digest, slot: int) -> OpenView:
        # They may have been completed since the image was looked up, or found to be bad.
        records = await self.store.records.refresh_layers(image.layers)
        if len(records) < len(image.layers):
            raise NotFound("image was removed while it was being opened", image=image.id)
        layers: list[Layer] = []
        try:
            for record in records:
                layer = await self.layers.acquire(record)
                layers.append(layer)
            await self.on_opened()
            tree = await trio.to_thread.run_sync(
                lambda: ChainView(
                    [layer.index for layer in layers],
                    chain_slot=slot,
                    layer_slots=[layer.slot for layer in layers],
                ),
                limiter=self._limiter,
            )
        except BaseException:
            for layer in layers:
                self.layers.release(layer)
            raise
        return OpenView(
            id=view_id, slot=slot, tree=tree, layers=tuple(layers), records=tuple(records)
        )

    def _hold(self, view: OpenView, things: frozenset[Thing]) -> None:
        """Keeps what an image needs for as long as its view is open.

        Images that differ in their config alone have the same view.
        """
        new = things - view.things
        self.store.pins.hold(Root(RootKind.VIEW, str(view.id)), new)
        view.things |= new

    # --- views whose layers stream ----------------------------------------------------------------

    async def open_settling(
        self,
        records: Sequence[LayerRecord],
        needed: Collection[Thing],
        on_change: Callable[[], None],
    ) -> tuple[OpenView, list[StreamedLayer]]:
        """Opens a view whose layers have yet to come, in a slot of its own. `release` must follow.

        Nobody else is given it, and its slot is not used again: what is in it was not verified.

        Args:
            records: What the layers are to be, the bottom one first.
            needed: What the image needs of the store, once it is there: kept from the beginning, so
                that nobody removes it between the pull and its end.
            on_change: See `StreamedLayer`.
        """
        view_id = Digest.of(b"settling " + secrets.token_bytes(32))
        things = frozenset({Thing(ThingKind.VIEW, view_id), *needed})
        with self.store.pins.holding(Root(RootKind.MOUNT, str(view_id)), things):
            slot = await self.store.records.view_slot(view_id)
            settling = Settling(SettlingView(len(records), chain_slot=slot))
            layers = [
                StreamedLayer(record.digest, self.store.disk_reads, on_change) for record in records
            ]
            view = OpenView(
                id=view_id,
                slot=slot,
                tree=settling.tree,
                layers=tuple(layers),
                records=tuple(records),
                holders=1,
                settling=settling,
            )
            self._by_slot[slot] = view
            self._hold(view, things)
            return view, layers

    async def take_layer(
        self, view: OpenView, position: int, record: LayerRecord, end: Callable[[Layer], None]
    ) -> None:
        """Gives a view whose layers stream one that has ended.

        Args:
            view: Which.
            position: Of the layer.
            record: What it is.
            end: Tells the tree, and raises what is wrong; nobody reads in between.

        Raises:
            NotFound: The view has been closed.
        """
        async with self.layers.turn_to_open([record.digest]):
            layer = await self.layers.acquire(record)
            try:
                await self.on_opened()
                if self._by_slot.get(view.slot) is not view:
                    raise NotFound("the view was closed while its layers came", view=view.id)
                end(layer)
            except BaseException:
                self.layers.release(layer)
                raise
            layers, records = list(view.layers), list(view.records)
            layers[position], records[position] = layer, record
            view.layers, view.records = tuple(layers), tuple(records)
            self._share_patience(view)

    def keep_image(self, view: OpenView, image: ImageRecord) -> None:
        """All layers of a view have come: from now on it keeps its image, unless it was closed."""
        if self._by_slot.get(view.slot) is not view:
            return
        self.store.uses.note(image.manifest)
        self._hold(view, _things(image, view.id))

    # --- who uses them ----------------------------------------------------------------------------

    def by_slot(self, slot: int) -> OpenView | None:
        """The open view of a chain."""
        return self._by_slot.get(slot)

    def share(self, view: OpenView) -> None:
        """One more use of a view that somebody holds. `release` must follow."""
        assert view.holders > 0, "a view that nobody holds may be closed already"
        view.holders += 1

    def release(self, view: OpenView) -> None:
        """Ends one use; the last one closes the view, unless the kernel still refers to it."""
        view.holders -= 1
        self._close_if_unused(view)

    def _close_if_unused(self, view: OpenView) -> None:
        if view.holders == 0 and not view.is_referred_to:
            del self._by_slot[view.slot]
            for thing in view.things:
                if thing.kind is ThingKind.IMAGE:
                    self.store.uses.note(thing.digest)
            self.store.pins.release(Root(RootKind.VIEW, str(view.id)), view.things)
            for layer in view.layers:
                if not isinstance(layer, StreamedLayer):  # nobody else has these
                    self.layers.release(layer)
            view.on_closed()

    # --- the filesystem's root --------------------------------------------------------------------

    def publish(self, view: OpenView, patience: float = 0.0) -> None:
        """Shows a view in the filesystem's root; counted. `withdraw` must follow.

        Args:
            view: Which.
            patience: Seconds that readers wait for a registry that fails. The kernel does not tell
                through which volume a file is read, so the most patient one counts for all that
                share a layer.
        """
        view.patience.append(patience)
        if view.name not in self._published:
            self._published[view.name] = view
            self._note_change()
        self._share_patience(view)

    def withdraw(self, view: OpenView, patience: float = 0.0) -> None:
        """Ends one publication; with the last, the view leaves the filesystem's root."""
        view.patience.remove(patience)
        self._share_patience(view)
        if not view.patience:
            del self._published[view.name]
            self._note_change()
            self.on_withdrawn(view.name)

    def published(self) -> list[OpenView]:
        """The views in the filesystem's root, ordered by slot."""
        return sorted(self._published.values(), key=lambda view: view.slot)

    def by_name(self, name: bytes) -> OpenView | None:
        """The view that the filesystem's root shows under a name."""
        return self._published.get(name)

    def _note_change(self) -> None:
        self.changed_ns = max(time.time_ns(), self.changed_ns + 1)
        self.on_changed()

    def _share_patience(self, view: OpenView) -> None:
        for layer in view.layers:
            if isinstance(layer, LazyLayerStore) and layer.fetcher is not None:
                layer.fetcher.patience = max(
                    (
                        patience
                        for other in self._by_slot.values()
                        if layer in other.layers
                        for patience in other.patience
                    ),
                    default=0.0,
                )

    # --- the kernel's references ------------------------------------------------------------------

    def forget(self, view: OpenView, count: int) -> None:
        """The kernel has dropped so many references to the view's directories."""
        view.references_forgotten += count
        self._close_if_unused(view)

    def inherit(self, view: OpenView) -> None:
        """The kernel may have references to a held view that a process before us has given it.

        What it forgets from now on says nothing, as nobody knows how many these were.
        """
        view.is_inherited = True

    def let_go(self, view: OpenView) -> None:
        """The kernel has turned out to have no reference to a view: from now on they are counted.

        Nobody holds it, and nothing was given since the kernel was asked.
        """
        view.is_inherited = False
        view.references_forgotten = view.references_given
        self._close_if_unused(view)

    def lingering(self) -> list[OpenView]:
        """Views that only the kernel still refers to."""
        return [view for view in self._by_slot.values() if view.holders == 0]

    # --- what becomes of layers -------------------------------------------------------------------

    def condemn(self, layer: Layer) -> None:
        """A layer has turned out to be bad, or damaged: nobody shall read what was shown before."""
        for tell in self.on_condemned:
            tell(layer)

    def trees_of(self, layer: Layer) -> list[tuple[ChainView, int]]:
        """The trees of open views that have a layer, each with its position there."""
        return [
            (view.tree, position)
            for view in self._by_slot.values()
            for position, other in enumerate(view.layers)
            if other is layer
        ]

    def _drop_lazy_index(self, completed: LazyLayerStore) -> None:
        for tree, position in self.trees_of(completed):
            tree.replace_layer(position, completed.index)

    # --- what there is to say ---------------------------------------------------------------------

    def statistics(self) -> ViewStatistics:
        """What is open; from memory."""
        lingering = len(self.lingering())
        layers = list(self.layers)
        lazy = [
            layer for layer in layers if isinstance(layer, LazyLayerStore) and not layer.is_whole
        ]
        bad = sum(layer.failure is not None for layer in lazy)
        wanted = [layer for layer in lazy if layer.failure is None]
        return ViewStatistics(
            published=len(self._published),
            looked_into=len(self._by_slot) - len(self._published) - lingering,
            lingering=lingering,
            complete=len(layers) - len(lazy),
            settled=sum(layer.is_settled for layer in wanted),
            lazy=sum(not layer.is_settled for layer in wanted),
            bad=bad,
            missing=sum(layer.table.blob_size - layer.present_size for layer in wanted),
            waiting=sum(
                layer.fetcher is not None and layer.fetcher.failure is not None for layer in wanted
            ),
            unsafe=sum(layer.intake.loss is not None for layer in lazy),
        )


def _things(image: ImageRecord, view_id: Digest) -> frozenset[Thing]:
    return frozenset(
        {
            Thing(ThingKind.IMAGE, image.manifest),
            Thing(ThingKind.VIEW, view_id),
            *(Thing(ThingKind.LAYER, layer.digest) for layer in image.layers),
        }
    )
