"""Traces of images: which there are, and which of them may be used for which images.

A trace stays while its image is here, or an image with a name of the same repository: the next tag
has most of the same files, and the image that was traced is often gone when it comes.
"""

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from imgvol.content.records.table import Row, Table
from imgvol.errors import InvalidReference
from imgvol.oci.digest import Digest
from imgvol.oci.reference import Reference

RECORDED: Final = "recorded"
FOUND: Final = "referrer"

_COLUMNS: Final = (
    "manifest, document, platform, repository, name, source, files, read_bytes, seconds,"
    " recorded_at"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRecord:
    """What is known of one image's trace.

    Attributes:
        manifest: Of the image.
        document: Of the trace itself, which is among the store's documents.
        platform: Of the image.
        repository: Images that are called so may use it; empty: only this image.
        name: What the image was called; may be empty.
        source: RECORDED here, or FOUND in the image's registry.
        files: How many were opened.
        read_bytes: What was read of them.
        seconds: How long was traced.
        recorded_at: Seconds since the epoch.
    """

    manifest: Digest
    document: Digest
    platform: str
    repository: str
    name: str
    source: str
    files: int
    read_bytes: int
    seconds: float
    recorded_at: float


class TraceTable(Table):
    """The traces."""

    async def put_trace(self, trace: TraceRecord) -> None:
        """Records a trace, instead of the one that its image had."""

        def put(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT OR REPLACE INTO trace VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    str(trace.manifest),
                    str(trace.document),
                    trace.platform,
                    trace.repository,
                    trace.name,
                    trace.source,
                    trace.files,
                    trace.read_bytes,
                    trace.seconds,
                    trace.recorded_at,
                ],
            )

        await self._database.run(put)

    async def traces(self) -> list[TraceRecord]:
        """All of them, the latest first."""

        def find(db: sqlite3.Connection) -> list[TraceRecord]:
            query = f"SELECT {_COLUMNS} FROM trace ORDER BY recorded_at DESC, manifest"
            return [_trace_from(row) for row in db.execute(query)]

        return await self._database.run(find)

    async def trace_for(
        self, manifest: Digest, platform: str, repositories: Collection[str]
    ) -> TraceRecord | None:
        """The image's own trace, or the latest of an image of its repositories and platform."""

        def find(db: sqlite3.Connection) -> TraceRecord | None:
            marks = ", ".join("?" * len(repositories))
            row = db.execute(
                f"SELECT {_COLUMNS} FROM trace WHERE manifest = ?"
                f" OR (platform = ? AND repository IN ({marks}))"
                " ORDER BY manifest = ? DESC, recorded_at DESC LIMIT 1",
                [str(manifest), platform, *repositories, str(manifest)],
            ).fetchone()
            return None if row is None else _trace_from(row)

        return await self._database.run(find)

    async def remove_trace(self, manifest: Digest) -> bool:
        """Forgets an image's trace; returns whether there was one."""
        return await self._database.run(
            lambda db: (
                db.execute("DELETE FROM trace WHERE manifest = ?", [str(manifest)]).rowcount > 0
            )
        )


def drop_useless_traces(db: sqlite3.Connection) -> None:
    """Forgets traces that no image could use any more, as part of a transaction."""
    orphans = db.execute(
        "SELECT manifest, repository FROM trace WHERE manifest NOT IN (SELECT manifest FROM image)"
    ).fetchall()
    if not orphans:
        return
    names = (name for (name,) in db.execute("SELECT DISTINCT name FROM name"))
    known = {repository_of(name) for name in names} - {""}
    gone = [[manifest] for manifest, repository in orphans if repository not in known]
    db.executemany("DELETE FROM trace WHERE manifest = ?", gone)


def repository_of(name: str) -> str:
    """The repository of an image's canonical name; empty for one of no registry."""
    if ":" in name and name.split(":", 1)[0] in {"oci", "oci-archive", "docker-archive"}:
        return ""
    try:
        return Reference.parse(name).repository
    except InvalidReference:
        return ""


def _trace_from(row: Row) -> TraceRecord:
    manifest, document, platform, repository, name, source, files, size, seconds, at = row
    return TraceRecord(
        manifest=Digest.parse(manifest),
        document=Digest.parse(document),
        platform=platform,
        repository=repository,
        name=name,
        source=source,
        files=files,
        read_bytes=size,
        seconds=seconds,
        recorded_at=at,
    )
