"""Which layers of an image can be read lazily, and by what: the one place that knows the ways.

A layer is made lazy only by a table of contents that the manifest pins and that pins all content,
unless the operator trusts more than that. What is wrong with one makes the layer an ordinary one,
which is pulled as a whole, with one exception: annotations that name two tables of contents are
refused, because somebody means to show different readers different files. What becomes of the
layers that are found is the business of `lazy`.
"""

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import trio

from imgvol import limits
from imgvol.config import PINNED_ONLY, LazyTrust
from imgvol.content.records import Origin
from imgvol.errors import ContentError, NotFound, RemoteError, Unsupported
from imgvol.layers.lazy import estargz
from imgvol.layers.lazy.estargz import TOC_DIGEST
from imgvol.layers.lazy.locate import (
    ExternalToc,
    Format,
    NeedTail,
    Toc,
    TocRange,
    find_toc,
    open_layer,
)
from imgvol.layers.lazy.soci import SpanRange, open_ztoc
from imgvol.layers.lazy.soci_index import (
    INDEX_V1,
    SociIndex,
    SociLayer,
    parse_prefetch,
    parse_soci_index,
    pinned_index,
)
from imgvol.layers.lazy.soci_twin import expand_twin
from imgvol.layers.lazy.spans import LazyLayer
from imgvol.layers.lazy.zstd_frames import open_frames
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.manifest import Manifest, parse_manifest
from imgvol.sources.base import BlobReader, ImageSource
from imgvol.threads import run_cancellable

log = logging.getLogger(__name__)

# How the formats begin whose tables of contents stargz's tools make, in gzip and in zstd.
STARGZ: Final = Format.ESTARGZ.value


@dataclass(frozen=True, slots=True)
class FoundLayer:
    """A layer that can be read lazily, and the name of its format."""

    format: str
    layer: LazyLayer


@dataclass(frozen=True, slots=True)
class NotLazy:
    """A layer that has to be pulled as a whole.

    Attributes:
        reason: Why, although the image has a table of contents for it; empty: it has none.
    """

    reason: str = ""


