"""An artifact's files as the tar of one layer: fetched one after another, each verified.

Whatever stores, indexes, checks and shows layers then does so with artifacts: a file of 1 MiB or
more gets a file of its own in the store, shared with whatever holds the same content, and the tar's
digest is a diff ID like any other. The tar follows from the list of files and their content alone.
"""

import tarfile
import threading
from collections.abc import Callable, Iterator
from typing import Final

from imgvol.errors import DigestMismatch, RegistryUnavailable
from imgvol.layers.artifact import Artifact
from imgvol.layers.lazy.rfc3339 import parse_rfc3339
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.sources.base import BlobReader

# There is nothing that could be written, and nobody whose files they are.
_FILE_MODE: Final = 0o444
_DIRECTORY_MODE: Final = 0o555
_BLOCK: Final = 512
_NANOSECONDS: Final = 1_000_000_000
_END: Final = bytes(2 * _BLOCK)


class ArtifactReader(BlobReader):
    """A BlobReader of the layer that stands for an artifact's files.

    Each blob's size and digest are checked before the tar goes on behind it: the last bytes come
    only when all of them were right.

    Args:
        artifact: Which.
        open_blob: Opens a blob, unverified.
    """

    def __init__(self, artifact: Artifact, open_blob: Callable[[Descriptor], BlobReader]) -> None:
        self._artifact = artifact
        self._open_blob = open_blob
        self._lock = threading.Lock()
        self._current: BlobReader | None = None
        self._is_cancelled = False

    def iter_pieces(self) -> Iterator[bytes]:
        """The tar.

        Raises:
            DigestMismatch: A blob is not what the manifest names.
            ImgvolError: It could not be fetched.
        """
        mtime = max(0, parse_rfc3339(self._artifact.created.encode("ascii", "replace")) or 0)
        mtime //= _NANOSECONDS
        yield _header(".", tarfile.DIRTYPE, mtime)
        directories: set[str] = set()
        first_names: dict[Digest, str] = {}
        for file in self._artifact.files:
            for directory in _parents(file.name):
                if directory not in directories:
                    directories.add(directory)
                    yield _header(directory, tarfile.DIRTYPE, mtime)
            first = first_names.setdefault(file.blob.digest, file.name)
            if first != file.name:
                # Fetched once, stored once.
                yield _header(file.name, tarfile.LNKTYPE, mtime, target=first)
                continue
            yield _header(file.name, tarfile.REGTYPE, mtime, size=file.blob.size)
            yield from self._verified(file.blob)
            if padding := -file.blob.size % _BLOCK:
                yield bytes(padding)
        yield _END

    def cancel(self) -> None:
        """Make `iter_pieces` raise at once. From any thread, at any time."""
        with self._lock:
            self._is_cancelled = True
            if self._current is not None:
                self._current.cancel()

    def close(self) -> None:
        """Nothing to do: each blob's reader is closed once it is read."""

    def _verified(self, blob: Descriptor) -> Iterator[bytes]:
        hasher = blob.digest.hasher()
        received = 0
        with self._open_blob(blob) as reader:
            with self._lock:
                if self._is_cancelled:
                    raise RegistryUnavailable("reading was cancelled")
                self._current = reader
            for piece in reader.iter_pieces():
                hasher.update(piece)
                received += len(piece)
                if received > blob.size:
                    break
                yield piece
        actual = Digest.from_hasher(hasher)
        if received != blob.size or actual != blob.digest:
            raise DigestMismatch(
                "a file of an artifact does not match its digest",
                hint="The artifact is damaged where it is stored, or on the way: nothing was kept.",
                expected=blob.digest,
                actual=actual,
            )


def _parents(name: str) -> Iterator[str]:
    for end, character in enumerate(name):
        if character == "/":
            yield name[:end]


def _header(name: str, kind: bytes, mtime: int, *, size: int = 0, target: str = "") -> bytes:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.mode = _DIRECTORY_MODE if kind == tarfile.DIRTYPE else _FILE_MODE
    member.mtime = mtime
    member.size = size
    member.linkname = target
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
