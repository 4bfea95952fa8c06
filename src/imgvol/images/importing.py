"""Imports archives of images: all of their images, or nothing of them.

Documents first, then layers, by the very pipeline of pulls; names last, and all of them in one
transaction. Until then nothing but the running import keeps what it has brought: a daemon that is
killed leaves content that nothing leads to, and no name.

An imported image is called what a registry would call it, so that it is found under that name by
whoever would otherwise pull it.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from imgvol.content.reachability import Root, RootKind
from imgvol.content.records import ImageRecord, NamedImage
from imgvol.content.store import Store
from imgvol.errors import ImgvolError, InvalidArgument
from imgvol.images.bundled import Naming, Offer, OfferedImage, PassedOver
from imgvol.images.collection import Collector
from imgvol.images.ingest import LayerProgress
from imgvol.images.pull import Puller, PullProgress, sum_up, things_of
from imgvol.images.resolve import wanted_platform
from imgvol.oci.digest import Digest
from imgvol.sources.base import ImageSource
from imgvol.sources.bundle import Bundle, open_bundle

__all__ = ["ImportReport", "ImportedImage", "Importer", "PassedOver"]

# Of an image that nothing would keep.
NO_NAME: Final = "it has no name with a repository"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedImage:
    """One image that is here now.

    Attributes:
        names: Canonical references; none for one that only a pin keeps.
        manifest: Digest of the manifest.
        id: The image ID.
        platform: For which it is.
    """

    names: tuple[str, ...]
    manifest: Digest
    id: Digest
    platform: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What an import did.

    Attributes:
        images: What is here now.
        passed_over: What the archive lists and was not imported.
    """

    images: tuple[ImportedImage, ...]
    passed_over: tuple[PassedOver, ...]


class Importer:
    """Imports archives and layouts into a store. One per daemon.

    Args:
        store: Where images go.
        puller: Brings their layers there.
        collector: Removes what a failed import leaves.
    """

    def __init__(self, store: Store, puller: Puller, collector: Collector) -> None:
        self._store = store
        self._puller = puller
        self._collector = collector

    async def import_archive(
        self,
        path: str,
        *,
        stream: int | None = None,
        link: bool = False,
        platforms: Sequence[str] = (),
        base_name: str | None = None,
        digests: bool = False,
        pin_owner: str | None = None,
        progress: PullProgress,
    ) -> ImportReport:
        """Imports all images of an archive, or none if one of them is damaged.

        Args:
            path: Absolute path of an archive or a layout; what `stream` is called.
            stream: An open file or pipe to read instead; it stays the caller's.
            link: Whether uncompressed layers stay where they are, in the archive.
            platforms: Only these; none: all.
            base_name: Repository of images that have only a tag.
            digests: Whether images get names by digest, too; those without any other name do.
            pin_owner: Who wants the images to stay. Images without a name are imported only then.
            progress: Told how far it is.

        Raises:
            NotFound: There is no such file.
            InvalidArgument: The archive cannot be read in place, or a name or platform is none.
            ContentError: The archive is damaged or hostile, or has nothing that could be imported;
                nothing of it is kept.
            StoreFull: No room.
        """
        matchers = [wanted_platform(platform) for platform in platforms]
        naming = Naming.of(base_name, digests=digests)
        started = time.perf_counter()
        try:
            async with open_bundle(
                path, stream=stream, spool_directory=self._store.spool_directory
            ) as bundle:
                if link and bundle.copied:
                    raise _cannot_link(path, bundle)
                offer = Offer(bundle.source, naming, matchers)
                await offer.read()
                if not offer.images and offer.failures:
                    raise offer.failures[0]
                kept, unnamed = _split(offer.images, is_pinned=pin_owner is not None)
                progress.stats["resolve_seconds"] = time.perf_counter() - started
                images, replaced = await self._bring(
                    bundle.source, kept, Root(RootKind.IMPORT, path), link, pin_owner, progress
                )
        except ImgvolError as error:
            error.fields = {"archive": path, **error.fields}
            await self._collector.collect()
            raise
        if replaced:
            await self._collector.collect()
        sum_up(progress, time.perf_counter() - started)
        return ImportReport(
            images=tuple(_imported(offered, image) for offered, image in images),
            passed_over=(*offer.passed_over, *unnamed),
        )

    async def _bring(
        self,
        source: ImageSource,
        offered: Sequence[OfferedImage],
        root: Root,
        link: bool,
        pin_owner: str | None,
        progress: PullProgress,
    ) -> tuple[list[tuple[OfferedImage, ImageRecord]], bool]:
        """Stores and records images; returns them, and whether others have lost their names."""
        layers = {
            layer.digest: LayerProgress(digest=str(layer.digest), size=layer.size)
            for one in offered
            for layer in one.resolved.layers
        }
        progress.layers = list(layers.values())
        progress.stage = "pulling"
        held = {thing for one in offered for thing in things_of(one.resolved)}
        with self._store.pins.holding(root, held):
            images = [
                (
                    one,
                    await self._puller.obtain(
                        source,
                        one.resolved,
                        [layers[layer.digest] for layer in one.resolved.layers],
                        in_place=link,
                    ),
                )
                for one in offered
            ]
            replaced = await self._are_replaced(offered)
            await self._record(images, pin_owner)
        return images, replaced

    async def _record(
        self, images: Sequence[tuple[OfferedImage, ImageRecord]], pin_owner: str | None
    ) -> None:
        async with self._store.naming:
            documents = {digest: raw for one, _ in images for digest, raw in one.resolved.documents}
            for digest, raw in documents.items():
                await self._store.put_blob(digest, raw)
            await self._store.records.add_images(
                [
                    NamedImage(image=image, names=one.names, target=one.resolved.target)
                    for one, image in images
                ],
                pin_owner,
            )

    async def _are_replaced(self, offered: Collection[OfferedImage]) -> bool:
        """Whether a name that other images have now is among those that are to come."""
        names = {name for one in offered for name in one.names}
        manifests = {one.resolved.manifest.digest for one in offered}
        return any(
            image.manifest not in manifests and not names.isdisjoint(image.names)
            for image in await self._store.records.images()
        )


def _split(
    images: Sequence[OfferedImage], *, is_pinned: bool
) -> tuple[list[OfferedImage], list[PassedOver]]:
    """What something will keep, and what nothing would."""
    if is_pinned:
        return list(images), []
    unnamed = [
        PassedOver(what=one.label, reason=NO_NAME, is_whole=True) for one in images if not one.names
    ]
    return [one for one in images if one.names], unnamed


def _imported(offered: OfferedImage, image: ImageRecord) -> ImportedImage:
    return ImportedImage(
        names=offered.names, manifest=image.manifest, id=image.id, platform=image.platform
    )


def _cannot_link(path: str, bundle: Bundle) -> InvalidArgument:
    return InvalidArgument(
        f"the archive cannot be read where it lies: it is {bundle.copied}",
        hint="Leave --link out, or decompress it into a file first.",
        archive=path,
    )
