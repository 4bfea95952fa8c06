"""What the database holds, as values, and the operations on them: records in, records out."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from imgvol.content.database import Database
from imgvol.content.place import FileIdentity, Place
from imgvol.errors import NotFound
from imgvol.oci.chain import chain_id
from imgvol.oci.digest import ChainID, DiffID, Digest

# The format of layers that are read where they lie.
IN_PLACE: Final = "in place"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """One layer of the store.

    Attributes:
        digest: Of the blob; verified if the layer is complete.
        diff_id: Of the uncompressed tar; verified if the layer is complete, else only claimed.
        size: Bytes of the blob.
        unpacked_size: Bytes of the uncompressed tar; of a lazy layer, of its files.
        entries: Paths in its index.
        format: How its files were known: "tar", "in place" (it lies in somebody else's file),
            "eStargz", "zstd:chunked" or "SOCI".
        is_complete: Whether all of it is at hand and verified; False: it is lazy.
        slot: Its number in inode numbers; 0 until the database has given one.
    """

    digest: Digest
    diff_id: DiffID
    media_type: str
    size: int
    unpacked_size: int
    entries: int
    format: str = "tar"
    is_complete: bool = True
    slot: int = 0

    @property
    def is_in_place(self) -> bool:
        """Whether its bytes are not in the store, but in a file elsewhere."""
        return self.format == IN_PLACE

    @property
    def is_stored(self) -> bool:
        """Whether all of it is in the store, verified."""
        return self.is_complete and not self.is_in_place


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the rest of a lazy layer is fetched from.

    Attributes:
        argument: The image, as a user would name it.
    """

    argument: str
    plain_http: bool
    insecure: bool
    ca_file: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """One image: a manifest for one platform, all of whose layers are here, some perhaps lazily.

    Attributes:
        id: Digest of the config.
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
        So does one whose claims another image's pull of the same blobs has refuted meanwhile.
        """
        if self.is_complete and chain_id([layer.diff_id for layer in self.layers]) == self.chain_id:
            return self.chain_id
        blobs = " ".join(str(layer.digest) for layer in self.layers)
        return Digest.of(f"unverified {blobs}".encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRecord:
    """A view bound for a sandbox."""

    id: str
    sandbox: str
    image: str
    manifest: Digest
    target: str | None
    noexec: bool
    view_id: Digest
    created_at: float
    boot_id: str


class Records:
    """Typed operations over the database; each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def layer(self, digest: Digest) -> LayerRecord | None:
        """The layer with this blob digest, complete or not."""

        def find(db: sqlite3.Connection) -> LayerRecord | None:
            row = db.execute(f"{_SELECT_LAYER} WHERE digest = ?", [str(digest)]).fetchone()
            return _layer(row) if row else None

        return await self._database.run(find)

    async def layers(self) -> list[LayerRecord]:
        """Every layer, complete or not."""
        return await self._database.run(
            lambda db: [_layer(row) for row in db.execute(f"{_SELECT_LAYER} ORDER BY slot")]
        )

    async def add_layer(self, layer: LayerRecord) -> LayerRecord:
        """Records a layer that was published, or what has become of it; its slot stays."""

        def add(db: sqlite3.Connection) -> LayerRecord:
            _put_layer(db, layer)
            row = db.execute(f"{_SELECT_LAYER} WHERE digest = ?", [str(layer.digest)]).fetchone()
            return _layer(row)

        return await self._database.run(add)

    async def add_lazy_layer(self, layer: LayerRecord, origin: Origin) -> LayerRecord:
        """Records a lazy layer, with where the rest of it is."""

        def add(db: sqlite3.Connection) -> LayerRecord:
            _put_layer(db, layer)
            db.execute(
                "INSERT OR REPLACE INTO origin VALUES (?, ?, ?, ?, ?)",
                [
                    str(layer.digest),
                    origin.argument,
                    origin.plain_http,
                    origin.insecure,
                    origin.ca_file,
                ],
            )
            row = db.execute(f"{_SELECT_LAYER} WHERE digest = ?", [str(layer.digest)]).fetchone()
            return _layer(row)

        return await self._database.run(add)

    async def origin(self, digest: Digest) -> Origin | None:
        """Where the rest of a lazy layer is."""

        def find(db: sqlite3.Connection) -> Origin | None:
            row = db.execute(
                "SELECT argument, plain_http, insecure, ca_file FROM origin WHERE digest = ?",
                [str(digest)],
            ).fetchone()
            if row is None:
                return None
            argument, plain_http, insecure, ca_file = row
            return Origin(
                argument=argument,
                plain_http=bool(plain_http),
                insecure=bool(insecure),
                ca_file=ca_file,
            )

        return await self._database.run(find)

    async def add_in_place_layer(self, layer: LayerRecord, place: Place) -> LayerRecord:
        """Records a layer that was verified where it lies, or where it lies by now."""

        def add(db: sqlite3.Connection) -> LayerRecord:
            _put_layer(db, layer)
            file = place.file
            db.execute(
                "INSERT INTO place VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    str(layer.digest),
                    place.path,
                    place.offset,
                    file.size,
                    file.mtime_ns,
                    file.ctime_ns,
                    str(file.inode),
                    str(file.device),
                ],
            )
            row = db.execute(f"{_SELECT_LAYER} WHERE digest = ?", [str(layer.digest)]).fetchone()
            return _layer(row)

        return await self._database.run(add)

    async def place(self, layer: LayerRecord) -> Place | None:
        """Where a layer lies that is read in place."""

        def find(db: sqlite3.Connection) -> Place | None:
            row = db.execute(
                "SELECT path, offset, size, mtime_ns, ctime_ns, inode, device"
                " FROM place WHERE digest = ?",
                [str(layer.digest)],
            ).fetchone()
            if row is None:
                return None
            path, offset, size, mtime_ns, ctime_ns, inode, device = row
            file = FileIdentity(
                size=size,
                mtime_ns=mtime_ns,
                ctime_ns=ctime_ns,
                inode=int(inode),
                device=int(device),
            )
            return Place(path=path, offset=offset, size=layer.size, file=file)

        return await self._database.run(find)

    async def forget_layer(self, digest: Digest) -> None:
        """Forgets a layer whose files are gone, whatever needs it."""
        await self._database.run(
            lambda db: db.execute("DELETE FROM layer WHERE digest = ?", [str(digest)])
        )

    async def remove_unreferenced_layer(self, digest: Digest) -> bool:
        """Forgets a layer that no image needs; False when one does, or it is forgotten already."""

        def remove(db: sqlite3.Connection) -> bool:
            cursor = db.execute(
                "DELETE FROM layer WHERE digest = ?"
                " AND digest NOT IN (SELECT digest FROM image_layer)",
                [str(digest)],
            )
            return cursor.rowcount > 0

        return await self._database.run(remove)

    async def unreferenced_layers(self) -> list[Digest]:
        """Layers that no image needs."""
        return await self._database.run(
            lambda db: [
                Digest.parse(digest)
                for (digest,) in db.execute(
                    "SELECT digest FROM layer WHERE digest NOT IN (SELECT digest FROM image_layer)"
                )
            ]
        )

    async def documents(self) -> set[Digest]:
        """The documents that names and images need: indexes, manifests, configs."""
        return await self._database.run(
            lambda db: {
                Digest.parse(digest)
                for (digest,) in db.execute(
                    "SELECT target FROM name"
                    " UNION SELECT manifest FROM image UNION SELECT config FROM image"
                )
            }
        )

    async def view_slot(self, view_id: Digest) -> int:
        """The view's number in inode numbers, given at first use and kept for ever."""

        def ensure(db: sqlite3.Connection) -> int:
            db.execute("INSERT OR IGNORE INTO chain (view_id) VALUES (?)", [str(view_id)])
            row = db.execute("SELECT slot FROM chain WHERE view_id = ?", [str(view_id)]).fetchone()
            return int(row[0])

        return await self._database.run(ensure)

    async def add_image(self, image: ImageRecord, name: str, target: Digest) -> ImageRecord:
        """Records an image and, last, its name; a name that meant another image now means this."""

        def add(db: sqlite3.Connection) -> ImageRecord:
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
            db.execute(
                "INSERT OR REPLACE INTO name VALUES (?, ?, ?, ?)",
                [name, image.platform, str(target), key],
            )
            (stored,) = _images(db, "WHERE manifest = ?", [key])
            return stored

        return await self._database.run(add)

    async def images(self) -> list[ImageRecord]:
        """Every image whose layers are all here, the latest pulled first."""
        return await self._database.run(lambda db: _images(db, "ORDER BY pulled_at DESC", []))

    async def image(self, manifest: Digest) -> ImageRecord | None:
        """The image with this manifest."""
        found = await self._database.run(
            lambda db: _images(db, "WHERE manifest = ?", [str(manifest)])
        )
        return found[0] if found else None

    async def images_named(self, name: str) -> list[tuple[ImageRecord, Digest]]:
        """What a name means, one image per platform, each with the digest it resolved to."""

        def find(db: sqlite3.Connection) -> list[tuple[ImageRecord, Digest]]:
            rows = db.execute("SELECT manifest, target FROM name WHERE name = ?", [name]).fetchall()
            return [
                (image, Digest.parse(target))
                for manifest, target in rows
                for image in _images(db, "WHERE manifest = ?", [manifest])
            ]

        return await self._database.run(find)

    async def unnamed_images(self) -> list[Digest]:
        """Manifests of images that have neither a name nor a volume any more."""
        return await self._database.run(
            lambda db: [
                Digest.parse(manifest)
                for (manifest,) in db.execute(
                    "SELECT manifest FROM image WHERE manifest NOT IN"
                    " (SELECT manifest FROM name UNION SELECT manifest FROM volume)"
                )
            ]
        )

    async def remove_name(self, name: str) -> None:
        """Forgets a name on every platform."""
        await self._database.run(lambda db: db.execute("DELETE FROM name WHERE name = ?", [name]))

    async def remove_image(self, manifest: Digest) -> None:
        """Forgets an image and its names; its layers stay."""
        await self._database.run(
            lambda db: db.execute("DELETE FROM image WHERE manifest = ?", [str(manifest)])
        )

    async def volumes(self) -> list[VolumeRecord]:
        """Every recorded volume, the oldest first."""
        return await self._database.run(
            lambda db: [_volume(row) for row in db.execute(f"{_SELECT_VOLUME} ORDER BY created_at")]
        )

    async def add_volume(self, volume: VolumeRecord) -> None:
        """Records a volume; from then on its image is in use.

        Raises:
            NotFound: The image has been removed meanwhile.
        """

        def add(db: sqlite3.Connection) -> None:
            manifest = str(volume.manifest)
            if not db.execute("SELECT 1 FROM image WHERE manifest = ?", [manifest]).fetchone():
                raise NotFound("image was removed while it was being mounted", image=volume.image)
            db.execute(
                "INSERT INTO volume VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    volume.id,
                    volume.sandbox,
                    volume.image,
                    manifest,
                    volume.target,
                    volume.noexec,
                    str(volume.view_id),
                    volume.created_at,
                    volume.boot_id,
                ],
            )

        await self._database.run(add)

    async def remove_volume(self, volume_id: str) -> None:
        """Forgets a volume; forgotten already is fine."""
        await self._database.run(
            lambda db: db.execute("DELETE FROM volume WHERE id = ?", [volume_id])
        )


_LAYER_COLUMNS = "slot, digest, diff_id, media_type, size, unpacked, entries, format, is_complete"
_SELECT_LAYER = f"SELECT {_LAYER_COLUMNS} FROM layer"
_SELECT_IMAGE = (
    "SELECT manifest, config, media_type, platform, chain_id, size, created, pulled_at FROM image "
)
_SELECT_VOLUME = (
    "SELECT id, sandbox, image, manifest, target, noexec, view_id, created_at, boot_id FROM volume"
)

# What sqlite3 itself says of a row.
_Row = tuple[Any, ...]


def _layer(row: _Row) -> LayerRecord:
    slot, digest, diff_id, media_type, size, unpacked, entries, kind, is_complete = row
    return LayerRecord(
        slot=slot,
        digest=Digest.parse(digest),
        diff_id=DiffID(Digest.parse(diff_id)),
        media_type=media_type,
        size=size,
        unpacked_size=unpacked,
        entries=entries,
        format=kind,
        is_complete=bool(is_complete),
    )


def _put_layer(db: sqlite3.Connection, layer: LayerRecord) -> None:
    # Where it lay until now, if it was read in place.
    db.execute("DELETE FROM place WHERE digest = ?", [str(layer.digest)])
    db.execute(
        "INSERT INTO layer"
        " (digest, diff_id, media_type, size, unpacked, entries, format, is_complete)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET"
        " diff_id = excluded.diff_id, media_type = excluded.media_type, size = excluded.size,"
        " unpacked = excluded.unpacked, entries = excluded.entries, format = excluded.format,"
        " is_complete = excluded.is_complete",
        [
            str(layer.digest),
            str(layer.diff_id),
            layer.media_type,
            layer.size,
            layer.unpacked_size,
            layer.entries,
            layer.format,
            layer.is_complete,
        ],
    )


def _volume(row: _Row) -> VolumeRecord:
    volume_id, sandbox, image, manifest, target, noexec, view_id, created_at, boot_id = row
    return VolumeRecord(
        id=volume_id,
        sandbox=sandbox,
        image=image,
        manifest=Digest.parse(manifest),
        target=target,
        noexec=bool(noexec),
        view_id=Digest.parse(view_id),
        created_at=created_at,
        boot_id=boot_id,
    )


def _images(db: sqlite3.Connection, rest: str, parameters: Sequence[str]) -> list[ImageRecord]:
    """Images with their layers and names. `rest` is one of this module's own clauses."""
    rows = db.execute(_SELECT_IMAGE + rest, parameters).fetchall()
    images = []
    for manifest, config, media_type, platform, chain, size, created, pulled_at in rows:
        (expected,) = db.execute(
            "SELECT count(*) FROM image_layer WHERE manifest = ?", [manifest]
        ).fetchone()
        layers = db.execute(
            f"SELECT {_LAYER_COLUMNS} FROM image_layer JOIN layer USING (digest)"
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
                layers=tuple(_layer(row) for row in layers),
                size=size,
                created=created,
                pulled_at=pulled_at,
                names=tuple(name for (name,) in names),
            )
        )
    return images
