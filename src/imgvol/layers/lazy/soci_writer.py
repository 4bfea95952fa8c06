"""Writes what makes an image one with a SOCI index, as `soci create` and `soci convert` do.

The index is a manifest whose layers are zTOCs, and what imgvol adds: `soci_twin`, `zstd_frames`. In
version 1 it names the image's manifest as its subject. In version 2 the image's manifest names the
index instead, in an annotation, which makes it another manifest with another digest; an image index
has both, each with its platform, so that they are copied together. Everything becomes OCI's media
types, because registries do not like to find docker's beside what has an artifact type.

See `soci_index` for who reads it. Documents are equal whenever their content is: keys have a fixed
order, and nothing says when or where they were made.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from imgvol.layers.lazy import soci_twin, zstd_frames
from imgvol.layers.lazy.soci_index import INDEX_DIGEST, INDEX_V1, INDEX_V2, LAYER_DIGEST, ZTOC
from imgvol.oci import media_types
from imgvol.oci.descriptor import platform_to_json
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import Manifest
from imgvol.oci.platform import Platform

CONFIG: Final = b"{}"
"""What every SOCI index has for a config."""

_LAYER_MEDIA_TYPE: Final = "com.amazon.soci.image-layer-mediaType"
_SPAN_SIZE: Final = "com.amazon.soci.span-size"
_TOOL: Final = "com.amazon.soci.build-tool-identifier"
_MANIFEST_DIGEST: Final = "com.amazon.soci.image-manifest-digest"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedLayer:
    """One layer of an index: it has a zTOC, or the document of a zstd layer.

    Attributes:
        layer: Its digest.
        media_type: Its media type.
        span_size: As it was asked for.
        ztoc: Digest and size of its zTOC.
        twin: Of the compressed one, if there is one.
        frames: Of the document of its zstd frames.
    """

    layer: Digest
    media_type: str
    span_size: int
    ztoc: tuple[Digest, int] | None = None
    twin: tuple[Digest, int] | None = None
    frames: tuple[Digest, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenDocument:
    """A document, ready to be stored or pushed."""

    raw: bytes
    media_type: str

    @property
    def digest(self) -> Digest:
        """Its SHA-256."""
        return Digest.of(self.raw)


def write_soci_index(
    layers: Sequence[IndexedLayer], *, tool: str, subject: Manifest | None = None
) -> WrittenDocument:
    """A SOCI index.

    Args:
        layers: In the order of the image; those that are left out make it sparse.
        tool: Who has made it.
        subject: The image's manifest, for version 1; None: version 2.
    """
    kind = INDEX_V2 if subject is None else INDEX_V1
    ztocs = [(layer, layer.ztoc) for layer in layers if layer.ztoc is not None]
    blobs = [_describe_ztoc(layer, ztoc) for layer, ztoc in ztocs]
    blobs += [
        _describe_twin(layer, ztoc, layer.twin) for layer, ztoc in ztocs if layer.twin is not None
    ]
    blobs += [_describe_frames(layer, layer.frames) for layer in layers if layer.frames is not None]
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_MANIFEST,
        "config": _describe(kind, Digest.of(CONFIG), len(CONFIG)),
        "layers": blobs,
    }
    if subject is not None:
        document["subject"] = _describe(subject.media_type, subject.digest, len(subject.raw))
    document["annotations"] = {_TOOL: tool}
    return _document(document, media_types.OCI_MANIFEST)


def annotate_manifest(manifest: Manifest, index: Digest | None) -> WrittenDocument:
    """An image's manifest, with its SOCI index if it has one, in OCI's media types.

    The layers are the same, under the types that they had.
    """
    document = json.loads(manifest.raw)
    document["mediaType"] = media_types.OCI_MANIFEST
    if document["config"].get("mediaType") == media_types.DOCKER_CONFIG:
        document["config"]["mediaType"] = media_types.OCI_CONFIG
    annotations = dict(document.get("annotations") or {})
    annotations.pop(INDEX_DIGEST, None)
    if index is not None:
        annotations[INDEX_DIGEST] = str(index)
    document.pop("annotations", None)
    if annotations:
        document["annotations"] = annotations
    return _document(document, media_types.OCI_MANIFEST)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedImage:
    """One platform of a converted image.

    Attributes:
        manifest: Its manifest as it was before.
        annotated: As it is now.
        index: Its SOCI index; None: it has none.
        platform: Of both.
    """

    manifest: Digest
    annotated: WrittenDocument
    index: WrittenDocument | None
    platform: Platform


def write_image_index(
    images: Sequence[ConvertedImage], *, original: bytes | None = None
) -> WrittenDocument:
    """The image index of a converted image.

    Args:
        images: Each platform that has changed.
        original: The image index of the image before, whose other entries stay, but for SOCI
            indexes, which were of the manifests as they were; None: there was none.
    """
    document: dict[str, Any] = {"schemaVersion": 2}
    entries: list[dict[str, Any]] = []
    if original is not None:
        document = json.loads(original)
        entries = [entry for entry in document["manifests"] if not _is_soci_index(entry)]
    document["mediaType"] = media_types.OCI_INDEX
    changed = {str(image.manifest): image for image in images}
    described = [
        _describe_image(changed[entry["digest"]], entry) if entry["digest"] in changed else entry
        for entry in entries
    ]
    known = {entry["digest"] for entry in entries}
    described += [
        _describe_image(image, {}) for image in images if str(image.manifest) not in known
    ]
    described += [
        _describe(media_types.OCI_MANIFEST, image.index.digest, len(image.index.raw))
        | {
            "artifactType": INDEX_V2,
            "platform": platform_to_json(image.platform),
            "annotations": {_MANIFEST_DIGEST: str(image.annotated.digest)},
        }
        for image in images
        if image.index is not None
    ]
    document["manifests"] = described
    return _document(document, media_types.OCI_INDEX)


def _describe_image(image: ConvertedImage, entry: Mapping[str, Any]) -> dict[str, Any]:
    raw = image.annotated.raw
    annotations = json.loads(raw).get("annotations")
    kept = {name: value for name, value in entry.items() if name not in {"annotations", "data"}}
    described = kept | _describe(media_types.OCI_MANIFEST, image.annotated.digest, len(raw))
    described.setdefault("platform", platform_to_json(image.platform))
    if annotations:
        described["annotations"] = annotations
    return described


def _is_soci_index(entry: Mapping[str, Any]) -> bool:
    return entry.get("artifactType") == INDEX_V2


def _describe_ztoc(layer: IndexedLayer, ztoc: tuple[Digest, int]) -> dict[str, Any]:
    annotations = {
        LAYER_DIGEST: str(layer.layer),
        _LAYER_MEDIA_TYPE: layer.media_type,
        _SPAN_SIZE: str(layer.span_size),
    }
    return _describe(ZTOC, *ztoc) | {"annotations": annotations}


def _describe_twin(
    layer: IndexedLayer, ztoc: tuple[Digest, int], twin: tuple[Digest, int]
) -> dict[str, Any]:
    annotations = {
        soci_twin.LAYER_DIGEST: str(layer.layer),
        soci_twin.ZTOC_DIGEST: str(ztoc[0]),
    }
    return _describe(soci_twin.MEDIA_TYPE, *twin) | {"annotations": annotations}


def _describe_frames(layer: IndexedLayer, frames: tuple[Digest, int]) -> dict[str, Any]:
    annotations = {zstd_frames.LAYER_DIGEST: str(layer.layer)}
    return _describe(zstd_frames.MEDIA_TYPE, *frames) | {"annotations": annotations}


def _describe(media_type: str, digest: Digest, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(digest), "size": size}


def _document(document: Mapping[str, Any], media_type: str) -> WrittenDocument:
    raw = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return WrittenDocument(raw=raw, media_type=media_type)
