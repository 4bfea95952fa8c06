"""Documents by digest: manifests, indexes, configs. Small, whole, verified on every read.

All methods block (they hash and fsync): call them from threads.
"""

import contextlib
import os
import secrets
import shutil
from pathlib import Path

from imgvol import limits
from imgvol.content.durable import sync_directory, translate_os_errors, write_file
from imgvol.content.layout import StoreLayout
from imgvol.content.open_file import read_whole
from imgvol.errors import DigestMismatch, InvalidDigest, NotFound, StoreDamaged
from imgvol.oci.digest import Digest


class BlobStore:
    """Content-addressed small files: `put` is idempotent, `read` verifies."""

    def __init__(self, layout: StoreLayout) -> None:
        self._layout = layout

    def put(self, digest: Digest, data: bytes) -> None:
        """Stores a document durably.

        Raises:
            DigestMismatch: The data is not what the digest names.
            StoreFull: No room.
        """
        if not digest.matches(data):
            raise DigestMismatch("document does not match its digest", digest=digest)
        final = self._layout.blob(digest)
        # One that has changed on disk is replaced: pulling again is how it is repaired.
        with contextlib.suppress(NotFound, StoreDamaged):
            self.read(digest)
            return
        with translate_os_errors("store a document"):
            if not final.parent.exists():
                final.parent.mkdir(mode=0o700, exist_ok=True)
                sync_directory(final.parent.parent)
            temporary = self._layout.ingest / f"blob-{secrets.token_hex(8)}"
            try:
                write_file(temporary, data)
                if final.is_dir() and not final.is_symlink():
                    shutil.rmtree(final)  # nothing of ours; a rename replaces all but this
                os.replace(temporary, final)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            sync_directory(final.parent)

    def adopt(self, digest: Digest, path: Path) -> None:
        """Stores a file of the same filesystem, which is gone from its place afterwards.

        Raises:
            DigestMismatch: Its bytes are not what the digest names.
            StoreFull: No room.
        """
        hasher = digest.hasher()
        final = self._layout.blob(digest)
        with translate_os_errors("store a document"):
            with open(path, "rb") as file:
                while piece := file.read(limits.MIB):
                    hasher.update(piece)
                os.fsync(file.fileno())
            if Digest.from_hasher(hasher) != digest:
                raise DigestMismatch("document does not match its digest", digest=digest)
            if not final.parent.exists():
                final.parent.mkdir(mode=0o700, exist_ok=True)
                sync_directory(final.parent.parent)
            os.chmod(path, 0o600)
            os.replace(path, final)
            sync_directory(final.parent)

    def read(self, digest: Digest) -> bytes:
        """The document.

        Raises:
            NotFound: Not stored.
            StoreDamaged: Stored, but its bytes have changed.
        """
        try:
            data = read_whole(self._layout.blob(digest))
        except FileNotFoundError as exc:
            raise NotFound("document is not in the store", digest=digest) from exc
        except OSError as exc:
            raise StoreDamaged(
                "a stored document cannot be read", digest=digest, reason=exc.strerror
            ) from exc
        if not digest.matches(data):
            raise StoreDamaged(
                "a stored document has changed",
                hint="Pull the image again: imgvol pull IMAGE.",
                digest=digest,
            )
        return data

    def has(self, digest: Digest) -> bool:
        """Whether the document is stored."""
        return self._layout.blob(digest).exists()

    def remove(self, digest: Digest) -> int:
        """Removes a document; gone already is fine. Returns the bytes freed."""
        path = self._layout.blob(digest)
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        return size

    def sizes(self) -> dict[Digest, int]:
        """Every document that is stored, and its bytes."""
        found = {}
        for algorithm in self._layout.blobs.iterdir():
            for entry in os.scandir(algorithm):
                # What is not ours has no such name, and is none of our business.
                with contextlib.suppress(InvalidDigest, FileNotFoundError):
                    found[Digest(algorithm.name, entry.name)] = entry.stat().st_size
        return found
