"""Archives and layouts as a whole: a file, a pipe or a directory, whatever is in it.

What it is shows in its files. One with `oci-layout` is an OCI layout, even if it has a
`manifest.json`, too, as archives of Docker have since version 25; one with `manifest.json` alone is
a docker-archive.
"""

import os
import select
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from imgvol import limits
from imgvol.errors import InvalidDocument, RegistryUnavailable
from imgvol.sources.archive import ArchiveFiles, open_archive, read_archive, spool_stream
from imgvol.sources.docker_archive import DockerArchiveSource
from imgvol.sources.files import DirectoryFiles, FileRange, local_errors
from imgvol.sources.layout import LayoutSource
from imgvol.sources.local import run_stoppable

# Milliseconds after which a wait for a pipe looks whether it has been given up.
_PATIENCE: Final = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """All images of one archive or layout.

    Attributes:
        source: Lists them, and has their documents and blobs.
        copied: Why it cannot be read where it lies: "compressed with gzip", "a pipe"; empty: it
            can.
    """

    source: LayoutSource | DockerArchiveSource
    copied: str


@asynccontextmanager
async def open_bundle(
    place: str, *, stream: int | None = None, spool_directory: str
) -> AsyncIterator[Bundle]:
    """Open an archive or a layout; leaving closes it.

    Args:
        place: Absolute path of a file or directory; what a stream is called in messages.
        stream: An open file or pipe instead; it stays the caller's.
        spool_directory: Where what is compressed or comes from a pipe is kept meanwhile.

    Raises:
        NotFound: There is nothing there.
        InvalidDocument: It is damaged, or no archive of images.
        LimitExceeded: It is too large.
        StoreFull: No room to decompress it.
    """
    opened: list[Bundle] = []

    def work(stop: threading.Event) -> None:
        opened.append(_open(place, stream, spool_directory, stop))

    try:
        await run_stoppable(work, trio.CapacityLimiter(1))
        yield opened[0]
    finally:
        # Also after a cancellation that came when the work was already done.
        for bundle in opened:
            with trio.CancelScope(shield=True):
                await bundle.source.aclose()


def _open(place: str, stream: int | None, spool_directory: str, stop: threading.Event) -> Bundle:
    files, copied = _open_files(place, stream, spool_directory, stop)
    try:
        return Bundle(source=_recognise(files, place), copied=copied)
    except BaseException:
        files.close()
        raise


def _open_files(
    place: str, stream: int | None, spool_directory: str, stop: threading.Event
) -> tuple[DirectoryFiles | ArchiveFiles, str]:
    if stream is not None:
        return _open_stream(place, stream, spool_directory, stop)
    if os.path.isdir(place):
        return DirectoryFiles(place), ""
    return _with_reason(open_archive(place, stop=stop, spool_directory=spool_directory))


def _open_stream(
    place: str, stream: int, spool_directory: str, stop: threading.Event
) -> tuple[ArchiveFiles, str]:
    with local_errors(place):
        status = os.fstat(stream)
        if stat.S_ISREG(status.st_mode):
            with FileRange(os.dup(stream), 0, status.st_size) as opened:
                return _with_reason(
                    read_archive(place, opened, stop=stop, spool_directory=spool_directory)
                )
    pieces = _iter_pipe(stream, stop)
    return spool_stream(place, pieces, stop=stop, spool_directory=spool_directory), "a pipe"


def _with_reason(files: ArchiveFiles) -> tuple[ArchiveFiles, str]:
    packing = files.packing.value
    return files, f"compressed with {packing}" if packing else ""


def _iter_pipe(stream: int, stop: threading.Event) -> Iterator[bytes]:
    """What comes out of a pipe, until its other end is closed; looks up from time to time."""
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    while True:
        if stop.is_set():
            raise RegistryUnavailable("reading was cancelled")
        if not poll.poll(_PATIENCE):
            continue
        piece = os.read(stream, limits.BODY_PIECE)
        if not piece:
            return
        yield piece


def _recognise(
    files: DirectoryFiles | ArchiveFiles, place: str
) -> LayoutSource | DockerArchiveSource:
    if _has(files, "oci-layout"):
        if not _has(files, "index.json"):
            raise InvalidDocument("the OCI layout has no index.json", archive=place)
        return LayoutSource(files, name=place)
    if _has(files, "manifest.json"):
        return DockerArchiveSource(files, name=place)
    raise InvalidDocument(
        "not an archive of images: it has neither oci-layout nor manifest.json",
        hint="Images are archived by docker save, podman save or skopeo copy; docker export "
        "writes the files of a container.",
        archive=place,
    )


def _has(files: DirectoryFiles | ArchiveFiles, name: str) -> bool:
    opened = files.open(name)
    if opened is None:
        return False
    opened.close()
    return True