class LazyFinder:
    """Finds tables of contents for the layers of one image. Made by `open_finder`.

    Attributes:
        origin: Where the rest of such layers can be fetched later.
    """

    def __init__(
        self,
        source: ImageSource,
        soci: SociIndex | None,
        origin: Origin,
        limiter: trio.CapacityLimiter,
        trust: LazyTrust,
    ) -> None:
        self.origin = origin
        self._trust = trust
        self._source = source
        self._soci = soci
        self._limiter = limiter
        self._companion = _Companion(source)

    async def find(self, descriptor: Descriptor) -> FoundLayer | NotLazy:
        """A layer's table of contents, or why it has to be pulled as a whole.

        The latter also for a layer that only servers beside the registry have (`urls`).

        Raises:
            InvalidLayer: The manifest names two tables of contents.
            RemoteError: The registry failed.
        """
        is_foreign = bool(descriptor.urls)
        # What is not here yet will be asked of the registry alone: stored layers know no URLs.
        descriptor = replace(descriptor, urls=())
        need = find_toc(descriptor.annotations, descriptor.size)
        try:
            if need is not None:
                return await self._find_inside(descriptor, need)
            if self._soci is not None:
                return await self._find_indexed(descriptor, self._soci, is_foreign=is_foreign)
        except (ContentError, NotFound) as exc:
            log.info("layer %s is not read lazily: %s", descriptor.digest, exc)
            return NotLazy(str(exc))
        return NotLazy()

    async def _find_inside(
        self, descriptor: Descriptor, need: NeedTail | TocRange | ExternalToc
    ) -> FoundLayer | NotLazy:
        fetch = _BlobFetch(self._source, descriptor)
        tail = b""
        if isinstance(need, NeedTail):
            tail = await fetch.fetch(descriptor.size - need.size, descriptor.size, self._limiter)
            found = find_toc(descriptor.annotations, descriptor.size, tail)
        else:
            found = need
        kept_from = descriptor.size - len(tail)
        match found:
            case ExternalToc():
                data = await self._read_external(descriptor)
            case TocRange(start=start, end=end) if start >= kept_from:
                data = tail[start - kept_from : end - kept_from]
            case TocRange(start=start, end=end):
                data = await fetch.fetch(start, end, self._limiter)
            case _:
                return NotLazy("its annotation names a table of contents, and its blob has none")
        read = partial(open_layer, found, data, may_lack_digests=self._trust.missing_digests)
        layer = await trio.to_thread.run_sync(read, limiter=self._limiter)
        name = _name_of(found, descriptor)
        return FoundLayer(name if layer.table.is_pinned else f"{name} without digests", layer)

    async def _read_external(self, descriptor: Descriptor) -> bytes:
        companion = await self._companion.read()
        layer = estargz.external_layer(companion, descriptor.digest)
        if layer is None:
            raise NotFound("the image beside has no table of contents for the layer")
        return await self._source.read_document(layer, max_size=limits.TOC_SIZE)

    async def _find_indexed(
        self, descriptor: Descriptor, soci: SociIndex, *, is_foreign: bool
    ) -> FoundLayer | NotLazy:
        indexed = soci.layers.get(descriptor.digest)
        frames = soci.frames.get(descriptor.digest)
        if indexed is None and frames is None:
            return NotLazy()
        if is_foreign:
            # An index does not tell whether the registry has the blob itself.
            first = min(1, descriptor.size)
            await _BlobFetch(self._source, descriptor).fetch(0, first, self._limiter)
        name = "SOCI" if soci.version == 2 else "SOCI v1"
        if indexed is not None:
            return FoundLayer(name, await self._open_ztoc(descriptor, indexed))
        assert frames is not None
        return FoundLayer(f"{name} (zstd)", await self._open_frames(descriptor, frames))

    async def _open_ztoc(self, descriptor: Descriptor, indexed: SociLayer) -> LazyLayer:
        ztoc = await self._read_ztoc(indexed)
        prefetch: tuple[SpanRange, ...] = ()
        if indexed.prefetch is not None:
            wanted = indexed.prefetch
            raw = await self._source.read_document(wanted, max_size=limits.PREFETCH_SIZE)
            prefetch = parse_prefetch(raw, expected=wanted.digest)

        def read() -> LazyLayer:
            return open_ztoc(
                ztoc,
                expected=indexed.ztoc.digest,
                blob_size=descriptor.size,
                prefetch=prefetch,
            )

        return await trio.to_thread.run_sync(read, limiter=self._limiter)

    async def _open_frames(self, descriptor: Descriptor, frames: Descriptor) -> LazyLayer:
        document = await self._source.read_document(frames, max_size=limits.ZTOC_SIZE)
        read = partial(open_frames, document, expected=frames.digest, blob_size=descriptor.size)
        return await trio.to_thread.run_sync(read, limiter=self._limiter)

    async def _read_ztoc(self, indexed: SociLayer) -> bytes:
        """A zTOC, by its compressed twin if that is there and sound; its digest is checked."""
        if indexed.twin is not None:
            try:
                twin = await self._source.read_document(indexed.twin, max_size=limits.ZTOC_SIZE)
                expand = partial(expand_twin, twin, indexed.ztoc)
                return await trio.to_thread.run_sync(expand, limiter=self._limiter)
            except (ContentError, NotFound) as exc:
                log.info("the compressed zTOC %s is not used: %s", indexed.twin.digest, exc)
        return await self._source.read_document(indexed.ztoc, max_size=limits.ZTOC_SIZE)


