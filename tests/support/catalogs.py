"""Records of images for tests of the catalog: no files, and no layers unless they are asked for."""

from collections.abc import Sequence
from dataclasses import replace

from imgvol.content.known_images import KnownImages
from imgvol.content.records import ImageChanges, ImageRecord, LayerRecord
from imgvol.images.catalog import Catalog
from imgvol.images.resolve import wanted_platform
from imgvol.oci.digest import Digest
from support.records import image_record

AMD64 = wanted_platform("linux/amd64")


def an_image(
    name: str,
    *,
    config: str | None = None,
    platform: str = "linux/amd64",
    pulled_at: float = 1.0,
    layers: Sequence[LayerRecord] = (),
    user: str = "",
) -> ImageRecord:
    """An image; those with the same `config` have the same ID."""
    return replace(
        image_record(layers, name),
        id=Digest.of(f"config {config or name}".encode()),
        platform=platform,
        pulled_at=pulled_at,
        user=user,
    )


async def reloaded(records) -> Catalog:
    """The catalog as a daemon that starts now would have it."""
    known = KnownImages()
    known.take(ImageChanges(manifests=None, images=tuple(await records.images())))
    return Catalog(known, AMD64)
