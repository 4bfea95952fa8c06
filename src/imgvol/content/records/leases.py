"""Leases: who keeps which content alive, and for how long."""

import json
import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from imgvol.content.records.table import Row, Table
from imgvol.errors import NotFound
from imgvol.oci.digest import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """One lease.

    Attributes:
        id: A sandbox's lease has the sandbox's ID.
        labels: Whatever its owner wants to find it by.
        created_at: Seconds since the epoch; a record, never compared with a clock.
        duration: Seconds that it lasts from when it was made or renewed; None: until it is deleted.
        remaining: Seconds that are left, of daemons that run: what passes without one is not
            counted, so that a clock that jumps ends no lease.
        digests: What it keeps: manifests of images (those of its volumes included), and content of
            pulls under way.
    """

    id: str
    created_at: float
    labels: Mapping[str, str] = field(default_factory=dict)
    duration: float | None = None
    remaining: float | None = None
    digests: frozenset[Digest] = frozenset()


class LeaseTable(Table):
    """The leases."""

    async def leases(self) -> list[LeaseRecord]:
        """Every lease, the oldest first, with all that it keeps."""
        return await self._database.run(lambda db: _leases_where(db, "", []))

    async def lease(self, lease_id: str) -> LeaseRecord | None:
        """The lease with this ID."""
        found = await self._database.run(lambda db: _leases_where(db, "WHERE id = ?", [lease_id]))
        return found[0] if found else None

    async def ensure_lease(
        self, lease: LeaseRecord, *, images: Collection[Digest] = ()
    ) -> LeaseRecord:
        """Records a lease, or returns the one that has its ID; it keeps what both keep.

        Args:
            lease: What to record.
            images: Manifests that it keeps besides; these images have to be here.

        Raises:
            NotFound: One of the images is not here.
        """

        def ensure(db: sqlite3.Connection) -> LeaseRecord:
            for manifest in map(str, images):
                if not db.execute("SELECT 1 FROM image WHERE manifest = ?", [manifest]).fetchone():
                    raise NotFound("image is not in the store", manifest=manifest)
            put_lease(db, lease)
            db.executemany(
                "INSERT OR IGNORE INTO lease_hold VALUES (?, ?)",
                [(lease.id, str(digest)) for digest in {*lease.digests, *images}],
            )
            return _leases_where(db, "WHERE id = ?", [lease.id])[0]

        return await self._database.run(ensure)

    async def renew_lease(self, lease_id: str, duration: float | None) -> LeaseRecord:
        """Lets a lease last for so long from now on; None: as long as it was to last before.

        Raises:
            NotFound: There is none.
        """

        def renew(db: sqlite3.Connection) -> LeaseRecord:
            db.execute(
                "UPDATE lease SET duration = coalesce(?, duration),"
                " remaining = coalesce(?, duration) WHERE id = ?",
                [duration, duration, lease_id],
            )
            found = _leases_where(db, "WHERE id = ?", [lease_id])
            if not found:
                raise NotFound(
                    "no such lease", hint="imgvol lease ls lists the leases.", lease=lease_id
                )
            return found[0]

        return await self._database.run(renew)

    async def note_remaining(self, remaining: Mapping[str, float]) -> None:
        """Writes down how many seconds are left of leases that end by themselves."""
        await self._database.run(
            lambda db: db.executemany(
                "UPDATE lease SET remaining = ? WHERE id = ?",
                [(seconds, lease_id) for lease_id, seconds in remaining.items()],
            )
        )

    async def remove_lease(self, lease_id: str) -> bool:
        """Forgets a lease, unless it has volumes; returns whether there is none (any more)."""

        def remove(db: sqlite3.Connection) -> bool:
            if db.execute("SELECT 1 FROM volume WHERE sandbox = ?", [lease_id]).fetchone():
                return False
            db.execute("DELETE FROM lease WHERE id = ?", [lease_id])
            return True

        return await self._database.run(remove)


def put_lease(db: sqlite3.Connection, lease: LeaseRecord) -> None:
    """Records a lease as part of a transaction; one with its ID stays as it is."""
    db.execute(
        "INSERT OR IGNORE INTO lease VALUES (?, ?, ?, ?, ?)",
        [
            lease.id,
            json.dumps(dict(lease.labels), sort_keys=True),
            lease.created_at,
            lease.duration,
            lease.duration,
        ],
    )


_SELECT_LEASE: Final = "SELECT id, labels, created_at, duration, remaining FROM lease "


def _leases_where(db: sqlite3.Connection, where: str, parameters: list[str]) -> list[LeaseRecord]:
    """Leases with what they keep. `where` is one of this module's own clauses."""
    held: dict[str, set[Digest]] = {}
    select = "SELECT lease AS id, digest FROM lease_hold UNION SELECT sandbox, manifest FROM volume"
    for lease_id, digest in db.execute(f"SELECT id, digest FROM ({select}) {where}", parameters):
        held.setdefault(lease_id, set()).add(Digest.parse(digest))
    rows = db.execute(f"{_SELECT_LEASE} {where} ORDER BY created_at, id", parameters).fetchall()
    return [_lease_from(row, frozenset(held.get(row[0], ()))) for row in rows]


def _lease_from(row: Row, digests: frozenset[Digest]) -> LeaseRecord:
    lease_id, labels, created_at, duration, remaining = row
    return LeaseRecord(
        id=lease_id,
        labels=json.loads(labels),
        created_at=created_at,
        duration=duration,
        remaining=remaining,
        digests=digests,
    )