async def open_finder(
    source: ImageSource,
    manifest: Manifest,
    origin: Origin,
    limiter: trio.CapacityLimiter,
    trust: LazyTrust = PINNED_ONLY,
) -> LazyFinder:
    """A finder for an image's layers.

    Args:
        source: Where the image is.
        manifest: The image's.
        origin: Where the rest of lazy layers can be fetched later.
        limiter: For threads.
        trust: What may be used that is not pinned.
    """
    soci = await _open_pinned_index(source, manifest)
    if soci is None and trust.soci_referrers:
        soci = await _open_referring_index(source, manifest)
    return LazyFinder(source, soci, origin, limiter, trust)


async def _open_pinned_index(source: ImageSource, manifest: Manifest) -> SociIndex | None:
    """The SOCI index that a manifest pins.

    One that is missing or damaged is as if it had not been pinned: registries copy images without
    what belongs to them.
    """
    try:
        digest = pinned_index(manifest)
        if digest is None:
            return None
        return parse_soci_index(await source.read_pinned_manifest(digest), expected=digest)
    except (ContentError, NotFound) as exc:
        log.info("the SOCI index of %s is not used: %s", manifest.digest, exc)
        return None


async def _open_referring_index(source: ImageSource, manifest: Manifest) -> SociIndex | None:
    """The SOCI index that refers to a manifest.

    Of several, the first that the registry lists: SOCI's documentation leaves the choice open, its
    snapshotter does that (`SelectFirstPolicy`), and no entry has a date that could be believed.

    Nothing says that there should be one, so whatever goes wrong is no reason not to pull the
    image, be it that the registry refuses the question in a way of its own.
    """
    try:
        referrers = await source.list_referrers(manifest.digest, INDEX_V1)
        if not referrers:
            return None
        raw = await source.read_document(referrers[0], max_size=limits.MANIFEST_SIZE)
        return parse_soci_index(raw, expected=referrers[0].digest, subject=manifest.digest)
    except (ContentError, NotFound, RemoteError) as exc:
        log.info("no SOCI index is used that refers to %s: %s", manifest.digest, exc)
        return None


def _name_of(toc: Toc, descriptor: Descriptor) -> str:
    if isinstance(toc, ExternalToc):
        return f"{STARGZ} (external)"
    if toc.format is Format.ESTARGZ or TOC_DIGEST not in descriptor.annotations:
        return toc.format.value
    return f"{STARGZ} ({toc.format.value})"


class _Companion:
    """The image beside an image that has the tables of contents of all its layers.

    It is asked for once: whether it is there, and what it says, holds for all layers.
    """

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self._lock = trio.Lock()
        self._answer: Manifest | ContentError | NotFound | None = None

    async def read(self) -> Manifest:
        """Its manifest.

        Raises:
            NotFound: There is none.
            ContentError: It is something else.
            RemoteError: The registry failed.
        """
        async with self._lock:
            if self._answer is None:
                try:
                    self._answer = await self._ask()
                except (ContentError, NotFound) as error:
                    self._answer = error.anew()
        if isinstance(self._answer, Manifest):
            return self._answer
        raise self._answer.anew()

    async def _ask(self) -> Manifest:
        raw = await self._source.read_companion(estargz.EXTERNAL_SUFFIX)
        manifest = parse_manifest(raw, media_type=None)
        if not isinstance(manifest, Manifest):
            raise Unsupported("tables of contents in an image index")
        return manifest


class _BlobFetch:
    """Ranges of a blob, whole, in a thread that can be cancelled."""

    def __init__(self, source: ImageSource, descriptor: Descriptor) -> None:
        self._source = source
        self._descriptor = descriptor
        self._reader: BlobReader | None = None
        self._is_cancelled = False

    async def fetch(self, start: int, end: int, limiter: trio.CapacityLimiter) -> bytes:
        """The bytes [start, end)."""

        def receive() -> bytes:
            with self._source.open_blob(self._descriptor, offset=start, end=end) as reader:
                self._reader = reader
                if self._is_cancelled:
                    reader.cancel()
                return b"".join(reader.iter_pieces())

        return await run_cancellable(receive, self._cancel, limiter=limiter)

    def _cancel(self) -> None:
        self._is_cancelled = True
        if self._reader is not None:
            self._reader.cancel()
