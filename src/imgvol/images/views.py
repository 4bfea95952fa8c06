"""The views that are open: merged trees in memory, each shared by whoever uses its chain.

A view stays open while somebody holds it (a volume, a listing) or the kernel still refers to one of
its directories (`kernel_references`: a file that is open in a detached mount keeps its directories,
and these keep the view). Layers are shared between views and close with the last of them.

The filesystem finds views and layers by their slots, the numbers in inode numbers.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from imgvol.content.layer import Layer
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.reachability import Root, RootKind, Thing, ThingKind
from imgvol.content.records import ImageRecord, LayerRecord
from imgvol.content.store import Store
from imgvol.errors import NotFound, StoreDamaged
from imgvol.images.status import LayerStatus, layer_status
from imgvol.images.traces.recording import Recordings
from imgvol.images.traces.run import TraceUse
from imgvol.oci.digest import Digest
from imgvol.view.chain import ChainView, NodeID

# Indexes being loaded and merged at once.
VIEW_THREADS: Final = 2


async def _nothing_to_do() -> None:
    """For views that no filesystem shows."""


async def _no_fetcher(_layer: LazyLayerStore, _record: LayerRecord) -> None:
    """For views without lazy layers."""


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
class OpenView:
    """One open view.

    Attributes:
        id: The chain ID, or what stands for it until every layer has been verified.
        slot: The chain's number in inode numbers.
        records: Of the layers, as they were opened: another image of the same chain ID may have
            other blobs.
        holders: Who uses it on our side.
        patience: Of each volume that shows it in the filesystem's root: seconds that readers wait
            for a registry that fails.
        kernel_references: Lookups of its directories that the kernel has not forgotten.
        things: What it keeps from being collected.
        trace: What a trace has done for it; None: nothing.
    """

    id: Digest
    slot: int
    tree: ChainView
    layers: tuple[Layer, ...]
    records: tuple[LayerRecord, ...]
    holders: int = 0
    patience: list[float] = field(default_factory=list)
    kernel_references: int = 0
    things: frozenset[Thing] = frozenset()
    trace: TraceUse | None = None

    @property
    def name(self) -> bytes:
        """The view's directory in the root: no colon, which overlayfs would split at."""
        return self.id.hex.encode()

    def layer_statuses(self) -> tuple[LayerStatus, ...]:
        """How each layer is read, the bottom one first."""
        return tuple(map(layer_status, self.layers, self.records))

    async def read(self, node: NodeID, offset: int, size: int) -> bytes | bytearray:
        """Reads a file's bytes: exact up to the end of the file, or an error."""
        position, layer_node = self.tree.content(node)
        return await self.layers[position].read(layer_node, offset, size)


@dataclass(eq=False, slots=True)
class _SharedLayer:
    store: Layer
    users: int = 0


