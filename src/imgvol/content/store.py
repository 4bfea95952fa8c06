"""The store: opens the root for one daemon, brings records and files together, collects garbage.

What survives a crash, and why that is enough:

- A layer is renamed into `layers/` complete and durable, then recorded. Killed in between, it has
  no record: the next start removes it.
- A record whose directory is gone is dropped; images that need it are then not here
  (`records.images`).
- Everything in `ingest/` is unfinished work: emptied at start.
- A name is recorded last, after all that it means.
"""

import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from imgvol import limits
from imgvol.content import database as databases
from imgvol.content import inventory
from imgvol.content.blobs import BlobStore
from imgvol.content.check import Finding, check_store
from imgvol.content.database import Database, open_database
from imgvol.content.durable import sync_directory, translate_os_errors, write_file
from imgvol.content.exchange import put_directory
from imgvol.content.files import StoreFiles
from imgvol.content.image_uses import ImageUses
from imgvol.content.in_place_layer import InPlaceLayer
from imgvol.content.known_images import KnownImages
from imgvol.content.layer_store import LayerStore
from imgvol.content.layer_writer import LayerWriter
from imgvol.content.layout import CHUNKS_NAME, DATA_NAME, INDEX_NAME, StoreLayout
from imgvol.content.lazy_directory import BLOB_NAME, SPANS_NAME, create_lazy_layer, is_lazy_layer
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.ownership import own_directory
from imgvol.content.pins import Pins
from imgvol.content.place import Place
from imgvol.content.records import LayerRecord, Origin, Records, Saving
from imgvol.content.space import SpaceLedger
from imgvol.content.turns import Turns
from imgvol.errors import ImgvolError, StoreDamaged
from imgvol.layers.lazy.spans import LazyLayer
from imgvol.oci.digest import Digest
from imgvol.tallies import QueueLength

log = logging.getLogger(__name__)

# Threads for documents, opening and removing.
STORE_THREADS: Final = 4
# Reads of views that have to wait for the disk, at once.
DISK_READS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUsage:
    """What the store takes and holds, and what it has saved; sizes in bytes.

    Attributes:
        linked_size: What layers would take besides if they did not share files.
        copied_spans: Spans of lazy layers that were copied from other layers, since the store was
            made.
        copied_bytes: What they have in their blobs: it was not fetched.
        cloned_bytes: Content of these that was not written: it shares blocks with other layers.
        shared_layers: Layers that were not fetched because they were here under another digest.
        shared_bytes: Of their blobs.
    """

    images: int
    layers: int
    blobs_size: int
    layers_size: int
    linked_size: int
    copied_spans: int
    copied_bytes: int
    cloned_bytes: int
    shared_layers: int
    shared_bytes: int
    disk_size: int
    disk_free: int


