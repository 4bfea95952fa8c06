"""SOCI indexes for images, without soci-snapshotter: documents as its tools write them."""

from collections.abc import Mapping

from imgvol.layers.lazy.soci_index import INDEX_V1, INDEX_V2
from support.images import Image, Layer, sha256, to_json
from support.registry import Registry

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = b"{}"


def describe(data: bytes, media_type: str, **more: object) -> dict:
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data), **more}


def soci_index(ztocs: Mapping[str, bytes], *, subject: bytes | None = None) -> bytes:
    """The index with these zTOCs, by the digest of their layer.

    Args:
        ztocs: Layers that are left out make it sparse.
        subject: The image's manifest makes it one of version 1.
    """
    kind = INDEX_V2 if subject is None else INDEX_V1
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": kind,
        "config": describe(CONFIG, kind),
        "layers": [
            describe(
                ztoc,
                "application/octet-stream",
                annotations={"com.amazon.soci.image-layer-digest": layer},
            )
            for layer, ztoc in ztocs.items()
        ],
    }
    if subject is not None:
        document["subject"] = describe(subject, MANIFEST)
    return to_json(document)


def listing(*indexes: bytes) -> bytes:
    """What the referrers API answers, and what is under the tag where there is no such API."""
    entries = [describe(index, MANIFEST, artifactType=INDEX_V1) for index in indexes]
    return to_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})


def push_referring_index(
    registry: Registry, repository: str, image: Image, ztocs: Mapping[Layer, bytes]
) -> bytes:
    """Adds a SOCI index of version 1 as `soci push` does where there is no referrers API."""
    manifest = image.manifest_bytes()
    index = soci_index({layer.digest: z for layer, z in ztocs.items()}, subject=manifest)
    for blob in (CONFIG, *ztocs.values()):
        registry.put_blob(repository, blob)
    registry.put_manifest(repository, sha256(index), index, MANIFEST)
    tag = sha256(manifest).replace(":", "-")
    registry.put_manifest(repository, tag, listing(index), INDEX)
    return index
