"""Manifests and indexes: the documents that a reference resolves to.

One document must never be two things (CVE-2021-41190: the same bytes, hence the same digest, read
as a manifest by one and as an index by another). So what a document is follows from three
witnesses, and any contradiction among them refuses it:

1. the type that whoever pointed at it gave: a descriptor's, or a registry's Content-Type;
2. its own `mediaType`, which OCI lets writers leave out;
3. its shape: `manifests` in an index, `config` and `layers` in a manifest, never both.

The raw bytes stay with the parsed document, so that its digest survives being stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from imgvol import limits
from imgvol.errors import DigestMismatch, InvalidDocument, LimitExceeded, Unsupported
from imgvol.oci import media_types
from imgvol.oci.descriptor import Descriptor, no_annotations, parse_media_type
from imgvol.oci.digest import Digest
from imgvol.oci.json import Node, field_names
from imgvol.oci.platform import Matcher

_FIELDS: Final = field_names(
    "schemaVersion",
    "mediaType",
    "artifactType",
    "config",
    "layers",
    "manifests",
    "subject",
    "annotations",
    "fsLayers",
    "blobs",
)
# What servers say that know no better than "some JSON": no witness.
_VAGUE_TYPES: Final = frozenset(
    ("", "application/json", "application/octet-stream", "text/plain", "text/json")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One image, or one artifact: a config and layers, the base layer first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str
    raw: bytes = field(repr=False)
    digest: Digest
    annotations: Mapping[str, str] = field(default_factory=no_annotations, hash=False)
    subject: Descriptor | None = None
    artifact_type: str = ""

    @property
    def descriptor(self) -> Descriptor:
        """What points at this document."""
        return Descriptor(media_type=self.media_type, digest=self.digest, size=len(self.raw))

    @property
    def is_artifact(self) -> bool:
        """Whether this is no image's.

        The config's type decides, as in CRI-O. The layers' types tell nothing: ORAS pushes plain
        files under the type of an image's layer.
        """
        return not media_types.is_image_config(self.config.media_type)


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Manifests of one image for several platforms; some may be indexes themselves."""

    manifests: tuple[Descriptor, ...]
    media_type: str
    raw: bytes = field(repr=False)
    digest: Digest
    annotations: Mapping[str, str] = field(default_factory=no_annotations, hash=False)
    subject: Descriptor | None = None
    artifact_type: str = ""

    @property
    def descriptor(self) -> Descriptor:
        """What points at this document."""
        return Descriptor(media_type=self.media_type, digest=self.digest, size=len(self.raw))


def parse_manifest(
    raw: bytes, *, media_type: str | None, expected: Digest | None = None
) -> Manifest | Index:
    """Read the document that a reference or a descriptor points at.

    Args:
        raw: The document's very bytes.
        media_type: What its descriptor or the Content-Type header says it is; parameters are
            ignored. None when nobody said.
        expected: The digest that names it, if one does; else it gets its sha256.

    Raises:
        LimitExceeded: The document, or one of its lists, is too long.
        DigestMismatch: It is not what `expected` names.
        InvalidDocument: Not a manifest or index, or one with more than one meaning.
        Unsupported: A manifest of a format that imgvol does not read.
    """
    if len(raw) > limits.MANIFEST_SIZE:
        raise LimitExceeded(
            "manifest is too large", limit="MANIFEST_SIZE", allowed=limits.MANIFEST_SIZE
        )
    digest = Digest.of(raw, expected.algorithm if expected else "sha256")
    if expected is not None and digest != expected:
        raise DigestMismatch("manifest does not match its digest", expected=expected, actual=digest)
    document = Node.parse(raw, what="manifest", max_size=limits.MANIFEST_SIZE)
    document.refuse_case_variants(_FIELDS)
    stated = _stated_type(document, media_type)
    _refuse_schema1(document, stated)
    if stated and not (media_types.is_index(stated) or media_types.is_manifest(stated)):
        raise Unsupported("neither a manifest nor an index", media_type=stated)
    if _is_index(document):
        if stated and not media_types.is_index(stated):
            raise document.error(f"an index that is said to be {stated}")
        return _parse_index(document, stated or media_types.OCI_INDEX, raw, digest)
    if stated and not media_types.is_manifest(stated):
        raise document.error(f"an image manifest that is said to be {stated}")
    return _parse_image(document, stated or media_types.OCI_MANIFEST, raw, digest)


