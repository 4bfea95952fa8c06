"""From what the user wrote to a source: the one place that knows all kinds of sources."""

import os
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Final

import trio

from imgvol.errors import InvalidArgument
from imgvol.registry.bounds import DEFAULT_BOUNDS, Bounds
from imgvol.registry.client import open_registry_client
from imgvol.registry.credentials import CredentialSource, logins_of_this_user
from imgvol.registry.hosts import RegistryOptions
from imgvol.registry.registries import Registries
from imgvol.sources.archive import ArchiveFiles, open_archive
from imgvol.sources.base import ImageSource
from imgvol.sources.docker_archive import DockerArchiveSource
from imgvol.sources.files import DirectoryFiles
from imgvol.sources.layout import LayoutSource
from imgvol.sources.local import run_stoppable
from imgvol.sources.parse import (
    DockerArchive,
    ImageArgument,
    LayoutImage,
    OCIArchive,
    RegistryImage,
)
from imgvol.sources.registry import RegistrySource

_DEFAULT_OPTIONS: Final = RegistryOptions()


@asynccontextmanager
async def open_source(
    argument: ImageArgument,
    options: RegistryOptions = _DEFAULT_OPTIONS,
    *,
    credentials: CredentialSource | None = None,
    registries: Registries | None = None,
    bounds: Bounds = DEFAULT_BOUNDS,
    spool_directory: str | None = None,
) -> AsyncIterator[ImageSource]:
    """Open the source of an image; leaving closes it.

    Args:
        argument: Which image, from `parse_image_argument`.
        options: How to reach a registry.
        credentials: The login that came with a request for this registry. Without one, what the
            configuration has, and then the files that `docker login` and `podman login` of this
            process's user write.
        registries: Where images of registries come from; None: from the registries themselves.
        bounds: How long to wait for a registry, and how often to try.
        spool_directory: Where a compressed archive is decompressed; None: the system's choice.

    Raises:
        InvalidArgument: The path is relative, or leads to something else than it should.
        NotFound: There is nothing there.
        BadConfiguration: The configuration of registries cannot be used.
        ContentError: An archive is damaged.
        LocalError: The system refuses.
    """
    match argument:
        case RegistryImage(reference):
            async with open_registry_client(
                reference.domain,
                options,
                credentials,
                registries=registries,
                kept_logins=logins_of_this_user(),
                bounds=bounds,
            ) as client:
                yield RegistrySource(client, reference)
        case LayoutImage() | OCIArchive() | DockerArchive():
            async with aclosing(await _open_local(argument, spool_directory)) as source:
                yield source


async def _open_local(
    argument: LayoutImage | OCIArchive | DockerArchive, spool_directory: str | None
) -> LayoutSource | DockerArchiveSource:
    if not os.path.isabs(argument.path):
        raise InvalidArgument("the image's path must be absolute", path=argument.path)
    limiter = trio.CapacityLimiter(1)
    name = str(argument)
    if isinstance(argument, LayoutImage):
        opened = await trio.to_thread.run_sync(DirectoryFiles, argument.path, limiter=limiter)
        return LayoutSource(opened, name=name, tag=argument.tag, digest=argument.digest)
    files = await _open_archive(argument.path, spool_directory, limiter)
    if isinstance(argument, OCIArchive):
        return LayoutSource(files, name=name, tag=argument.tag, digest=argument.digest)
    return DockerArchiveSource(
        files, name=name, reference=argument.reference, position=argument.position
    )


async def _open_archive(
    path: str, spool_directory: str | None, limiter: trio.CapacityLimiter
) -> ArchiveFiles:
    opened: list[ArchiveFiles] = []

    def work(stop: threading.Event) -> None:
        opened.append(open_archive(path, stop=stop, spool_directory=spool_directory))

    try:
        await run_stoppable(work, limiter)
    except BaseException:
        # A cancellation that came when the work was already done.
        for files in opened:
            files.close()
        raise
    return opened[0]
