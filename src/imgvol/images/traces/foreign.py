"""Traces in registries: artifacts that refer to an image, made by whoever may push there.

Nothing pins them, and nothing needs to: a trace is advice. What is wrong with one means that there
is none.
"""

import json
from typing import Final

from imgvol import limits
from imgvol.errors import InvalidDocument, NotFound
from imgvol.oci import media_types
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import Manifest, parse_manifest
from imgvol.sources.base import ImageSource
from imgvol.view.trace import TRACE_TYPE, Trace, parse_trace

# image-spec, "Guidance for an Empty Descriptor".
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
EMPTY: Final = b"{}"


def artifact_manifest(document: bytes, subject: Descriptor) -> bytes:
    """The manifest of the artifact that carries a trace of an image.

    Args:
        document: The trace.
        subject: The image's manifest.
    """
    empty = Descriptor(media_type=EMPTY_TYPE, digest=Digest.of(EMPTY), size=len(EMPTY))
    layer = Descriptor(media_type=TRACE_TYPE, digest=Digest.of(document), size=len(document))
    manifest = {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_MANIFEST,
        "artifactType": TRACE_TYPE,
        "config": empty.to_json(),
        "layers": [layer.to_json()],
        "subject": subject.to_json(),
    }
    return json.dumps(manifest, separators=(",", ":")).encode()


async def find_trace(source: ImageSource, image: Digest) -> tuple[Trace, bytes]:
    """The trace of an image that its registry has, and its document.

    Of several the first that can be read: the order is the registry's, and no entry has a date that
    could be believed.

    Raises:
        NotFound: There is none.
        ContentError: What there is cannot be used.
        RemoteError: The registry failed.
    """
    referrers = await source.list_referrers(image, TRACE_TYPE)
    problem: Exception = NotFound("the registry has no trace of the image", image=image)
    for referrer in referrers[: limits.TRACE_REFERRERS]:
        try:
            return await _read(source, image, referrer)
        except (InvalidDocument, NotFound) as exc:
            problem = exc
    raise problem


async def _read(source: ImageSource, image: Digest, referrer: Descriptor) -> tuple[Trace, bytes]:
    raw = await source.read_document(referrer, max_size=limits.MANIFEST_SIZE)
    manifest = parse_manifest(raw, media_type=referrer.media_type, expected=referrer.digest)
    is_ours = isinstance(manifest, Manifest) and manifest.artifact_type == TRACE_TYPE
    if not is_ours or manifest.subject is None or manifest.subject.digest != image:
        raise InvalidDocument("an artifact that is no trace of the image", digest=referrer.digest)
    assert isinstance(manifest, Manifest)
    if len(manifest.layers) != 1:
        raise InvalidDocument("a trace that is not one document", digest=referrer.digest)
    document = await source.read_document(manifest.layers[0], max_size=limits.TRACE_SIZE)
    return parse_trace(document), document
