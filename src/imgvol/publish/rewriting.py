"""Documents of an image whose layers have become others. Pure.

Whatever a document says that is not about its layers stays, also what imgvol does not know.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from imgvol.layers.lazy import estargz, zstd_chunked
from imgvol.layers.lazy.writing.formats import UNCOMPRESSED_SIZE
from imgvol.oci import media_types
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest

# What is said of a layer's bytes, and does not hold for others.
_OF_BYTES: Final = frozenset(
    (
        estargz.TOC_DIGEST,
        UNCOMPRESSED_SIZE,
        *zstd_chunked.CONTAINERS,
        *zstd_chunked.STARGZ,
        zstd_chunked.TAR_SPLIT,
    )
)
# Of a manifest: the index of its layers' bytes.
_INDEX_OF_LAYERS: Final = "com.amazon.soci.index-digest"

# Docker's types know neither zstd nor annotations: what is written is OCI's.
_AS_OCI: Final = {
    media_types.DOCKER_INDEX: media_types.OCI_INDEX,
    media_types.DOCKER_MANIFEST: media_types.OCI_MANIFEST,
    media_types.DOCKER_CONFIG: media_types.OCI_CONFIG,
    media_types.DOCKER_LAYER_GZIP: media_types.OCI_LAYER_GZIP,
    media_types.DOCKER_LAYER_ZSTD: media_types.OCI_LAYER_ZSTD,
    media_types.DOCKER_FOREIGN_LAYER: media_types.OCI_FOREIGN_LAYER,
    media_types.DOCKER_FOREIGN_LAYER_GZIP: f"{media_types.OCI_FOREIGN_LAYER}+gzip",
}


def rewrite_layer(
    layer: Descriptor, *, media_type: str, digest: Digest, size: int, more: Mapping[str, str]
) -> Descriptor:
    """The descriptor of a layer whose bytes are others now; it keeps its other annotations."""
    kept = {key: value for key, value in layer.annotations.items() if key not in _OF_BYTES}
    return Descriptor(media_type=media_type, digest=digest, size=size, annotations={**kept, **more})


def rewrite_config(raw: bytes, diff_ids: Sequence[Digest]) -> bytes:
    """A config with these layers: the very same one, if it has them already."""
    document = json.loads(raw)
    named = [str(diff_id) for diff_id in diff_ids]
    rootfs = document.get("rootfs")
    if isinstance(rootfs, dict) and rootfs.get("diff_ids") == named:
        return raw
    kept = rootfs if isinstance(rootfs, dict) else {}
    document["rootfs"] = {**kept, "type": "layers", "diff_ids": named}
    return _dump(document)


def rewrite_manifest(raw: bytes, config: bytes, layers: Sequence[Descriptor]) -> bytes:
    """A manifest with another config and other layers.

    Args:
        raw: As it was.
        config: The new one.
        layers: The new ones; those with a type of Docker's get OCI's.
    """
    document = json.loads(raw)
    document["schemaVersion"] = 2
    document["mediaType"] = media_types.OCI_MANIFEST
    document["config"] = _replaced(document["config"], Digest.of(config), len(config))
    document["layers"] = [_as_oci(layer.to_json()) for layer in layers]
    annotations = document.get("annotations")
    if isinstance(annotations, dict):
        annotations.pop(_INDEX_OF_LAYERS, None)
    return _dump(document)


def rewrite_index(raw: bytes, manifests: Mapping[Digest, bytes]) -> bytes:
    """An index with other manifests.

    Args:
        raw: As it was.
        manifests: The new ones, by the digest of the old one; what is not among them is left out.
    """
    document = json.loads(raw)
    document["schemaVersion"] = 2
    document["mediaType"] = media_types.OCI_INDEX
    entries = []
    for entry in document["manifests"]:
        new = manifests.get(Digest.parse(entry["digest"]))
        if new is not None:
            replaced = _replaced(entry, Digest.of(new), len(new))
            replaced["mediaType"] = media_types.OCI_MANIFEST
            entries.append(replaced)
    document["manifests"] = entries
    return _dump(document)


def _replaced(descriptor: dict[str, Any], digest: Digest, size: int) -> dict[str, Any]:
    changed = _as_oci({**descriptor, "digest": str(digest), "size": size})
    changed.pop("data", None)
    return changed


def _as_oci(descriptor: dict[str, Any]) -> dict[str, Any]:
    kind = descriptor.get("mediaType", "")
    return {**descriptor, "mediaType": _AS_OCI.get(kind, kind)}


def _dump(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
