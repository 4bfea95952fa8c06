"""The catalog: which images are here, what they are called, and what a user means by a text.

An image is known by the digest of its config; several manifests may have the same. It is listed if
it has a name or a pin: what only a volume or a lease keeps any more has been removed, as far as
users are concerned. All of it is memory, rebuilt at start from the records and kept true by
`KnownImages`; nothing here waits.

What a text means, the same for everybody who asks:

1. A full digest (64 digits, with or without `sha256:`) is an image ID, never a name.
2. Else a name: a reference, normalised, or a local source. `repository@digest` is a name of what a
   tag of the repository resolved to. A name may mean one image per platform: this machine's best
   one, or the only one there is.
3. Else the beginning of one image ID, of SHORT_ID digits or more.
"""

import re
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeVar

from imgvol import limits
from imgvol.content.known_images import KnownImages
from imgvol.content.records import ImageChanges, ImageRecord
from imgvol.errors import Conflict, ImgvolError, InvalidDigest, NotFound
from imgvol.images.events import Event
from imgvol.images.resolve import wanted_platform
from imgvol.oci.digest import ChainID, Digest
from imgvol.oci.platform import Matcher, Platform
from imgvol.oci.reference import sort_references
from imgvol.sources.parse import RegistryImage, parse_image_argument

K = TypeVar("K")

# An image ID, or as many digits of one as tools print.
ID: Final = re.compile(rf"(?:sha256:)?([0-9a-f]{{{limits.SHORT_ID},64}})")


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogImage:
    """One image, with all that it is called.

    Every tag and digest here leads back to this image: what another one is preferred for on this
    machine is not listed.

    Attributes:
        id: Digest of the config; of the manifest, for an artifact.
        repo_tags: `domain/path:tag`, canonical and sorted; none for one pulled by digest only.
        repo_digests: `domain/path@digest` of what the name resolved to, an index or a manifest.
        size: Bytes of manifest, config and layers as the source stores them.
        user: The config's own word; empty when it says none.
        is_pinned: Whether anybody wants it to stay, under any of its names.
        manifests: All manifests here that have this config, the latest pulled first.
    """

    id: Digest
    repo_tags: tuple[str, ...]
    repo_digests: tuple[str, ...]
    size: int
    chain_id: ChainID
    platform: str
    user: str
    is_pinned: bool
    manifests: tuple[Digest, ...]

    @property
    def name(self) -> str:
        """What to call it: a tag, else a digest, else its ID."""
        return next(iter(self.repo_tags + self.repo_digests), str(self.id))


@dataclass(frozen=True, slots=True)
class Found:
    """What a text may mean.

    Attributes:
        images: The records of what it means; none: there are no such images.
        is_name: Whether it is a name of them, and not an ID.
        as_name: Why it is no name of any.
        as_id: Why it is no ID of any.
    """

    images: Sequence[ImageRecord] = ()
    is_name: bool = False
    as_name: str = ""
    as_id: str = ""


@dataclass(frozen=True)
class _Entry:
    """One record and all names that lead to it, by which it can be asked for."""

    record: ImageRecord

    @cached_property
    def tags(self) -> tuple[str, ...]:
        """Its names that are references with a tag."""
        return tuple(name for name, repository, _ in self._references if "@" not in name)

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """What its references resolved to."""
        found = (f"{repository}@{target}" for _, repository, target in self._references)
        return tuple(dict.fromkeys(found))

    @cached_property
    def keys(self) -> frozenset[str]:
        """Everything that it is found by, but IDs."""
        return frozenset((*self.record.names, *self.digests))

    @cached_property
    def _references(self) -> list[tuple[str, str, Digest]]:
        found = []
        for name, target in zip(self.record.names, self.record.targets, strict=True):
            repository = _repository(name)
            if repository is not None:
                found.append((name, repository, target))
        return found


