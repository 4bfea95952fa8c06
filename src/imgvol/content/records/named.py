"""Named volumes: what container engines call a volume, and who has it mounted."""

import sqlite3
from dataclasses import dataclass

from imgvol.content.records.table import Table
from imgvol.errors import LimitExceeded, NotFound


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedVolumeRecord:
    """What a name stands for, mounted or not.

    Attributes:
        image: As the engine's user wrote it, canonical.
        sub_path: What of the image; empty is all of it.
        pull: "missing" or "never".
        created_at: Seconds since the epoch.
    """

    name: str
    image: str
    sub_path: str
    pull: str
    created_at: float


class NamedVolumeTable(Table):
    """The named volumes and their mounts."""

    async def named_volumes(self) -> list[NamedVolumeRecord]:
        """Every named volume, by name."""
        return await self._database.run(
            lambda db: [_record(row) for row in db.execute(f"{_SELECT} ORDER BY name").fetchall()]
        )

    async def named_volume(self, name: str) -> NamedVolumeRecord | None:
        """The volume of a name."""

        def find(db: sqlite3.Connection) -> NamedVolumeRecord | None:
            row = db.execute(f"{_SELECT} WHERE name = ?", [name]).fetchone()
            return _record(row) if row else None

        return await self._database.run(find)

    async def add_named_volume(self, volume: NamedVolumeRecord, *, most: int) -> None:
        """Records a new name.

        Raises:
            LimitExceeded: There are `most` already.
        """

        def add(db: sqlite3.Connection) -> None:
            (count,) = db.execute("SELECT count(*) FROM named_volume").fetchone()
            if count >= most:
                raise LimitExceeded("too many named volumes", limit="NAMED_VOLUMES", allowed=most)
            db.execute(
                "INSERT INTO named_volume VALUES (?, ?, ?, ?, ?)",
                [volume.name, volume.image, volume.sub_path, volume.pull, volume.created_at],
            )

        await self._database.run(add)

    async def remove_named_volume(self, name: str) -> None:
        """Forgets a name and its mounts."""
        await self._database.run(
            lambda db: db.execute("DELETE FROM named_volume WHERE name = ?", [name])
        )

    async def named_mounts(self, name: str) -> set[str]:
        """Who has a named volume mounted."""
        return await self._database.run(
            lambda db: {
                user
                for (user,) in db.execute("SELECT user FROM named_mount WHERE name = ?", [name])
            }
        )

    async def add_named_mount(self, name: str, user: str, *, most: int) -> None:
        """Records a user of a named volume; known already is fine.

        Raises:
            NotFound: The name is gone.
            LimitExceeded: It has `most` users already.
        """

        def add(db: sqlite3.Connection) -> None:
            if not db.execute("SELECT 1 FROM named_volume WHERE name = ?", [name]).fetchone():
                raise NotFound("no such volume", name=name)
            db.execute("INSERT OR IGNORE INTO named_mount VALUES (?, ?)", [name, user])
            (count,) = db.execute(
                "SELECT count(*) FROM named_mount WHERE name = ?", [name]
            ).fetchone()
            if count > most:
                raise LimitExceeded(
                    "too many users of one volume", limit="NAMED_VOLUME_USERS", allowed=most
                )

        await self._database.run(add)

    async def remove_named_mount(self, name: str, user: str) -> None:
        """Forgets a user of a named volume; unknown is fine."""
        await self._database.run(
            lambda db: db.execute(
                "DELETE FROM named_mount WHERE name = ? AND user = ?", [name, user]
            )
        )

    async def remove_named_mounts(self, name: str) -> None:
        """Forgets all users of a named volume."""
        await self._database.run(
            lambda db: db.execute("DELETE FROM named_mount WHERE name = ?", [name])
        )


_SELECT = "SELECT name, image, sub_path, pull, created_at FROM named_volume"


def _record(row: tuple[str, str, str, str, float]) -> NamedVolumeRecord:
    name, image, sub_path, pull, created_at = row
    return NamedVolumeRecord(
        name=name, image=image, sub_path=sub_path, pull=pull, created_at=created_at
    )
