"""The images that are here: found, shown, removed and pinned. Nothing here needs the network."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from imgvol import limits
from imgvol.content.records import EvictedImage, ImageRecord
from imgvol.content.records.pins import CONFIG, REBUILD, USER
from imgvol.content.store import Store
from imgvol.errors import Conflict, ImgvolError, NotFound
from imgvol.images.catalog import ID, Catalog, best_for, choose
from imgvol.images.collection import CollectionReport, Collector
from imgvol.images.leases import Leases
from imgvol.images.resolve import wanted_platform
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.json import JSONValue, parse_json
from imgvol.sources.parse import parse_image_argument

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalReport:
    """What a removal did.

    Attributes:
        untagged: Names that are gone.
        deleted: Manifest digests of images that are gone.
        freed: Bytes given back to the disk.
    """

    untagged: tuple[str, ...]
    deleted: tuple[str, ...]
    freed: int


class LocalImages:
    """What can be asked and told of images that are here. On the event loop.

    Args:
        store: Where they are.
        leases: What keeps them alive besides their names.
        collector: Removes what nobody needs.

    Attributes:
        catalog: Which images are here, and what they are called.
    """

    def __init__(self, store: Store, *, leases: Leases, collector: Collector) -> None:
        self._store = store
        self._leases = leases
        self._collector = collector
        self.catalog = Catalog(store.images)

    async def find(self, image: str, *, platform: str | None = None) -> ImageRecord:
        """The local image of a name, or of an image ID or its first digits: see `Catalog`.

        Also of a manifest's digest, and also one that only a volume or a lease keeps.

        Raises:
            NotFound: Not in the store.
            Conflict: An abbreviated ID fits several images.
        """
        found = self.catalog.search(image, is_listed=False)
        if not found.images and not ID.fullmatch(image):
            parse_image_argument(image)  # says what is wrong with it
        if not found.images or not found.is_name:
            fitting = next(iter(found.images), None)
        elif platform is None:
            fitting = choose(found.images, wanted_platform(None))
        else:
            fitting = best_for(found.images, wanted_platform(platform))
        if fitting is None:
            raise NotFound(
                "image is not in the store",
                hint=f"Pull it first: imgvol pull {image}",
                image=image,
                platform=platform,
            )
        return fitting

    async def find_by_id(self, image: str) -> ImageRecord | None:
        """The local image of an ID or its first digits; None when there is none.

        Raises:
            Conflict: An abbreviated ID fits several images.
        """
        found = self.catalog.search(image, is_listed=False)
        return None if found.is_name else next(iter(found.images), None)

    async def is_current(self, image: str, record: ImageRecord) -> bool:
        """Whether what a name was found to mean can be read as it is.

        False: a file that it is read from has changed, and the name has to be asked for again.
        """
        if ID.fullmatch(image):
            return True  # no name: there is nobody to ask
        for layer in record.layers:
            if not await self._store.is_intact(layer):
                return False
        return True

    async def list(self) -> list[ImageRecord]:
        """Every complete image, the latest pulled first, also those that have lost their names."""
        return self._store.images.latest()

    async def remove(self, image: str) -> RemovalReport:
        """Removes a name; with an image's last name, or by ID, the image and what only it needed.

        Layers of mounted images stay until they are unmounted. The pins on what is removed go
        with it.

        Raises:
            NotFound: Not in the store.
            Conflict: The image is mounted, or held by a lease, and this was its last name.
        """
        async with self._store.naming:
            found = self.catalog.search(image, is_listed=False)
            if found.is_name:
                untagged = self.catalog.names_meant(image)
                await self._refuse_in_use([i for i in found.images if set(i.names) <= {*untagged}])
                await self._store.records.remove_names(untagged)
            elif found.images:
                untagged = tuple(sorted({name for i in found.images for name in i.names}))
                await self._refuse_in_use(found.images)
                for record in found.images:
                    await self._store.records.remove_image(record.manifest)
            else:
                untagged = await self._evicted_names(image)
                await self._store.records.remove_names(untagged)
            manifests = [record.manifest for record in found.images]
            gone = [manifest for manifest in manifests if not self._is_wanted(manifest)]
        collected = await self._forget(gone)
        return RemovalReport(
            untagged=untagged, deleted=tuple(map(str, gone)), freed=collected.freed
        )

    async def evicted(self) -> Sequence[EvictedImage]:
        """The images that went for want of room: their names stay, and a mount fetches them."""
        return await self._store.records.evicted_images()

    async def _evicted_names(self, image: str) -> tuple[str, ...]:
        """The names of an evicted image that a name or an ID stands for.

        Raises:
            NotFound: There is none.
        """
        is_id = ID.fullmatch(image) is not None
        # Says what is wrong with it.
        wanted = image.rpartition(":")[2] if is_id else str(parse_image_argument(image))
        evicted = await self._store.records.evicted_images()
        names = tuple(
            sorted(
                {
                    name
                    for each in evicted
                    for name in each.names
                    if name == wanted or (is_id and each.id.encoded.startswith(wanted))
                }
            )
        )
        if not names:
            raise NotFound("image is not in the store", image=image)
        return names

    async def remove_image(self, text: str) -> RemovalReport:
        """Removes an image with all its names and pins, whatever uses it; not here is fine.

        It is gone from the catalog at once. What volumes and leases hold of it stays until they
        end, and volumes are mounted again after a restart.

        Args:
            text: As `Catalog.resolve` takes it.

        Raises:
            Conflict: The beginning of several image IDs.
        """
        # A pull names its image in here, too: before, or after.
        async with self._store.naming:
            try:
                image = self.catalog.resolve(text)
            except NotFound:
                return RemovalReport(untagged=(), deleted=(), freed=0)
            names = self.catalog.names_of(image)
            await self._store.records.remove_names(names, image.manifests)
        try:
            freed = (await self._forget(image.manifests)).freed
        except ImgvolError as exc:
            log.warning("what %s has left is not collected yet: %s", image.name, exc)
            freed = 0
        return RemovalReport(untagged=names, deleted=tuple(map(str, image.manifests)), freed=freed)

    async def _forget(self, manifests: Collection[Digest]) -> CollectionReport:
        """Collects what images have left that nobody wants any more."""
        for manifest in manifests:
            await self._leases.forget_pull(manifest)
        return await self._collector.collect()

    def _is_wanted(self, manifest: Digest) -> bool:
        """Whether an image has a name or a pin."""
        image = self._store.images.get(manifest)
        return image is not None and image.is_wanted

    async def pin(self, image: str, *, owner: str = USER) -> ImageRecord:
        """Pins a name, whatever it comes to mean, or, by ID, an image.

        Raises:
            NotFound: Not in the store.
            Conflict: An abbreviated ID fits several images.
        """
        async with self._store.naming:
            record = await self.find(image)
            found = self.catalog.search(image, is_listed=False)
            manifests = [str(other.manifest) for other in found.images]
            subjects = self.catalog.names_meant(image) if found.is_name else manifests
            await self._store.records.pin(subjects, owner)
        return self._store.images.get(record.manifest) or record

    async def unpin(self, image: str) -> ImageRecord:
        """Ends what users have pinned of an image, by whatever name; what a rebuild has, too.

        What the configuration pins stays pinned.

        Raises:
            NotFound: Not in the store.
            Conflict: An abbreviated ID fits several images.
        """
        async with self._store.naming:
            record = await self.find(image)
            found = self.catalog.search(image, is_listed=False)
            subjects = {str(other.manifest) for other in found.images}
            subjects |= {name for other in found.images for name in other.names}
            for owner in (USER, REBUILD):
                await self._store.records.unpin(subjects, owner)
        return self._store.images.get(record.manifest) or record

    async def pin_configured(self, images: Collection[str]) -> None:
        """Makes these names, here or not yet, all that the configuration pins.

        Raises:
            InvalidReference: One is no name.
        """
        names = [str(parse_image_argument(image)) for image in images]
        await self._store.records.pin_only(names, CONFIG)

    async def copy_names(self, copies: Collection[tuple[str, str]]) -> None:
        """Gives each first name the meaning that the second has, all at once."""
        if copies:
            async with self._store.naming:
                await self._store.records.copy_names(copies)

    async def pin_only(self, subjects: Collection[str], owner: str) -> None:
        """Makes these names, and manifests' digests, all that an owner pins."""
        async with self._store.naming:
            await self._store.records.pin_only(subjects, owner)

    async def pin_owners(self, prefix: str) -> Sequence[str]:
        """Who pins anything, of the owners whose names begin so."""
        return await self._store.records.pin_owners(prefix)

    async def _refuse_in_use(self, images: Collection[ImageRecord]) -> None:
        manifests = {image.manifest for image in images}
        users = [v for v in await self._store.records.volumes() if v.manifest in manifests]
        if users:
            raise Conflict(
                "image is mounted",
                hint=f"Unmount it first: imgvol unmount {users[0].target or users[0].id}",
                image=users[0].image,
                volumes=len(users),
            )
        leases = await self._leases.holders(manifests)
        if leases:
            raise Conflict(
                "image is held by a lease",
                hint=f"End it first: imgvol lease rm {leases[0]}",
                lease=leases[0],
                leases=len(leases),
            )

    async def documents(self, image: ImageRecord) -> tuple[JSONValue, JSONValue]:
        """An image's manifest and config, as they are stored; no config for an artifact."""
        manifest = await self._document(image.manifest, "manifest", limits.MANIFEST_SIZE)
        if image.is_artifact:
            return manifest, None
        return manifest, await self._document(image.id, "config", limits.CONFIG_SIZE)

    async def descriptor(self, image: ImageRecord) -> Descriptor:
        """What points at an image's manifest."""
        raw = await self._store.read_blob(image.manifest)
        return Descriptor(media_type=image.media_type, digest=image.manifest, size=len(raw))

    async def _document(self, digest: Digest, what: str, max_size: int) -> JSONValue:
        raw = await self._store.read_blob(digest)
        # The largest one allowed takes 0.2 s, in which no view would answer.
        return await trio.to_thread.run_sync(partial(parse_json, raw, what=what, max_size=max_size))
