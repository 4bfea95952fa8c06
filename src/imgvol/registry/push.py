# ruff: noqa: ARG001, E501
# mypy: disable-error-code=unreachable
"""Pushing to one repository of one registry: what the rest of imgvol sees of it.

The registry itself is pushed to, never a mirror or whatever else stands for it: what is pushed has
to be where everybody looks for it.
"""

import enum
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from random import Random
from typing import BinaryIO

from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import Index, Manifest
from imgvol.oci.reference import Reference
from imgvol.registry.bounds import DEFAULT_BOUNDS, Bounds
from imgvol.registry.credentials import CredentialSource
from imgvol.registry.hosts import RegistryOptions
from imgvol.registry.registries import Registries

# Bytes of a blob that have been sent so far; called in a worker thread, and must not block.
SentBytes = Callable[[int], None]


class PushOutcome(enum.Enum):
    """What it took to have a blob in the repository."""

    EXISTS = "exists"
    MOUNTED = "mounted"
    UPLOADED = "uploaded"


@asynccontextmanager
async def open_pusher(
    repository: Reference,
    options: RegistryOptions,
    credentials: CredentialSource | None,
    *,
    registries: Registries | None = None,
    kept_logins: CredentialSource | None = None,
    bounds: Bounds = DEFAULT_BOUNDS,
    environ: Mapping[str, str] = os.environ,
    random: Random | None = None,
) -> AsyncIterator["Pusher"]:
    """Something that pushes to one repository; leaving cancels what is still under way.

    Args:
        repository: Names the repository; its tag and digest do not matter.
        options: How to connect to the registry.
        credentials: The login that came with a request.
        registries: The configuration of registries; of it, what is said of the registry itself.
        kept_logins: What a user keeps, for whatever server.
        bounds: How long to wait and how often to try.
        environ: Where the proxy variables are.
        random: Spreads retries.

    Raises:
        InvalidArgument: The name, the options, or a proxy variable cannot be used.
        BadConfiguration: A file of `registries` cannot be used.
    """
    raise NotImplementedError
    yield


class Pusher:
    """Pushes to one repository. Coroutines for trio, several at once.

    Every method raises, beside what it names:

    - Unauthorized: the registry does not let us push, with the login that there is;
    - Unsupported: it takes no pushes, or not of this kind;
    - RegistryUnavailable: it cannot be reached, fails, is too slow, or limits our rate;
    - ProtocolError, RemoteError: it breaks the rules, refuses what we send, or cannot be trusted.

    Attributes:
        repository: What it pushes to, without tag and digest.
    """

    repository: Reference

    def mount_source(self, reference: Reference) -> str | None:
        """What to pass as `mount_from`, for blobs that another image has: None on other registries."""
        raise NotImplementedError

    async def has_blob(self, digest: Digest) -> bool:
        """Whether the repository has a blob."""
        raise NotImplementedError

    async def push_blob(
        self,
        descriptor: Descriptor,
        open_body: Callable[[], BinaryIO],
        *,
        mount_from: str | None = None,
        sent: SentBytes | None = None,
    ) -> PushOutcome:
        """Makes sure that the repository has a blob.

        Args:
            descriptor: The blob: its digest and its size.
            open_body: Opens its bytes, seekable, at the beginning; called in a thread, perhaps
                several times, and perhaps never. What it opens is closed here.
            mount_from: A repository of the same registry that may have it; see `mount_source`.
            sent: Told of progress; falls when the upload has to begin again.

        Raises:
            DigestMismatch: The bytes are not those of the descriptor; the registry keeps none.
            LocalError: They cannot be read.
        """
        raise NotImplementedError

    async def push_manifest(self, raw: bytes, media_type: str, reference: str | Digest) -> Digest:
        """Stores a manifest or an index, under a tag or under its digest.

        Returns:
            Its digest, of the kind that `reference` is, or else sha256.

        Raises:
            InvalidArgument: The bytes are not those of the digest, or it is no tag.
            DigestMismatch: The registry says that it has stored something else.
        """
        raise NotImplementedError

    async def push_referrer(self, raw: bytes, media_type: str) -> Digest:
        """Stores a manifest with a `subject` under its digest, so that it is found from there.

        Where the registry has no API for referrers, the tag that lists them is extended.

        Raises:
            InvalidDocument: It is no manifest, or has no subject.
            Conflict: Others have changed the list each time that we did.
        """
        raise NotImplementedError

    async def delete_referrer(self, subject: Digest, referrer: Digest) -> bool:
        """Takes a referrer out of the registry, and out of the list of its subject.

        Returns:
            Whether it was there.

        Raises:
            Unsupported: The registry deletes nothing.
        """
        raise NotImplementedError

    async def read_manifest(self, reference: str | Digest) -> Manifest | Index | None:
        """What the repository has under a tag or a digest; None: nothing."""
        raise NotImplementedError
