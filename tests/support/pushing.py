"""What pushes need in tests: a pusher, trees to push, and a registry's reader that is not ours."""

import io
import json
import random
import urllib.error
import urllib.request
from collections.abc import Iterable
from contextlib import asynccontextmanager
from random import Random

from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.media_types import OCI_EMPTY, OCI_MANIFEST
from imgvol.oci.reference import Reference
from imgvol.publish.pushing import Blob, Document
from imgvol.registry import Bounds, NoCredentials, RegistryOptions
from imgvol.registry.push import open_pusher
from support.images import Image

# Small pieces, and patience in tenths of seconds.
BOUNDS = Bounds(
    connect_timeout=2,
    read_timeout=2,
    document_deadline=5,
    push_answer=5,
    push_chunk=1 << 20,
    retry_first_delay=0.01,
    retry_delay=0.02,
    retry_after=1.5,
)


@asynccontextmanager
async def pusher_of(name, *, options=None, credentials=None, bounds=BOUNDS, registries=None):
    """Pushes to `host/repository`, with no login but the one that is given."""
    async with open_pusher(
        Reference.parse(name),
        options or RegistryOptions(),
        credentials or NoCredentials(),
        registries=registries,
        bounds=bounds,
        environ={},
        random=Random(1),
    ) as pusher:
        yield pusher


def random_bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(f"{seed} {size}").randbytes(size)


def describe(data: bytes, media_type: str = "application/octet-stream") -> Descriptor:
    return Descriptor(media_type=media_type, digest=Digest.of(data), size=len(data))


def blob_of(data: bytes, mount_from: str | None = None) -> Blob:
    return Blob(describe(data), lambda: io.BytesIO(data), mount_from)


def document_of(raw: bytes, media_type: str = OCI_MANIFEST) -> Document:
    return Document(describe(raw, media_type), raw)


def tree_of(image: Image) -> tuple[list[Blob], Document]:
    """The blobs of an image, its manifest."""
    blobs = [layer.blob for layer in image.layers] + [image.config_bytes()]
    return [blob_of(blob) for blob in blobs], document_of(image.manifest_bytes())


def referrer_of(subject: bytes, *, kind: str = "application/vnd.example", note: str = "") -> bytes:
    """A manifest of nothing that refers to another one."""
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": kind,
            # Registries of before artifacts had a type of their own go by this one.
            "config": describe(b"{}", kind).to_json(),
            "layers": [describe(b"{}", OCI_EMPTY).to_json()],
            "subject": describe(subject, OCI_MANIFEST).to_json(),
            "annotations": {"note": note},
        }
    ).encode()


def get(url: str, *accepted: str, headers: Iterable[tuple[str, str]] = ()) -> bytes | None:
    """What a server has at a URL, asked without our client; None: nothing."""
    request = urllib.request.Request(url, headers=dict(headers))
    for media_type in accepted:
        request.add_header("Accept", media_type)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=20) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
