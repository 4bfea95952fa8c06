"""What the CRI needs from the rest of the daemon, as small protocols; all of it runs in trio."""

from collections.abc import Sequence
from typing import Protocol

from imgvol.content.records import ImageRecord
from imgvol.images.handlers import RuntimeHandlers
from imgvol.images.pull import PullProgress
from imgvol.images.readiness import Readiness
from imgvol.images.service import PullOptions
from imgvol.oci.digest import Digest
from imgvol.oci.json import JSONValue
from imgvol.registry.credentials import Credential


class CatalogImage(Protocol):
    """`images.catalog.CatalogImage`: never changes, so that any thread may read it."""

    @property
    def id(self) -> Digest:
        """Digest of the config; of the manifest, for an artifact."""

    @property
    def repo_tags(self) -> tuple[str, ...]:
        """`domain/path:tag`, sorted."""

    @property
    def repo_digests(self) -> tuple[str, ...]:
        """`domain/path@digest`, sorted."""

    @property
    def size(self) -> int:
        """Compressed bytes, more than 0."""

    @property
    def chain_id(self) -> object:
        """Its text is the chain ID."""

    @property
    def user(self) -> str:
        """The config's User."""

    @property
    def is_pinned(self) -> bool:
        """Whether kubelets shall not collect it."""


class Catalog(Protocol):
    """`images.catalog.Catalog`: answers from memory."""

    def images(self) -> Sequence[CatalogImage]:
        """Every image."""

    def resolve(self, text: str) -> CatalogImage:
        """The image of a name, an ID or the beginning of one; raises NotFound, Conflict."""


class FilesystemUsage(Protocol):
    """What one backend takes of its disk."""

    @property
    def timestamp_ns(self) -> int:
        """When that was so, in nanoseconds since the epoch."""

    @property
    def mountpoint(self) -> str:
        """A directory on that disk."""

    @property
    def used_bytes(self) -> int:
        """Bytes."""

    @property
    def inodes_used(self) -> int:
        """Inodes."""


class Images(Protocol):
    """`images.service.ImageService`."""

    @property
    def catalog(self) -> Catalog:
        """All images, in memory."""

    @property
    def handlers(self) -> RuntimeHandlers:
        """What runtime handlers mean; `get` raises InvalidArgument for one that is not there."""

    async def pull(
        self,
        image: str,
        *,
        platform: str | None,
        options: PullOptions,
        progress: PullProgress,
        readiness: Readiness,
        credentials: Credential | None,
        handler: str,
    ) -> ImageRecord:
        """Fetches, verifies and indexes an image; joins a pull of it that is under way."""

    async def find(self, image: str) -> ImageRecord:
        """The image of an ID; raises NotFound."""

    async def documents(self, image: ImageRecord) -> tuple[JSONValue, JSONValue]:
        """The manifest and the config, as stored."""

    async def remove_image(self, text: str) -> object:
        """Removes an image with all its names; none is fine."""

    def filesystem_usage(self) -> Sequence[FilesystemUsage]:
        """What each backend takes of its disk, the default one first; from memory."""
