"""What the records say of who needs what, and how those that nobody needs are removed."""

import sqlite3
from collections.abc import Callable, Collection, Mapping
from typing import Final

from imgvol.content.reachability import Root, RootKind, Thing, ThingKind, World, unreachable
from imgvol.content.records.images import read_images
from imgvol.content.records.table import Table
from imgvol.content.records.traces import drop_useless_traces
from imgvol.oci.digest import Digest

Holds = Mapping[Root, Collection[Thing]]

# Things that are rows, the first to go first: an image's row refers to nothing that must outlive
# it, but a layer without its row is not read any more.
_ROWS: Final = {
    ThingKind.IMAGE: "DELETE FROM image WHERE manifest = ?",
    ThingKind.LAYER: "DELETE FROM layer WHERE digest = ?",
    ThingKind.VIEW: "DELETE FROM chain WHERE view_id = ?",
}


class CollectionTable(Table):
    """All tables at once, as far as collection is concerned."""

    async def world(self, holds: Callable[[], Holds]) -> World:
        """What is recorded and who needs it.

        Args:
            holds: Tells what else needs things; asked inside of the transaction.
        """
        return await self._database.run(lambda db: read_world(db, holds()))

    async def sweep(self, holds: Callable[[], Holds]) -> frozenset[Thing]:
        """Removes the records that nothing leads to; returns what they were of.

        Finding and removing are one transaction, and `holds` is asked inside of it: what is held
        before that stays.
        """

        def remove(db: sqlite3.Connection) -> frozenset[Thing]:
            garbage = unreachable(read_world(db, holds()))
            for kind, statement in _ROWS.items():
                rows = [[str(thing.digest)] for thing in garbage if thing.kind is kind]
                db.executemany(statement, rows)
            drop_useless_traces(db)
            db.execute("DELETE FROM evicted WHERE digest NOT IN (SELECT digest FROM image_layer)")
            return garbage

        return await self._database.run(remove)

    async def check(self) -> list[str]:
        """What is wrong with the database itself, in sqlite's words."""

        def examine(db: sqlite3.Connection) -> list[str]:
            found = [str(row[0]) for row in db.execute("PRAGMA integrity_check")]
            return [] if found == ["ok"] else found

        return await self._database.run(examine)

    async def dangling(self) -> set[tuple[str, str]]:
        """Tables with rows that refer to rows of others that are not there; which others."""
        return await self._database.run(_dangling)

    async def drop_dangling(self) -> None:
        """Removes such rows."""

        def drop(db: sqlite3.Connection) -> None:
            for table, parent in _dangling(db):
                keys = db.execute(
                    'SELECT f."from", coalesce(f."to", t.name) FROM pragma_foreign_key_list(?) f'
                    ' JOIN pragma_table_info(f."table") t ON t.pk = 1 WHERE f."table" = ?',
                    [table, parent],
                ).fetchall()
                for own, theirs in keys:
                    parents = f"SELECT {theirs} FROM {parent}"
                    db.execute(f"DELETE FROM {table} WHERE {own} NOT IN ({parents})")

        await self._database.run(drop)

    async def documents(self) -> dict[Digest, frozenset[Digest]]:
        """The documents that each image needs: index, manifest and config, by its manifest."""

        def find(db: sqlite3.Connection) -> dict[Digest, frozenset[Digest]]:
            needed: dict[Digest, set[Digest]] = {}
            for manifest, document in db.execute(
                "SELECT manifest, manifest FROM image UNION SELECT manifest, config FROM image"
                " UNION SELECT manifest, target FROM name"
            ):
                needed.setdefault(Digest.parse(manifest), set()).add(Digest.parse(document))
            return {manifest: frozenset(documents) for manifest, documents in needed.items()}

        return await self._database.run(find)

    async def incomplete_images(self) -> list[Digest]:
        """Manifests of images that lack a layer, and not because it was evicted."""
        return await self._database.run(
            lambda db: [
                Digest.parse(manifest)
                for (manifest,) in db.execute(
                    "SELECT DISTINCT manifest FROM image_layer"
                    " WHERE digest NOT IN (SELECT digest FROM layer)"
                    " AND digest NOT IN (SELECT digest FROM evicted)"
                )
            ]
        )


def _dangling(db: sqlite3.Connection) -> set[tuple[str, str]]:
    return {(row[0], row[2]) for row in db.execute("PRAGMA foreign_key_check")}


def read_world(db: sqlite3.Connection, holds: Holds) -> World:
    """What is recorded and who needs it, as part of a transaction."""
    roots: dict[Root, set[Thing]] = {root: set(things) for root, things in holds.items()}
    references: dict[Thing, set[Thing]] = {}

    def hold(kind: RootKind, name: str, *things: Thing) -> None:
        roots.setdefault(Root(kind, name), set()).update(things)

    for name, target, manifest in db.execute("SELECT name, target, manifest FROM name"):
        hold(RootKind.NAME, name, _image(manifest), _document(target))
    for manifest, owner in db.execute(
        "SELECT manifest, owner FROM image JOIN pin ON subject = manifest"
        " UNION SELECT manifest, owner FROM name JOIN pin ON subject = name"
    ):
        hold(RootKind.PIN, f"by {owner}", _image(manifest))
    for lease, digest in db.execute("SELECT lease, digest FROM lease_hold"):
        # Whatever it is of: a lease keeps images, one of a pull also parts of one.
        hold(RootKind.LEASE, lease, _image(digest), _layer(digest), _document(digest))
    for volume, manifest, view in db.execute("SELECT id, manifest, view_id FROM volume"):
        hold(RootKind.VOLUME, volume, _image(manifest), _view(view))
    for manifest, document in db.execute("SELECT manifest, document FROM trace"):
        hold(RootKind.TRACE, f"of {manifest}", _document(document))

    for name, digest in db.execute(
        "SELECT name, digest FROM soci_index JOIN soci_index_document USING (manifest)"
    ):
        hold(RootKind.INDEX, name, _document(digest))

    stored = {_view(view) for (view,) in db.execute("SELECT view_id FROM chain")}
    stored |= {_layer(digest) for (digest,) in db.execute("SELECT digest FROM layer")}
    for manifest, config in db.execute("SELECT manifest, config FROM image"):
        stored.add(_image(manifest))
        references[_image(manifest)] = {_document(manifest), _document(config)}
    for manifest, layer in db.execute("SELECT manifest, digest FROM image_layer"):
        references[_image(manifest)].add(_layer(layer))
    for image in read_images(db):
        references[Thing(ThingKind.IMAGE, image.manifest)].add(Thing(ThingKind.VIEW, image.view_id))
    return World(roots=roots, references=references, stored=frozenset(stored))


def _image(manifest: str) -> Thing:
    return Thing(ThingKind.IMAGE, Digest.parse(manifest))


def _layer(digest: str) -> Thing:
    return Thing(ThingKind.LAYER, Digest.parse(digest))


def _document(digest: str) -> Thing:
    return Thing(ThingKind.DOCUMENT, Digest.parse(digest))


def _view(view_id: str) -> Thing:
    return Thing(ThingKind.VIEW, Digest.parse(view_id))
