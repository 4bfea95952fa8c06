"""Compressed blobs that a conversion takes over as they are: the store has none, their source has.

Each is fetched when it is asked for, once, into a file of the conversion's own directory, and is
verified there.
"""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from imgvol.content.durable import translate_os_errors
from imgvol.errors import DigestMismatch
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.registry.credentials import CredentialSource
from imgvol.registry.hosts import RegistryOptions
from imgvol.registry.registries import Registries
from imgvol.sources.base import ImageSource
from imgvol.sources.open import open_source
from imgvol.sources.parse import RegistryImage


class KeptBlobs:
    """Fetches blobs of one image.

    Args:
        source: Where the image is, resolved.
        directory: Where files go; somebody else removes it.
    """

    def __init__(self, source: ImageSource, directory: Path) -> None:
        self._source = source
        self._directory = directory
        self._lock = threading.Lock()

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """A blob's bytes, from the beginning. Blocks.

        Raises:
            DigestMismatch: The source gives others.
            RemoteError: The registry failed.
            StoreFull: No room.
        """
        path = self._directory / f"kept-{descriptor.digest.encoded}"
        with self._lock, translate_os_errors("fetch a layer"):
            if not path.exists():
                self._fetch(descriptor, path)
            return path.open("rb")

    def _fetch(self, descriptor: Descriptor, path: Path) -> None:
        partial = path.with_suffix(".partial")
        hasher = descriptor.digest.hasher()
        with self._source.open_blob(descriptor) as reader, partial.open("wb") as file:
            for piece in reader.iter_pieces():
                hasher.update(piece)
                file.write(piece)
        actual = Digest.from_hasher(hasher)
        if actual != descriptor.digest:
            raise DigestMismatch(
                "a layer is not what its digest names", expected=descriptor.digest, actual=actual
            )
        partial.rename(path)


@asynccontextmanager
async def open_kept_blobs(
    image: RegistryImage,
    directory: Path,
    options: RegistryOptions,
    credentials: CredentialSource | None,
    registries: Registries | None,
) -> AsyncIterator[KeptBlobs]:
    """Blobs of an image of a registry, which is not asked before one is needed."""
    async with open_source(
        image, options, credentials=credentials, registries=registries
    ) as source:
        yield KeptBlobs(source, directory)
