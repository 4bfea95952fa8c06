"""What an archive of images has to offer: every image, for every platform, resolved and named.

Documents only; nothing is stored. What is damaged refuses the archive as a whole. What is merely
not there is passed over, with the reason: archives of one platform of an image list the others,
too, and leave out their blobs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from imgvol import limits
from imgvol.errors import (
    ImgvolError,
    InvalidDocument,
    InvalidReference,
    LimitExceeded,
    NoMatchingPlatform,
    Unsupported,
)
from imgvol.images.resolve import ResolvedImage, check_layers
from imgvol.layers.artifact import Artifact, parse_artifact
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.image_config import ImageConfig, parse_image_config
from imgvol.oci.manifest import Index, Manifest, parse_manifest
from imgvol.oci.media_types import is_index, is_manifest, is_schema1, layer_compression
from imgvol.oci.platform import Matcher, Platform
from imgvol.oci.reference import Reference, parse_docker_reference
from imgvol.sources.local import ListedImage, LocalSource

_OF_ATTESTATIONS: Final = Platform("unknown", "unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedOver:
    """Something of an archive that was not imported.

    Attributes:
        what: Which image, or which part of one.
        reason: Why.
        is_whole: Whether nothing of that image was imported.
    """

    what: str
    reason: str
    is_whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedImage:
    """One image for one platform, whose blobs are all in the archive.

    Attributes:
        names: Canonical references; none when the archive gives it no name that is one.
        label: What to call it in messages.
    """

    resolved: ResolvedImage
    names: tuple[str, ...]
    label: str


@dataclass(frozen=True, slots=True)
class Naming:
    """What images are called whose names in the archive are not enough.

    Attributes:
        base: The repository of images that have only a tag, or only a digest; None: there is none.
        digests: Whether images get names by digest, too.
    """

    base: Reference | None = None
    digests: bool = False

    @classmethod
    def of(cls, base_name: str | None, *, digests: bool) -> "Naming":
        """From what a user wrote.

        Raises:
            InvalidReference: The base is no repository's name.
        """
        base = Reference.parse(base_name) if base_name else None
        if base is not None and (base.tag or base.digest):
            raise InvalidReference("give a name without a tag", reference=base_name)
        return cls(base, digests)

    def names(self, listed: ListedImage) -> list[str]:
        """The names of an entry of an archive's list.

        Raises:
            InvalidReference: What is written there is no name, or not this image's.
        """
        names, repository = [], self.base
        if listed.name:
            reference = parse_docker_reference(listed.name)
            if reference.digest not in {None, listed.top.digest}:
                raise InvalidReference("its name has the digest of another image")
            names.append(str(reference))
            repository = repository or reference.with_tag(None).with_digest(None)
        elif listed.tag and self.base is not None:
            names.append(str(self.base.with_tag(listed.tag)))
        if self.digests:
            # As containerd calls what has no name of its own.
            repository = repository or Reference.parse(f"import-{datetime.now(UTC):%Y-%m-%d}")
            names.append(str(repository.with_digest(listed.top.digest)))
        return names


class Offer:
    """Everything that an archive has, found by `read`.

    Args:
        source: The archive.
        naming: What its images are called.
        matchers: Which platforms are wanted; none: all.

    Attributes:
        images: What can be imported.
        passed_over: What cannot.
        failures: Errors behind that, of whole images.
    """

    def __init__(self, source: LocalSource, naming: Naming, matchers: Sequence[Matcher]) -> None:
        self.images: list[OfferedImage] = []
        self.passed_over: list[PassedOver] = []
        self.failures: list[ImgvolError] = []
        self._naming = naming
        self._walker = _Walker(source, matchers)
        self._source = source

    async def read(self) -> None:
        """Reads the documents of all images.

        Raises:
            ContentError: One is damaged, or the archive contradicts itself.
            LimitExceeded: There is too much of something.
        """
        owners: dict[tuple[str, str], Digest] = {}
        for top, called, shown in await self._read_names():
            try:
                found = await self._walker.walk(top)
            except (_Missing, Unsupported, NoMatchingPlatform) as error:
                self._pass_over(shown, error)
                continue
            self.passed_over += [
                PassedOver(what=f"{shown} for {what}", reason=error.message, is_whole=False)
                for what, error in found.failures
            ]
            for resolved in found.images.values():
                for name in called:
                    _claim(owners, name, resolved)
                self.images.append(OfferedImage(resolved=resolved, names=called, label=shown))

    async def _read_names(self) -> list[tuple[Descriptor, tuple[str, ...], str]]:
        """The top documents, what they are called, and what they are called in messages."""
        names: dict[Descriptor, dict[str, None]] = {}
        labels: dict[Descriptor, str] = {}
        tops: dict[Digest, Descriptor] = {}
        for count, listed in enumerate(await self._source.list_images(), 1):
            if count > limits.ARCHIVE_NAMES:
                raise _too_many("names", "ARCHIVE_NAMES", limits.ARCHIVE_NAMES)
            top = tops.setdefault(listed.top.digest, listed.top)
            labels.setdefault(top, str(listed))
            called = names.setdefault(top, {})
            try:
                called.update(dict.fromkeys(self._naming.names(listed)))
            except InvalidReference as error:
                # Whether it has another one shows at the end.
                self.passed_over.append(
                    PassedOver(what=str(listed), reason=error.message, is_whole=False)
                )
        return [(top, tuple(called), labels[top]) for top, called in names.items()]

    def _pass_over(self, what: str, error: ImgvolError) -> None:
        self.failures.append(error)
        self.passed_over.append(PassedOver(what=what, reason=error.message, is_whole=True))


class _Missing(InvalidDocument):
    """Blobs of an image are not in the archive."""

    @property
    def code(self) -> str:
        """For scripts, this is the same as its parent."""
        return "invalid-document"


@dataclass(slots=True)
class _Found:
    """What is below one top document: images by platform, and why others are none."""

    top: Descriptor
    images: dict[str, ResolvedImage] = field(default_factory=dict)
    failures: list[tuple[str, ImgvolError]] = field(default_factory=list)
    seen: set[Digest] = field(default_factory=set)


class _Walker:
    """Walks from top documents to manifests, within the limits of an archive."""

    def __init__(self, source: LocalSource, matchers: Sequence[Matcher]) -> None:
        self._source = source
        self._matchers = matchers
        self._documents = 0
        self._size = 0
        self._images = 0

    async def walk(self, top: Descriptor) -> _Found:
        """The images below a top document.

        Raises:
            _Missing, Unsupported, NoMatchingPlatform: Why there is none.
        """
        found = _Found(top)
        await self._visit(top, (), found)
        if not found.images:
            raise found.failures[0][1] if found.failures else NoMatchingPlatform("it has no image")
        return found

    async def _visit(
        self, descriptor: Descriptor, indexes: tuple[Index, ...], found: _Found
    ) -> None:
        if descriptor.digest in found.seen or not _may_be_image(descriptor):
            return
        found.seen.add(descriptor.digest)
        try:
            raw = await self._read(descriptor, limits.MANIFEST_SIZE)
            document = parse_manifest(
                raw, media_type=descriptor.media_type, expected=descriptor.digest
            )
            if isinstance(document, Manifest):
                resolved = await self._resolve(document, indexes, found)
        except (_Missing, Unsupported, NoMatchingPlatform) as error:
            found.failures.append((str(descriptor.platform or descriptor.digest), error))
            return
        if isinstance(document, Manifest):
            self._add(resolved, found)
            return
        if len(indexes) >= limits.INDEX_DEPTH:
            raise LimitExceeded(
                "indexes are nested too deep", limit="INDEX_DEPTH", allowed=limits.INDEX_DEPTH
            )
        for child in document.manifests:
            await self._visit(child, (*indexes, document), found)

    def _add(self, resolved: ResolvedImage, found: _Found) -> None:
        self._images += 1
        if self._images > limits.ARCHIVE_IMAGES:
            raise _too_many("images", "ARCHIVE_IMAGES", limits.ARCHIVE_IMAGES)
        if resolved.platform in found.images:
            second = NoMatchingPlatform(f"{resolved.manifest.digest} is a second one")
            found.failures.append((resolved.platform, second))
        else:
            found.images[resolved.platform] = resolved

    async def _resolve(
        self, manifest: Manifest, indexes: tuple[Index, ...], found: _Found
    ) -> ResolvedImage:
        content: ImageConfig | Artifact
        if manifest.is_artifact:
            if indexes:
                # A signature or a bill of materials beside images: as one for every platform, it
                # would take their place.
                raise Unsupported("an artifact beside images")
            content = parse_artifact(manifest)
        else:
            raw = await self._read(manifest.config, limits.CONFIG_SIZE)
            content = parse_image_config(raw, expected=manifest.config.digest)
            check_layers(manifest, content)
            if self._matchers and not any(m.match(content.platform) for m in self._matchers):
                raise NoMatchingPlatform(f"it is for {content.platform}")
            for layer in manifest.layers:
                layer_compression(layer.media_type)
        if not await self._source.has_blobs(manifest.layers):
            raise _Missing("the archive lacks a layer of it")
        return ResolvedImage(
            target=found.top.digest, indexes=indexes, manifest=manifest, content=content
        )

    async def _read(self, descriptor: Descriptor, max_size: int) -> bytes:
        self._documents += 1
        if self._documents > limits.ARCHIVE_DOCUMENTS:
            raise _too_many("documents", "ARCHIVE_DOCUMENTS", limits.ARCHIVE_DOCUMENTS)
        if descriptor.data is None and not await self._source.has_blobs([descriptor]):
            raise _Missing("the archive lacks its manifest or config")
        raw = await self._source.read_document(descriptor, max_size=max_size)
        self._size += len(raw)
        if self._size > limits.ARCHIVE_DOCUMENTS_SIZE:
            raise _too_many(
                "bytes in documents", "ARCHIVE_DOCUMENTS_SIZE", limits.ARCHIVE_DOCUMENTS_SIZE
            )
        return raw


def _may_be_image(descriptor: Descriptor) -> bool:
    kind = descriptor.media_type
    is_attestation = descriptor.platform == _OF_ATTESTATIONS
    # Schema 1 is told of, and not just left out.
    return (is_manifest(kind) or is_index(kind) or is_schema1(kind)) and not is_attestation


def _claim(owners: dict[tuple[str, str], Digest], name: str, resolved: ResolvedImage) -> None:
    owner = owners.setdefault((name, resolved.platform), resolved.manifest.digest)
    if owner != resolved.manifest.digest:
        raise InvalidDocument(
            "two images of the archive have the same name",
            image=name,
            platform=resolved.platform,
            manifests=f"{owner}, {resolved.manifest.digest}",
        )


def _too_many(what: str, limit: str, allowed: int) -> LimitExceeded:
    return LimitExceeded(f"the archive has too many {what}", limit=limit, allowed=allowed)
