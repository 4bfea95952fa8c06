"""Images of registries: what `imgvol.registry` does, as a source."""

from imgvol.errors import InvalidReference, LimitExceeded, NotFound
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.media_types import is_index, is_manifest
from imgvol.oci.reference import DEFAULT_TAG, Reference
from imgvol.registry.body import BlobReader
from imgvol.registry.client import RegistryClient


class RegistrySource:
    """One image of a registry. The client belongs to the caller, who closes it afterwards.

    Args:
        client: Connected to the reference's registry.
        reference: With a tag or a digest.
    """

    def __init__(self, client: RegistryClient, reference: Reference) -> None:
        self._client = client
        self._reference = reference

    def describe(self) -> str:
        """The reference."""
        return str(self._reference)

    async def resolve(self) -> Descriptor:
        """What the reference points at now. From here on, everything is asked for by digest."""
        return await self._client.resolve(self._reference)

    async def read_document(self, descriptor: Descriptor, *, max_size: int) -> bytes:
        """A manifest, an index or a config, verified."""
        if descriptor.size > max_size:
            raise LimitExceeded(
                "document is too large", limit="size", allowed=max_size, digest=descriptor.digest
            )
        if descriptor.data is not None:  # verified when the descriptor was parsed
            return descriptor.data
        if is_manifest(descriptor.media_type) or is_index(descriptor.media_type):
            return await self._client.fetch_manifest(self._reference, descriptor)
        return await self._client.fetch_blob(self._reference, descriptor, max_size=max_size)

    async def read_pinned_manifest(self, digest: Digest) -> bytes:
        """A manifest of the repository that is beside the image, verified."""
        pinned = self._reference.with_tag(None).with_digest(digest)
        return await self._client.fetch_manifest(pinned, None)

    async def read_companion(self, suffix: str) -> bytes:
        """The manifest of the repository that has the image's tag with a suffix."""
        reference = self._reference
        if reference.digest is not None:
            # A digest names one image and says nothing of tags: whatever tag there is may be old.
            raise NotFound("an image named by digest has none beside it", image=reference)
        try:
            companion = reference.with_tag(f"{reference.tag or DEFAULT_TAG}{suffix}")
        except InvalidReference as error:
            raise NotFound("no tag is that long", image=reference, suffix=suffix) from error
        return await self._client.fetch_manifest(companion, None)

    async def list_referrers(self, manifest: Digest, artifact_type: str) -> tuple[Descriptor, ...]:
        """What refers to a manifest of the repository, of one type."""
        return await self._client.list_referrers(self._reference, manifest, artifact_type)

    def open_blob(
        self, descriptor: Descriptor, *, offset: int = 0, end: int | None = None
    ) -> BlobReader:
        """A blob, or a range of it, not verified."""
        return self._client.open_blob(self._reference, descriptor, offset=offset, end=end)

    def locate_blob(self, descriptor: Descriptor) -> None:
        """Nowhere on this machine."""

    async def aclose(self) -> None:
        """Nothing to do."""
