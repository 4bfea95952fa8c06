"""The layers of the store: complete, lazy (see `origins`), or read in place (see `places`)."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from imgvol.content.records.table import Row, Table
from imgvol.errors import DigestMismatch, ImgvolError, InvalidLayer, StoreDamaged
from imgvol.oci.digest import DiffID, Digest

# The format of layers that are read where they lie.
IN_PLACE: Final = "in place"


class FaultKind(StrEnum):
    """What can turn out to be wrong with a lazy layer once all of it has been seen."""

    BLOB = "blob"
    """The blob does not match its digest."""

    DIFF_ID = "diff-id"
    """The uncompressed tar does not match the diff ID."""

    FORMAT = "format"
    """It cannot be read as a layer."""

    TOC = "toc"
    """Blob and diff ID are right, but the table of contents told something else than the tar."""

    DAMAGED = "damaged"
    """It was right once: what the store has of it, or a part of that, has changed since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFault:
    """Why a layer, or its table of contents, is not believed any more.

    Attributes:
        reason: In words, for people.
    """

    kind: FaultKind
    reason: str

    def refusal(self, digest: Digest) -> ImgvolError:
        """What whoever wants to read the layer is told."""
        if self.kind is FaultKind.DAMAGED:
            return StoreDamaged(
                "a stored layer has changed since it was verified",
                hint="Pull the image again: imgvol pull IMAGE.",
                digest=digest,
                reason=self.reason,
            )
        is_mismatch = self.kind in {FaultKind.BLOB, FaultKind.DIFF_ID}
        return (DigestMismatch if is_mismatch else InvalidLayer)(
            "a layer turned out to be bad when all of it had been fetched",
            hint="Pull the image again: imgvol pull IMAGE. If that fails, too, the image is damaged"
            " where it is stored.",
            layer=digest,
            reason=self.reason,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """One layer of the store.

    Attributes:
        digest: Of the blob; verified if the layer is complete.
        diff_id: Of the uncompressed tar; verified if the layer is complete, else only claimed.
        size: Bytes of the blob.
        unpacked_size: Bytes of the uncompressed tar; of a lazy layer, of its files.
        entries: Paths in its index.
        format: How its files were known: "tar", "in place" (it lies in somebody else's file),
            "eStargz", "zstd:chunked" or "SOCI".
        is_complete: Whether all of it is at hand and verified; False: it is lazy.
        slot: Its number in inode numbers; 0 until the database has given one.
        fault: What it turned out to be, if it was lazy and not what it had promised, or what has
            become of it since. If it is complete all the same, its tar is right, or damaged in
            part; if not, it is refused until it is pulled as a whole.
        obstacle: Why it was pulled as a whole, although its image has a table of contents for it.
    """

    digest: Digest
    diff_id: DiffID
    media_type: str
    size: int
    unpacked_size: int
    entries: int
    format: str = "tar"
    is_complete: bool = True
    slot: int = 0
    fault: LayerFault | None = None
    obstacle: str = ""

    @property
    def is_in_place(self) -> bool:
        """Whether its bytes are not in the store, but in a file elsewhere."""
        return self.format == IN_PLACE

    @property
    def is_stored(self) -> bool:
        """Whether all of it is in the store, verified."""
        return self.is_complete and not self.is_in_place

    @property
    def is_refused(self) -> bool:
        """Whether nothing of it may be shown until it has been pulled as a whole."""
        return self.fault is not None and not self.is_complete

    @property
    def is_damaged(self) -> bool:
        """Whether some or all of what the store has of it is not what it was."""
        return self.fault is not None and self.fault.kind is FaultKind.DAMAGED


class LayerTable(Table):
    """The layers."""

    async def layer(self, digest: Digest) -> LayerRecord | None:
        """The layer with this blob digest, complete or not."""

        def find(db: sqlite3.Connection) -> LayerRecord | None:
            row = db.execute(f"{_SELECT_LAYER} WHERE digest = ?", [str(digest)]).fetchone()
            return layer_from(row) if row else None

        return await self._database.run(find)

    async def stored_layer(self, diff_id: DiffID) -> LayerRecord | None:
        """A layer that is in the store with all of its bytes, and has been proven to be this tar.

        Of several, the one that was recorded last.
        """

        def find(db: sqlite3.Connection) -> LayerRecord | None:
            row = db.execute(
                f"{_SELECT_LAYER} WHERE diff_id = ? AND is_complete AND format != ?"
                " ORDER BY slot DESC LIMIT 1",
                [str(diff_id), IN_PLACE],
            ).fetchone()
            return layer_from(row) if row else None

        return await self._database.run(find)

    async def layers(self) -> list[LayerRecord]:
        """Every layer, complete or not."""
        return await self._database.run(
            lambda db: [layer_from(row) for row in db.execute(f"{_SELECT_LAYER} ORDER BY slot")]
        )

    async def refresh_layers(self, layers: Sequence[LayerRecord]) -> list[LayerRecord]:
        """What some layers are by now, without those that were forgotten meanwhile."""

        def find(db: sqlite3.Connection) -> list[LayerRecord]:
            select = f"{_SELECT_LAYER} WHERE digest = ?"
            rows = [db.execute(select, [str(layer.digest)]).fetchone() for layer in layers]
            return [layer_from(row) for row in rows if row]

        return await self._database.run(find)

    async def add_layer(self, layer: LayerRecord) -> LayerRecord:
        """Records a layer that was published, or what has become of it.

        Its slot stays, unless it is recorded with a fault: the kernel may know other files under
        the old one.
        """
        return await self._database.run(lambda db: put_layer(db, layer))

    async def mark_damaged(self, layer: LayerRecord, fault: LayerFault) -> bool:
        """Refuses a stored layer from now on; False if it is not what it was any more."""

        def mark(db: sqlite3.Connection) -> bool:
            row = db.execute(f"{_SELECT_LAYER} WHERE slot = ?", [layer.slot]).fetchone()
            if row is None or layer_from(row) != layer:
                return False
            put_layer(db, replace(layer, is_complete=False, fault=fault))
            return True

        return await self._database.run(mark)

    async def set_damage(self, layer: LayerRecord, fault: LayerFault | None) -> None:
        """Records what a scrub has found of a stored layer that goes on being served in its slot.

        Nothing happens if it is another layer by now.
        """

        def write(db: sqlite3.Connection) -> None:
            row = db.execute(f"{_SELECT_LAYER} WHERE slot = ?", [layer.slot]).fetchone()
            if row is not None and layer_from(row) == layer:
                values = (fault.kind, fault.reason) if fault else (None, layer.obstacle)
                statement = "UPDATE layer SET fault = ?, reason = ? WHERE slot = ?"
                db.execute(statement, [*values, layer.slot])

        await self._database.run(write)

    async def forget_layer(self, digest: Digest) -> None:
        """Forgets a layer whose files are gone, whatever needs it."""
        await self._database.run(
            lambda db: db.execute("DELETE FROM layer WHERE digest = ?", [str(digest)])
        )


LAYER_COLUMNS: Final = (
    "slot, digest, diff_id, media_type, size, unpacked, entries, format, is_complete, fault, reason"
)
_SELECT_LAYER: Final = f"SELECT {LAYER_COLUMNS} FROM layer"


def layer_from(row: Row) -> LayerRecord:
    """A row of LAYER_COLUMNS as a value."""
    slot, digest, diff_id, media_type, size, unpacked, entries, kind, is_complete, *bad = row
    fault, reason = bad
    return LayerRecord(
        slot=slot,
        digest=Digest.parse(digest),
        diff_id=DiffID(Digest.parse(diff_id)),
        media_type=media_type,
        size=size,
        unpacked_size=unpacked,
        entries=entries,
        format=kind,
        is_complete=bool(is_complete),
        fault=LayerFault(kind=FaultKind(fault), reason=reason) if fault else None,
        obstacle="" if fault else reason or "",
    )


def put_layer(db: sqlite3.Connection, layer: LayerRecord) -> LayerRecord:
    """Records a layer, new or known, as part of a transaction; returns it with its slot."""
    # Where it lay until now, if it was read in place.
    db.execute("DELETE FROM place WHERE digest = ?", [str(layer.digest)])
    db.execute("DELETE FROM evicted WHERE digest = ?", [str(layer.digest)])
    if layer.fault is not None:
        # The next row gets the next slot; what belongs to the lazy form goes with this one.
        db.execute("DELETE FROM layer WHERE digest = ?", [str(layer.digest)])
    db.execute(
        "INSERT INTO layer (digest, diff_id, media_type, size, unpacked, entries, format,"
        " is_complete, fault, reason)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET"
        " diff_id = excluded.diff_id, media_type = excluded.media_type, size = excluded.size,"
        " unpacked = excluded.unpacked, entries = excluded.entries, format = excluded.format,"
        " is_complete = excluded.is_complete, fault = excluded.fault, reason = excluded.reason",
        [
            str(layer.digest),
            str(layer.diff_id),
            layer.media_type,
            layer.size,
            layer.unpacked_size,
            layer.entries,
            layer.format,
            layer.is_complete,
            layer.fault and layer.fault.kind,
            layer.fault.reason if layer.fault else layer.obstacle,
        ],
    )
    row = db.execute(f"{_SELECT_LAYER} WHERE digest = ?", [str(layer.digest)]).fetchone()
    return layer_from(row)
