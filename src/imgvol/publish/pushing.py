# ruff: noqa: ARG001
# mypy: disable-error-code=unreachable
"""Trees of blobs and manifests into a repository: all of it, or no tag."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.reference import Reference
from imgvol.registry.credentials import Credential
from imgvol.registry.hosts import RegistryOptions
from imgvol.registry.push import Pusher
from imgvol.registry.registries import Registries


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob to push.

    Attributes:
        descriptor: Its digest and size.
        open_body: Opens its bytes, seekable; called in a thread, perhaps several times or never.
        mount_from: A repository of the same registry that may have it: see `Pusher.mount_source`.
    """

    descriptor: Descriptor
    open_body: Callable[[], BinaryIO]
    mount_from: str | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or an index to push: what names it, and its very bytes."""

    descriptor: Descriptor
    raw: bytes


BlobState = Literal["waiting", "sending", "exists", "mounted", "done"]


@dataclass(slots=True)
class BlobProgress:
    """How far one blob is; `sent` in bytes."""

    digest: Digest
    size: int
    state: BlobState = "waiting"
    sent: int = 0


@dataclass(slots=True)
class PushProgress:
    """How far a push is. Written by it, read by whoever shows it, on the event loop."""

    stage: Literal["blobs", "manifests", "done"] = "blobs"
    blobs: list[BlobProgress] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push has done.

    Attributes:
        digest: Of the last manifest, which has the tag.
        name: What it can be pulled by: `registry/repository:tag`, or `…@digest`.
        uploaded: Blobs that were sent, and their bytes.
        mounted: Blobs that the registry took from another repository.
        existing: Blobs that were there.
    """

    digest: Digest
    name: str
    uploaded: int = 0
    uploaded_bytes: int = 0
    mounted: int = 0
    existing: int = 0


async def push_tree(
    pusher: Pusher,
    blobs: Sequence[Blob],
    manifests: Sequence[Document],
    tag: str | None,
    progress: PushProgress | None = None,
) -> Pushed:
    """Pushes blobs, several at once; then manifests by digest in their order; the tag last.

    A push that fails leaves no tag, and an older one where it was.

    Args:
        pusher: Where to.
        blobs: What the manifests name; those with the same digest are pushed once.
        manifests: Children first; the last one gets the tag.
        tag: Its name; None: the last manifest is pushed by digest only.
        progress: Written to.

    Raises:
        ImgvolError: What the first of them that failed did; see `Pusher`.
    """
    raise NotImplementedError


@asynccontextmanager
async def open_target(
    reference: Reference,
    options: RegistryOptions,
    credential: Credential | None,
    *,
    registries: Registries | None = None,
) -> AsyncIterator[Pusher]:
    """A Pusher for what a user typed.

    Args:
        reference: Where to; its tag is for `push_tree`.
        options: How to connect to the registry.
        credential: The login that came with the request. Without one, what the configuration has,
            and then the files that `docker login` and `podman login` of this process's user write.
        registries: The daemon's.

    Raises:
        InvalidArgument: The reference has a digest, or the options contradict.
        BadConfiguration: The configuration of registries cannot be used.
    """
    raise NotImplementedError
    yield
