"""Where layers lie that are read in place."""

import sqlite3

from imgvol.content.place import FileIdentity, Place
from imgvol.content.records.layers import LayerRecord, put_layer
from imgvol.content.records.table import Table


class PlaceTable(Table):
    """The places."""

    async def add_in_place_layer(self, layer: LayerRecord, place: Place) -> LayerRecord:
        """Records a layer that was verified where it lies, or where it lies by now."""

        def add(db: sqlite3.Connection) -> LayerRecord:
            stored = put_layer(db, layer)
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
            return stored

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