class Store:
    """One root directory, open. Made by `open_store`."""

    def __init__(
        self, layout: StoreLayout, database: Database, records: Records, images: KnownImages
    ) -> None:
        self._layout = layout
        self._database = database
        self.records = records
        # The records of images, in memory.
        self.images = images
        self.blobs = BlobStore(layout)
        # What is needed at this moment, for collection.
        self.pins = Pins()
        # Documents are here for a moment before the record that needs them.
        self.naming = trio.Lock()
        # How much it takes, and may.
        self.space = SpaceLedger()
        self.uses = ImageUses()
        self._limiter = trio.CapacityLimiter(STORE_THREADS)
        self._disk_reads = trio.CapacityLimiter(DISK_READS)
        self._layer_turns = Turns[Digest]()
        self.files = StoreFiles(layout, records, self.pins, self.layer_lock, self._limiter)

    def layer_lock(self, digest: Digest) -> AbstractAsyncContextManager[None]:
        """One task at a time decides what becomes of a layer: pulled, completed, removed."""
        return self._layer_turns.turn(digest)

    @property
    def layout(self) -> StoreLayout:
        """Where everything lies."""
        return self._layout

    @property
    def spool_directory(self) -> str:
        """For temporary files that may be large; emptied at every start."""
        return str(self._layout.ingest)

    @property
    def disk_queue(self) -> QueueLength:
        """Reads of views that the disk is asked for, and those waiting for their turn."""
        limiter = self._disk_reads.statistics()
        return QueueLength(limiter.borrowed_tokens, limiter.tasks_waiting)

    async def put_blob(self, digest: Digest, data: bytes) -> None:
        """Stores a document durably."""
        await trio.to_thread.run_sync(self.blobs.put, digest, data, limiter=self._limiter)

    async def read_blob(self, digest: Digest) -> bytes:
        """Reads a document, verified.

        Raises:
            NotFound: Not stored.
            StoreDamaged: Its bytes have changed.
        """
        return await trio.to_thread.run_sync(self.blobs.read, digest, limiter=self._limiter)

    async def adopt_blob(self, digest: Digest, path: Path) -> None:
        """Stores a file of the spool directory durably, which moves.

        Raises:
            DigestMismatch: It is not what the digest names.
            StoreFull: No room.
        """
        await trio.to_thread.run_sync(self.blobs.adopt, digest, path, limiter=self._limiter)

    @property
    def disk_reads(self) -> trio.CapacityLimiter:
        """Limits the threads that read for the filesystem."""
        return self._disk_reads

    def new_layer(self) -> LayerWriter:
        """A writer for one layer. Blocks: call it in the pulling thread."""
        return LayerWriter(self._layout, self.space)

    async def add_lazy_layer(
        self, record: LayerRecord, lazy: LazyLayer, origin: Origin
    ) -> LayerRecord:
        """Stores a lazy layer without content, durably, and records it."""

        def create() -> None:
            # An orphan of a crash between rename and record has the same content: none.
            shutil.rmtree(self._layout.lazy_layer(record.digest), ignore_errors=True)
            create_lazy_layer(self._layout, record.digest, index=lazy.index, table=lazy.table)

        await trio.to_thread.run_sync(create, limiter=self._limiter)
        return await self.records.add_lazy_layer(record, origin)

    async def has_lazy_layer(self, digest: Digest, lazy: LazyLayer) -> bool:
        """Whether the store knows a lazy layer by this very table of contents."""

        def compare() -> bool:
            return is_lazy_layer(self._layout, digest, index=lazy.index, table=lazy.table)

        return await trio.to_thread.run_sync(compare, limiter=self._limiter)

    async def open_lazy_layer(self, record: LayerRecord) -> LazyLayerStore:
        """Opens a lazy layer; a fetcher must be attached before it is read.

        Raises:
            StoreDamaged: Its files are missing or damaged.
            ContentError: It turned out to be bad when it was open before.
        """
        if record.fault is not None:
            raise record.fault.refusal(record.digest)
        return await trio.to_thread.run_sync(
            LazyLayerStore,
            self._layout.lazy_layer(record.digest),
            record.digest,
            record.slot,
            self._disk_reads,
            self.space,
            limiter=self._limiter,
        )

    async def complete_layer(self, record: LayerRecord) -> LayerRecord:
        """Records that a layer has been published whole, and removes what it was before.

        That is its lazy form, or its index if it was read where it lies.
        """
        with trio.CancelScope(shield=True):
            stored = await self.records.add_layer(record)
            await trio.to_thread.run_sync(
                self._remove_other_forms, record.digest, limiter=self._limiter
            )
        return stored

    async def condemn_layer(self, record: LayerRecord) -> None:
        """Records what a lazy layer turned out to be, and gives back what was fetched of it.

        Its directory stays, as its record does: without, it would count as lost, and be fetched
        lazily again.
        """
        assert record.is_refused, "a complete layer is worth keeping"

        def drop() -> None:
            for name in (DATA_NAME, BLOB_NAME, SPANS_NAME):
                (self._layout.lazy_layer(record.digest) / name).unlink(missing_ok=True)

        with trio.CancelScope(shield=True):
            await self.records.add_layer(record)
            await trio.to_thread.run_sync(drop, limiter=self._limiter)

    async def add_in_place_layer(
        self, record: LayerRecord, place: Place, index: bytes
    ) -> LayerRecord:
        """Stores the index of a layer that stays where it lies, durably, and records it."""
        await trio.to_thread.run_sync(
            _write_index, self._layout, record.digest, index, limiter=self._limiter
        )
        return await self.records.add_in_place_layer(record, place)

    async def open_in_place_layer(self, record: LayerRecord) -> InPlaceLayer:
        """Opens a layer where it lies.

        Raises:
            StoreDamaged: The file is gone or has changed.
        """
        place = await self.records.place(record)
        if place is None:
            raise StoreDamaged(
                "where a layer lies is not known any more",
                hint="Try again; if it stays so, pull the image again.",
                digest=record.digest,
            )
        return await trio.to_thread.run_sync(
            InPlaceLayer,
            self._layout.place(record.digest),
            place,
            record.digest,
            record.slot,
            self._disk_reads,
            limiter=self._limiter,
        )

    async def is_intact(self, record: LayerRecord) -> bool:
        """Whether a layer can be read as it is recorded, without looking at its bytes."""
        if not record.is_in_place:
            return True
        place = await self.records.place(record)
        return place is not None and await trio.to_thread.run_sync(
            place.is_intact, limiter=self._limiter
        )

    def _remove_other_forms(self, digest: Digest) -> None:
        shutil.rmtree(self._layout.place(digest), ignore_errors=True)
        # Out of the way first: an open layer may be writing its map there in this moment.
        discarded = self._layout.ingest / f"lazy-{secrets.token_hex(8)}"
        lazy, final = self._layout.lazy_layer(digest), self._layout.layer(digest)
        with contextlib.suppress(OSError):  # a hint, that others can do without
            os.rename(lazy / CHUNKS_NAME, final / CHUNKS_NAME)
        with contextlib.suppress(FileNotFoundError):
            os.rename(lazy, discarded)
        shutil.rmtree(discarded, ignore_errors=True)

    async def open_layer(self, record: LayerRecord) -> LayerStore:
        """Opens a complete layer for reading.

        Raises:
            StoreDamaged: Its files are missing or damaged.
        """
        return await trio.to_thread.run_sync(
            LayerStore,
            self._layout,
            record.digest,
            record.slot,
            self._disk_reads,
            limiter=self._limiter,
        )

    async def check(self) -> list[Finding]:
        """What is wrong with the store, as it is in use."""
        first = await check_store(self._layout, self.records)
        if not first:
            return []
        # What was being written, or removed, in that moment is another thing by now.
        again = await check_store(self._layout, self.records)
        return [finding for finding in again if finding in first]

    async def save_copy(self) -> None:
        """Writes a copy of the records, if they have changed, for the day they are damaged."""
        try:
            await self._database.save_copy(self._layout.database_copy)
        except ImgvolError as exc:
            log.warning("the database is not copied: %s", exc)

    async def save_copies(self, *, interval: float = limits.DATABASE_COPY_INTERVAL) -> None:
        """Does so for ever, at intervals."""
        while True:
            await trio.sleep(interval)
            await self.save_copy()

    async def usage(self) -> StoreUsage:
        """Sizes of what is stored. Walks the layers' directories: not for a hot path."""
        images = self.images
        layers = await self.records.layers()
        savings = await self.records.savings()
        copied, shared = savings[Saving.COPIED], savings[Saving.SHARED]

        def measure() -> StoreUsage:
            disk = os.statvfs(self._layout.root)
            return StoreUsage(
                images=len(images),
                layers=len(layers),
                blobs_size=inventory.tree_usage(self._layout.blobs),
                # Counted from the top, so that files shared by hard links count once.
                layers_size=inventory.tree_usage(self._layout.layers)
                + inventory.tree_usage(self._layout.lazy_layers)
                + inventory.tree_usage(self._layout.places),
                linked_size=inventory.shared_usage(self._layout.layers),
                copied_spans=copied.pieces,
                copied_bytes=copied.size,
                cloned_bytes=savings[Saving.CLONED].size,
                shared_layers=shared.pieces,
                shared_bytes=shared.size,
                disk_size=disk.f_blocks * disk.f_frsize,
                disk_free=disk.f_bavail * disk.f_frsize,
            )

        return await trio.to_thread.run_sync(measure, limiter=self._limiter)


