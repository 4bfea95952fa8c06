"""Volumes: which image is bound where, for which sandbox."""

import sqlite3
from dataclasses import dataclass
from typing import Final

from imgvol.content.records.leases import LeaseRecord, put_lease
from imgvol.content.records.table import Row, Table
from imgvol.errors import NotFound
from imgvol.oci.digest import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRecord:
    """A view bound for a sandbox.

    Attributes:
        patience: Seconds that its readers wait for a registry that fails, before they are told.
    """

    id: str
    sandbox: str
    image: str
    manifest: Digest
    target: str | None
    noexec: bool
    patience: float
    view_id: Digest
    created_at: float
    boot_id: str


class VolumeTable(Table):
    """The volumes."""

    async def volumes(self) -> list[VolumeRecord]:
        """Every recorded volume, the oldest first."""
        return await self._database.run(
            lambda db: [
                _volume_from(row) for row in db.execute(f"{_SELECT_VOLUME} ORDER BY created_at")
            ]
        )

    async def add_volume(self, volume: VolumeRecord) -> None:
        """Records a volume, and with it its sandbox's lease; from then on its image is in use.

        Raises:
            NotFound: The image has been removed meanwhile.
        """

        def add(db: sqlite3.Connection) -> None:
            manifest = str(volume.manifest)
            if not db.execute("SELECT 1 FROM image WHERE manifest = ?", [manifest]).fetchone():
                raise NotFound("image was removed while it was being mounted", image=volume.image)
            put_lease(db, LeaseRecord(id=volume.sandbox, created_at=volume.created_at))
            db.execute(
                "INSERT INTO volume VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    volume.id,
                    volume.sandbox,
                    volume.image,
                    manifest,
                    volume.target,
                    volume.noexec,
                    volume.patience,
                    str(volume.view_id),
                    volume.created_at,
                    volume.boot_id,
                ],
            )

        await self._database.run(add)

    async def remove_volume(self, volume_id: str) -> None:
        """Forgets a volume; forgotten already is fine."""
        await self._database.run(
            lambda db: db.execute("DELETE FROM volume WHERE id = ?", [volume_id])
        )


_SELECT_VOLUME: Final = (
    "SELECT id, sandbox, image, manifest, target, noexec, patience, view_id, created_at, boot_id"
    " FROM volume"
)


def _volume_from(row: Row) -> VolumeRecord:
    volume_id, sandbox, image, manifest, target, noexec, patience = row[:7]
    view_id, created_at, boot_id = row[7:]
    return VolumeRecord(
        id=volume_id,
        sandbox=sandbox,
        image=image,
        manifest=Digest.parse(manifest),
        target=target,
        noexec=bool(noexec),
        patience=patience,
        view_id=Digest.parse(view_id),
        created_at=created_at,
        boot_id=boot_id,
    )
