"""Images, what they are called, and which layers and documents they need."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from imgvol.content.records.layers import LAYER_COLUMNS, LayerRecord, layer_from
from imgvol.content.records.pins import REBUILD, drop_pins, put_pins
from imgvol.content.records.table import Table
from imgvol.oci.chain import chain_id
from imgvol.oci.digest import ChainID, Digest

# The platform of artifacts.
ANY_PLATFORM: Final = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """One image: a manifest for one platform, all of whose layers are here, some perhaps lazily.

    An artifact is an image of one layer, which holds its files.

    Attributes:
        id: Digest of the config; of the manifest, for an artifact.
        platform: ANY_PLATFORM for an artifact.
        manifest: Digest of the manifest.
        names: What users call it: canonical references, or local sources.
        size: Bytes of manifest, config and layers as the source stores them.
        created: The config's own word, RFC 3339.
        pulled_at: Seconds since the epoch.
    """

    id: Digest
    manifest: Digest
    media_type: str
    platform: str
    chain_id: ChainID
    layers: tuple[LayerRecord, ...]
    size: int
    created: str | None
    pulled_at: float
    names: tuple[str, ...] = ()

    @property
    def is_artifact(self) -> bool:
        """Whether the manifest is no image's."""
        return self.id == self.manifest

    @property
    def is_complete(self) -> bool:
        """Whether every layer is at hand and verified, and with them the chain ID."""
        return all(layer.is_complete for layer in self.layers)

    @property
    def is_stored(self) -> bool:
        """Whether the store has all of it, and nothing else is needed."""
        return all(layer.is_stored for layer in self.layers)

    @property
    def view_id(self) -> Digest:
        """What the image's view is known by.

        A claimed diff ID is no identity: an image with layers that have not been verified gets a
        view of its own, named by its blobs, even if it claims a chain ID that another image has.
        So does one whose claims another image's pull of the same blobs has refuted meanwhile. The
        slots are in that name because a layer that turned out to be bad gets a new one: whoever has
        the old view goes on with errors, and nobody joins them.
        """
        if self.is_complete and chain_id([layer.diff_id for layer in self.layers]) == self.chain_id:
            return self.chain_id
        blobs = " ".join(f"{layer.digest}/{layer.slot}" for layer in self.layers)
        return Digest.of(f"unverified {blobs}".encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedImage:
    """An image that is to be recorded.

    Attributes:
        names: What it is called from now on; perhaps nothing.
        target: What its names resolved to: an index, or the manifest.
    """

    image: ImageRecord
    names: tuple[str, ...]
    target: Digest


class ImageTable(Table):
    """The images and their names."""

    async def add_image(self, image: ImageRecord, name: str, target: Digest) -> ImageRecord:
        """Records an image and, last, its name; a name that meant another image now means this."""

        def add(db: sqlite3.Connection) -> ImageRecord:
            _put_image(db, image)
            _put_name(db, image, name, target)
            (stored,) = images_where(db, "WHERE manifest = ?", [str(image.manifest)])
            return stored

        return await self._database.run(add)

    async def add_images(self, images: Sequence[NamedImage], pin_owner: str | None = None) -> None:
        """Records images with all of their names, and who wants them to stay; all or nothing.

        Of several images with one name and platform, the last one has it in the end.
        """

        def add(db: sqlite3.Connection) -> None:
            for named in images:
                _put_image(db, named.image)
                for name in named.names:
                    _put_name(db, named.image, name, named.target)
                if pin_owner is not None:
                    put_pins(db, [str(named.image.manifest)], pin_owner)

        await self._database.run(add)

    async def adopt_image(self, image: ImageRecord) -> None:
        """Records an image whose name is not known any more, pinned for want of one."""

        def adopt(db: sqlite3.Connection) -> None:
            _put_image(db, image)
            put_pins(db, [str(image.manifest)], REBUILD)

        await self._database.run(adopt)

    async def images(self) -> list[ImageRecord]:
        """Every image whose layers are all here, the latest pulled first."""
        return await self._database.run(lambda db: images_where(db, "ORDER BY pulled_at DESC", []))

    async def image(self, manifest: Digest) -> ImageRecord | None:
        """The image with this manifest."""
        found = await self._database.run(
            lambda db: images_where(db, "WHERE manifest = ?", [str(manifest)])
        )
        return found[0] if found else None

    async def images_named(self, name: str) -> list[tuple[ImageRecord, Digest]]:
        """What a name means, one image per platform, each with the digest it resolved to."""

        def find(db: sqlite3.Connection) -> list[tuple[ImageRecord, Digest]]:
            rows = db.execute("SELECT manifest, target FROM name WHERE name = ?", [name]).fetchall()
            return [
                (image, Digest.parse(target))
                for manifest, target in rows
                for image in images_where(db, "WHERE manifest = ?", [manifest])
            ]

        return await self._database.run(find)

    async def remove_name(self, name: str) -> None:
        """Forgets a name on every platform, and the pins on it."""

        def remove(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM name WHERE name = ?", [name])
            drop_pins(db, name)

        await self._database.run(remove)

    async def remove_image(self, manifest: Digest) -> None:
        """Forgets an image, its names and the pins on it; its layers stay."""

        def remove(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM image WHERE manifest = ?", [str(manifest)])
            drop_pins(db, str(manifest))

        await self._database.run(remove)


def _put_name(db: sqlite3.Connection, image: ImageRecord, name: str, target: Digest) -> None:
    """Gives a recorded image a name, as part of a transaction."""
    # What is for every platform leaves no room beside it.
    db.execute(
        "DELETE FROM name WHERE name = ? AND ? IN (platform, ?)",
        [name, ANY_PLATFORM, image.platform],
    )
    db.execute(
        "INSERT OR REPLACE INTO name VALUES (?, ?, ?, ?)",
        [name, image.platform, str(target), str(image.manifest)],
    )


def _put_image(db: sqlite3.Connection, image: ImageRecord) -> None:
    """Records an image and its layers, without a name, as part of a transaction."""
    key = str(image.manifest)
    db.execute(
        "INSERT INTO image VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (manifest) DO UPDATE SET pulled_at = excluded.pulled_at",
        [
            key,
            str(image.id),
            image.media_type,
            image.platform,
            str(image.chain_id),
            image.size,
            image.created,
            image.pulled_at,
        ],
    )
    db.execute("DELETE FROM image_layer WHERE manifest = ?", [key])
    db.executemany(
        "INSERT INTO image_layer VALUES (?, ?, ?)",
        [(key, position, str(layer.digest)) for position, layer in enumerate(image.layers)],
    )


_SELECT_IMAGE: Final = (
    "SELECT manifest, config, media_type, platform, chain_id, size, created, pulled_at FROM image "
)


def images_where(db: sqlite3.Connection, rest: str, parameters: Sequence[str]) -> list[ImageRecord]:
    """Images with their layers and names. `rest` is one of this module's own clauses."""
    rows = db.execute(_SELECT_IMAGE + rest, parameters).fetchall()
    images = []
    for manifest, config, media_type, platform, chain, size, created, pulled_at in rows:
        (expected,) = db.execute(
            "SELECT count(*) FROM image_layer WHERE manifest = ?", [manifest]
        ).fetchone()
        layers = db.execute(
            f"SELECT {LAYER_COLUMNS} FROM image_layer JOIN layer USING (digest)"
            " WHERE manifest = ? ORDER BY position",
            [manifest],
        ).fetchall()
        if len(layers) != expected:
            # A layer was lost since: the image is not here until it is pulled again.
            continue
        names = db.execute("SELECT name FROM name WHERE manifest = ? ORDER BY name", [manifest])
        images.append(
            ImageRecord(
                id=Digest.parse(config),
                manifest=Digest.parse(manifest),
                media_type=media_type,
                platform=platform,
                chain_id=ChainID(Digest.parse(chain)),
                layers=tuple(layer_from(row) for row in layers),
                size=size,
                created=created,
                pulled_at=pulled_at,
                names=tuple(name for (name,) in names),
            )
        )
    return images