@asynccontextmanager
async def open_store(root: Path) -> AsyncIterator[Store]:
    """Opens a root directory for this process alone and repairs what a crash left.

    Raises:
        StoreLocked: Another daemon has it open.
        LocalError: The directory is not ours alone (owner, mode, type).
        StoreDamaged: The database cannot be used.
    """
    layout = StoreLayout(root)
    lock = await trio.to_thread.run_sync(own_directory, root)
    try:
        await trio.to_thread.run_sync(_prepare, layout)
        async with open_database(layout.database) as database:
            records = Records(database)
            await _reconcile(layout, records)
            images = KnownImages()
            await records.watch_images(images.take)
            store = Store(layout, database, records, images)
            yield store
            with trio.CancelScope(shield=True):
                await store.save_copy()
    finally:
        os.close(lock)


def check_version(root: Path) -> None:
    """Makes sure that this program could open a store, which another process may have open. Blocks.

    Raises:
        StoreDamaged: It is of another version, or cannot be read.
    """
    databases.check_version(StoreLayout(root).database)


def _prepare(layout: StoreLayout) -> None:
    with translate_os_errors(f"prepare the store at {layout.root}"):
        layout.make()
        for left in layout.ingest.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()


async def _reconcile(layout: StoreLayout, records: Records) -> None:
    """Drops records without files, and files without records."""
    recorded = await records.layers()

    def compare() -> list[LayerRecord]:
        for stray in inventory.strays(layout, recorded):
            inventory.remove_stray(stray)
        inventory.sweep_shared_files(layout)
        return inventory.lost(layout, recorded)

    for layer in await trio.to_thread.run_sync(compare):
        await records.forget_layer(layer.digest)


def _write_index(layout: StoreLayout, digest: Digest, index: bytes) -> None:
    """Stores the index of a layer that is read in place, instead of an earlier one."""
    final = layout.place(digest)
    with translate_os_errors("store the index of a layer"):
        work = layout.ingest / f"place-{secrets.token_hex(8)}"
        work.mkdir(mode=0o700)
        write_file(work / INDEX_NAME, index)
        sync_directory(work)
        replaced = put_directory(work, final)
        sync_directory(layout.places)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)
