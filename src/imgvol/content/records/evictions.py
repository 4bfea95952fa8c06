"""What is recorded for eviction: when images were used, where they can be had again, what has gone.

An image with evicted layers keeps its record, its names and its documents. As one of its layers is
not here, it is not here either (`images.read_images`): it is neither listed nor mounted until it
has been pulled again, which needs only what is missing.
"""

import sqlite3
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from imgvol.content.eviction import StoredImage
from imgvol.content.reachability import RootKind, ThingKind, reasons
from imgvol.content.records.collection import Holds, read_world
from imgvol.content.records.images import ImageRecord
from imgvol.content.records.table import Table
from imgvol.oci.digest import Digest

NOT_FETCHABLE: Final = "not from a registry"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvictedImage:
    """An image that has a name, and lacks layers because the store was too full.

    Attributes:
        id: Digest of the config; of the manifest, for an artifact.
        names: What it is called.
        size: Bytes of manifest, config and layers as the source stores them.
    """

    id: Digest
    manifest: Digest
    platform: str
    names: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerUses:
    """Who uses which layers, and what keeps them.

    Attributes:
        images: Every image.
        keepers: Why a layer cannot go.
        pinned: Layers of which nothing must go, though they may be fetched again.
    """

    images: tuple[StoredImage, ...]
    keepers: Mapping[Digest, str]
    pinned: frozenset[Digest]


class EvictionTable(Table):
    """Uses, provenance and evictions."""

    async def note_uses(self, uses: Mapping[Digest, float]) -> None:
        """Writes down when images were used; those that are not here any more are passed over."""
        rows = [(at, str(manifest)) for manifest, at in uses.items()]
        await self._database.run(
            lambda db: db.executemany(
                "INSERT INTO image_use SELECT manifest, ? FROM image WHERE manifest = ?"
                " ON CONFLICT (manifest) DO UPDATE SET used_at = max(used_at, excluded.used_at)",
                rows,
            )
        )

    async def note_pulled(self, name: str, image: ImageRecord) -> None:
        """A name of a registry has brought an image: so it can be had there again."""
        row = [name, image.platform, str(image.manifest)]
        await self._database.run(
            lambda db: db.execute("INSERT OR IGNORE INTO pulled_name VALUES (?, ?, ?)", row)
        )

    async def layer_uses(self, holds: Callable[[], Holds]) -> LayerUses:
        """Who uses layers, and what keeps them; `holds` as in `world`."""
        return await self._database.run(lambda db: _layer_uses(db, holds()))

    async def evict_layers(
        self, layers: Collection[Digest], holds: Callable[[], Holds]
    ) -> frozenset[Digest]:
        """Removes the records of layers, but of those that something keeps by now.

        Looking and removing are one transaction, and `holds` is asked inside of it.
        """

        def evict(db: sqlite3.Connection) -> frozenset[Digest]:
            uses = _layer_uses(db, holds())
            gone = frozenset(layers) - uses.keepers.keys()
            rows = [(str(digest),) for digest in gone]
            db.executemany("DELETE FROM layer WHERE digest = ?", rows)
            now = time.time()
            db.executemany(
                "INSERT OR REPLACE INTO evicted VALUES (?, ?)", [(*row, now) for row in rows]
            )
            return gone

        return await self._database.run(evict)

    async def evicted_images(self) -> list[EvictedImage]:
        """The images with names of which layers were evicted, and nothing else is missing."""

        def find(db: sqlite3.Connection) -> list[EvictedImage]:
            names: dict[str, list[str]] = {}
            for name, manifest in db.execute("SELECT name, manifest FROM name ORDER BY name"):
                names.setdefault(manifest, []).append(name)
            rows = db.execute(
                "SELECT manifest, config, platform, size FROM image WHERE manifest IN"
                " (SELECT manifest FROM image_layer JOIN evicted USING (digest)"
                "  WHERE digest NOT IN (SELECT digest FROM layer)) ORDER BY manifest"
            )
            return [
                EvictedImage(
                    manifest=Digest.parse(manifest),
                    id=Digest.parse(config),
                    platform=platform,
                    names=tuple(names[manifest]),
                    size=size,
                )
                for manifest, config, platform, size in rows
                if manifest in names
            ]

        return await self._database.run(find)


def _layer_uses(db: sqlite3.Connection, holds: Holds) -> LayerUses:
    world = read_world(db, holds)
    known = reasons(world)
    used = dict(
        db.execute(
            "SELECT manifest, max(pulled_at, coalesce(used_at, 0)) FROM image"
            " LEFT JOIN image_use USING (manifest)"
        )
    )
    unfetchable = {
        manifest
        for (manifest,) in db.execute(
            "SELECT manifest FROM name WHERE NOT EXISTS (SELECT 1 FROM pulled_name AS p WHERE"
            " p.name = name.name AND p.platform = name.platform AND p.manifest = name.manifest)"
        )
    }
    layers: dict[str, set[Digest]] = {manifest: set() for manifest in used}
    for manifest, digest in db.execute("SELECT manifest, digest FROM image_layer"):
        layers[manifest].add(Digest.parse(digest))
    keepers: dict[Digest, str] = {}
    pinned: set[Digest] = set()
    for manifest in unfetchable:
        keepers |= dict.fromkeys(layers[manifest], NOT_FETCHABLE)
    for thing in world.stored:
        if thing.kind is not ThingKind.LAYER:
            continue
        kinds = {root.kind for root in known[thing]}
        if kinds & {RootKind.PIN, RootKind.LEASE}:
            pinned.add(thing.digest)
        for kind, reason in _REASONS.items():
            if kind in kinds:
                keepers[thing.digest] = reason
                break
    for (digest,) in db.execute("SELECT digest FROM layer WHERE fault IS NOT NULL"):
        # What is known of it must not be forgotten.
        keepers.setdefault(Digest.parse(digest), "damaged")
    return LayerUses(
        images=tuple(
            StoredImage(
                manifest=Digest.parse(manifest), used_at=at, layers=frozenset(layers[manifest])
            )
            for manifest, at in used.items()
        ),
        keepers=keepers,
        pinned=frozenset(pinned),
    )


# What users are told of who keeps a layer: the strongest first.
_REASONS: Final = {
    RootKind.PIN: "pinned",
    RootKind.LEASE: "held by a lease",
    RootKind.VOLUME: "mounted",
    RootKind.VIEW: "mounted",
    RootKind.MOUNT: "mounted",
    RootKind.PULL: "being pulled",
    RootKind.IMPORT: "being imported",
    RootKind.EXPORT: "being exported",
    RootKind.COMPLETION: "being completed",
}