def select_manifests(index: Index, matcher: Matcher) -> list[Descriptor]:
    """The manifests of an index that suit a platform, best first.

    Those of no stated platform come last: only their config, or for a nested index its own
    manifests, can tell. What is neither manifest nor index is left out, and so are attestations,
    whose platform is `unknown/unknown`.
    """
    last = len(matcher.accepted)
    ranked: list[tuple[int, Descriptor]] = []
    for descriptor in index.manifests:
        kind = descriptor.media_type
        if not (media_types.is_manifest(kind) or media_types.is_index(kind)):
            continue
        rank = last if descriptor.platform is None else matcher.rank(descriptor.platform)
        if rank is not None:
            ranked.append((rank, descriptor))
    return [descriptor for _, descriptor in sorted(ranked, key=lambda item: item[0])]


def _stated_type(document: Node, given: str | None) -> str:
    """What the first two witnesses say; empty when neither says anything."""
    given = (given or "").partition(";")[0].strip().lower()
    own = document.get("mediaType")
    inner = parse_media_type(own) if own else ""
    if given in _VAGUE_TYPES:
        return inner
    if inner and inner != given:
        raise InvalidDocument(
            "manifest's media type is not the one it was announced with",
            path="mediaType",
            expected=given,
            actual=inner,
        )
    return given


def _refuse_schema1(document: Node, stated: str) -> None:
    version = document.get("schemaVersion")
    number = version.integer() if version else 2  # some writers of index.json leave it out
    if number == 1 or document.get("fsLayers") or media_types.is_schema1(stated):
        raise Unsupported(
            "the image has a Docker schema 1 manifest",
            hint="Push the image again with a tool of 2017 or later.",
        )
    if version and number != 2:
        raise version.error("the only version is 2")


def _is_index(document: Node) -> bool:
    has = document.object().keys() & {"manifests", "config", "layers", "blobs"}
    if "manifests" in has and len(has) > 1:
        raise document.error("ambiguous: an index and an image manifest at once")
    if not has & {"manifests", "config", "layers"}:
        raise document.error("neither an index nor an image manifest")
    return "manifests" in has


def _parse_index(document: Node, media_type: str, raw: bytes, digest: Digest) -> Index:
    return Index(
        manifests=_parse_descriptors(
            document, "manifests", "INDEX_MANIFESTS", limits.INDEX_MANIFESTS
        ),
        media_type=media_type,
        raw=raw,
        digest=digest,
        annotations=MappingProxyType(document.get_string_map("annotations")),
        subject=_parse_subject(document),
        artifact_type=document.get_string("artifactType"),
    )


def _parse_image(document: Node, media_type: str, raw: bytes, digest: Digest) -> Manifest:
    config = Descriptor.parse(document.require("config"))
    limit, allowed = "LAYERS", limits.LAYERS
    if not media_types.is_image_config(config.media_type):
        limit, allowed = "ARTIFACT_BLOBS", limits.ARTIFACT_BLOBS
    return Manifest(
        config=config,
        layers=_parse_descriptors(document, "layers", limit, allowed),
        media_type=media_type,
        raw=raw,
        digest=digest,
        annotations=MappingProxyType(document.get_string_map("annotations")),
        subject=_parse_subject(document),
        artifact_type=document.get_string("artifactType"),
    )


def _parse_descriptors(
    document: Node, key: str, limit: str, allowed: int
) -> tuple[Descriptor, ...]:
    nodes = document.get_array(key)
    if len(nodes) > allowed:
        raise LimitExceeded(f"manifest lists too many {key}", limit=limit, allowed=allowed)
    return tuple(map(Descriptor.parse, nodes))


def _parse_subject(document: Node) -> Descriptor | None:
    subject = document.get("subject")
    return Descriptor.parse(subject) if subject else None
