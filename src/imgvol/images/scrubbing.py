"""Scrubbing: reads all stored bytes again, marks layers that have changed, has them pulled again.

One layer after the other, in one thread that gives way to every other process and thread, for the
processor as for the disk. A complete layer of which some pieces are damaged is marked: from then on
whoever reads these gets errors, until it has been pulled as a whole; the rest is served. One whose
index or card is damaged, or that has no digests of its pieces, is refused altogether, and gives
errors where it is open. Its files stay until then: most of them may still be good. Damaged spans of
a lazy layer count as missing, which is all that they need.
"""

import logging
import os
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import outcome
import trio

from imgvol.content.damage import DAMAGED_NAME, DamagedParts
from imgvol.content.durable import translate_os_errors
from imgvol.content.layer_store import LayerStore
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.records import FaultKind, ImageRecord, LayerFault, LayerRecord
from imgvol.content.scrub import Damage, DamagedPlace, scrub_complete, scrub_place
from imgvol.content.store import Store
from imgvol.errors import ImgvolError, StoreDamaged
from imgvol.images.pull import PullProgress
from imgvol.images.service import ImageService, PullOptions
from imgvol.images.views import Views
from imgvol.oci.digest import Digest
from imgvol.threads import run_cancellable

log = logging.getLogger(__name__)

T = TypeVar("T")

# setpriority(2): the last in line. The disk's order follows it (ioprio_set(2), "none").
_LOWEST: Final = 19


@dataclass(slots=True)
class ScrubProgress:
    """How far a scrub is; a plain object that it changes and others read.

    Attributes:
        checked: Bytes that have been read.
        total: Bytes of everything that is to be read.
    """

    checked: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubFault:
    """Something that is not what it was.

    Attributes:
        subject: `layer sha256:…` or `document sha256:…`.
        problem: What is wrong with it.
        is_repaired: Whether it is as it should be by now.
        outcome: What was done, or is to be done.
        places: Which parts of a layer, if it is not all of it; the first ones.
    """

    subject: str
    problem: str
    is_repaired: bool
    outcome: str
    places: tuple[DamagedPlace, ...] = ()


class _Stopped(Exception):
    """Whoever asked has gone."""