@dataclass(eq=False, slots=True)
class Views:
    """The table of open views. One per daemon; used on the event loop only.

    Attributes:
        on_withdrawn: Called when a view leaves the filesystem's root, with its name.
        on_opened: Called when the layers of a view have been opened, before anybody reads them.
        on_lazy_layer: Called with each lazy layer that is opened, to give it its fetcher.
        on_lazy_layer_closed: Called when its last view has closed.
        on_condemned: Called when a layer turns out to be bad, or damaged, to drop what is cached
            of it.
        on_mounted: Called when a view has been mounted anew, with its image.
        recordings: What is recorded of reads at this moment; None: nothing is.
        closing_of: What to wait for before a layer is opened that was open just now, if anything.
    """

    store: Store
    on_withdrawn: Callable[[bytes], None] = lambda _name: None
    on_opened: Callable[[], Awaitable[None]] = _nothing_to_do
    on_lazy_layer: Callable[[LazyLayerStore, LayerRecord], Awaitable[None]] = _no_fetcher
    on_lazy_layer_closed: Callable[[LazyLayerStore], None] = lambda _layer: None
    on_condemned: Callable[[Layer], None] = lambda _layer: None
    on_mounted: Callable[[OpenView, ImageRecord], None] = lambda _view, _image: None
    recordings: Recordings | None = None
    closing_of: Callable[[Digest], trio.Event | None] = lambda _digest: None
    _by_slot: dict[int, OpenView] = field(default_factory=dict)
    _published: dict[bytes, OpenView] = field(default_factory=dict)
    # By slot: a layer that turned out to be bad stays open beside its successor.
    _layers: dict[int, _SharedLayer] = field(default_factory=dict)
    _opening: trio.Lock = field(default_factory=trio.Lock)
    _limiter: trio.CapacityLimiter = field(
        default_factory=lambda: trio.CapacityLimiter(VIEW_THREADS)
    )

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
            async with self._turn_to_open(digests):
                view = self._by_slot.get(slot)
                if view is None:
                    view = await self._open(image, view_id, slot)
                    self._by_slot[slot] = view
                else:
                    for layer in view.layers:
                        _refuse_failed(layer)
                view.holders += 1
                self.store.uses.note(image.manifest)
                self._hold(view, needed)
                return view

    def _hold(self, view: OpenView, things: frozenset[Thing]) -> None:
        """Keeps what an image needs for as long as its view is open.

        Images that differ in their config alone have the same view.
        """
        new = things - view.things
        self.store.pins.hold(Root(RootKind.VIEW, str(view.id)), new)
        view.things |= new

    async def _slot_of(self, view_id: Digest) -> int:
        for view in self._by_slot.values():
            if view.id == view_id:
                return view.slot
        return await self.store.records.view_slot(view_id)

    @asynccontextmanager
    async def _turn_to_open(self, digests: Collection[Digest]) -> AsyncIterator[None]:
        """One task at a time opens views, and none while one of its layers is being closed."""
        while True:
            async with self._opening:
                closing = [e for digest in digests if (e := self.closing_of(digest)) is not None]
                if not closing:
                    yield
                    return
            for event in closing:
                await event.wait()

    @asynccontextmanager
    async def opening_withheld(self, digest: Digest) -> AsyncIterator[None]:
        """Lets nobody open views inside the block, and waits for a layer that is being closed."""
        async with self._turn_to_open([digest]):
            yield

    def release(self, view: OpenView) -> None:
        """Ends one use; the last one closes the view, unless the kernel still refers to it."""
        view.holders -= 1
        self._close_if_unused(view)

    def publish(self, view: OpenView, patience: float = 0.0) -> None:
        """Shows a view in the filesystem's root; counted. `withdraw` must follow.

        Args:
            view: Which.
            patience: Seconds that readers wait for a registry that fails. The kernel does not tell
                through which volume a file is read, so the most patient one counts for all that
                share a layer.
        """
        view.patience.append(patience)
        self._published[view.name] = view
        self._share_patience(view)

    def withdraw(self, view: OpenView, patience: float = 0.0) -> None:
        """Ends one publication; with the last, the view leaves the filesystem's root."""
        view.patience.remove(patience)
        self._share_patience(view)
        if not view.patience:
            del self._published[view.name]
            self.on_withdrawn(view.name)

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

    def patience(self, layer_slot: int) -> float:
        """Seconds that readers of an open layer wait for a registry that fails."""
        layer = self.layer_by_slot(layer_slot)
        if isinstance(layer, LazyLayerStore) and layer.fetcher is not None:
            return layer.fetcher.patience
        return 0.0

    def forget(self, view: OpenView, count: int) -> None:
        """The kernel has dropped so many references to the view's directories."""
        view.kernel_references -= count
        self._close_if_unused(view)

    def published(self) -> list[OpenView]:
        """The views in the filesystem's root, ordered by slot."""
        return sorted(self._published.values(), key=lambda view: view.slot)

    def lingering(self) -> list[OpenView]:
        """Views that only the kernel still refers to."""
        return [view for view in self._by_slot.values() if view.holders == 0]

    def by_name(self, name: bytes) -> OpenView | None:
        """The view that the filesystem's root shows under a name."""
        return self._published.get(name)

    def by_slot(self, slot: int) -> OpenView | None:
        """The open view of a chain."""
        return self._by_slot.get(slot)

    def layer_by_slot(self, slot: int) -> Layer | None:
        """The open layer with this number."""
        shared = self._layers.get(slot)
        return shared.store if shared else None

    def condemn(self, layer: Layer) -> None:
        """A layer has turned out to be bad, or damaged: nobody shall read what was shown before."""
        self.on_condemned(layer)

    def trees_of(self, layer: Layer) -> list[tuple[ChainView, int]]:
        """The trees of open views that have a layer, each with its position there."""
        return [
            (view.tree, position)
            for view in self._by_slot.values()
            for position, other in enumerate(view.layers)
            if other is layer
        ]

    def statistics(self) -> ViewStatistics:
        """What is open; from memory."""
        lingering = len(self.lingering())
        stores = [shared.store for shared in self._layers.values()]
        lazy = [
            store for store in stores if isinstance(store, LazyLayerStore) and not store.is_whole
        ]
        bad = sum(store.failure is not None for store in lazy)
        wanted = [store for store in lazy if store.failure is None]
        return ViewStatistics(
            published=len(self._published),
            looked_into=len(self._by_slot) - len(self._published) - lingering,
            lingering=lingering,
            complete=len(stores) - len(lazy),
            settled=sum(store.is_settled for store in wanted),
            lazy=sum(not store.is_settled for store in wanted),
            bad=bad,
            missing=sum(store.table.blob_size - store.present_size for store in wanted),
            waiting=sum(
                store.fetcher is not None and store.fetcher.failure is not None for store in wanted
            ),
            unsafe=sum(store.has_lost_writes for store in wanted),
        )

    @property
    def has_slow_layers(self) -> bool:
        """Whether there are layers of which a part may have to come over a slow line."""
        return any(
            not shared.store.is_complete
            and shared.store.fetcher is not None
            and shared.store.fetcher.is_slow
            for shared in self._layers.values()
            if isinstance(shared.store, LazyLayerStore)
        )

    async def _open(self, image: ImageRecord, view_id: Digest, slot: int) -> OpenView:
        stores: list[Layer] = []
        try:
            # They may have been completed since the image was looked up, or found to be bad.
            records = await self.store.records.refresh_layers(image.layers)
            if len(records) < len(image.layers):
                raise NotFound("image was removed while it was being opened", image=image.id)
            for record in records:
                store = await self._acquire_layer(record)
                stores.append(store)
            await self.on_opened()
            tree = await trio.to_thread.run_sync(
                lambda: ChainView(
                    [store.index for store in stores],
                    chain_slot=slot,
                    layer_slots=[store.slot for store in stores],
                ),
                limiter=self._limiter,
            )
        except BaseException:
            for store in stores:
                self._release_layer(store)
            raise
        return OpenView(
            id=view_id, slot=slot, tree=tree, layers=tuple(stores), records=tuple(records)
        )

    async def _acquire_layer(self, record: LayerRecord) -> Layer:
        shared = self._layers.get(record.slot)
        if shared is None:
            shared = _SharedLayer(await self._open_layer(record))
            self._layers[record.slot] = shared
        else:
            _refuse_failed(shared.store)
        shared.users += 1
        return shared.store

    async def _open_layer(self, record: LayerRecord) -> Layer:
        if record.is_refused:
            assert record.fault is not None
            raise record.fault.refusal(record.digest)
        if record.is_stored:
            return await self.store.open_layer(record)
        try:
            if record.is_in_place:
                return await self.store.open_in_place_layer(record)
            layer = await self.store.open_lazy_layer(record)
        except StoreDamaged:
            # A pull may have brought all of it into the store since its record was read.
            known = await self.store.records.refresh_layers([record])
            if not known or not known[0].is_stored:
                raise
            return await self._open_layer(known[0])
        layer.on_complete = self._drop_lazy_index
        await self.on_lazy_layer(layer, record)
        return layer

    def _drop_lazy_index(self, completed: LazyLayerStore) -> None:
        for view in self._by_slot.values():
            for position, layer in enumerate(view.layers):
                if layer is completed:
                    view.tree.replace_layer(position, completed.index)

    def _release_layer(self, store: Layer) -> None:
        shared = self._layers[store.slot]
        shared.users -= 1
        if shared.users == 0:
            del self._layers[store.slot]
            if isinstance(store, LazyLayerStore):
                self.on_lazy_layer_closed(store)

    def _close_if_unused(self, view: OpenView) -> None:
        if view.holders == 0 and view.kernel_references == 0:
            del self._by_slot[view.slot]
            for thing in view.things:
                if thing.kind is ThingKind.IMAGE:
                    self.store.uses.note(thing.digest)
            self.store.pins.release(Root(RootKind.VIEW, str(view.id)), view.things)
            for store in view.layers:
                self._release_layer(store)


def _things(image: ImageRecord, view_id: Digest) -> frozenset[Thing]:
    return frozenset(
        {
            Thing(ThingKind.IMAGE, image.manifest),
            Thing(ThingKind.VIEW, view_id),
            *(Thing(ThingKind.LAYER, layer.digest) for layer in image.layers),
        }
    )


def _refuse_failed(layer: Layer) -> None:
    """No new view has a layer that gives errors only; those that have it go on with them."""
    if (failure := layer.failure) is not None:
        raise type(failure)(
            failure.message,
            hint="It is opened anew once the volumes that have it are unmounted: see imgvol ps.",
            **failure.fields,
        )
