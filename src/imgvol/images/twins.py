"""Layers that are here under another blob's digest: the same diff ID, proven, is the same layer.

An image's config is pinned by its manifest, and says by diff IDs which tars the image is made of.
What lies in the store was hashed over every byte before it got there: if a stored layer has that
diff ID, it is what the config asks for, whatever the blob may be that the manifest names for it. So
nothing is fetched, and the image is recorded with the layer that is here. Of the blob nothing is
recorded: what nobody has seen is nobody's layer, and an image that names it with another diff ID,
or with none, gets what is in it.
"""

import logging
from types import TracebackType
from typing import Self

from imgvol.content.reachability import Root, Thing, ThingKind
from imgvol.content.records import LayerRecord, Saving
from imgvol.content.store import Store
from imgvol.errors import ImgvolError
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import DiffID, Digest

log = logging.getLogger(__name__)


class Twins:
    """The layers that one pull found under other digests; they are held inside the block.

    Args:
        store: Where they are.
        root: Who holds them.
    """

    def __init__(self, store: Store, root: Root) -> None:
        self._store = store
        self._root = root
        self._held: list[Thing] = []
        self._sizes: dict[Digest, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._held:
            self._store.pins.release(self._root, self._held)

    async def find(self, descriptor: Descriptor, diff_id: DiffID) -> LayerRecord | None:
        """A stored layer with a proven diff ID, if there is one. The blob is then not needed."""
        found = await self._store.records.stored_layer(diff_id)
        if found is None:
            return None
        thing = Thing(ThingKind.LAYER, found.digest)
        self._store.pins.hold(self._root, [thing])
        self._held.append(thing)
        # Held first, looked for second: it may have been collected before that, or marked.
        current = await self._store.records.layer(found.digest)
        if current is None or not current.is_stored or current.diff_id != diff_id:
            return None
        self._sizes[descriptor.digest] = descriptor.size
        return current

    @property
    def count(self) -> int:
        """Blobs that were not needed."""
        return len(self._sizes)

    @property
    def size(self) -> int:
        """Their bytes."""
        return sum(self._sizes.values())

    async def note(self) -> None:
        """Writes down what was not fetched; the image is here, whether that succeeds or not."""
        if self._sizes:
            try:
                await self._store.records.add_saving(Saving.SHARED, self.count, self.size)
            except ImgvolError as exc:
                log.warning("what was saved is not written down: %s", exc)
