"""Reads one complete layer: its index in memory, its bytes by position.

A read first asks the page cache without waiting, on the event loop, in microseconds
(`RWF_NOWAIT`). Only when the kernel would have to wait for the disk does a thread do it, 250
microseconds away. Both give exactly the bytes asked for, cut at the end of the file, or raise: a
short answer would be silent truncation.

What a scrub has found to be damaged gives errors, and the rest is served. A read that meets such a
part looks whether a pull has put a whole layer in the place of this one, and goes on with that.

Descriptors of large files are kept in a small cache. A descriptor closes when its last user drops
it, so that evicting one never pulls it from under a reader in another thread.
"""

import contextlib
import os
import threading
from collections import OrderedDict
from typing import Final

import trio

from imgvol.content.damage import DamagedParts
from imgvol.content.gathering import gather, pieces_of
from imgvol.content.layout import DATA_NAME, FILES_NAME, INDEX_NAME, StoreLayout
from imgvol.content.open_file import OpenFile, read_whole
from imgvol.content.passed_pages import PassedPages
from imgvol.content.reading import pread_exact, pread_nowait
from imgvol.errors import ImgvolError, StoreDamaged
from imgvol.layers.index import LayerIndex
from imgvol.oci.digest import Digest

OPEN_FILES: Final = 128


class LayerStore:
    """A complete `Layer`. Opening blocks: do it in a thread.

    Attributes:
        damaged: What of it must not be shown; None while all is well.

    Raises:
        StoreDamaged: Files are missing, or the index does not match its checksum.
    """

    def __init__(
        self, layout: StoreLayout, digest: Digest, slot: int, disk_reads: trio.CapacityLimiter
    ) -> None:
        self.digest = digest
        self.slot = slot
        # What is complete has been verified; a disk that fails may not fail the next time. Only a
        # scrub finds that it is not what it was.
        self.failure: ImgvolError | None = None
        self._disk_reads = disk_reads
        self._layout = layout
        self._directory = layout.layer(digest)
        try:
            self.index = LayerIndex(read_whole(self._directory / INDEX_NAME))
            self._data = OpenFile(self._directory / DATA_NAME, os.O_RDONLY)
            self.damaged = DamagedParts.load(self._directory, digest)
        except OSError as exc:
            raise StoreDamaged(
                "a stored layer cannot be opened",
                hint="Remove the image and pull it again.",
                digest=digest,
                reason=exc.strerror,
            ) from exc
        self._files: OrderedDict[int, OpenFile] = OrderedDict()
        self._passed = PassedPages()
        self._lock = threading.Lock()

    async def read(self, node: int, offset: int, size: int) -> bytes | bytearray:
        """See `Layer.read`.

        Raises:
            StoreDamaged: The stored bytes end before the file does, are known not to be what they
                were, or the disk fails.
        """
        if self.failure is not None:
            raise self.failure.anew()
        size = min(size, self.index.record(node).size - offset)
        if size <= 0:
            return b""
        if self._is_damaged(node, offset, size):
            await trio.to_thread.run_sync(self._renew, limiter=self._disk_reads)
            self._refuse_damaged(node, offset, size)
        data = self._read_cached(node, offset, size)
        if data is not None:
            return data
        return await trio.to_thread.run_sync(
            self.read_blocking, node, offset, size, limiter=self._disk_reads
        )

    def read_now(self, node: int, offset: int, size: int) -> bytes | bytearray | None:
        """See `Layer.read_now`."""
        if self.failure is not None:
            raise self.failure.anew()
        size = min(size, self.index.record(node).size - offset)
        if size <= 0:
            return b""
        return (
            None if self._is_damaged(node, offset, size) else self._read_cached(node, offset, size)
        )

    def _is_damaged(self, node: int, offset: int, size: int) -> bool:
        damaged = self.damaged
        return damaged is not None and damaged.touches_content(self.index, node, offset, size)

    def _refuse_damaged(self, node: int, offset: int, size: int) -> None:
        if self._is_damaged(node, offset, size):
            raise StoreDamaged(
                "a part of a stored layer has changed since it was verified",
                hint="Pull the image again: imgvol pull IMAGE.",
                digest=self.digest,
                offset=offset,
            )

    def _renew(self) -> None:
        """Takes what a pull has put in the place of a damaged layer, if it has. Blocks."""
        with contextlib.suppress(StoreDamaged, OSError):
            if DamagedParts.load(self._directory, self.digest) == self.damaged:
                return  # nobody has
            found = LayerStore(self._layout, self.digest, self.slot, self._disk_reads)
            if found.index.data != self.index.data:
                return
            with self._lock:
                self._files.clear()
            self._data = found._data
            self.damaged = found.damaged

    def _read_cached(self, node: int, offset: int, size: int) -> bytearray | None:
        """The bytes, if that takes no waiting for the disk."""
        number = self.index.own_file(node)
        if number is not None:
            with self._lock:
                descriptor = self._files.get(number)
            if descriptor is None:
                return None
            data = pread_nowait(descriptor.fd, offset, size)
            if data is not None:
                self._passed.note(number, descriptor.fd, offset, size)
            return data
        extents = self.index.extents(node)
        if len(extents) == 1 and extents[0].offset == 0 and extents[0].size >= offset + size:
            descriptor = self._data  # held: it may be replaced meanwhile
            return pread_nowait(descriptor.fd, extents[0].position + offset, size)
        return None

    def has_backing_file(self, node: int) -> bool:
        """See `Layer.has_backing_file`."""
        return (
            self.failure is None and self.damaged is None and self.index.own_file(node) is not None
        )

    def is_sound(self, node: int) -> bool:
        """See `Layer.is_sound`."""
        return self.failure is None and not self._is_damaged(node, 0, self.index.record(node).size)

    async def backing_file(self, node: int) -> OpenFile | None:
        """See `Layer.backing_file`."""
        number = self.index.own_file(node)
        if number is None:
            return None
        size = self.index.record(node).size
        return await trio.to_thread.run_sync(
            self._open_whole_file, number, size, limiter=self._disk_reads
        )

    def _open_whole_file(self, number: int, size: int) -> OpenFile:
        file = self._open_file(number)
        if (actual := os.fstat(file.fd).st_size) != size:
            raise StoreDamaged(
                "a file of a stored layer has another size than its index says",
                digest=self.digest,
                file=number,
                expected=size,
                actual=actual,
            )
        return file

    def read_blocking(self, node: int, offset: int, size: int) -> bytes | bytearray:
        """As `read`, without asking the page cache first. Blocks."""
        size = min(size, self.index.record(node).size - offset)
        self._refuse_damaged(node, offset, size)
        number = self.index.own_file(node)
        if number is not None:
            descriptor = self._open_file(number)
            data = pread_exact(descriptor.fd, offset, size, self.digest)
            self._passed.note(number, descriptor.fd, offset, size)
            return data
        return gather(self._data, pieces_of(self.index, node, offset, size), size, self.digest)

    def _open_file(self, number: int) -> OpenFile:
        with self._lock:
            if descriptor := self._files.get(number):
                self._files.move_to_end(number)
                return descriptor
        try:
            path = self._directory / FILES_NAME / str(number)
            descriptor = OpenFile(path, os.O_RDONLY)
        except OSError as exc:
            raise StoreDamaged(
                "a file of a stored layer cannot be opened",
                digest=self.digest,
                file=number,
                reason=exc.strerror,
            ) from exc
        with self._lock:
            self._files[number] = descriptor
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
        return descriptor
