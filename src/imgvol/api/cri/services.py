"""What the CRI needs from the rest of the daemon, as small protocols; all of it runs in trio.

The records are the real ones, and never change: any thread may read them.
"""

from collections.abc import Sequence
from typing import Protocol

from imgvol.content.records import ImageRecord
from imgvol.images.catalog import CatalogImage
from imgvol.images.handlers import RuntimeHandlers
from imgvol.images.pull import PullProgress
from imgvol.images.readiness import Readiness
from imgvol.images.service import PullOptions
from imgvol.images.usage import FilesystemUsage
from imgvol.oci.json import JSONValue
from imgvol.registry.credentials import Credential


class Catalog(Protocol):
    """`images.catalog.Catalog`: answers from memory."""

    def images(self) -> Sequence[CatalogImage]:
        """Every image."""

    def resolve(self, text: str) -> CatalogImage:
        """The image of a name, an ID or the beginning of one; raises NotFound, Conflict."""


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
