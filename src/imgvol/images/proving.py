"""Proves a lazy layer where it lies, without writing it once more.

The kept blob is read and decoded twice. The first time proves the blob's digest and the diff ID,
and tells what files the tar has; the second time their content is compared with what the lazy layer
shows, byte by byte. So it takes no room, which is scarce where layers are proven this way.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from imgvol import limits
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.records import LayerRecord
from imgvol.errors import DigestMismatch, StoreDamaged
from imgvol.images.comparison import file_nodes, first_entry_difference, path_of
from imgvol.layers.builder import IndexBuilder
from imgvol.layers.compression import Compression, open_decoder, sniff
from imgvol.layers.index import LayerIndex
from imgvol.layers.tar import TarParser
from imgvol.oci.digest import Digest
from imgvol.oci.media_types import layer_compression

_STEP: Final = 1 << 20


class _Stored(NamedTuple):
    """A piece of a file, as the tar has it: where it begins and ends there, and whose it is."""

    start: int
    end: int
    node: int
    offset: int


class InPlaceProof:
    """One proof of one layer. Use once: `run` blocks, `cancel` ends it.

        difference = await run_cancellable(proof.run, proof.cancel, limiter=completing)

    Args:
        layer: All of it is here, blob included, and stays for as long as this takes.
        record: What it is to be.
    """

    def __init__(self, layer: LazyLayerStore, record: LayerRecord) -> None:
        self._layer = layer
        self._record = record
        self._stopped = threading.Event()

    def cancel(self) -> None:
        """Ends `run` soon, from any thread."""
        self._stopped.set()

    def run(self) -> bytes | None:
        """The path of the first file that differs from what readers are shown; None: none does.

        Raises:
            DigestMismatch: The blob or its uncompressed content is not what was promised.
            InvalidLayer: It cannot be read as a layer.
            StoreDamaged: What is here cannot be read, or was cancelled.
        """
        tar = self._prove()
        return first_entry_difference(self._layer.index, tar) or self._first_difference(tar)

    def _prove(self) -> LayerIndex:
        """What the tar has, by its own word; blob and tar are what their digests name."""
        record = self._record
        blob, diff = record.digest.hasher(), record.diff_id.hasher()
        parser, builder = TarParser(), IndexBuilder(own_files=False)
        for piece in self._decoded(blob.update):
            diff.update(piece)
            for member in parser.feed(piece):
                builder.add(member)
        self._check(Digest.from_hasher(blob), record.digest, "layer does not match its digest")
        parser.finish()
        self._check(
            Digest.from_hasher(diff),
            record.diff_id,
            "layer's content does not match its diff ID",
        )
        return LayerIndex(builder.finish())

    def _first_difference(self, tar: LayerIndex) -> bytes | None:
        """The path of the first file whose content differs."""
        for node in file_nodes(tar):
            if not self._has_same_holes(tar, node):
                return path_of(tar, node)
        pieces, place, position = _stored_pieces(tar), 0, 0
        for decoded in self._decoded():
            end = position + len(decoded)
            view = memoryview(decoded)
            while place < len(pieces) and pieces[place].start < end:
                piece = pieces[place]
                start, stop = max(piece.start, position), min(piece.end, end)
                offset = piece.offset + start - piece.start
                if (
                    self._shown(piece.node, offset, stop - start)
                    != view[start - position : stop - position]
                ):
                    return path_of(tar, piece.node)
                if piece.end > end:
                    break
                place += 1
            position = end
        return None

    def _has_same_holes(self, tar: LayerIndex, node: int) -> bool:
        """Whether what the tar does not store of a file is shown as zeros."""
        reached = 0
        for offset, end in [
            *((extent.offset, extent.offset + extent.size) for extent in tar.extents(node)),
            (tar.record(node).size, tar.record(node).size),
        ]:
            for start in range(reached, offset, _STEP):
                if any(self._shown(node, start, min(_STEP, offset - start))):
                    return False
            reached = end
        return True

    def _shown(self, node: int, offset: int, size: int) -> bytearray:
        """What readers are shown of a file."""
        if self._stopped.is_set() or not self._layer.has(node, offset, size):
            # A scrub may have found it to be damaged in this moment.
            raise StoreDamaged(
                "not all of a layer is here any more to prove it", digest=self._layer.digest
            )
        return self._layer.read_blocking(node, offset, size)

    def _decoded(self, note: Callable[[bytes], object] = lambda _piece: None) -> Iterator[bytes]:
        """The layer's tar, in pieces; `note` is told of each piece of its blob."""
        compression = layer_compression(self._record.media_type)
        decoder = open_decoder(Compression(compression)) if compression else None
        size = self._layer.table.blob_size
        for position in range(0, size, limits.BODY_PIECE):
            if self._stopped.is_set():
                raise StoreDamaged("proving a layer was cancelled", digest=self._layer.digest)
            piece = self._layer.kept.read(position, min(limits.BODY_PIECE, size - position))
            note(piece)
            decoder = decoder or open_decoder(sniff(piece))
            yield from decoder.feed(piece)
        if decoder is not None:
            decoder.finish()

    def _check(self, actual: Digest, expected: Digest, message: str) -> None:
        if actual != expected:
            raise DigestMismatch(
                message,
                hint="The image is damaged where it is stored, or on the way.",
                layer=self._layer.digest,
                expected=expected,
                actual=actual,
            )


def _stored_pieces(tar: LayerIndex) -> list[_Stored]:
    """All pieces of all files, by their place in the tar."""
    return sorted(
        _Stored(extent.position, extent.position + extent.size, node, extent.offset)
        for node in file_nodes(tar)
        for extent in tar.extents(node)
    )
