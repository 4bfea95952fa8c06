"""Traces into registries, as artifacts that refer to the image."""

import io
from functools import partial

import trio

from imgvol.errors import ImgvolError, NotFound
from imgvol.images.traces.foreign import EMPTY, EMPTY_TYPE, artifact_manifest
from imgvol.oci import media_types
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.publish.pushing import Blob, Document, Pushed, PushProgress, push_tree
from imgvol.registry.push import Pusher
from imgvol.view.trace import TRACE_TYPE, parse_trace


async def push_trace(
    pusher: Pusher, subject: Descriptor, document: bytes, progress: PushProgress
) -> Pushed:
    """Pushes a trace beside its image, instead of those that were there where that is allowed.

    Args:
        pusher: To the image's repository.
        subject: The image's manifest.
        document: The trace.
        progress: Written to.

    Raises:
        InvalidDocument: It is no trace; nothing has been pushed.
        LimitExceeded: It is too large; likewise.
        NotFound: The repository does not have the image; likewise.
        RemoteError: The registry refuses, or fails.
    """
    await trio.to_thread.run_sync(parse_trace, document)
    if await pusher.read_manifest(subject.digest) is None:
        raise NotFound(
            "the repository does not have the image that the trace is of",
            hint="Push the image first.",
            digest=subject.digest,
        )
    older = await pusher.list_referrers(subject.digest, TRACE_TYPE)
    raw = artifact_manifest(document, subject)
    manifest = Descriptor(media_type=media_types.OCI_MANIFEST, digest=Digest.of(raw), size=len(raw))
    blobs = [_blob(EMPTY, EMPTY_TYPE), _blob(document, TRACE_TYPE)]
    pushed = await push_tree(pusher, blobs, [Document(manifest, raw)], None, progress)
    for referrer in older:
        if referrer.digest != manifest.digest:
            # Whoever looks takes the first that is listed. Many registries let nobody remove any.
            try:
                await pusher.delete_referrer(subject.digest, referrer.digest)
            except ImgvolError:
                break
    return pushed


def _blob(data: bytes, media_type: str) -> Blob:
    descriptor = Descriptor(media_type=media_type, digest=Digest.of(data), size=len(data))
    return Blob(descriptor, partial(io.BytesIO, data))
