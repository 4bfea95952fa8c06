"""What an image source is: the one interface to registries, layouts and archives.

A source stands for one image. Documents (manifests, indexes, configs) are small, are read on the
event loop's side, and arrive verified. Blobs may be huge, are read by worker threads, and arrive
unverified: whoever pulls a layer hashes it anyway, and must look at the result before using it.
"""

from typing import Protocol

from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.registry.body import BlobReader
from imgvol.sources.files import BlobPlace

__all__ = ["BlobPlace", "BlobReader", "ImageSource"]


class ImageSource(Protocol):
    """Where one image comes from.

        top = await source.resolve()
        raw = await source.read_document(top, max_size=limits.MANIFEST_SIZE)

    `resolve` comes before everything else. Coroutines may run side by side, and so may the threads
    that call `open_blob`; cancelling a coroutine ends the work behind it.
    """

    def describe(self) -> str:
        """What the source is, for messages. Holds no secret."""
        ...

    async def resolve(self) -> Descriptor:
        """The image's top document: a manifest or an index.

        Raises:
            NotFound: The source has no such image; the hint says what it has.
            ContentError: The source is damaged.
            RemoteError: The registry failed.
        """
        ...

    async def read_document(self, descriptor: Descriptor, *, max_size: int) -> bytes:
        """A manifest, index or config; size and digest are verified.

        Raises:
            LimitExceeded: It is larger than `max_size`, which is looked at before anything is read.
            DigestMismatch: It is not what the descriptor names.
            ContentError: It is missing or cannot be read.
            RemoteError: The registry failed.
        """
        ...

    async def read_pinned_manifest(self, digest: Digest) -> bytes:
        """A manifest beside the image that a document of the image names, verified.

        Raises:
            NotFound: The source does not have it, or can have no such thing.
            ContentError: It is not what the digest names, or no manifest.
            RemoteError: The registry failed.
        """
        ...

    async def read_companion(self, suffix: str) -> bytes:
        """The manifest that has the image's tag with a suffix; nothing verifies what it says.

        Raises:
            NotFound: The source does not have it, can have no such thing, or was not asked by tag.
            ContentError: It is no manifest.
            RemoteError: The registry failed.
        """
        ...

    async def list_referrers(self, manifest: Digest, artifact_type: str) -> tuple[Descriptor, ...]:
        """What names a manifest of the image as its subject, of one type; nothing pins the answer.

        The order is the source's own; a source that can have no such thing has none.

        Raises:
            ContentError: The list is damaged, or too long.
            RemoteError: The registry failed.
        """
        ...

    def open_blob(
        self, descriptor: Descriptor, *, offset: int = 0, end: int | None = None
    ) -> BlobReader:
        """Open a blob, or the range [offset, end) of it, unverified. Blocks: for worker threads.

        Raises:
            ContentError: The source lacks it, or it has another size.
            RemoteError: The registry failed.
        """
        ...

    def locate_blob(self, descriptor: Descriptor) -> BlobPlace | None:
        """In which file of this machine a blob lies, as it is; None: in none. Blocks.

        Raises:
            ContentError: The source lacks it, or it has another size.
        """
        ...

    async def aclose(self) -> None:
        """Let go of everything. Readers that are open stay usable. Idempotent."""
        ...
