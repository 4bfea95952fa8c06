"""What all tables have in common."""

from typing import Any

from imgvol.content.database import Database

# What sqlite3 itself says of a row.
Row = tuple[Any, ...]


class Table:
    """Operations on one kind of record; each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
