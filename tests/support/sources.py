"""A source whose image is in memory, with the faults that a test asks for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import trio

from imgvol.errors import NotFound, RegistryUnavailable
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.media_types import OCI_MANIFEST
from support.images import Image


class MemoryReader:
    def __init__(self, data: bytes, piece: int, on_piece: Callable[[int], None]):
        self._data, self._piece, self._on_piece = data, piece, on_piece
        self.is_cancelled = False

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        return None

    def iter_pieces(self) -> Iterator[bytes]:
        for position in range(0, len(self._data), self._piece):
            self._on_piece(position)
            if self.is_cancelled:
                raise RegistryUnavailable("cancelled")
            yield self._data[position : position + self._piece]

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class MemorySource:
    """Serves one image. `blobs` can be changed to serve something else than was promised.

    Attributes:
        companions: Manifests beside the image, by the suffix of their tag.
        referrers: What refers to the image; an exception is raised.
        asked: Suffixes and artifact types that were asked for.
    """

    image: Image
    piece: int = 1000
    on_piece: Callable[[int], None] = lambda _position: None
    opened: list[Digest] = field(default_factory=list)
    readers: list[MemoryReader] = field(default_factory=list)
    companions: dict[str, bytes] = field(default_factory=dict)
    referrers: Sequence[Descriptor] | Exception = ()
    asked: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.manifest = self.image.manifest_bytes()
        documents = (self.manifest, self.image.config_bytes())
        self.blobs = {str(Digest.of(data)): data for data in documents}
        self.blobs |= {layer.digest: layer.blob for layer in self.image.layers}

    def describe(self) -> str:
        return "memory"

    async def resolve(self) -> Descriptor:
        return Descriptor(
            media_type=OCI_MANIFEST, digest=Digest.of(self.manifest), size=len(self.manifest)
        )

    async def read_document(self, descriptor: Descriptor, *, max_size: int) -> bytes:
        return self._blob(descriptor)

    async def read_companion(self, suffix: str) -> bytes:
        self.asked.append(suffix)
        await trio.lowlevel.checkpoint()
        if suffix not in self.companions:
            raise NotFound("no such tag")
        return self.companions[suffix]

    async def list_referrers(self, manifest: Digest, artifact_type: str) -> tuple[Descriptor, ...]:
        assert manifest == Digest.of(self.manifest)
        self.asked.append(artifact_type)
        if isinstance(self.referrers, Exception):
            raise self.referrers
        return tuple(self.referrers)

    async def read_pinned_manifest(self, digest: Digest) -> bytes:
        if str(digest) not in self.blobs:
            raise NotFound("no such manifest")
        return self.blobs[str(digest)]

    def open_blob(
        self, descriptor: Descriptor, *, offset: int = 0, end: int | None = None
    ) -> MemoryReader:
        self.opened.append(descriptor.digest)
        reader = MemoryReader(self._blob(descriptor)[offset:end], self.piece, self.on_piece)
        self.readers.append(reader)
        return reader

    def locate_blob(self, descriptor: Descriptor) -> None:
        return None

    def _blob(self, descriptor: Descriptor) -> bytes:
        try:
            return self.blobs[str(descriptor.digest)]
        except KeyError:
            raise NotFound("no such blob", digest=descriptor.digest) from None
