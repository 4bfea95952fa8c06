"""What lies in the store's directories: measured, and removed when nobody needs it.

All of it works in the store's threads. What is removed here has no record any more; `Collector`
decides about records.
"""

import gc
import os
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import trio

from imgvol.content import inventory
from imgvol.content.blobs import BlobStore
from imgvol.content.layout import StoreLayout
from imgvol.content.pins import Pins
from imgvol.content.reachability import Thing, ThingKind
from imgvol.content.records import Records
from imgvol.oci.digest import Digest

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class StoreFiles:
    """The files of one store, as far as collection is concerned.

    Args:
        layer_lock: Whose turn it is to decide about a layer.
    """

    def __init__(
        self,
        layout: StoreLayout,
        records: Records,
        pins: Pins,
        layer_lock: Callable[[Digest], AbstractAsyncContextManager[None]],
        limiter: trio.CapacityLimiter,
    ) -> None:
        self._layout = layout
        self._records = records
        self._pins = pins
        self._layer_lock = layer_lock
        self._limiter = limiter
        self._blobs = BlobStore(layout)

    async def stray_layers(self) -> set[Digest]:
        """Layers of which directories lie here that no record speaks of.

        Some may be in the making: `remove_strays` looks again.
        """
        recorded = await self._records.layers()
        paths = await self._in_thread(inventory.strays, self._layout, recorded)
        return {digest for path in paths if (digest := inventory.digest_named(path.name))}

    async def remove_strays(self, digest: Digest) -> int:
        """Removes what lies here of a layer and is not recorded, unless somebody holds the layer.

        Returns:
            The bytes given back.
        """
        async with self._layer_lock(digest):
            if Thing(ThingKind.LAYER, digest) in self._pins:
                return 0
            record = await self._records.layer(digest)
            kept = record and inventory.home_of(self._layout, record)

            def remove() -> int:
                return sum(
                    inventory.remove_stray(home / digest.encoded)
                    for home in inventory.homes(self._layout)
                    if home != kept
                )

            return await self._in_thread(remove)

    async def layer_sizes(self) -> dict[Digest, int]:
        """Bytes on disk of every layer, recorded or not."""

        def measure() -> dict[Digest, int]:
            sizes: dict[Digest, int] = {}
            for home in inventory.homes(self._layout):
                for entry in os.scandir(home):
                    if digest := inventory.digest_named(entry.name):
                        size = inventory.tree_usage(Path(entry.path))
                        sizes[digest] = sizes.get(digest, 0) + size
            return sizes

        return await self._in_thread(measure)

    async def document_sizes(self) -> dict[Digest, int]:
        """Bytes of every document."""
        return await self._in_thread(self._blobs.sizes)

    async def remove_documents(self, documents: Collection[Digest]) -> int:
        """Removes documents; returns the bytes given back."""
        return await self._in_thread(lambda: sum(map(self._blobs.remove, documents)))

    async def shared_files(self) -> dict[Digest, set[Digest]]:
        """The large files that layers share, by content, and the layers that link to each."""
        users = await self._in_thread(inventory.shared_file_users, self._layout)
        return {
            content: {digest for layer in layers if (digest := inventory.digest_named(layer))}
            for name, layers in users.items()
            if (content := inventory.digest_named(name))
        }

    async def unshare(self, contents: Collection[Digest]) -> None:
        """Forgets large files by content; layers that link to them keep theirs."""

        def unlink() -> None:
            for content in contents:
                self._layout.shared_file(content.encoded).unlink(missing_ok=True)

        await self._in_thread(unlink)

    async def sweep_shared_files(self) -> set[Digest]:
        """Removes large files that no layer links to any more; returns their contents."""
        names = await self._in_thread(inventory.sweep_shared_files, self._layout)
        return {content for name in names if (content := inventory.digest_named(name))}

    async def let_go(self) -> None:
        """Closes what nobody uses and is open all the same, whose room on the disk is taken.

        An error knows the calls that it came through, and these what they worked on. If it came
        from a thread they know it, too, and all of it stays until Python's collector comes by,
        which in a daemon that has nothing to do is never.
        """
        await self._in_thread(gc.collect)

    async def _in_thread(self, work: Callable[[*Ts], T], *arguments: *Ts) -> T:
        return await trio.to_thread.run_sync(work, *arguments, limiter=self._limiter)