class Catalog:
    """Which images are here. One per daemon; on the event loop.

    Args:
        known: The records of images, in memory.
        matcher: Which platforms names mean; None: this machine's.

    Attributes:
        publish: Told what becomes of images; it must not block.
    """

    def __init__(self, known: KnownImages, matcher: Matcher | None = None) -> None:
        self._matcher = matcher or wanted_platform(None)
        self._entries: dict[Digest, _Entry] = {}
        self._manifests: dict[Digest, set[Digest]] = {}
        self._named: dict[str, set[Digest]] = {}
        self._images: dict[Digest, CatalogImage] = {}
        self._listing: tuple[CatalogImage, ...] | None = None
        self.publish: Callable[[Event], None] = lambda _: None
        known.listen(self._take)

    def images(self) -> Sequence[CatalogImage]:
        """Every image that has a name or a pin, by ID."""
        if self._listing is None:
            by_id = sorted(self._images.values(), key=lambda image: image.id.encoded)
            self._listing = tuple(by_id)
        return self._listing

    def resolve(self, text: str) -> CatalogImage:
        """The image that a text means.

        Raises:
            NotFound: There is none; says why it is no name, and why no ID.
            Conflict: The beginning of several image IDs.
        """
        found = self.search(text, is_listed=True)
        chosen = choose(found.images, self._matcher)
        if chosen is None:
            raise NotFound(
                "image is not in the store", image=text, as_name=found.as_name, as_id=found.as_id
            )
        return self._images[chosen.id]

    def search(self, text: str, *, is_listed: bool) -> Found:
        """The records of what a text means, the latest pulled first.

        Args:
            is_listed: Only images with a name or a pin, and only by their own IDs; else all that
                are here, and manifests' digests count as IDs, too.

        Raises:
            Conflict: The beginning of several IDs.
        """
        digest = full_id(text)
        if digest is not None:
            images = self._with_id(digest, is_listed=is_listed)
            return Found(images, as_name="a whole digest is an ID", as_id=_no_id(images))
        try:
            name = str(parse_image_argument(text))
        except ImgvolError as exc:
            as_name = str(exc)
        else:
            if images := self._records(self._named.get(name, ())):
                return Found(images, is_name=True)
            as_name = f"nothing is called {name}"
        if not ID.fullmatch(text):
            return Found(as_name=as_name, as_id=f"not {limits.SHORT_ID} or more digits")
        images = self._with_prefix(text, is_listed=is_listed)
        return Found(images, as_name=as_name, as_id=_no_id(images))

    def manifests_named(self, name: str) -> frozenset[Digest]:
        """The manifests that a canonical name means, for every platform."""
        return frozenset(self._named.get(name, ()))

    def names_meant(self, text: str) -> tuple[str, ...]:
        """The recorded names that a name stands for: itself, or those that resolved to its digest.

        Raises:
            InvalidReference: Not a name.
            InvalidArgument: Likewise.
        """
        name = str(parse_image_argument(text))
        entries = [self._entries[manifest] for manifest in self._named.get(name, ())]
        if any(name in entry.record.names for entry in entries):
            return (name,)
        repository, _, digest = name.rpartition("@")
        return tuple(
            sorted(
                {
                    own
                    for entry in entries
                    for own, target in zip(entry.record.names, entry.record.targets, strict=True)
                    if (_repository(own), str(target)) == (repository, digest)
                }
            )
        )

    def names_of(self, image: CatalogImage) -> tuple[str, ...]:
        """The recorded names that mean an image on this machine, local sources included."""
        names = {name for m in image.manifests for name in self._entries[m].record.names}
        return tuple(sorted(name for name in names if self._leads_to(name, image.id)))

    def _with_id(self, digest: Digest, *, is_listed: bool) -> Sequence[ImageRecord]:
        images = self._records(self._manifests.get(digest, ()))
        if is_listed:
            return images if digest in self._images else ()
        if not images and digest in self._entries:
            return [self._entries[digest].record]
        return images

    def _with_prefix(self, text: str, *, is_listed: bool) -> Sequence[ImageRecord]:
        """Images by the beginning of an ID.

        Raises:
            Conflict: It fits several.
        """
        digits = text.rpartition(":")[2]
        images = [
            entry.record
            for entry in self._entries.values()
            if entry.record.id.encoded.startswith(digits)
            or (not is_listed and entry.record.manifest.encoded.startswith(digits))
        ]
        if is_listed:
            images = [image for image in images if image.id in self._images]
        if len({image.id for image in images}) > 1:
            raise Conflict(
                "several images have an ID that begins so",
                hint="Give more digits; imgvol images --json shows them all.",
                image=text,
            )
        return _latest(images)

    def _records(self, manifests: Iterable[Digest]) -> list[ImageRecord]:
        return _latest(self._entries[manifest].record for manifest in manifests)

    def _leads_to(self, name: str, image_id: Digest) -> bool:
        """Whether a name means this image on this machine."""
        chosen = choose(self._records(self._named[name]), self._matcher)
        return chosen is not None and chosen.id == image_id

    def _take(self, changes: ImageChanges) -> None:
        """Takes over what has changed, and tells of it, but for what was here at the start."""
        gone = tuple(self._entries) if changes.manifests is None else changes.manifests
        changed = [entry for manifest in gone if (entry := self._entries.get(manifest)) is not None]
        for entry in changed:
            self._forget(entry)
        for record in changes.images:
            entry = _Entry(record)
            self._enter(entry)
            changed.append(entry)
        # What a name means to one image depends on the others that have it.
        others = {m for entry in changed for key in entry.keys for m in self._named.get(key, ())}
        ids = {entry.record.id for entry in changed}
        ids |= {self._entries[manifest].record.id for manifest in others}
        self._listing = None
        for image_id in ids:
            before, after = self._images.get(image_id), self._image(image_id)
            if after is None:
                self._images.pop(image_id, None)
            else:
                self._images[image_id] = after
            if changes.manifests is not None and before != after:
                self._announce(before, after)

    def _enter(self, entry: _Entry) -> None:
        manifest = entry.record.manifest
        self._entries[manifest] = entry
        self._manifests.setdefault(entry.record.id, set()).add(manifest)
        for key in entry.keys:
            self._named.setdefault(key, set()).add(manifest)

    def _forget(self, entry: _Entry) -> None:
        manifest = entry.record.manifest
        del self._entries[manifest]
        _discard(self._manifests, entry.record.id, manifest)
        for key in entry.keys:
            _discard(self._named, key, manifest)

    def _image(self, image_id: Digest) -> CatalogImage | None:
        """What is listed of an image by now; None: nothing."""
        records = [
            record
            for record in self._records(self._manifests.get(image_id, ()))
            if record.is_wanted
        ]
        if not records:
            return None
        entries = [self._entries[record.manifest] for record in records]
        tags = {tag for entry in entries for tag in entry.tags}
        digests = {digest for entry in entries for digest in entry.digests}
        latest = records[0]
        return CatalogImage(
            id=image_id,
            repo_tags=tuple(sort_references(t for t in tags if self._leads_to(t, image_id))),
            repo_digests=tuple(sort_references(d for d in digests if self._leads_to(d, image_id))),
            size=latest.size,
            chain_id=latest.chain_id,
            platform=latest.platform,
            user=latest.user,
            is_pinned=any(record.is_pinned for record in records),
            manifests=tuple(record.manifest for record in records),
        )

    def _announce(self, before: CatalogImage | None, after: CatalogImage | None) -> None:
        shown = after or before
        assert shown is not None, "something has changed"
        what = "removed" if after is None else "created" if before is None else "updated"
        self.publish(
            Event(
                kind=f"image.{what}",
                at=time.time(),
                image=shown.name,
                id=shown.id,
                data={
                    "repo_tags": list(shown.repo_tags),
                    "repo_digests": list(shown.repo_digests),
                    "is_pinned": shown.is_pinned,
                },
            )
        )