class Scrubber:
    """Scrubs a store. One per daemon; one scrub at a time."""

    def __init__(self, store: Store, views: Views, images: ImageService) -> None:
        self._store = store
        self._views = views
        self._images = images
        self._limiter = trio.CapacityLimiter(1)

    async def scrub(
        self,
        images: Sequence[str],
        *,
        repair: bool,
        options: PullOptions,
        progress: ScrubProgress,
    ) -> tuple[ScrubFault, ...]:
        """Reads the data of images again; of all that are here, if none is named.

        Args:
            repair: Whether to pull again what is damaged.
            options: How to reach the registry for that.
            progress: Told how far it is.

        Raises:
            NotFound: There is no such image.
        """
        chosen = [await self._images.find(image) for image in images]
        chosen = chosen or await self._images.list()
        layers = {layer.digest: layer for image in chosen for layer in image.layers}
        progress.total = sum(layer.unpacked_size for layer in layers.values())
        faults = [fault for image in chosen for fault in await self._scrub_documents(image)]
        damaged: set[Digest] = set()
        for layer in layers.values():
            before = progress.checked
            fault = await self._scrub_layer(layer, progress)
            progress.checked = before + layer.unpacked_size
            if fault is not None:
                faults.append(fault)
                if not fault.is_repaired:
                    damaged.add(layer.digest)
        if repair and any(not fault.is_repaired for fault in faults):
            await self._pull_again(chosen, damaged, faults, options)
            return tuple([await self._reconsidered(fault) for fault in faults])
        return tuple(faults)

    async def _scrub_documents(self, image: ImageRecord) -> list[ScrubFault]:
        faults = []
        for digest in (image.manifest, image.id):
            try:
                await self._store.read_blob(digest)
            except ImgvolError as exc:
                faults.append(
                    ScrubFault(
                        subject=f"document {digest}",
                        problem=exc.message,
                        is_repaired=False,
                        outcome="pull the image again",
                    )
                )
        return faults

    async def _scrub_layer(self, layer: LayerRecord, progress: ScrubProgress) -> ScrubFault | None:
        if layer.fault is not None and layer.is_refused:
            return _marked(layer.digest, layer.fault.reason)
        if layer.is_in_place or layer.is_complete:
            damage = await self._find_damage(layer, progress)
            if damage is None:
                await self._set_damage(layer, None)
                return None
            return await self._mark(layer, damage)
        return await self._scrub_lazy(layer, progress)

    async def _find_damage(self, layer: LayerRecord, progress: ScrubProgress) -> Damage | None:
        layout = self._store.layout
        if not layer.is_in_place:
            return await self._gently(
                lambda note: scrub_complete(layout, layer.digest, note), progress
            )
        place = await self._store.records.place(layer)
        if place is None:
            return Damage(reason="where it lies is not known any more")
        directory = layout.place(layer.digest)
        return await self._gently(
            lambda note: scrub_place(directory, place, layer.digest, note), progress
        )

    async def _mark(self, layer: LayerRecord, damage: Damage) -> ScrubFault | None:
        if damage.parts is not None:
            return await self._set_damage(layer, damage)
        fault = LayerFault(kind=FaultKind.DAMAGED, reason=damage.reason)
        async with self._store.layer_lock(layer.digest):
            if not await self._store.records.mark_damaged(layer, fault):
                return None  # removed or pulled again meanwhile
            # Otherwise a pull would link to it instead of keeping what it brings.
            await self._store.files.unshare(damage.shared)
        opened = self._views.layers.by_slot(layer.slot)
        if opened is not None:
            opened.failure = fault.refusal(layer.digest)
            self._views.condemn(opened)
        log.error("layer %s is damaged: %s", layer.digest, damage.reason)
        return _marked(layer.digest, damage.reason)

    async def _set_damage(self, layer: LayerRecord, damage: Damage | None) -> ScrubFault | None:
        """Makes some parts of a layer, and no others, give errors from now on."""
        if damage is None and not layer.is_damaged:
            return None
        directory = self._store.layout.layer(layer.digest)
        async with self._store.layer_lock(layer.digest):
            if await self._store.records.layer(layer.digest) != layer:
                return None  # removed or pulled again meanwhile
            parts = None if damage is None else damage.parts
            # Before the record: whatever it says, no damaged byte is shown.
            await trio.to_thread.run_sync(_write_parts, directory, parts)
            fault = None
            if damage is not None:
                fault = LayerFault(kind=FaultKind.DAMAGED, reason=damage.reason)
            await self._store.records.set_damage(layer, fault)
            if damage is not None:
                await self._store.files.unshare(damage.shared)
            opened = self._views.layers.by_slot(layer.slot)
            stored = opened.final if isinstance(opened, LazyLayerStore) else opened
            if isinstance(stored, LayerStore):
                stored.damaged = parts
        if damage is None:
            return None
        if opened is not None:
            self._views.condemn(opened)
        log.error("layer %s is damaged: %s", layer.digest, damage.reason)
        return ScrubFault(
            subject=f"layer {layer.digest}",
            problem=damage.reason,
            is_repaired=False,
            outcome="reading that gives errors until its image is pulled again",
            places=damage.places,
        )

    async def _scrub_lazy(self, layer: LayerRecord, progress: ScrubProgress) -> ScrubFault | None:
        opened = self._views.layers.by_slot(layer.slot)
        try:
            store = (
                opened
                if isinstance(opened, LazyLayerStore)
                else await self._store.open_lazy_layer(layer)
            )
        except StoreDamaged as exc:
            return await self._mark(layer, Damage(reason=str(exc)))
        spans = await self._gently(store.scrubber.damaged_spans, progress)
        if not spans:
            return None
        # Whoever opens it from now on reads the map that is written here.
        async with self._views.layers.turn_to_open([layer.digest]):
            current = self._views.layers.by_slot(layer.slot)
            target = current if isinstance(current, LazyLayerStore) else store
            await trio.to_thread.run_sync(target.scrubber.forget, spans)
        log.error("layer %s: %d spans were damaged", layer.digest, len(spans))
        return ScrubFault(
            subject=f"layer {layer.digest}",
            problem=f"{len(spans)} of its spans are not what was verified",
            is_repaired=True,
            outcome="they are fetched again when they are read",
        )

    async def _gently(
        self, work: Callable[[Callable[[int], None]], T], progress: ScrubProgress
    ) -> T:
        """Runs long work in a thread of its own that gives way to all others."""
        stopped = threading.Event()

        def note(size: int) -> None:
            if stopped.is_set():
                raise _Stopped
            progress.checked += size

        return await run_cancellable(
            partial(_in_the_background, partial(work, note)), stopped.set, limiter=self._limiter
        )

    async def _pull_again(
        self,
        images: Collection[ImageRecord],
        damaged: Collection[Digest],
        faults: Collection[ScrubFault],
        options: PullOptions,
    ) -> None:
        subjects = {fault.subject for fault in faults}
        for image in images:
            documents = {f"document {image.manifest}", f"document {image.id}"}
            is_hit = any(layer.digest in damaged for layer in image.layers) or documents & subjects
            if not is_hit or not image.names:
                continue
            try:
                await self._images.pull(
                    image.names[0],
                    platform=image.platform,
                    options=options,
                    progress=PullProgress(),
                )
            except ImgvolError as exc:
                log.warning("%s is not repaired: %s", image.names[0], exc)

    async def _reconsidered(self, fault: ScrubFault) -> ScrubFault:
        """A fault as it is after pulling again."""
        if fault.is_repaired:
            return fault
        kind, _, text = fault.subject.partition(" ")
        digest = Digest.parse(text)
        if kind == "layer":
            layer = await self._store.records.layer(digest)
            is_repaired = layer is None or not (layer.is_refused or layer.is_damaged)
        else:
            is_repaired = await self._has_document(digest)
        return replace(fault, is_repaired=True, outcome="pulled again") if is_repaired else fault

    async def _has_document(self, digest: Digest) -> bool:
        try:
            await self._store.read_blob(digest)
        except ImgvolError:
            return False
        return True


def _marked(digest: Digest, reason: str) -> ScrubFault:
    return ScrubFault(
        subject=f"layer {digest}",
        problem=reason,
        is_repaired=False,
        outcome="it is refused until its image is pulled again",
    )


def _write_parts(directory: Path, parts: DamagedParts | None) -> None:
    with translate_os_errors("write down what is damaged of a layer"):
        if parts is not None:
            parts.save(directory)
        else:
            (directory / DAMAGED_NAME).unlink(missing_ok=True)


def _in_the_background(work: Callable[[], T]) -> T:
    """Runs work in a new thread: one that is used again could not be raised again."""
    results: list[outcome.Outcome[T]] = []

    def run() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)
        results.append(outcome.capture(work))

    thread = threading.Thread(target=run, name="imgvol-scrub")
    thread.start()
    thread.join()
    return results[0].unwrap()
