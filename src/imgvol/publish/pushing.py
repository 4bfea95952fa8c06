"""Trees of blobs and manifests into a repository: all of it, or no tag."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, Final, Literal

import trio

from imgvol import limits
from imgvol.errors import ImgvolError, InvalidArgument, LimitExceeded
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import parse_manifest
from imgvol.oci.reference import Reference
from imgvol.registry.bounds import DEFAULT_BOUNDS, Bounds
from imgvol.registry.credentials import Credential, StaticCredentials, logins_of_this_user
from imgvol.registry.hosts import RegistryOptions
from imgvol.registry.push import Pusher, PushOutcome, open_pusher
from imgvol.registry.registries import Registries


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob to push.

    Attributes:
        descriptor: Its digest and size.
        open_body: Opens its bytes at the beginning; called in a thread, perhaps several times, and
            perhaps never.
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

_STATES: Final[dict[PushOutcome, BlobState]] = {
    PushOutcome.EXISTS: "exists",
    PushOutcome.MOUNTED: "mounted",
    PushOutcome.UPLOADED: "done",
}


@dataclass(slots=True)
class BlobProgress:
    """How far one blob is; `sent` in bytes."""

    digest: Digest
    size: int
    state: BlobState = "waiting"
    sent: int = 0

    @property
    def is_finished(self) -> bool:
        """Whether the registry has it."""
        return self.state not in {"waiting", "sending"}


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

    A push that fails leaves no tag, or the older one that was there. A manifest with a `subject` is
    listed among what refers to that.

    Args:
        pusher: Where to.
        blobs: What the manifests name; those with the same digest are pushed once.
        manifests: At least one, children first; the last one gets the tag.
        tag: Its name; None: the last manifest is pushed by digest only.
        progress: Written to.

    Raises:
        ImgvolError: What happened to the first that failed; see `Pusher`.
        DigestMismatch: A document is not what its descriptor says; nothing has been pushed.
        LimitExceeded: There are more than limits.PUSH_BLOBS.
    """
    progress = progress or PushProgress()
    refers = _check(blobs, manifests)
    unique = {blob.descriptor.digest: blob for blob in blobs}
    progress.blobs = [BlobProgress(digest, each.descriptor.size) for digest, each in unique.items()]
    await _push_blobs(pusher, list(zip(unique.values(), progress.blobs, strict=True)))
    progress.stage = "manifests"
    *children, last = zip(manifests, refers, strict=True)
    for document, is_referrer in children:
        await _push_document(pusher, document, is_referrer=is_referrer)
    document, is_referrer = last
    if is_referrer or tag is None:
        await _push_document(pusher, document, is_referrer=is_referrer)
    if tag is not None:
        await pusher.push_manifest(document.raw, document.descriptor.media_type, tag)
    progress.stage = "done"
    return _summary(pusher, document.descriptor.digest, tag, progress)


def _check(blobs: Sequence[Blob], manifests: Sequence[Document]) -> list[bool]:
    """Which of the documents refer to something; what cannot be right is refused beforehand."""
    if len(blobs) + len(manifests) > limits.PUSH_BLOBS:
        raise LimitExceeded("too many blobs to push", limit="PUSH_BLOBS", allowed=limits.PUSH_BLOBS)
    return [
        parse_manifest(
            document.raw,
            media_type=document.descriptor.media_type,
            expected=document.descriptor.digest,
        ).subject
        is not None
        for document in manifests
    ]


async def _push_blobs(pusher: Pusher, blobs: Sequence[tuple[Blob, BlobProgress]]) -> None:
    """All of them; the first that fails ends the others."""
    failures: list[ImgvolError] = []

    async def push(blob: Blob, state: BlobProgress) -> None:
        try:
            await _push_blob(pusher, blob, state)
        except ImgvolError as error:
            failures.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for blob, state in blobs:
            nursery.start_soon(push, blob, state)
    if failures:
        raise failures[0]


async def _push_blob(pusher: Pusher, blob: Blob, state: BlobProgress) -> None:
    def sent(count: int) -> None:
        state.state, state.sent = "sending", count

    outcome = await pusher.push_blob(
        blob.descriptor, blob.open_body, mount_from=blob.mount_from, sent=sent
    )
    state.state = _STATES[outcome]
    state.sent = state.size if outcome is PushOutcome.UPLOADED else 0


async def _push_document(pusher: Pusher, document: Document, *, is_referrer: bool) -> None:
    descriptor = document.descriptor
    if is_referrer:
        await pusher.push_referrer(document.raw, descriptor.media_type)
    else:
        await pusher.push_manifest(document.raw, descriptor.media_type, descriptor.digest)


def _summary(pusher: Pusher, digest: Digest, tag: str | None, progress: PushProgress) -> Pushed:
    repository = pusher.repository
    name = repository.with_digest(digest) if tag is None else repository.with_tag(tag)
    states = [blob.state for blob in progress.blobs]
    return Pushed(
        digest=digest,
        name=str(name),
        uploaded=states.count("done"),
        uploaded_bytes=sum(blob.sent for blob in progress.blobs),
        mounted=states.count("mounted"),
        existing=states.count("exists"),
    )


@asynccontextmanager
async def open_target(
    reference: Reference,
    options: RegistryOptions,
    credential: Credential | None,
    *,
    registries: Registries | None = None,
    bounds: Bounds = DEFAULT_BOUNDS,
) -> AsyncIterator[Pusher]:
    """A Pusher for what a user typed.

    Args:
        reference: Where to; its tag is for `push_tree`.
        options: How to connect to the registry.
        credential: The login that came with the request. Without one, what the configuration has,
            and then the files that `docker login` and `podman login` of this process's user write.
        registries: The daemon's.
        bounds: How long to wait for a registry, and how often to try.

    Raises:
        InvalidArgument: The reference has a digest, or the options contradict.
        BadConfiguration: The configuration of registries cannot be used.
    """
    if reference.digest is not None:
        raise InvalidArgument(
            "a digest says what something is, not where it goes",
            hint="Give a tag, or only the repository.",
            reference=reference,
        )
    login = StaticCredentials(credential) if credential is not None else None
    async with open_pusher(
        reference,
        options,
        login,
        registries=registries,
        kept_logins=logins_of_this_user(),
        bounds=bounds,
    ) as pusher:
        yield pusher
