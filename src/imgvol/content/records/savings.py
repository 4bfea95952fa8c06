"""What did not have to be fetched, or written, because it was here: totals of a store's life."""

import sqlite3
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from imgvol.content.records.table import Table


class Saving(StrEnum):
    """Why something was not fetched, or not written. Stored."""

    COPIED = "copied"
    """Spans of lazy layers, whose content another layer had."""

    CLONED = "cloned"
    """What of their content shares blocks with that layer; pieces are not counted."""

    SHARED = "shared"
    """Layers whose diff ID another layer had been proven to have."""


class Saved(NamedTuple):
    """How much.

    Attributes:
        pieces: Spans, or layers.
        size: Bytes of blobs; of files, for what was cloned.
    """

    pieces: int
    size: int


class SavingTable(Table):
    """The totals."""

    async def add_saving(self, kind: Saving, pieces: int, size: int) -> None:
        """Adds to a total."""

        def add(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO saving VALUES (?, ?, ?) ON CONFLICT (kind) DO UPDATE SET"
                " pieces = pieces + excluded.pieces, size = size + excluded.size",
                [kind, pieces, size],
            )

        await self._database.run(add)

    async def savings(self) -> Mapping[Saving, Saved]:
        """All totals."""

        def find(db: sqlite3.Connection) -> Mapping[Saving, Saved]:
            rows = db.execute("SELECT kind, pieces, size FROM saving").fetchall()
            return {Saving(kind): Saved(pieces, size) for kind, pieces, size in rows}

        found = await self._database.run(find)
        return {kind: found.get(kind, Saved(0, 0)) for kind in Saving}
