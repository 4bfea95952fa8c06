"""The layers of open views: each is open once, whichever views have it.

It is opened for the first of them and closed with the last. The table has slots and not digests: a
layer that turned out to be bad stays open beside its successor.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from imgvol.content.layer import Layer
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.records import LayerRecord
from imgvol.content.store import Store
from imgvol.errors import StoreDamaged
from imgvol.oci.digest import Digest


async def _no_fetcher(_layer: LazyLayerStore, _record: LayerRecord) -> None:
    """For views without lazy layers."""


@dataclass(eq=False, slots=True)
class _SharedLayer:
    layer: Layer
    users: int = 0


@dataclass(eq=False, slots=True)
class OpenLayers:
    """The table of open layers. One per daemon; used on the event loop only.

    Attributes:
        on_lazy: Called with each lazy layer that is opened, to give it its fetcher.
        on_lazy_closed: Called when its last view has closed.
        on_completed: Called with a lazy layer that is read from its final form from now on.
        closing_of: What to wait for before a layer is opened that was open just now, if anything.
    """

    store: Store
    on_lazy: Callable[[LazyLayerStore, LayerRecord], Awaitable[None]] = _no_fetcher
    on_lazy_closed: Callable[[LazyLayerStore], None] = lambda _layer: None
    on_completed: Callable[[LazyLayerStore], None] = lambda _layer: None
    closing_of: Callable[[Digest], trio.Event | None] = lambda _digest: None
    _by_slot: dict[int, _SharedLayer] = field(default_factory=dict)
    _opening: trio.Lock = field(default_factory=trio.Lock)

    def __iter__(self) -> Iterator[Layer]:
        return (shared.layer for shared in self._by_slot.values())

    def by_slot(self, slot: int) -> Layer | None:
        """The open layer with this number."""
        shared = self._by_slot.get(slot)
        return shared.layer if shared else None

    @asynccontextmanager
    async def turn_to_open(self, digests: Collection[Digest]) -> AsyncIterator[None]:
        """One task at a time opens layers, and none while one of these is being closed."""
        while True:
            async with self._opening:
                closing = [e for digest in digests if (e := self.closing_of(digest)) is not None]
                if not closing:
                    yield
                    return
            for event in closing:
                await event.wait()

    async def acquire(self, record: LayerRecord) -> Layer:
        """Opens a layer, or takes the open one. The caller's turn; `release` must follow.

        Raises:
            StoreDamaged: It cannot be read.
            ContentError: It turned out to be bad.
        """
        shared = self._by_slot.get(record.slot)
        if shared is None:
            shared = _SharedLayer(await self._open(record))
            self._by_slot[record.slot] = shared
        else:
            refuse_failed(shared.layer)
        shared.users += 1
        return shared.layer

    def release(self, layer: Layer) -> None:
        """Ends one use; the last one closes the layer."""
        shared = self._by_slot[layer.slot]
        shared.users -= 1
        if shared.users == 0:
            del self._by_slot[layer.slot]
            if isinstance(layer, LazyLayerStore):
                self.on_lazy_closed(layer)

    async def _open(self, record: LayerRecord) -> Layer:
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
            return await self._open(known[0])
        layer.on_complete = self.on_completed
        await self.on_lazy(layer, record)
        return layer

    @property
    def has_slow(self) -> bool:
        """Whether a part of any of them may have to come over a slow line."""
        return any(
            not layer.is_complete and layer.fetcher is not None and layer.fetcher.is_slow
            for layer in self
            if isinstance(layer, LazyLayerStore)
        )

    def patience(self, slot: int) -> float:
        """Seconds that readers of an open layer wait for a registry that fails."""
        layer = self.by_slot(slot)
        if isinstance(layer, LazyLayerStore) and layer.fetcher is not None:
            return layer.fetcher.patience
        return 0.0


def refuse_failed(layer: Layer) -> None:
    """No new view has a layer that gives errors only; those that have it go on with them."""
    if (failure := layer.failure) is not None:
        raise type(failure)(
            failure.message,
            hint="It is opened anew once the volumes that have it are unmounted: see imgvol ps.",
            **failure.fields,
        )
