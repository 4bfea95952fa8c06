"""Where the rest of lazy layers is fetched from."""

import sqlite3
from dataclasses import dataclass

from imgvol.content.records.layers import LayerRecord, put_layer
from imgvol.content.records.table import Table
from imgvol.oci.digest import Digest


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


class OriginTable(Table):
    """The lazy layers' origins."""

    async def add_lazy_layer(self, layer: LayerRecord, origin: Origin) -> LayerRecord:
        """Records a lazy layer, with where the rest of it is."""

        def add(db: sqlite3.Connection) -> LayerRecord:
            stored = put_layer(db, layer)
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
            return stored

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

    async def needed_origins(self) -> frozenset[str]:
        """The images that some layer's rest has yet to be fetched from, as users name them."""

        def find(db: sqlite3.Connection) -> frozenset[str]:
            rows = db.execute(
                "SELECT DISTINCT argument FROM origin JOIN layer USING (digest)"
                " WHERE NOT is_complete"
            )
            return frozenset(argument for (argument,) in rows)

        return await self._database.run(find)
