"""The SOCI index: which zTOC belongs to which layer of an image.

An index is an image manifest whose "layers" are zTOCs, each annotated with the digest of the layer
that it describes. It may be *sparse*: layers without a zTOC are read like any others. There are two
ways from an image to its index, and they differ in what may be trusted:

Version 2: the image manifest names the index by digest, in an annotation. Whoever trusts the
manifest can trust the index. The annotation may dangle; then the image is read without.

Version 1: the index names the manifest as its `subject`, and is found by asking the registry for
referrers. Anyone who may push to the repository can add one, so nothing pins it: it is used only
where the operator says so.

Neither is taken for the other: an index of version 2 says nothing about whose it is, so a referrer
of that version would be bound to nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from imgvol import limits
from imgvol.errors import DigestMismatch, InvalidDigest, InvalidDocument, Unsupported
from imgvol.layers.lazy import soci_twin, zstd_frames
from imgvol.layers.lazy.soci import SpanRange
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.json import Node
from imgvol.oci.manifest import Manifest, parse_manifest

INDEX_V1: Final = "application/vnd.amazon.soci.index.v1+json"
INDEX_V2: Final = "application/vnd.amazon.soci.index.v2+json"
ZTOC: Final = "application/octet-stream"
PREFETCH: Final = "application/vnd.amazon.soci.prefetch.v1+json"

INDEX_DIGEST: Final = "com.amazon.soci.index-digest"
LAYER_DIGEST: Final = "com.amazon.soci.image-layer-digest"
_PREFETCH_VERSION: Final = "1.0"
_INT32_MAX: Final = (1 << 31) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SociLayer:
    """What an index has for one layer.

    Attributes:
        ztoc: Its zTOC.
        prefetch: Which spans to fetch first, if it says.
        twin: The same zTOC, compressed, if it has that too: see `soci_twin`.
    """

    ztoc: Descriptor
    prefetch: Descriptor | None = None
    twin: Descriptor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SociIndex:
    """A SOCI index.

    Attributes:
        version: 1 or 2.
        manifest: The document itself, as stored.
        layers: What it has, by the digest of the layer. Layers may be missing.
        frames: Documents of zstd layers, likewise: see `zstd_frames`. None is in both.
    """

    version: int
    manifest: Manifest = field(repr=False)
    layers: Mapping[Digest, SociLayer] = field(hash=False)
    frames: Mapping[Digest, Descriptor] = field(hash=False)


def pinned_index(manifest: Manifest) -> Digest | None:
    """The index of version 2 that an image manifest names; None when it names none.

    Raises:
        InvalidDocument: What it names is no digest.
    """
    text = manifest.annotations.get(INDEX_DIGEST)
    return None if text is None else _parse_digest(text, f"annotations.{INDEX_DIGEST}")


def parse_soci_index(raw: bytes, *, expected: Digest, subject: Digest | None = None) -> SociIndex:
    """Read an index.

    Args:
        raw: Its very bytes.
        expected: The digest that it was found by.
        subject: When it was found as a referrer: of which manifest. None when the image manifest
            pins it.

    Raises:
        DigestMismatch: It is not what `expected` names.
        InvalidDocument: It is no index, is bound to another image, or means two things.
        LimitExceeded: It is too large.
        Unsupported: It is something else, or of the version that `subject` does not go with.
    """
    manifest = parse_manifest(raw, media_type=None, expected=expected)
    if not isinstance(manifest, Manifest):
        raise InvalidDocument("a SOCI index that is an image index")
    wanted = INDEX_V2 if subject is None else INDEX_V1
    if manifest.config.media_type != wanted:
        raise Unsupported(
            "not a SOCI index of the expected version",
            expected=wanted,
            actual=manifest.config.media_type,
        )
    if subject is not None and (manifest.subject is None or manifest.subject.digest != subject):
        raise InvalidDocument(
            "the SOCI index of another image",
            path="subject",
            expected=subject,
            actual=manifest.subject and manifest.subject.digest,
        )
    layers, frames = _parse_layers(manifest)
    return SociIndex(
        version=2 if subject is None else 1, manifest=manifest, layers=layers, frames=frames
    )


# Of which layer an item is, by its media type.
_ANNOTATIONS: Final = {
    ZTOC: LAYER_DIGEST,
    PREFETCH: LAYER_DIGEST,
    zstd_frames.MEDIA_TYPE: zstd_frames.LAYER_DIGEST,
}


def _parse_layers(
    manifest: Manifest,
) -> tuple[Mapping[Digest, SociLayer], Mapping[Digest, Descriptor]]:
    """What an index has for its layers: zTOCs, and documents of our own for zstd."""
    items: dict[str, dict[Digest, Descriptor]] = {kind: {} for kind in _ANNOTATIONS}
    for number, item in enumerate(manifest.layers):
        annotation = _ANNOTATIONS.get(item.media_type, "")
        text = item.annotations.get(annotation)
        if text is None:
            continue  # something that a later version may have added
        path = f"layers[{number}]"
        layer = _parse_digest(text, f"{path}.annotations.{annotation}")
        # An image may have a layer twice, and its index then says the same of it twice.
        if items[item.media_type].setdefault(layer, item).digest != item.digest:
            raise InvalidDocument("a SOCI index with two answers for one layer", path=path)
    ztocs, prefetch, frames = items[ZTOC], items[PREFETCH], items[zstd_frames.MEDIA_TYPE]
    for layer in ztocs.keys() & frames.keys():
        # A blob is either gzip or zstd: one of the two is there to mislead some readers.
        raise InvalidDocument("a SOCI index with two answers for one layer", layer=layer)
    twins = _find_twins(manifest)
    layers = MappingProxyType(
        {
            layer: SociLayer(
                ztoc=ztoc,
                prefetch=prefetch.get(layer),
                twin=twins.get((str(layer), str(ztoc.digest))),
            )
            for layer, ztoc in ztocs.items()
        }
    )
    return layers, MappingProxyType(frames)


def _find_twins(manifest: Manifest) -> Mapping[tuple[str, str], Descriptor]:
    """Compressed zTOCs, by the digests of their layer and of the zTOC; what fits none is unused."""
    return {
        (layer, ztoc): item
        for item in manifest.layers
        if item.media_type == soci_twin.MEDIA_TYPE
        and (layer := item.annotations.get(soci_twin.LAYER_DIGEST)) is not None
        and (ztoc := item.annotations.get(soci_twin.ZTOC_DIGEST)) is not None
    }


def parse_prefetch(raw: bytes, *, expected: Digest) -> tuple[SpanRange, ...]:
    """Read the artifact that says which spans to fetch first. Returns them most urgent first.

    Raises:
        DigestMismatch: It is not what `expected` names.
        InvalidDocument: It is malformed.
        LimitExceeded: It is too large.
        Unsupported: It is of another version.
    """
    document = Node.parse(raw, what="SOCI prefetch artifact", max_size=limits.PREFETCH_SIZE)
    if not expected.matches(raw):
        raise DigestMismatch(
            "SOCI prefetch artifact does not match its digest",
            expected=expected,
            actual=Digest.of(raw, expected.algorithm),
        )
    version = document.require("version").string()
    if version != _PREFETCH_VERSION:
        raise Unsupported("SOCI prefetch artifact of an unknown version", version=version[:16])
    ranked = [_parse_range(node) for node in document.get_array("prefetch_spans")]
    return tuple(spans for _, spans in sorted(ranked, key=lambda item: item[0]))


def _parse_range(node: Node) -> tuple[int, SpanRange]:
    first = node.require("start_span").integer(maximum=_INT32_MAX)
    last = node.require("end_span").integer(maximum=_INT32_MAX)
    if last < first:
        raise node.error("a range that ends before it starts")
    priority = node.get("priority")
    # The lower the number, the sooner; whoever gives none gives 0.
    rank = priority.integer(minimum=-_INT32_MAX - 1, maximum=_INT32_MAX) if priority else 0
    return rank, SpanRange(first, last)


def _parse_digest(text: str, path: str) -> Digest:
    try:
        return Digest.parse(text)
    except InvalidDigest as error:
        raise InvalidDocument(
            f"malformed SOCI annotation: {error.message}", path=path, digest=text[:96]
        ) from error
