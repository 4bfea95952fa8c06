"""The numbers of views in inode numbers."""

import sqlite3

from imgvol.content.records.table import Table
from imgvol.oci.digest import Digest


class ChainTable(Table):
    """The views' slots."""

    async def view_slots(self) -> dict[str, int]:
        """Every view's number, by its ID; also of those that are not here any more."""
        return await self._database.run(
            lambda db: dict(db.execute("SELECT view_id, slot FROM chain").fetchall())
        )

    async def view_slot(self, view_id: Digest) -> int:
        """The view's number in inode numbers, given at first use and kept for ever."""

        def ensure(db: sqlite3.Connection) -> int:
            # Nothing is written for one that is known: a restart opens them without room, too.
            values = [str(view_id)]
            row = db.execute("SELECT slot FROM chain WHERE view_id = ?", values).fetchone()
            if row is None:
                insert = "INSERT INTO chain (view_id) VALUES (?) RETURNING slot"
                row = db.execute(insert, values).fetchone()
            return int(row[0])

        return await self._database.run(ensure)
