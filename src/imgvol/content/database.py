"""The records: images, names, layers, chains, leases, volumes.

One sqlite file, one connection, one thread.
sqlite 3.40 may damage a WAL that two connections write and checkpoint at once (fixed in 3.51.3);
one connection cannot meet that. Every operation is one transaction in a worker thread behind a
limiter of one, committed durably (`synchronous=FULL`) before the caller goes on.

Whoever keeps images in memory is told what a transaction has changed of them (`watch`): triggers of
the connection note it, so that no statement can forget to, cascades and repairs included.

The database does not know what lies on disk: `store` brings the two together at start.
"""

import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import trio

from imgvol.content.durable import sync_directory, translate_os_errors
from imgvol.errors import LocalError, StoreDamaged, StoreFull

T = TypeVar("T")

SCHEMA_VERSION: Final = 5

_SCHEMA = """
CREATE TABLE image (
    manifest    TEXT PRIMARY KEY,   -- digest of the manifest
    config      TEXT NOT NULL,      -- the image ID: digest of the config; artifact: the manifest
    media_type  TEXT NOT NULL,      -- of the manifest
    platform    TEXT NOT NULL,      -- os/architecture[/variant]; artifact: empty
    chain_id    TEXT NOT NULL,      -- of all layers, each diff ID verified
    size        INTEGER NOT NULL,   -- bytes: manifest, config and layers as stored by the registry
    created     TEXT,               -- the config's own word, RFC 3339; NULL: not said
    user        TEXT NOT NULL,      -- the config's own word: whom a container runs as; may be empty
    pulled_at   REAL NOT NULL       -- seconds since the epoch; a record, never a deadline
) STRICT;

CREATE TABLE image_layer (
    manifest    TEXT NOT NULL REFERENCES image ON DELETE CASCADE,
    position    INTEGER NOT NULL,   -- 0 is the lowest
    digest      TEXT NOT NULL,      -- of the layer's blob, or of another one with its diff ID
    PRIMARY KEY (manifest, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX image_layer_digest ON image_layer (digest);

CREATE TABLE name (
    name        TEXT NOT NULL,      -- canonical reference, or an argument such as oci:/dir:tag
    platform    TEXT NOT NULL,      -- as image.platform
    target      TEXT NOT NULL,      -- digest of what the name resolved to: an index or the manifest
    manifest    TEXT NOT NULL REFERENCES image ON DELETE CASCADE,
    PRIMARY KEY (name, platform)
) STRICT, WITHOUT ROWID;

CREATE INDEX name_manifest ON name (manifest);

CREATE TABLE pin (                  -- what shall stay, as far as it is here
    subject     TEXT NOT NULL,      -- a name, whatever it means, or the digest of a manifest
    owner       TEXT NOT NULL,      -- who wants it: user, config, rebuild …
    PRIMARY KEY (subject, owner)
) STRICT, WITHOUT ROWID;

CREATE TABLE layer (
    slot        INTEGER PRIMARY KEY AUTOINCREMENT, -- in inode numbers; never used again
    digest      TEXT NOT NULL UNIQUE,              -- of the blob, verified
    diff_id     TEXT NOT NULL,                     -- verified if complete, else claimed
    media_type  TEXT NOT NULL,
    size        INTEGER NOT NULL,                  -- bytes of the blob
    unpacked    INTEGER NOT NULL,                  -- bytes of the uncompressed tar; lazy: of files
    entries     INTEGER NOT NULL,                  -- paths in its index
    format      TEXT NOT NULL,                     -- how its files were known: tar, in place …
    is_complete INTEGER NOT NULL,                  -- 0: lazy, partly here
    fault       TEXT,                              -- what it turned out to be; NULL: all is well
    reason      TEXT                               -- of the fault, or why it is not lazy
) STRICT;

CREATE INDEX layer_diff_id ON layer (diff_id);

CREATE TABLE origin (                              -- where to fetch the rest of a lazy layer
    digest      TEXT PRIMARY KEY REFERENCES layer (digest) ON DELETE CASCADE,
    argument    TEXT NOT NULL,                     -- as a user would name the image
    plain_http  INTEGER NOT NULL,
    insecure    INTEGER NOT NULL,
    ca_file     TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE place (                               -- where a layer lies that is read in place
    digest      TEXT PRIMARY KEY REFERENCES layer (digest) ON DELETE CASCADE,
    path        BLOB NOT NULL,                     -- absolute, without symbolic links
    offset      INTEGER NOT NULL,                  -- of the layer's tar in the file
    size        INTEGER NOT NULL,                  -- of the file, as all below, when verified
    mtime_ns    INTEGER NOT NULL,
    ctime_ns    INTEGER NOT NULL,
    inode       TEXT NOT NULL,                     -- decimal: may need all of 64 bits
    device      TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE trace (                -- which files a start reads, and in which order
    manifest    TEXT PRIMARY KEY,   -- of the image that it is of, which may be gone
    document    TEXT NOT NULL,      -- digest of the trace, which is among the documents
    platform    TEXT NOT NULL,      -- as image.platform
    repository  TEXT NOT NULL,      -- whose newer images may use it, too; empty: none
    name        TEXT NOT NULL,      -- what the image was called; may be empty
    source      TEXT NOT NULL,      -- recorded, referrer
    files       INTEGER NOT NULL,
    read_bytes  INTEGER NOT NULL,
    seconds     REAL NOT NULL,      -- how long was traced
    recorded_at REAL NOT NULL       -- seconds since the epoch
) STRICT, WITHOUT ROWID;

CREATE TABLE chain (
    slot        INTEGER PRIMARY KEY AUTOINCREMENT, -- in inode numbers; never used again
    view_id     TEXT NOT NULL UNIQUE               -- a chain ID, or an unverified chain's own
) STRICT;

CREATE TABLE lease (
    id          TEXT PRIMARY KEY,   -- of a sandbox, or of a pull under way (with a colon)
    labels      TEXT NOT NULL,      -- a JSON object of text
    created_at  REAL NOT NULL,      -- seconds since the epoch; a record, never a deadline
    duration    REAL,               -- seconds; NULL: until it is deleted
    remaining   REAL                -- seconds left, of daemons that run, when last written
) STRICT;

CREATE TABLE lease_hold (
    lease       TEXT NOT NULL REFERENCES lease ON DELETE CASCADE,
    digest      TEXT NOT NULL,      -- of a manifest, or of what a pull under way brings
    PRIMARY KEY (lease, digest)
) STRICT, WITHOUT ROWID;

CREATE TABLE volume (
    id          TEXT PRIMARY KEY,
    sandbox     TEXT NOT NULL REFERENCES lease,
    image       TEXT NOT NULL,      -- as the caller named it, canonical
    manifest    TEXT NOT NULL,      -- digest
    target      TEXT UNIQUE,        -- absolute path of the bind mount; NULL: only the view itself
    options     TEXT NOT NULL,      -- how it is bound: a JSON object, of what is not the default
    patience    REAL NOT NULL,      -- seconds that readers wait for a registry that fails
    view_id     TEXT NOT NULL,      -- which view it shows: a chain ID, or an unverified chain's own
    created_at  REAL NOT NULL,      -- seconds since the epoch
    boot_id     TEXT NOT NULL       -- mounts do not outlive a boot; this tells
) STRICT;

CREATE INDEX volume_sandbox ON volume (sandbox);

CREATE TABLE saving (               -- what was not fetched, because it was here
    kind        TEXT PRIMARY KEY,   -- copied, shared
    pieces      INTEGER NOT NULL,   -- spans, layers
    size        INTEGER NOT NULL    -- bytes of blobs
) STRICT, WITHOUT ROWID;

CREATE TABLE image_use (            -- what was used longest ago goes first when room is needed
    manifest    TEXT PRIMARY KEY REFERENCES image ON DELETE CASCADE,
    used_at     REAL NOT NULL       -- seconds since the epoch; a record, never a deadline
) STRICT, WITHOUT ROWID;

CREATE TABLE pulled_name (          -- what a registry has answered: it can be had there again
    name        TEXT NOT NULL,      -- as name.name
    platform    TEXT NOT NULL,
    manifest    TEXT NOT NULL REFERENCES image ON DELETE CASCADE,
    PRIMARY KEY (name, platform, manifest)
) STRICT, WITHOUT ROWID;
CREATE INDEX pulled_name_manifest ON pulled_name (manifest);

CREATE TABLE evicted (              -- layers that went for want of room, and are not here again
    digest      TEXT PRIMARY KEY,   -- of the blob
    at          REAL NOT NULL       -- seconds since the epoch
) STRICT, WITHOUT ROWID;

CREATE TABLE named_volume (          -- what container engines call a volume
    name        TEXT PRIMARY KEY,
    image       TEXT NOT NULL,      -- as the user named it, canonical
    sub_path    TEXT NOT NULL,
    pull        TEXT NOT NULL,      -- missing, never
    created_at  REAL NOT NULL       -- seconds since the epoch
) STRICT, WITHOUT ROWID;

CREATE TABLE named_mount (
    name        TEXT NOT NULL REFERENCES named_volume ON DELETE CASCADE,
    user        TEXT NOT NULL,      -- the ID that the engine gave its use
    PRIMARY KEY (name, user)
) STRICT, WITHOUT ROWID;

CREATE TABLE soci_index (
    manifest    TEXT PRIMARY KEY,   -- of which manifest; the image need not be here
    target      TEXT NOT NULL,      -- digest of the image index that lists it, or the manifest's
    name        TEXT NOT NULL,      -- the image, as it was named
    platform    TEXT NOT NULL,
    origin      TEXT NOT NULL,      -- how its source is reached: a JSON object, as table origin
    layers      TEXT NOT NULL,      -- a JSON array: what there is of each layer, or why not
    created_at  REAL NOT NULL       -- seconds since the epoch
) STRICT, WITHOUT ROWID;

CREATE TABLE soci_index_document (  -- what the store keeps for it: zTOCs, and the image's own
    manifest    TEXT NOT NULL REFERENCES soci_index ON DELETE CASCADE,
    digest      TEXT NOT NULL,
    PRIMARY KEY (manifest, digest)
) STRICT, WITHOUT ROWID;

-- The index of an image that is here goes with it.
CREATE TRIGGER soci_index_goes AFTER DELETE ON image
    BEGIN DELETE FROM soci_index WHERE manifest = old.manifest; END;
"""

