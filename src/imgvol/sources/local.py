"""What all sources on this machine have in common: files in, documents and blobs out."""

import abc
import functools
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

from imgvol.errors import DigestMismatch, InvalidDocument, LimitExceeded, NotFound
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.sources.files import BlobPlace, FileRange, ImageFiles, RangeReader, read_whole
from imgvol.threads import run_cancellable

T = TypeVar("T")

# Threads of one source that look at documents side by side.
DOCUMENT_THREADS: Final = 2
# Names of images that an error's hint lists.
_NAMES_SHOWN: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedImage:
    """One image of an archive or a layout, as that lists it.

    Attributes:
        name: Its full name as written; empty if it has none.
        tag: A tag without a repository; empty if it has none.
        top: Its manifest or index.
    """

    name: str
    tag: str
    top: Descriptor

    def __str__(self) -> str:
        return self.name or self.tag or str(self.top.digest)


class LocalSource(abc.ABC):
    """An ImageSource over files. Owns them.

    Args:
        files: The layout's or archive's files.
        name: What the user calls the image.
    """

    def __init__(self, files: ImageFiles, *, name: str) -> None:
        self._files = files
        self._name = name
        self._limiter = trio.CapacityLimiter(DOCUMENT_THREADS)
        # Documents that are not in the files, because they were made up for them.
        self._documents: dict[Digest, bytes] = {}

    def describe(self) -> str:
        """The image's name."""
        return self._name

    async def resolve(self) -> Descriptor:
        """The image's top document."""
        return await run_stoppable(self._resolve, self._limiter)

    async def list_images(self) -> tuple[ListedImage, ...]:
        """All images, each as often as it has names, in the order of the list.

        Raises:
            ContentError: The list is damaged, or too long.
        """
        return await run_stoppable(self._list_images, self._limiter)

    async def has_blobs(self, descriptors: Iterable[Descriptor]) -> bool:
        """Whether all of these blobs are here, whatever is in them.

        Raises:
            DigestMismatch: One has another size than it should have.
        """

        def look() -> bool:
            for descriptor in descriptors:
                if descriptor.digest in self._documents:
                    continue
                found = self._files.open(self._path_of(descriptor.digest))
                if found is None:
                    return False
                with found:
                    self._check_size(found, descriptor)
            return True

        return await trio.to_thread.run_sync(look, limiter=self._limiter)

    async def read_document(self, descriptor: Descriptor, *, max_size: int) -> bytes:
        """A document of the image, verified."""
        if descriptor.size > max_size:
            raise LimitExceeded(
                "document is too large", limit="size", allowed=max_size, digest=descriptor.digest
            )
        read = functools.partial(self._read_document, descriptor)
        return await trio.to_thread.run_sync(read, limiter=self._limiter)

    async def read_pinned_manifest(self, digest: Digest) -> bytes:
        """Never there: what is beside an image is not looked for in files."""
        raise NotFound("files hold nothing beside the image", digest=digest)

    async def read_companion(self, suffix: str) -> bytes:
        """Never there, either."""
        raise NotFound("files hold nothing beside the image", suffix=suffix)

    async def list_referrers(
        self,
        manifest: Digest,  # noqa: ARG002 - files have none, whatever is asked for
        artifact_type: str,  # noqa: ARG002 - the same
    ) -> tuple[Descriptor, ...]:
        """Nothing is looked for here, either."""
        return ()

    def open_blob(
        self, descriptor: Descriptor, *, offset: int = 0, end: int | None = None
    ) -> RangeReader:
        """A blob of the image, or a range of it, not verified. Blocks."""
        return RangeReader(self._open(descriptor), offset=offset, end=end)

    def locate_blob(self, descriptor: Descriptor) -> BlobPlace | None:
        """Where a blob of the image lies; None in an archive that had to be decompressed."""
        with self._open(descriptor) as opened:
            return opened.place()

    async def aclose(self) -> None:
        """Close the files."""
        self._files.close()

    @abc.abstractmethod
    def _resolve(self, stop: threading.Event) -> Descriptor:
        """Find the image; in a worker thread."""

    @abc.abstractmethod
    def _list_images(self, stop: threading.Event) -> tuple[ListedImage, ...]:
        """Find all images; in a worker thread."""

    @abc.abstractmethod
    def _path_of(self, digest: Digest) -> str:
        """The name of the file that has this digest."""

    def _read_document(self, descriptor: Descriptor) -> bytes:
        data = self._documents.get(descriptor.digest, descriptor.data)
        if data is None:
            with self._open(descriptor) as opened:
                data = read_whole(opened, what="document", max_size=descriptor.size)
        if not descriptor.digest.matches(data):
            raise DigestMismatch(
                "document does not match its digest",
                expected=descriptor.digest,
                actual=Digest.of(data, descriptor.digest.algorithm),
            )
        return data

    def _open(self, descriptor: Descriptor) -> FileRange:
        opened = self._files.open(self._path_of(descriptor.digest))
        if opened is None:
            raise InvalidDocument(
                "the image is incomplete: a blob is missing",
                digest=descriptor.digest,
                source=self._files.path,
            )
        self._check_size(opened, descriptor)
        return opened

    def _check_size(self, opened: FileRange, descriptor: Descriptor) -> None:
        if opened.size != descriptor.size:
            opened.close()
            raise DigestMismatch(
                "blob has another size than its descriptor says",
                digest=descriptor.digest,
                expected=descriptor.size,
                actual=opened.size,
            )

    def _read_file(self, path: str, *, what: str, max_size: int) -> bytes | None:
        """All of a small file; None when there is none."""
        opened = self._files.open(path)
        if opened is None:
            return None
        with opened:
            return read_whole(opened, what=what, max_size=max_size)


async def run_stoppable(work: Callable[[threading.Event], T], limiter: trio.CapacityLimiter) -> T:
    """Run blocking work in a thread; cancelling sets the event that `work` gets, and waits."""
    stop = threading.Event()
    return await run_cancellable(functools.partial(work, stop), stop.set, limiter=limiter)


def names_hint(kind: str, names: list[str]) -> str:
    """Say what there is instead of what was wanted: "It has tags: a, b."."""
    if not names:
        return f"It has no {kind}."
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"It has {kind}: {shown}{more}."
