"""Which images one conversion is about: those of all platforms, or of one.

What is not here is pulled first, under the image's own name. Which platforms there are says the
index that the name was resolved to when it was pulled last.
"""

from dataclasses import dataclass
from typing import Protocol

from imgvol.content.records import ImageRecord
from imgvol.content.store import Store
from imgvol.errors import NotFound, Unsupported
from imgvol.images.pull import PullProgress
from imgvol.images.readiness import Readiness
from imgvol.images.service import PullOptions
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import Index, parse_manifest
from imgvol.oci.media_types import is_manifest
from imgvol.oci.platform import Platform
from imgvol.sources.parse import RegistryImage, parse_image_argument

_OF_ATTESTATIONS = Platform(os="unknown", architecture="unknown")


class Images(Protocol):
    """What of the image service is needed."""

    async def find(self, image: str, *, platform: str | None = None) -> ImageRecord:
        """The image of a name or an ID; raises NotFound."""

    async def find_by_id(self, image: str) -> ImageRecord | None:
        """The image of an ID; None if that is no ID of one."""

    async def pull(
        self,
        image: str,
        *,
        platform: str | None = None,
        options: PullOptions,
        progress: PullProgress,
        readiness: Readiness = Readiness.STORED,
    ) -> ImageRecord:
        """Makes an image ready."""


@dataclass(frozen=True, slots=True)
class Variants:
    """The images of one name.

    Attributes:
        images: All of them complete.
        index: What lists them; None: there is one image, and it alone is meant.
        left_out: What the index lists besides, and why it is not converted.
    """

    images: tuple[ImageRecord, ...]
    index: Index | None
    left_out: tuple[str, ...] = ()


async def find_variants(
    store: Store,
    images: Images,
    image: str,
    *,
    platform: str | None,
    options: PullOptions,
    progress: PullProgress,
) -> Variants:
    """Find the images of a name, or of an ID, and pull what is missing of them.

    Args:
        platform: For which; None: for all that the name has.

    Raises:
        NotFound: There is no such image.
        Unsupported: It is an artifact.
        ImgvolError: What pulling raises.
    """
    obtain = _Obtaining(images, image, options, progress)
    by_id = await images.find_by_id(image)
    first = by_id if by_id is not None else await obtain.find(platform)
    if first.is_artifact:
        raise Unsupported("an artifact cannot be converted: it has no layers", image=image)
    index = None
    if by_id is None and platform is None:
        index = await _read_index(store, image, first)
    if index is None:
        return Variants((await obtain.complete(first, platform),), None)
    found: dict[Digest, ImageRecord] = {}
    left_out: list[str] = []
    for entry in index.manifests:
        what = str(entry.platform or entry.digest)
        if entry.platform == _OF_ATTESTATIONS:
            left_out.append(f"{entry.digest}: an attestation, of the manifest as it was")
        elif not is_manifest(entry.media_type) or entry.platform is None:
            left_out.append(f"{what}: no image for a platform")
        else:
            record = await obtain.manifest(entry.digest, what)
            if record is None:
                left_out.append(f"{what}: not here, and it has no registry to be pulled from")
            elif record.is_artifact:
                left_out.append(f"{what}: an artifact")
            else:
                found[entry.digest] = record
    if not found:
        return Variants((await obtain.complete(first, platform),), None)
    return Variants(tuple(found.values()), index, tuple(left_out))


async def _read_index(store: Store, image: str, record: ImageRecord) -> Index | None:
    """What the name was resolved to, if that is an index."""
    name = str(parse_image_argument(image))
    target = dict(zip(record.names, record.targets, strict=False)).get(name, record.manifest)
    if target == record.manifest:
        return None
    document = parse_manifest(await store.read_blob(target), media_type=None, expected=target)
    return document if isinstance(document, Index) else None


@dataclass(slots=True)
class _Obtaining:
    """Finds images here, and pulls those that are not."""

    images: Images
    image: str
    options: PullOptions
    progress: PullProgress

    @property
    def _is_remote(self) -> bool:
        return isinstance(parse_image_argument(self.image), RegistryImage)

    async def pull(self, platform: str | None) -> ImageRecord:
        """The image, all of it here."""
        return await self.images.pull(
            self.image,
            platform=platform,
            options=self.options,
            progress=self.progress,
            readiness=Readiness.STORED,
        )

    async def find(self, platform: str | None) -> ImageRecord:
        """The image, perhaps not all of it."""
        try:
            return await self.images.find(self.image, platform=platform)
        except NotFound:
            return await self.pull(platform)

    async def complete(self, record: ImageRecord, platform: str | None) -> ImageRecord:
        """The same image, all of it here."""
        return record if record.is_complete else await self.pull(platform)

    async def manifest(self, digest: Digest, platform: str) -> ImageRecord | None:
        """The image of a manifest; None: it is not here, and cannot be."""
        record = await self.images.find_by_id(str(digest))
        if record is not None and record.is_complete:
            return record
        if not self._is_remote:
            return None
        pulled = await self.pull(platform)
        if pulled.manifest != digest:
            raise NotFound(
                "the name means something else in the meantime",
                hint="Try again.",
                image=self.image,
                expected=digest,
            )
        return pulled
