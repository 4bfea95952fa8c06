"""A layer that is read while it is being pulled: a Layer that is not verified yet.

The thread that stores the layer tells how far it has come (`expect`, `wrote`); readers wait for the
bytes that they want, and read them from the writer's own files. What they get has been checked by
nothing but the transport: whoever makes such a layer was asked to. When the layer has been
published, readers are handed on to what came of it, and when it turns out to be wrong, all get the
error.

The writer's directory is renamed or removed in the end. A file of it that is open stays readable,
one that is not there any more has a successor, or a failure, in a moment.
"""

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import trio

from imgvol.content.gathering import gather, pieces_of
from imgvol.content.layer import Layer
from imgvol.content.layout import DATA_NAME, FILES_NAME
from imgvol.content.open_file import OpenFile
from imgvol.content.reading import pread_exact
from imgvol.errors import ImgvolError
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.growing import GrowingIndex
from imgvol.layers.index import LayerIndex
from imgvol.layers.tar import TarMember
from imgvol.oci.digest import Digest

_NOTHING: Final = LayerIndex(IndexBuilder().finish())


class StreamedLayer:
    """A `Layer` in the making, by early numbers. Its slot is 0: no inode is its own.

    Args:
        digest: Of the blob that is being pulled.
        disk_reads: Limits threads that read.
        on_change: Called on the event loop when something has come; `wake` is to follow soon.

    Attributes:
        index: What is known by now.
        grows: The same, once the stream has begun.
        on_begin: Called on the event loop when the stream has begun.
        received: Says how many bytes of the blob have come.
    """

    def __init__(
        self, digest: Digest, disk_reads: trio.CapacityLimiter, on_change: Callable[[], None]
    ) -> None:
        self.digest = digest
        self.slot = 0
        self.index: LayerIndex = _NOTHING
        self.grows: GrowingIndex | None = None
        self.on_begin: Callable[[GrowingIndex], None] | None = None
        self.received: Callable[[], int] = lambda: 0
        self._failure: ImgvolError | None = None
        self._disk_reads = disk_reads
        self._on_change = on_change
        self._token = trio.lowlevel.current_trio_token()
        self._successor: Layer | None = None
        self._final_nodes: Mapping[int, int] = {}
        self._changed = trio.Event()
        self._lock = threading.Lock()
        self._is_told = False
        # Written by the storing thread.
        self._directory: Path | None = None
        self._written = 0
        self._payloads: dict[int, tuple[int, int]] = {}
        # Of readers.
        self._files: dict[int | None, OpenFile] = {}

    @property
    def failure(self) -> ImgvolError | None:
        """See Layer."""
        return self._failure

    @failure.setter
    def failure(self, failure: ImgvolError | None) -> None:
        self._failure = failure
        self._files.clear()
        self.wake()

    # --- the storing thread -----------------------------------------------------------------

    def begin(self, builder: IndexBuilder, directory: Path) -> None:
        """See IngestWatcher."""
        self._directory = directory
        self.grows = self.index = GrowingIndex(builder)
        self._tell()

    def expect(self, number: int, member: TarMember) -> None:
        """See IngestWatcher."""
        # Of a sparse file the bytes are not where they are in the tar: all of it has to have come.
        end = member.payload_offset + member.payload_size
        start = end if member.sparse is not None else member.payload_offset
        self._payloads[number] = start, end

    def wrote(self, position: int) -> None:
        """See IngestWatcher."""
        self._written = position
        self._tell()

    def _tell(self) -> None:
        # One call at a time is on its way to the loop, however many pieces come.
        with self._lock:
            if self._is_told:
                return
            self._is_told = True
        self._token.run_sync_soon(self._hear, idempotent=True)

    # --- the event loop ---------------------------------------------------------------------

    def _hear(self) -> None:
        with self._lock:
            self._is_told = False
        if self.grows is not None and self.on_begin is not None:
            self.on_begin(self.grows)
            self.on_begin = None
        self._on_change()

    def wake(self) -> None:
        """Has all readers look whether what they wait for has come."""
        self._changed.set()
        self._changed = trio.Event()

    def succeed(self, layer: Layer, final_nodes: Mapping[int, int]) -> None:
        """Readers go on with what has been verified.

        Args:
            layer: The same, complete.
            final_nodes: What early numbers are there.
        """
        self._successor, self._final_nodes = layer, final_nodes
        self._files.clear()
        self.wake()

    async def read(self, node: int, offset: int, size: int) -> bytes | bytearray:
        """See Layer.

        Raises:
            ImgvolError: As Layer.read, or the layer has failed.
        """
        while True:
            if self._failure is not None:
                raise self._failure.anew()
            if self._successor is not None:
                return await self._successor.read(self._final_nodes[node], offset, size)
            changed = self._changed
            wanted = min(size, self.index.record(node).size - offset)
            if wanted <= 0:
                return b""
            if self._has(node, offset, wanted):
                data = await trio.to_thread.run_sync(
                    self._read, node, offset, wanted, limiter=self._disk_reads
                )
                if data is not None:
                    return data
            await changed.wait()

    def read_now(self, _node: int, _offset: int, _size: int) -> bytes | bytearray | None:
        """See Layer."""
        if self._failure is not None:
            raise self._failure.anew()
        return None

    def has_backing_file(self, _node: int) -> bool:
        """See Layer."""
        return False

    def is_sound(self, _node: int) -> bool:
        """See Layer."""
        return self._failure is None

    async def backing_file(self, _node: int) -> OpenFile | None:
        """See Layer."""
        return None

    def _has(self, node: int, offset: int, size: int) -> bool:
        """Whether bytes of a file have been written."""
        number = self.index.own_file(node)
        if number is not None:
            start, end = self._payloads[number]
            return min(start + offset + size, end) <= self._written
        needed = (
            extent.position + min(extent.size, offset + size - extent.offset)
            for extent in self.index.extents(node)
            if extent.offset < offset + size
        )
        return max(needed, default=0) <= self._written

    def _read(self, node: int, offset: int, size: int) -> bytes | bytearray | None:
        """Blocks. None: the layer has just been published, or removed."""
        number = self.index.own_file(node)
        pieces = pieces_of(self.index, node, offset, size) if number is None else []
        if number is None and not pieces:
            return bytearray(size)
        try:
            file = self._open(number)  # held: the event loop may let go of it meanwhile
        except FileNotFoundError:
            return None
        if number is not None:
            return pread_exact(file.fd, offset, size, self.digest)
        return gather(file, pieces, size, self.digest)

    def _open(self, number: int | None) -> OpenFile:
        """The data file, for None, or an own file. Blocks."""
        file = self._files.get(number)
        if file is None:
            assert self._directory is not None, "something has been written"
            name = DATA_NAME if number is None else f"{FILES_NAME}/{number}"
            file = self._files[number] = OpenFile(self._directory / name, os.O_RDONLY)
        return file