def full_id(text: str) -> Digest | None:
    """What a text is that is a whole digest, with or without `sha256:`, and so no name."""
    try:
        return Digest.parse(text if ":" in text else f"sha256:{text}")
    except InvalidDigest:
        return None


def choose(images: Sequence[ImageRecord], matcher: Matcher) -> ImageRecord | None:
    """Which of the images of one name is meant: the best for a platform, or the only one.

    The only one was pulled for another platform on purpose.
    """
    if len({image.id for image in images}) == 1:
        return images[0]
    return best_for(images, matcher)


def best_for(images: Sequence[ImageRecord], matcher: Matcher) -> ImageRecord | None:
    """The best of some images for a platform, the first of equals; None: none fits."""
    ranked = [
        (rank, position, image)
        for position, image in enumerate(images)
        if (rank := _rank(image, matcher)) is not None
    ]
    return min(ranked)[2] if ranked else None


def _rank(image: ImageRecord, matcher: Matcher) -> int | None:
    return 0 if image.is_artifact else matcher.rank(Platform.parse(image.platform))


def _latest(images: Iterable[ImageRecord]) -> list[ImageRecord]:
    return sorted(images, key=lambda image: (-image.pulled_at, image.manifest))


def _no_id(images: Collection[ImageRecord]) -> str:
    return "" if images else "no image has this ID"


def _repository(name: str) -> str | None:
    """The repository of a reference; None for a local source."""
    try:
        argument = parse_image_argument(name)
    except ImgvolError:
        return None
    return argument.reference.repository if isinstance(argument, RegistryImage) else None


def _discard(index: dict[K, set[Digest]], key: K, manifest: Digest) -> None:
    index[key].discard(manifest)
    if not index[key]:
        del index[key]
