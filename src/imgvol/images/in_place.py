"""Layers that stay where they are: verified and indexed in one go, front to back, never copied.

For an uncompressed tar in a named file of this machine: a blob of an OCI layout, or a member of an
archive that is not compressed itself. Both of its digests are checked over every byte, as for any
layer. What cannot be read in place for a reason that has nothing to do with its bytes is left to
the ordinary way.
"""

import logging
import threading
from dataclasses import dataclass
from typing import Final

from imgvol import limits
from imgvol.content.place import Place, PlacedFile
from imgvol.content.records import IN_PLACE, LayerRecord
from imgvol.errors import DigestMismatch, ImgvolError, LimitExceeded, RegistryUnavailable
from imgvol.images.ingest import LayerProgress
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.compression import Compression, sniff
from imgvol.layers.index import LayerIndex
from imgvol.layers.tar import TarParser
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import DiffID, Digest
from imgvol.sources.base import BlobPlace, ImageSource

log = logging.getLogger(__name__)

_SNIFFED: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedLayer:
    """A verified layer, where it lies, and its serialised index."""

    record: LayerRecord
    place: Place
    index: bytes


class InPlaceIngest:
    """Verifies and indexes one layer where it lies. Use once: `run` blocks, `cancel` ends it."""

    def __init__(
        self,
        *,
        source: ImageSource,
        descriptor: Descriptor,
        diff_id: DiffID,
        progress: LayerProgress,
    ) -> None:
        self._source = source
        self._descriptor = descriptor
        self._diff_id = diff_id
        self._progress = progress
        self._is_stopped = threading.Event()

    def cancel(self) -> None:
        """Ends `run` soon, from any thread."""
        self._is_stopped.set()

    def run(self) -> PlacedLayer | None:
        """The layer; None when it is compressed, or does not lie in a file as it is. Blocks.

        Raises:
            DigestMismatch: The blob is not what was promised.
            InvalidLayer: It cannot be read as a layer.
            LimitExceeded: It is too large.
        """
        found = self._source.locate_blob(self._descriptor)
        if found is None:
            return None
        try:
            file = PlacedFile(found.path, self._descriptor.digest)
        except OSError as exc:
            log.info("layer %s is not read in place: %s", self._descriptor.digest, exc)
            return None
        identity = file.settle()
        try:
            index = self._index(file, found)
        except ImgvolError:
            if file.identity() == identity:
                raise
            index = None
        if index is None or file.identity() != identity:
            # Compressed, or not the same file from the first byte to the last.
            if index is not None:
                log.info("layer %s is not read in place: its file changes", self._descriptor.digest)
            return None
        self._progress.state = "done"
        record = LayerRecord(
            digest=self._descriptor.digest,
            diff_id=self._diff_id,
            media_type=self._descriptor.media_type,
            size=found.size,
            unpacked_size=found.size,
            entries=LayerIndex(index).entry_count,
            format=IN_PLACE,
        )
        place = Place(path=found.path, offset=found.offset, size=found.size, file=identity)
        return PlacedLayer(record=record, place=place, index=index)

    def _index(self, file: PlacedFile, found: BlobPlace) -> bytes | None:
        head = b"".join(file.iter_pieces(found.offset, min(_SNIFFED, found.size)))
        if sniff(head) is not Compression.NONE:
            return None
        if found.size > limits.TAR_SIZE:
            raise LimitExceeded("layer too large", limit="TAR_SIZE", allowed=limits.TAR_SIZE)
        self._progress.state = "pulling"
        # Equal bytes have equal digests: two are counted only if the algorithms differ.
        expected = {str(d): d for d in (self._descriptor.digest, self._diff_id)}.values()
        hashers = {d.algorithm: d.hasher() for d in expected}
        parser, builder = TarParser(), IndexBuilder(own_files=False)
        for piece in file.iter_pieces(found.offset, found.size):
            if self._is_stopped.is_set():
                raise RegistryUnavailable("reading was cancelled")
            for hasher in hashers.values():
                hasher.update(piece)
            members = parser.feed(piece)
            for member in members:
                builder.add(member)
            self._progress.received += len(piece)
            self._progress.unpacked += len(piece)
            self._progress.entries += len(members)
        for digest in expected:
            self._check(Digest.from_hasher(hashers[digest.algorithm]), digest)
        parser.finish()
        return builder.finish()

    def _check(self, actual: Digest, expected: Digest) -> None:
        if actual != expected:
            raise DigestMismatch(
                "layer does not match its digest"
                if expected == self._descriptor.digest
                else "layer's content does not match its diff ID",
                hint="The image is damaged where it is stored: nothing was kept.",
                layer=self._descriptor.digest,
                expected=expected,
                actual=actual,
            )
