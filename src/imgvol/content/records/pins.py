"""What shall stay: names, whatever they mean at the time, and images by their manifests.

A pin has an owner, and an image is pinned as long as anybody pins it, or one of its names. Pins of
names that nothing has wait for it. Whoever removes a name, or an image, removes the pins on it,
too, but those of the configuration, which says what shall be, whatever has been.
"""

import sqlite3
from collections.abc import Collection
from typing import Final

from imgvol.content.records.table import Table

# Who pins: people, the daemon's configuration, and a rebuild that found images without names.
USER: Final = "user"
CONFIG: Final = "config"
REBUILD: Final = "rebuild"


class PinTable(Table):
    """The pins."""

    async def pin(self, subjects: Collection[str], owner: str) -> None:
        """Pins names, or manifests' digests; pinned already is fine."""
        await self._database.run(lambda db: put_pins(db, subjects, owner))

    async def unpin(self, subjects: Collection[str], owner: str) -> None:
        """Ends that; not pinned is fine."""
        await self._database.run(
            lambda db: db.executemany(
                "DELETE FROM pin WHERE subject = ? AND owner = ?",
                [(subject, owner) for subject in subjects],
            )
        )

    async def pin_only(self, subjects: Collection[str], owner: str) -> None:
        """Makes these all that an owner pins."""

        def replace(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM pin WHERE owner = ?", [owner])
            put_pins(db, subjects, owner)

        await self._database.run(replace)

    async def pin_owners(self, prefix: str) -> list[str]:
        """Who pins anything, of the owners whose names begin so."""

        def find(db: sqlite3.Connection) -> list[str]:
            rows = db.execute(
                "SELECT DISTINCT owner FROM pin WHERE substr(owner, 1, ?) = ? ORDER BY owner",
                [len(prefix), prefix],
            )
            return [owner for (owner,) in rows]

        return await self._database.run(find)


def put_pins(db: sqlite3.Connection, subjects: Collection[str], owner: str) -> None:
    """Pins subjects, as part of a transaction; pinned already is fine."""
    db.executemany(
        "INSERT OR IGNORE INTO pin VALUES (?, ?)", [(subject, owner) for subject in subjects]
    )


def drop_pins(db: sqlite3.Connection, subject: str) -> None:
    """Removes the pins on what is being removed, as part of a transaction."""
    db.execute("DELETE FROM pin WHERE subject = ? AND owner != ?", [subject, CONFIG])
