"""Garbage collection: removes what nobody needs, or explains why each thing lives or goes.

Two phases. First the records go, of everything that nothing leads to: one transaction finds and
removes them, and asks inside of it what is held in memory at that moment. Then files go, each after
another look, under the lock that whoever makes such a file takes: directories of layers without a
record, documents that nothing leads to, names of large files that no layer links to.

A mount or a pull that begins meanwhile wins: it holds what it needs first and looks for it second.
Either its hold is seen here, or it sees that the record has gone, and fetches. A crash between the
phases leaves files without records, which the next collection removes, or the next start.
"""

import logging
import random
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Final

import trio

from imgvol import limits
from imgvol.content.reachability import Root, Thing, ThingKind, World, reasons
from imgvol.content.records import ImageChanges
from imgvol.content.store import Store
from imgvol.errors import ImgvolError
from imgvol.oci.digest import Digest

log = logging.getLogger(__name__)

# Of the interval, either way: daemons that start together do not collect together.
_JITTER: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What becomes of one thing.

    Attributes:
        size: Bytes on disk; 0 for what is only a record. What layers share counts in each.
        reasons: Every root that leads to it; none: it goes.
    """

    thing: Thing
    size: int
    reasons: tuple[Root, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionReport:
    """What a collection did.

    Attributes:
        removed: What has gone.
        freed: Bytes given back to the disk.
    """

    removed: tuple[Thing, ...]
    freed: int


@dataclass(eq=False, slots=True)
class Collector:
    """Collects a store. One per daemon.

    Attributes:
        after: Called when something may have been removed.
    """

    store: Store
    after: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
    _turn: trio.Lock = field(default_factory=trio.Lock)
    # An image has lost something that kept it, and has no name.
    _orphaned: trio.Event = field(default_factory=trio.Event)

    async def explain(self) -> tuple[Fate, ...]:
        """What would become of each thing if it were collected now; changes nothing."""
        world, sizes = await self._picture()
        return tuple(
            Fate(thing=thing, size=sizes.get(thing, 0), reasons=tuple(sorted(roots)))
            for thing, roots in sorted(reasons(world).items())
        )

    async def collect(self) -> CollectionReport:
        """Removes everything that nothing leads to; one collection at a time.

        Raises:
            StoreFull: Not even the records can be changed.
            LocalError: The store fails.
        """
        async with self._turn:
            swept = await self.store.records.sweep(self.store.pins.snapshot)
            freed = 0
            layers = {thing.digest for thing in swept if thing.kind is ThingKind.LAYER}
            strays = await self.store.files.stray_layers()
            for digest in layers | strays:
                freed += await self.store.files.remove_strays(digest)
            documents, size = await self._remove_documents()
            files = await self.store.files.sweep_shared_files()
            await self.store.files.let_go()
            removed = {
                *swept,
                *(Thing(ThingKind.LAYER, digest) for digest in strays),
                *(Thing(ThingKind.DOCUMENT, digest) for digest in documents),
                *(Thing(ThingKind.FILE, digest) for digest in files),
            }
            await self.after()
            return CollectionReport(removed=tuple(sorted(removed)), freed=freed + size)

    async def run(self, *, interval: float = limits.COLLECTION_INTERVAL) -> None:
        """Collects for ever, at intervals, and when what was removed in use is used no more."""
        self.store.images.listen(self._notice)
        while True:
            jitter = random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - no secret
            with trio.move_on_after(interval * jitter):
                await self._wait_for_orphans()
            try:
                report = await self.collect()
            except ImgvolError as exc:
                log.warning("garbage is not collected: %s", exc)
            except Exception:  # in the daemon's nursery it would end every view
                log.exception("garbage is not collected: a defect")
            else:
                if report.removed:
                    log.info("collected %d things, %d bytes", len(report.removed), report.freed)

    def _notice(self, changes: ImageChanges) -> None:
        if changes.manifests is not None and not all(image.is_wanted for image in changes.images):
            self._orphaned.set()

    async def _wait_for_orphans(self) -> None:
        """Returns when an image without a name has lost something that kept it."""
        while True:
            await self._orphaned.wait()
            # Whoever removes images collects; what is left then was in use.
            await trio.sleep(limits.COLLECTION_DELAY)
            self._orphaned = trio.Event()
            if not all(image.is_wanted for image in self.store.images):
                return

    async def make_room(self) -> None:
        """Collects because a write has found no room; a failure leaves things as they are."""
        try:
            report = await self.collect()
        except ImgvolError as exc:
            log.warning("the disk is full, and nothing can be collected: %s", exc)
        else:
            log.info("the disk is full: collected %d bytes", report.freed)

    async def _remove_documents(self) -> tuple[Collection[Digest], int]:
        async with self.store.naming:
            world = await self.store.records.world(self.store.pins.snapshot)
            stored = await self.store.files.document_sizes()
            things = frozenset(Thing(ThingKind.DOCUMENT, digest) for digest in stored)
            known = reasons(World(roots=world.roots, references=world.references, stored=things))
            # An image that has lost its last name since the sweep still has its record, and whoever
            # dies now must not leave it without what it speaks of: the next sweep takes both.
            recorded = {thing for held in world.references.values() for thing in held}
            garbage = [
                thing.digest
                for thing, roots in known.items()
                if not roots and thing not in recorded
            ]
            return garbage, await self.store.files.remove_documents(garbage)

    async def _picture(self) -> tuple[World, dict[Thing, int]]:
        """Everything that is stored, files included, and how large it is."""
        recorded = await self.store.records.world(self.store.pins.snapshot)
        layers = await self.store.files.layer_sizes()
        documents = await self.store.files.document_sizes()
        files = await self.store.files.shared_files()
        references = {thing: set(things) for thing, things in recorded.references.items()}
        for content, users in files.items():
            for layer in users:
                owner = references.setdefault(Thing(ThingKind.LAYER, layer), set())
                owner.add(Thing(ThingKind.FILE, content))
        sizes = {Thing(ThingKind.LAYER, digest): size for digest, size in layers.items()}
        sizes |= {Thing(ThingKind.DOCUMENT, digest): size for digest, size in documents.items()}
        stored = recorded.stored | sizes.keys()
        stored |= {Thing(ThingKind.FILE, content) for content in files}
        return World(roots=recorded.roots, references=references, stored=stored), sizes