# What an image's record is made of, and how a changed row leads to the manifests of the images that
# it is a part of. {row} is `old` or `new`.
_PARTS_OF_IMAGES: Final = {
    "image": "note_image({row}.manifest)",
    "image_layer": "note_image({row}.manifest)",
    "name": "note_image({row}.manifest)",
    "layer": "note_image(manifest) FROM image_layer WHERE digest = {row}.digest",
    "pin": "note_image({row}.subject), (SELECT count(note_image(manifest)) FROM name"
    " WHERE name = {row}.subject)",
}
# What keeps an image besides names and pins: whoever collects wants to know when it goes.
_KEEPERS_OF_IMAGES: Final = {
    "volume": "note_image({row}.manifest)",
    "lease_hold": "note_image({row}.digest)",
}
_ROWS_OF: Final = {"INSERT": ("new",), "UPDATE": ("old", "new"), "DELETE": ("old",)}


class Database:
    """One open database. Made by `open_database`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._copied_changes = connection.total_changes
        self._limiter = trio.CapacityLimiter(1)
        # Whoever watches is told of transactions in their order.
        self._turn = trio.Lock()
        self._changed: set[str] = set()
        self._read: Callable[[sqlite3.Connection, Collection[str] | None], object] | None = None
        self._tell: Callable[[object], None] = lambda _: None

    async def watch(
        self,
        read: Callable[[sqlite3.Connection, Collection[str] | None], T],
        tell: Callable[[T], None],
    ) -> None:
        """Tells of images: once of all, and from then on of what each transaction has changed.

        Args:
            read: Reads images by their manifests, or all of them, as the end of a transaction.
            tell: Takes that on the event loop, after the commit and before whoever changed it goes
                on. There is one listener for a database.
        """
        assert self._read is None, "one listener for a database"

        def begin() -> T:
            try:
                _note_images(self._connection, self._changed.add)
                return read(self._connection, None)
            except sqlite3.DatabaseError as exc:
                raise _translated(exc) from exc

        async with self._turn:
            tell(await trio.to_thread.run_sync(begin, limiter=self._limiter))
            self._read = read
            self._tell = tell  # type: ignore[assignment]  # it takes what `read` gives

    async def run(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Runs one transaction in the database's thread.

        Raises:
            StoreFull: No room for the transaction; it did not happen.
            LocalError: The database failed otherwise.
        """
        async with self._turn:
            result, changes = await trio.to_thread.run_sync(
                self._run, operation, limiter=self._limiter
            )
            if changes is not None:
                self._tell(changes)
        return result

    def _run(self, operation: Callable[[sqlite3.Connection], T]) -> tuple[T, object | None]:
        self._changed.clear()
        try:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                result = operation(self._connection)
                if self._read is None or not self._changed:
                    return result, None
                return result, self._read(self._connection, frozenset(self._changed))
        except sqlite3.DatabaseError as exc:
            raise _translated(exc) from exc

    async def save_copy(self, path: Path) -> bool:
        """Writes a copy of the whole database beside an earlier one, and puts it in its place.

        Returns:
            Whether there was anything new since the last one.

        Raises:
            StoreFull: No room; the earlier copy stays.
            LocalError: The disk or the database failed otherwise; likewise.
        """
        return await trio.to_thread.run_sync(self._save_copy, path, limiter=self._limiter)

    def _save_copy(self, path: Path) -> bool:
        changes = self._connection.total_changes
        if changes == self._copied_changes:
            return False
        new = path.with_name(f"{path.name}.new")
        with translate_os_errors("copy the database"):
            new.unlink(missing_ok=True)
            try:
                self._connection.execute("VACUUM INTO ?", [str(new)])
            except sqlite3.DatabaseError as exc:
                raise _translated(exc) from exc
            new.chmod(0o600)
            with open(new, "rb") as file:
                os.fsync(file.fileno())
            os.replace(new, path)
            sync_directory(path.parent)
        self._copied_changes = changes
        return True

    async def aclose(self) -> None:
        """Closes the file; no operation may follow."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._connection.close, limiter=self._limiter)


def _note_images(connection: sqlite3.Connection, note: Callable[[str], None]) -> None:
    """Lets a connection tell of every image of which a transaction changes a row."""
    connection.create_function("note_image", 1, note)
    # Without, a row that is replaced does not count as deleted.
    connection.execute("PRAGMA recursive_triggers = ON")
    watched = [(table, event) for table in _PARTS_OF_IMAGES for event in _ROWS_OF]
    watched += [(table, "DELETE") for table in _KEEPERS_OF_IMAGES]
    for table, event in watched:
        noting = (_PARTS_OF_IMAGES | _KEEPERS_OF_IMAGES)[table]
        steps = "".join(f"SELECT {noting.format(row=row)}; " for row in _ROWS_OF[event])
        connection.execute(
            f"CREATE TEMP TRIGGER note_{table}_{event} AFTER {event} ON main.{table}"
            f" BEGIN {steps}END"
        )


@asynccontextmanager
async def open_database(path: Path) -> AsyncIterator[Database]:
    """Opens (or creates) the database as an async context manager.

    Raises:
        StoreDamaged: Not a database of ours, or of a later version of imgvol.
    """
    connection = await trio.to_thread.run_sync(_connect, path)
    database = Database(connection)
    try:
        yield database
    finally:
        await database.aclose()


def _connect(path: Path) -> sqlite3.Connection:
    with translate_os_errors("create the database"):
        path.touch(mode=0o600)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            connection.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT"
            )
        elif version != SCHEMA_VERSION:
            raise _other_version(path, version)
    except sqlite3.DatabaseError as exc:
        connection.close()
        raise _translated(exc) from exc
    except BaseException:
        connection.close()
        raise
    return connection


def _other_version(path: Path, version: int) -> StoreDamaged:
    return StoreDamaged(
        "the store was written by another version of imgvol",
        hint="Use that version, or another --root.",
        path=path,
        expected=SCHEMA_VERSION,
        actual=version,
    )


def check_version(path: Path) -> None:
    """Makes sure that a database is of this version, while another process may use it. Blocks.

    Raises:
        StoreDamaged: It is of another version, or cannot be read.
    """
    if not path.exists():
        return
    address = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.DatabaseError as exc:
        raise _translated(exc) from exc
    if version != SCHEMA_VERSION:
        raise _other_version(path, version)


def examine(path: Path) -> list[str]:
    """What is wrong with a database that nobody has open; nothing, if it is sound. Blocks.

    Raises:
        StoreDamaged: It is another version's: not damaged, and not ours to judge.
    """
    if not path.exists():
        return ["there is none"]
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if not version:
                return ["it is empty"]
            if version != SCHEMA_VERSION:
                raise _other_version(path, version)
            found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
            return [] if found == ["ok"] else found
    except sqlite3.DatabaseError as exc:
        return [str(exc)]


def _translated(exc: sqlite3.DatabaseError) -> LocalError:
    match exc.sqlite_errorcode if hasattr(exc, "sqlite_errorcode") else None:
        case sqlite3.SQLITE_FULL:
            return StoreFull("no room for the store's database", hint="Free space, then try again.")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StoreDamaged(
                "the store's database is damaged",
                hint="Stop the daemon, and let it be rebuilt: imgvol fsck --repair",
            )
    return LocalError(f"the store's database failed: {exc}")
