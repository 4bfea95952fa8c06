"""From a source's top document to one image, or one artifact: documents only, nothing stored."""

import platform as host
from dataclasses import dataclass

from imgvol import limits
from imgvol.content.records import ANY_PLATFORM
from imgvol.errors import InvalidDocument, LimitExceeded, NoMatchingPlatform
from imgvol.layers.artifact import Artifact, parse_artifact
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import DiffID, Digest
from imgvol.oci.image_config import ImageConfig, parse_image_config
from imgvol.oci.manifest import Index, Manifest, parse_manifest, select_manifests
from imgvol.oci.media_types import layer_compression
from imgvol.oci.platform import Matcher, Platform, host_platform, only
from imgvol.sources.base import ImageSource


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedImage:
    """The documents of one image for one platform, or of one artifact, verified but not yet stored.

    Attributes:
        target: Digest of the top document.
        content: An image's config, or what the manifest of an artifact comes to.
    """

    target: Digest
    indexes: tuple[Index, ...]
    manifest: Manifest
    content: ImageConfig | Artifact

    @property
    def id(self) -> Digest:
        """The image ID. Configs of artifacts are no identity: most are the same empty document."""
        content = self.content
        return content.digest if isinstance(content, ImageConfig) else self.manifest.digest

    @property
    def artifact(self) -> Artifact | None:
        """The artifact, if it is one."""
        return self.content if isinstance(self.content, Artifact) else None

    @property
    def platform(self) -> str:
        """For which it is, as text."""
        content = self.content
        return str(content.platform) if isinstance(content, ImageConfig) else ANY_PLATFORM

    @property
    def user(self) -> str:
        """Whom a container runs as, in the config's own words; may be empty."""
        return self.content.user if isinstance(self.content, ImageConfig) else ""

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        """What is stored of it, the base layer first."""
        artifact = self.artifact
        return self.manifest.layers if artifact is None else (artifact.layer,)

    @property
    def diff_ids(self) -> tuple[DiffID, ...]:
        """Of each layer; none where nobody has said, and pulling has to find out."""
        return self.content.diff_ids if isinstance(self.content, ImageConfig) else ()

    @property
    def documents(self) -> tuple[tuple[Digest, bytes], ...]:
        """What is kept to be shown, and for whoever asks again."""
        kept = [(index.digest, index.raw) for index in self.indexes]
        kept.append((self.manifest.digest, self.manifest.raw))
        if isinstance(self.content, ImageConfig):
            kept.append((self.content.digest, self.content.raw))
        return tuple(kept)

    @property
    def digests(self) -> frozenset[Digest]:
        """Of everything that the store needs for it."""
        documents = {self.target, *(digest for digest, _ in self.documents)}
        return frozenset(documents | {layer.digest for layer in self.layers})

    @property
    def size(self) -> int:
        """Bytes of manifest, config and layers as the source stores them."""
        layers = sum(layer.size for layer in self.layers)
        return len(self.manifest.raw) + self.manifest.config.size + layers


def wanted_platform(text: str | None) -> Matcher:
    """What a user's platform, or this machine's, accepts.

    Raises:
        InvalidPlatform: Not a platform.
    """
    machine = host_platform(host.system(), host.machine())
    return only(Platform.parse(text, host=machine) if text else machine)


async def resolve_image(
    source: ImageSource, matcher: Matcher, *, must_match: bool = False
) -> ResolvedImage:
    """Walks from the source's top document to one manifest and its config.

    Args:
        source: Where the image is.
        matcher: Which platforms fit, the best first.
        must_match: Whether an image that comes without an index, and so without a choice, must
            fit, too. Usually it is taken as it is, as other tools do. Artifacts are for every
            platform.

    Raises:
        NotFound: The source has no such image.
        NoMatchingPlatform: It has none for this platform.
        InvalidDocument: Its documents contradict the specification or each other.
        Unsupported: Its manifest is of the first schema, or a layer is encrypted or no tar.
    """
    top = await source.resolve()
    indexes: list[Index] = []
    descriptor, is_chosen = top, False
    while True:
        document = await _read_manifest(source, descriptor)
        if isinstance(document, Manifest):
            break
        indexes.append(document)
        if len(indexes) > limits.INDEX_DEPTH:
            raise LimitExceeded(
                "indexes are nested too deep", limit="INDEX_DEPTH", allowed=limits.INDEX_DEPTH
            )
        candidates = select_manifests(document, matcher)
        if not candidates:
            raise _no_match(_offered(document), matcher, document.digest)
        descriptor = candidates[0]
        # An index entry without a platform promises nothing: then the config has to fit.
        is_chosen = descriptor.platform is not None
    if document.is_artifact:
        if not is_chosen and indexes and _offered(indexes[-1]):
            # A signature or a bill of materials beside images of other platforms: nobody asked
            # for it.
            raise _no_match(_offered(indexes[-1]), matcher, top.digest)
        return ResolvedImage(
            target=top.digest,
            indexes=tuple(indexes),
            manifest=document,
            content=parse_artifact(document),
        )
    for layer in document.layers:
        layer_compression(layer.media_type)  # one that nobody can read is refused before the rest
    raw = await source.read_document(document.config, max_size=limits.CONFIG_SIZE)
    config = parse_image_config(raw, expected=document.config.digest)
    if not is_chosen and (indexes or must_match) and not matcher.match(config.platform):
        raise _no_match({str(config.platform)}, matcher, top.digest)
    check_layers(document, config)
    return ResolvedImage(
        target=top.digest, indexes=tuple(indexes), manifest=document, content=config
    )


def check_layers(manifest: Manifest, config: ImageConfig) -> None:
    """Compare what two documents of an image say of its layers.

    Raises:
        InvalidDocument: They contradict each other.
    """
    # ORAS writes configs without any: then they are what the layers turn out to have.
    if config.diff_ids and len(config.diff_ids) != len(manifest.layers):
        raise InvalidDocument(
            "config and manifest do not agree on the number of layers",
            path="rootfs.diff_ids",
            expected=len(manifest.layers),
            actual=len(config.diff_ids),
        )


async def _read_manifest(source: ImageSource, descriptor: Descriptor) -> Manifest | Index:
    raw = await source.read_document(descriptor, max_size=limits.MANIFEST_SIZE)
    return parse_manifest(raw, media_type=descriptor.media_type, expected=descriptor.digest)


def _offered(index: Index) -> set[str]:
    """The platforms that an index names."""
    return {str(entry.platform) for entry in index.manifests if entry.platform}


def _no_match(offered: set[str], matcher: Matcher, digest: Digest) -> NoMatchingPlatform:
    return NoMatchingPlatform(
        "the image has no variant for this platform",
        hint=f"Choose one with --platform: {', '.join(sorted(offered)) or 'there is none'}.",
        wanted=matcher.accepted[0],
        image=digest,
    )
