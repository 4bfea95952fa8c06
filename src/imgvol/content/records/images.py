"""Images, what they are called, and which layers and documents they need."""

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from imgvol.content.records.layers import LAYER_COLUMNS, LayerRecord, layer_from
from imgvol.content.records.pins import REBUILD, drop_pins, put_pins
from imgvol.content.records.table import Row, Table
from imgvol.errors import InvalidDigest
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
        user: The config's own word: whom a container runs as; may be empty.
        pulled_at: Seconds since the epoch.
        targets: What each of the names resolved to: an index, or the manifest.
        pinned_by: Who wants it to stay, under whatever name.
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
    user: str = ""
    names: tuple[str, ...] = ()
    targets: tuple[Digest, ...] = ()
    pinned_by: tuple[str, ...] = ()

    @property
    def is_pinned(self) -> bool:
        """Whether anybody wants it to stay."""
        return bool(self.pinned_by)

    @property
    def is_wanted(self) -> bool:
        """Whether it has a name or a pin; if not, at most something that uses it keeps it."""
        return bool(self.names) or self.is_pinned

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
class ImageChanges:
    """What a transaction has made of some images.

    Attributes:
        manifests: All that may have changed; None: all there are.
        images: Those of them that are here now.
    """

    manifests: frozenset[Digest] | None
    images: tuple[ImageRecord, ...]


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

    async def watch_images(self, tell: Callable[[ImageChanges], None]) -> None:
        """Tells of all images now, and from then on of what every transaction makes of them.

        Told on the event loop, after the commit, before whoever has changed something goes on.
        """
        await self._database.watch(_changes, tell)

    async def add_image(self, image: ImageRecord, name: str, target: Digest) -> ImageRecord:
        """Records an image and, last, its name; a name that meant another image now means this."""

        def add(db: sqlite3.Connection) -> ImageRecord:
            _put_image(db, image)
            _put_name(db, image, name, target)
            (stored,) = read_images(db, [str(image.manifest)])
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
        return await self._database.run(read_images)

    async def image(self, manifest: Digest) -> ImageRecord | None:
        """The image with this manifest."""
        found = await self._database.run(lambda db: read_images(db, [str(manifest)]))
        return found[0] if found else None

    async def copy_names(self, copies: Collection[tuple[str, str]]) -> None:
        """Gives each first name the meaning that the second has, on every platform, all at once.

        What it has meant before it means no more. A second name that is not here changes nothing.
        """

        def copy(db: sqlite3.Connection) -> None:
            for name, original in copies:
                rows = _meaning(db, original)
                if not rows or rows == _meaning(db, name):
                    continue
                db.execute("DELETE FROM name WHERE name = ?", [name])
                db.executemany("INSERT INTO name VALUES (?, ?, ?, ?)", [(name, *r) for r in rows])

        await self._database.run(copy)

    async def remove_names(
        self, names: Collection[str], manifests: Collection[Digest] = ()
    ) -> None:
        """Forgets names on every platform, and all names of some images, with the pins on both.

        The images stay until they are collected, if nothing else needs them.
        """

        def remove(db: sqlite3.Connection) -> None:
            for name in names:
                db.execute("DELETE FROM name WHERE name = ?", [name])
                drop_pins(db, name)
            for manifest in map(str, manifests):
                db.execute("DELETE FROM name WHERE manifest = ?", [manifest])
                drop_pins(db, manifest)

        await self._database.run(remove)

    async def remove_image(self, manifest: Digest) -> None:
        """Forgets an image, its names and the pins on it; its layers stay."""

        def remove(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM image WHERE manifest = ?", [str(manifest)])
            drop_pins(db, str(manifest))

        await self._database.run(remove)


def _meaning(db: sqlite3.Connection, name: str) -> list[Row]:
    """What a name means, on each platform."""
    query = "SELECT platform, target, manifest FROM name WHERE name = ? ORDER BY platform"
    return db.execute(query, [name]).fetchall()


def _changes(db: sqlite3.Connection, manifests: Collection[str] | None) -> ImageChanges:
    images = tuple(read_images(db, manifests))
    if manifests is None:
        return ImageChanges(manifests=None, images=images)
    # What is noted of a pin may be a name: no image's key.
    digests = (text for text in manifests if _is_digest(text))
    return ImageChanges(manifests=frozenset(map(Digest.parse, digests)), images=images)


def _is_digest(text: str) -> bool:
    try:
        Digest.parse(text)
    except InvalidDigest:
        return False
    return True


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
        "INSERT INTO image VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (manifest) DO UPDATE SET pulled_at = excluded.pulled_at",
        [
            key,
            str(image.id),
            image.media_type,
            image.platform,
            str(image.chain_id),
            image.size,
            image.created,
            image.user,
            image.pulled_at,
        ],
    )
    db.execute("DELETE FROM image_layer WHERE manifest = ?", [key])
    db.executemany(
        "INSERT INTO image_layer VALUES (?, ?, ?)",
        [(key, position, str(layer.digest)) for position, layer in enumerate(image.layers)],
    )


