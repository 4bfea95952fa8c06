"""The uncompressed tar of a layer, as the store, or somebody else's file, can give it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trio

from imgvol.content.card import LayerCard
from imgvol.content.place import Place, PlacedFile
from imgvol.content.records import LayerRecord
from imgvol.content.store import Store
from imgvol.errors import Conflict, RegistryUnavailable, StoreDamaged
from imgvol.oci.digest import Digest
from imgvol.sources.base import BlobReader


@dataclass(frozen=True, slots=True)
class LayerTar:
    """Where the bytes are.

    Attributes:
        digest: Their own; the diff ID, unless something of the layer was not kept.
        size: Bytes.
        stored_as: What the layer is called in the store.
        where: Where it lies, or how it is put together.
        directory: Of the latter.
    """

    digest: Digest
    size: int
    stored_as: Digest
    where: Place | LayerCard
    directory: Path | None = None

    def iter_pieces(self) -> Iterator[bytes]:
        """The bytes, not verified. Blocks."""
        if isinstance(self.where, LayerCard):
            assert self.directory is not None
            yield from self.where.iter_pieces(self.directory)
            return
        try:
            file = PlacedFile(self.where.path, self.stored_as)
        except OSError as exc:
            raise StoreDamaged(
                "the file that a layer is read from cannot be opened",
                hint="Pull or import the image again.",
                path=self.where.path,
                reason=exc.strerror,
            ) from exc
        yield from file.iter_pieces(self.where.offset, self.where.size)

    def changed(self) -> StoreDamaged:
        """The error of whoever has read it and got another digest."""
        return StoreDamaged(
            "a stored layer has changed",
            hint="Find out more, and repair it: imgvol scrub --repair",
            layer=self.stored_as,
        )


class LayerTarReader(BlobReader):
    """The same as a BlobReader, which can be cancelled."""

    def __init__(self, tar: LayerTar) -> None:
        self._tar = tar
        self._is_cancelled = False

    def iter_pieces(self) -> Iterator[bytes]:
        """See BlobReader."""
        for piece in self._tar.iter_pieces():
            if self._is_cancelled:
                raise RegistryUnavailable("reading a layer was cancelled")
            yield piece

    def cancel(self) -> None:
        """See BlobReader."""
        self._is_cancelled = True

    def close(self) -> None:
        """Nothing: files close with what reads them."""


async def find_layer_tar(
    store: Store, record: LayerRecord, limiter: trio.CapacityLimiter
) -> LayerTar:
    """Where a layer's tar is.

    Raises:
        Conflict: Not all of it is here.
        StoreDamaged: It is not known any more.
        ContentError: The layer was refused.
    """
    if record.is_damaged or record.is_refused:
        assert record.fault is not None
        raise record.fault.refusal(record.digest)
    if not record.is_complete:
        raise Conflict(
            "not all of the image is here",
            hint="Fetch the rest first: imgvol pull IMAGE.",
            layer=record.digest,
        )
    if record.is_in_place:
        place = await store.records.place(record)
        if place is None:
            raise StoreDamaged("where a layer lies is not known any more", layer=record.digest)
        return LayerTar(record.diff_id, place.size, record.digest, place)
    directory = store.layout.layer(record.digest)
    card = await trio.to_thread.run_sync(LayerCard.load, directory, record.digest, limiter=limiter)
    return LayerTar(card.proof, record.unpacked_size, record.digest, card, directory)
