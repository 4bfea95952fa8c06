"""SOCI indexes that are kept here: of which image, what of each layer, and which documents.

An index belongs to a manifest. Of an image that is in the store it goes with the image; of one that
never was, it stays until it is removed.
"""

import json
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from imgvol.content.records.origins import Origin
from imgvol.content.records.table import Row, Table
from imgvol.oci.digest import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedBlob:
    """What an index has for a layer: a zTOC, its compressed twin, or a document of zstd frames."""

    digest: Digest
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerIndexRecord:
    """What an index has for one layer.

    Attributes:
        digest: Of the layer's blob.
        diff_id: Of its tar, verified if it is indexed.
        media_type: Of the blob.
        size: Bytes of the blob.
        span_size: Plain bytes of a span, as asked for; 0 if it is not indexed.
        spans: How many there are.
        ztoc: Its zTOC, if it is gzip or not compressed.
        twin: The compressed one.
        frames: The document of its frames, if it is zstd.
        reason: Why it is left out.
    """

    digest: Digest
    diff_id: Digest
    media_type: str
    size: int
    span_size: int = 0
    spans: int = 0
    ztoc: IndexedBlob | None = None
    twin: IndexedBlob | None = None
    frames: IndexedBlob | None = None
    reason: str = ""

    @property
    def is_indexed(self) -> bool:
        """Whether it is not left out."""
        return self.ztoc is not None or self.frames is not None

    @property
    def blobs(self) -> Sequence[IndexedBlob]:
        """All that the index has for it."""
        return [blob for blob in (self.ztoc, self.twin, self.frames) if blob is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRecord:
    """A SOCI index.

    Attributes:
        manifest: Of which manifest.
        target: Digest of the image index that lists it; the manifest's own if none does.
        name: The image, as it was named.
        platform: Its.
        origin: How its source is reached.
        layers: Of the image, the base layer first.
        documents: All that is kept for it in the store.
        created_at: Seconds since the epoch.
    """

    manifest: Digest
    target: Digest
    name: str
    platform: str
    origin: Origin
    layers: tuple[LayerIndexRecord, ...]
    documents: frozenset[Digest]
    created_at: float

    @property
    def is_empty(self) -> bool:
        """Whether every layer is left out."""
        return not any(layer.is_indexed for layer in self.layers)


_COLUMNS: Final = "manifest, target, name, platform, origin, layers, created_at"


class SociIndexTable(Table):
    """The indexes and their documents."""

    async def put_index(self, index: IndexRecord) -> None:
        """Records an index, in the place of an earlier one of the same manifest."""

        def put(db: sqlite3.Connection) -> None:
            manifest = str(index.manifest)
            db.execute("DELETE FROM soci_index WHERE manifest = ?", [manifest])
            db.execute(
                f"INSERT INTO soci_index ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    manifest,
                    str(index.target),
                    index.name,
                    index.platform,
                    json.dumps(asdict(index.origin)),
                    json.dumps([_document(layer) for layer in index.layers]),
                    index.created_at,
                ],
            )
            db.executemany(
                "INSERT INTO soci_index_document VALUES (?, ?)",
                [(manifest, str(digest)) for digest in index.documents],
            )

        await self._database.run(put)

    async def indexes(self) -> list[IndexRecord]:
        """Every index, by name, the latest made first."""
        return await self._database.run(_read)

    async def remove_indexes(self, manifests: Collection[Digest]) -> None:
        """Forgets the indexes of these manifests; none is fine."""
        await self._database.run(
            lambda db: db.executemany(
                "DELETE FROM soci_index WHERE manifest = ?",
                [[str(manifest)] for manifest in manifests],
            )
        )


def _read(db: sqlite3.Connection) -> list[IndexRecord]:
    documents: dict[str, set[Digest]] = {}
    for manifest, digest in db.execute("SELECT manifest, digest FROM soci_index_document"):
        documents.setdefault(manifest, set()).add(Digest.parse(digest))
    rows = db.execute(f"SELECT {_COLUMNS} FROM soci_index ORDER BY name, created_at DESC")
    return [_index(row, frozenset(documents.get(row[0], ()))) for row in rows]


def _index(row: Row, documents: frozenset[Digest]) -> IndexRecord:
    manifest, target, name, platform, origin, layers, created_at = row
    return IndexRecord(
        manifest=Digest.parse(manifest),
        target=Digest.parse(target),
        name=name,
        platform=platform,
        origin=Origin(**json.loads(origin)),
        layers=tuple(map(_layer, _objects(layers))),
        documents=documents,
        created_at=created_at,
    )


def _document(layer: LayerIndexRecord) -> dict[str, Any]:
    def blob(of: IndexedBlob | None) -> dict[str, Any] | None:
        return None if of is None else {"digest": str(of.digest), "size": of.size}

    return {
        "digest": str(layer.digest),
        "diff_id": str(layer.diff_id),
        "media_type": layer.media_type,
        "size": layer.size,
        "span_size": layer.span_size,
        "spans": layer.spans,
        "ztoc": blob(layer.ztoc),
        "twin": blob(layer.twin),
        "frames": blob(layer.frames),
        "reason": layer.reason,
    }


def _objects(text: str) -> Sequence[dict[str, Any]]:
    found: Sequence[dict[str, Any]] = json.loads(text)
    return found


def _layer(document: dict[str, Any]) -> LayerIndexRecord:
    fields = dict(document)
    for name in ("digest", "diff_id"):
        fields[name] = Digest.parse(fields[name])
    for name in ("ztoc", "twin", "frames"):
        blob = fields.get(name)  # indexes that were made before there were frames lack them
        fields[name] = blob and IndexedBlob(digest=Digest.parse(blob["digest"]), size=blob["size"])
    return LayerIndexRecord(**fields)