def read_images(
    db: sqlite3.Connection, manifests: Collection[str] | None = None
) -> list[ImageRecord]:
    """Images with their layers, names and pins, the latest pulled first, by five queries.

    An image of which a layer was lost is not here until it is pulled again.

    Args:
        manifests: Of which images; None: of all.
    """
    chosen, parameters = ("SELECT manifest FROM image", [])
    if manifests is not None:
        chosen, parameters = "SELECT value FROM json_each(?)", [json.dumps(list(manifests))]

    def rows(query: str) -> Iterable[Row]:
        return db.execute(query.replace("{chosen}", f"({chosen})"), parameters)

    # An image may have the same layer more than once, and a thousand images mostly share theirs.
    stored = {
        row[1]: layer_from(row)
        for row in rows(
            f"SELECT {LAYER_COLUMNS} FROM layer WHERE digest IN"
            " (SELECT digest FROM image_layer WHERE manifest IN {chosen})"
        )
    }
    layers: dict[str, list[LayerRecord | None]] = {}
    for manifest, digest in rows(
        "SELECT manifest, digest FROM image_layer WHERE manifest IN {chosen}"
        " ORDER BY manifest, position"
    ):
        layers.setdefault(manifest, []).append(stored.get(digest))
    names: dict[str, list[tuple[str, Digest]]] = {}
    for manifest, name, target in rows(
        "SELECT manifest, name, target FROM name WHERE manifest IN {chosen} ORDER BY name"
    ):
        names.setdefault(manifest, []).append((name, Digest.parse(target)))
    pins: dict[str, set[str]] = {}
    for subject, owner in rows(
        "SELECT subject, owner FROM pin WHERE subject IN {chosen}"
        " UNION SELECT manifest, owner FROM name JOIN pin ON subject = name"
    ):
        pins.setdefault(subject, set()).add(owner)

    images = []
    for row in rows(f"{_SELECT_IMAGE} WHERE manifest IN {{chosen}} ORDER BY pulled_at DESC"):
        manifest, config, media_type, platform, chain, size, created, user, pulled_at = row
        held = layers.get(manifest, ())
        complete = tuple(layer for layer in held if layer is not None)
        if len(complete) != len(held):
            continue
        images.append(
            ImageRecord(
                id=Digest.parse(config),
                manifest=Digest.parse(manifest),
                media_type=media_type,
                platform=platform,
                chain_id=ChainID(Digest.parse(chain)),
                layers=complete,
                size=size,
                created=created,
                user=user,
                pulled_at=pulled_at,
                names=tuple(name for name, _ in names.get(manifest, ())),
                targets=tuple(target for _, target in names.get(manifest, ())),
                pinned_by=tuple(sorted(pins.get(manifest, ()))),
            )
        )
    return images


_SELECT_IMAGE: Final = (
    "SELECT manifest, config, media_type, platform, chain_id, size, created, user, pulled_at"
    " FROM image"
)
