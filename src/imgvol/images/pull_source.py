"""A registry's image as a pull reads it: waits are watched, and what is here is not asked for."""

from collections.abc import Iterator

from imgvol.content.store import Store
from imgvol.errors import ImgvolError, LimitExceeded
from imgvol.images.stalling import PullWatch
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.sources.base import BlobPlace, BlobReader, ImageSource


class PullSource:
    """An ImageSource around another one.

    What the reference points at is always asked of the source, with the caller's own login: that
    documents and layers are here, since somebody else has pulled them, lets nobody in.

    Args:
        source: The image's.
        watch: Told of every wait for the source.
        store: Where documents may be already.
    """

    def __init__(self, source: ImageSource, watch: PullWatch, store: Store) -> None:
        self._source = source
        self._watch = watch
        self._store = store

    def describe(self) -> str:
        """See ImageSource."""
        return self._source.describe()

    async def resolve(self) -> Descriptor:
        """See ImageSource."""
        with self._watch.waiting(self.describe()):
            return await self._source.resolve()

    async def read_document(self, descriptor: Descriptor, *, max_size: int) -> bytes:
        """See ImageSource; what the store has is read there."""
        if descriptor.size > max_size:
            raise LimitExceeded(
                "document is too large", limit="size", allowed=max_size, digest=descriptor.digest
            )
        stored = await self._stored(descriptor)
        if stored is not None:
            return stored
        with self._watch.waiting(f"document {descriptor.digest}"):
            return await self._source.read_document(descriptor, max_size=max_size)

    async def _stored(self, descriptor: Descriptor) -> bytes | None:
        try:
            raw = await self._store.read_blob(descriptor.digest)
        except ImgvolError:  # not here, or damaged: the registry has it
            return None
        # A size that is wrong is the source's to refuse.
        return raw if len(raw) == descriptor.size else None

    async def read_pinned_manifest(self, digest: Digest) -> bytes:
        """See ImageSource."""
        with self._watch.waiting(f"manifest {digest}"):
            return await self._source.read_pinned_manifest(digest)

    async def read_companion(self, suffix: str) -> bytes:
        """See ImageSource."""
        with self._watch.waiting(f"{self.describe()}{suffix}"):
            return await self._source.read_companion(suffix)

    async def list_referrers(self, manifest: Digest, artifact_type: str) -> tuple[Descriptor, ...]:
        """See ImageSource."""
        with self._watch.waiting(f"referrers of {manifest}"):
            return await self._source.list_referrers(manifest, artifact_type)

    def open_blob(
        self, descriptor: Descriptor, *, offset: int = 0, end: int | None = None
    ) -> BlobReader:
        """See ImageSource."""
        reader = self._source.open_blob(descriptor, offset=offset, end=end)
        return _WatchedReader(reader, self._watch, f"blob {descriptor.digest}")

    def locate_blob(self, descriptor: Descriptor) -> BlobPlace | None:
        """See ImageSource."""
        return self._source.locate_blob(descriptor)

    async def aclose(self) -> None:
        """Nothing: the source belongs to the pull."""


class _WatchedReader(BlobReader):
    """A BlobReader around another one."""

    def __init__(self, reader: BlobReader, watch: PullWatch, what: str) -> None:
        self._reader = reader
        self._watch = watch
        self._what = what

    def iter_pieces(self) -> Iterator[bytes]:
        """See BlobReader; only the time until each piece is a wait for the source."""
        pieces = self._reader.iter_pieces()
        while True:
            with self._watch.waiting(self._what):
                piece = next(pieces, None)
            if piece is None:
                return
            self._watch.note_bytes()
            yield piece

    def cancel(self) -> None:
        """See BlobReader."""
        self._reader.cancel()

    def close(self) -> None:
        """See BlobReader."""
        self._reader.close()
