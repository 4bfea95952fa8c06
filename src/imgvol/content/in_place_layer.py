"""A layer that is read where it lies: an uncompressed tar in a layout or an archive.

    places/<hex>/index    the LayerIndex; its positions count from the tar's first byte

The store has nothing else of it. The file belongs to somebody else. So after every read, and
before a reader gets the bytes, the file is looked at: bytes that were read before a change are
right, and a change that came earlier shows. A file that has changed is refused from then on; one
that looks merely touched (see `place`) is hashed again first. A file that was deleted or replaced
by another of the same name stays open, hence readable and right, until the layer's last view
closes.
"""

import threading
from pathlib import Path

import trio

from imgvol import limits
from imgvol.content.gathering import pieces_of
from imgvol.content.layout import INDEX_NAME
from imgvol.content.open_file import OpenFile, read_whole
from imgvol.content.passed_pages import PassedPages
from imgvol.content.place import Place, PlacedFile
from imgvol.content.reading import pread_exact, pread_nowait
from imgvol.errors import ImgvolError, StoreDamaged
from imgvol.layers.index import LayerIndex
from imgvol.oci.digest import Digest


class InPlaceLayer:
    """A `Layer` in a file outside the store. Opening blocks: do it in a thread.

    Raises:
        StoreDamaged: The file is gone or has changed, or the index is damaged.
    """

    def __init__(
        self,
        directory: Path,
        place: Place,
        digest: Digest,
        slot: int,
        disk_reads: trio.CapacityLimiter,
    ) -> None:
        self.digest = digest
        self.slot = slot
        self.failure: ImgvolError | None = None
        self._place = place
        self._disk_reads = disk_reads
        self._verifying = threading.Lock()
        self._passed = PassedPages()
        try:
            self.index = LayerIndex(read_whole(directory / INDEX_NAME))
        except OSError as exc:
            raise StoreDamaged(
                "a stored layer cannot be opened",
                hint="Pull the image again: imgvol pull IMAGE.",
                digest=digest,
                reason=exc.strerror,
            ) from exc
        try:
            self._file = PlacedFile(place.path, digest)
        except OSError as exc:
            raise self._refusal("cannot be opened", exc.strerror or str(exc)) from exc
        # What the file was when its bytes were last known to be right.
        self._known = place.file
        if not self._is_untouched():
            self._verify_again()

    async def read(self, node: int, offset: int, size: int) -> bytes | bytearray:
        """See `Layer.read`.

        Raises:
            StoreDamaged: The file that holds the layer has changed, or cannot be read.
        """
        data = self.read_now(node, offset, size)
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
        data = self._read_cached(node, offset, size)
        return data if data is not None and self._is_untouched() else None

    def _read_cached(self, node: int, offset: int, size: int) -> bytearray | None:
        """The bytes, if that takes no waiting for the disk."""
        extents = self.index.extents(node)
        if len(extents) == 1 and extents[0].offset == 0 and extents[0].size >= offset + size:
            position = self._place.offset + extents[0].position + offset
            data = pread_nowait(self._file.fd, position, size)
            if data is not None:
                self._note(node, position, size)
            return data
        return None

    def has_backing_file(self, node: int) -> bool:  # noqa: ARG002 - the protocol's
        """See `Layer.has_backing_file`: never, as all of its files are in one that is not ours."""
        return False

    def is_sound(self, node: int) -> bool:  # noqa: ARG002 - the protocol's
        """See `Layer.is_sound`."""
        return self.failure is None

    async def backing_file(self, node: int) -> OpenFile | None:  # noqa: ARG002 - the protocol's
        """See `Layer.backing_file`."""
        return None

    def read_blocking(self, node: int, offset: int, size: int) -> bytearray:
        """As `read`, without asking the page cache first. Blocks."""
        size = min(size, self.index.record(node).size - offset)
        data = self._gather(node, offset, size)
        if self._is_untouched():
            return data
        self._verify_again()
        data = self._gather(node, offset, size)
        if self._is_untouched():
            return data
        raise self._refusal("is being changed")

    def _gather(self, node: int, offset: int, size: int) -> bytearray:
        out = bytearray(size)
        for place, in_layer, length in pieces_of(self.index, node, offset, size):
            position = self._place.offset + in_layer
            out[place : place + length] = self._pread(position, length)
            self._note(node, position, length)
        return out

    def _note(self, node: int, position: int, size: int) -> None:
        # Small files share their pages with neighbours, and readahead with what comes next.
        if self.index.record(node).size >= limits.LARGE_FILE:
            self._passed.note(node, self._file.fd, position, size)

    def _pread(self, position: int, size: int) -> bytes:
        try:
            return pread_exact(self._file.fd, position, size, self.digest)
        except StoreDamaged:
            # A file that was cut off has changed: that says more.
            self._is_untouched()
            raise

    def _is_untouched(self) -> bool:
        """Whether the bytes are what they were; False when only hashing them can tell.

        Raises:
            StoreDamaged: They are not, now or before.
        """
        if self.failure is not None:
            raise self.failure.anew()
        found = self._file.identity()
        if not found.may_be(self._known):
            self.failure = self._refusal("has changed since the layer was verified")
            raise self.failure.anew()
        return found == self._known

    def _verify_again(self) -> None:
        """Hashes the layer, because its file has been touched. Blocks.

        Raises:
            StoreDamaged: It is another one now.
        """
        with self._verifying:
            if self._is_untouched():
                return  # another thread has just done it
            found = self._file.settle()
            hasher = self.digest.hasher()
            for piece in self._file.iter_pieces(self._place.offset, self._place.size):
                hasher.update(piece)
            if Digest.from_hasher(hasher) != self.digest or not found.may_be(self._known):
                self.failure = self._refusal("has changed since the layer was verified")
                raise self.failure.anew()
            self._known = found

    def _refusal(self, what: str, reason: str | None = None) -> StoreDamaged:
        return StoreDamaged(
            f"the file that a layer is read from {what}",
            hint="Pull the image again: imgvol pull IMAGE copies what it needs.",
            path=self._place.path,
            digest=self.digest,
            reason=reason,
        )
