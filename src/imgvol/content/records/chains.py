"""The numbers of views in inode numbers."""

import sqlite3

from imgvol.content.records.table import Table
from imgvol.oci.digest import Digest


class ChainTable(Table):
    """The views' slots."""

    async def view_slot(self, view_id: Digest) -> int:
        """The view's number in inode numbers, given at first use and kept for ever."""

        def ensure(db: sqlite3.Connection) -> int:
            db.execute("INSERT OR IGNORE INTO chain (view_id) VALUES (?)", [str(view_id)])
            row = db.execute("SELECT slot FROM chain WHERE view_id = ?", [str(view_id)]).fetchone()
            return int(row[0])

        return await self._database.run(ensure)
