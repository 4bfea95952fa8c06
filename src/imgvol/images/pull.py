"""Pulls one image: documents first, then its layers side by side, then the record.

The name comes last. Whatever is already in the store is not fetched again. A layer that two pulls
want at once is fetched by one of them; the other waits and finds it. A pull that is cancelled or
fails leaves no name; layers that it completed stay only when trying again makes sense (see
`ImageService.pull`).
"""

import os
import platform as host
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from imgvol import limits
from imgvol.content.records import ImageRecord, LayerRecord, Origin
from imgvol.content.store import Store
from imgvol.errors import ImgvolError, InvalidDocument, LimitExceeded, NoMatchingPlatform
from imgvol.images.ingest import LayerIngest, LayerProgress
from imgvol.images.lazy import LazyFinder, open_finder
from imgvol.layers.compression import Compression
from imgvol.layers.index import LayerIndex
from imgvol.layers.lazy.estargz import TOC_DIGEST
from imgvol.layers.lazy.reserved import as_stargz
from imgvol.oci.chain import chain_id
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import DiffID, Digest
from imgvol.oci.image_config import ImageConfig, parse_image_config
from imgvol.oci.manifest import Index, Manifest, parse_manifest, select_manifests
from imgvol.oci.media_types import layer_compression
from imgvol.oci.platform import Matcher, Platform, host_platform, only
from imgvol.sources.base import ImageSource
from imgvol.tallies import QueueLength
from imgvol.threads import run_cancellable

# Two threads each: enough to fill the cores, and to overlap one layer's disk with another's
# network.
LAYERS_AT_ONCE: Final = max(2, min(4, os.cpu_count() or 2))


@dataclass(slots=True)
class PullProgress:
    """How far a pull is; a plain object that the pull changes and others read.

    Attributes:
        stage: "resolving", "pulling" or "done".
        layers: Bottom first; empty until the manifest is known.
        stats: Seconds and bytes of each stage, filled as the pull goes.
    """

    stage: str = "resolving"
    layers: list[LayerProgress] = field(default_factory=list)
    stats: dict[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedImage:
    """The documents of one image for one platform, verified but not yet stored."""

    target: Digest
    indexes: tuple[Index, ...]
    manifest: Manifest
    config: ImageConfig

    @property
    def size(self) -> int:
        """Bytes of manifest, config and layers as the source stores them."""
        layers = sum(layer.size for layer in self.manifest.layers)
        return len(self.manifest.raw) + len(self.config.raw) + layers


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
            fit, too. Usually it is taken as it is, as other tools do.

    Raises:
        NotFound: The source has no such image.
        NoMatchingPlatform: It has none for this platform.
        InvalidDocument: Its documents contradict the specification or each other.
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
            offered = {str(entry.platform) for entry in document.manifests if entry.platform}
            raise _no_match(offered, matcher, document.digest)
        descriptor = candidates[0]
        # An index entry without a platform promises nothing: then the config has to fit.
        is_chosen = descriptor.platform is not None
    raw = await source.read_document(document.config, max_size=limits.CONFIG_SIZE)
    config = parse_image_config(raw, expected=document.config.digest)
    if not is_chosen and (indexes or must_match) and not matcher.match(config.platform):
        raise _no_match({str(config.platform)}, matcher, top.digest)
    if len(config.diff_ids) != len(document.layers):
        raise InvalidDocument(
            "config and manifest do not agree on the number of layers",
            path="rootfs.diff_ids",
            expected=len(document.layers),
            actual=len(config.diff_ids),
        )
    return ResolvedImage(
        target=top.digest, indexes=tuple(indexes), manifest=document, config=config
    )


async def _read_manifest(source: ImageSource, descriptor: Descriptor) -> Manifest | Index:
    raw = await source.read_document(descriptor, max_size=limits.MANIFEST_SIZE)
    return parse_manifest(raw, media_type=descriptor.media_type, expected=descriptor.digest)


def _no_match(offered: set[str], matcher: Matcher, digest: Digest) -> NoMatchingPlatform:
    return NoMatchingPlatform(
        "the image has no variant for this platform",
        hint=f"Choose one with --platform: {', '.join(sorted(offered)) or 'there is none'}.",
        wanted=matcher.accepted[0],
        image=digest,
    )


class Puller:
    """Brings images into the store. One per daemon."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._limiter = trio.CapacityLimiter(LAYERS_AT_ONCE)
        self._layer_locks: dict[Digest, _CountedLock] = {}
        # Called with each layer that was lazy and has been pulled as a whole.
        self.on_completed: Callable[[LayerRecord], Awaitable[None]] = _nothing_to_do
        # Layers of pulls under way: complete, perhaps, but not yet named by an image.
        self._held: Counter[Digest] = Counter()

    @property
    def queue(self) -> QueueLength:
        """Layers that are being pulled, and those waiting for their turn."""
        limiter = self._limiter.statistics()
        return QueueLength(limiter.borrowed_tokens, limiter.tasks_waiting)

    async def pull(
        self,
        source: ImageSource,
        resolved: ResolvedImage,
        name: str,
        progress: PullProgress,
        lazy_origin: Origin | None = None,
    ) -> ImageRecord:
        """Fetches what is missing and records the image; the name comes last.

        Args:
            source: Where the image is.
            resolved: Its documents.
            name: What it is called from now on.
            progress: Told how far the pull is.
            lazy_origin: Where the rest of lazy layers can be fetched later; None: every layer is
                pulled as a whole.

        Raises:
            ImgvolError: The first failure of any layer; the others have then been cancelled.
        """
        manifest, config = resolved.manifest, resolved.config
        progress.layers = [
            LayerProgress(digest=str(layer.digest), size=layer.size) for layer in manifest.layers
        ]
        progress.stage = "pulling"
        digests = [layer.digest for layer in manifest.layers]
        self._held.update(digests)
        try:
            layers = await self._ensure_layers(source, resolved, progress, lazy_origin)
            for index in resolved.indexes:
                await self._store.put_blob(index.digest, index.raw)
            await self._store.put_blob(manifest.digest, manifest.raw)
            await self._store.put_blob(config.digest, config.raw)
            image = ImageRecord(
                id=config.digest,
                manifest=manifest.digest,
                media_type=manifest.media_type,
                platform=str(config.platform),
                chain_id=chain_id(config.diff_ids),
                layers=tuple(layers),
                size=resolved.size,
                created=config.created or None,
                pulled_at=time.time(),
            )
            return await self._store.records.add_image(image, name, resolved.target)
        finally:
            self._held.subtract(digests)
            self._held += Counter()

    async def _ensure_layers(
        self,
        source: ImageSource,
        resolved: ResolvedImage,
        progress: PullProgress,
        lazy_origin: Origin | None,
    ) -> list[LayerRecord]:
        finder = None
        if lazy_origin is not None:
            finder = await open_finder(source, resolved.manifest, lazy_origin, self._limiter)
        records: dict[int, LayerRecord] = {}
        failures: list[ImgvolError] = []

        async def ensure(position: int) -> None:
            try:
                records[position] = await self._ensure_layer(
                    source,
                    resolved.manifest.layers[position],
                    resolved.config.diff_ids[position],
                    progress.layers[position],
                    finder,
                )
            except ImgvolError as exc:
                failures.append(exc)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for position in range(len(resolved.manifest.layers)):
                nursery.start_soon(ensure, position)
        if failures:
            raise failures[0]
        return [records[position] for position in sorted(records)]

    async def _ensure_layer(
        self,
        source: ImageSource,
        descriptor: Descriptor,
        diff_id: DiffID,
        progress: LayerProgress,
        finder: LazyFinder | None,
    ) -> LayerRecord:
        async with self._layer_lock(descriptor.digest):
            stored = await self._store.records.layer(descriptor.digest)
            is_enough = stored is not None and (stored.is_complete or finder is not None)
            if stored is not None and is_enough and stored.diff_id == diff_id:
                progress.state = "exists"
                return stored
            if finder is not None and stored is None:
                lazy = await self._try_lazy(finder, descriptor, diff_id)
                if lazy is not None:
                    progress.state = "lazy"
                    return lazy
            # A type that says "plain" is no promise: real images have gzip under it. The bytes
            # tell, and the diff ID is checked in any case.
            compression = layer_compression(descriptor.media_type)
            ingest = LayerIngest(
                open_blob=partial(source.open_blob, descriptor),
                store=self._store,
                descriptor=descriptor,
                compression=Compression(compression) if compression else None,
                diff_id=diff_id,
                progress=progress,
                # What is no file to a lazy reader is none after a full pull, either.
                adapt=as_stargz if TOC_DIGEST in descriptor.annotations else None,
            )
            record = await run_cancellable(ingest.run, ingest.cancel, limiter=self._limiter)
            if stored is None or stored.is_complete:
                return await self._store.records.add_layer(record)
            # It was lazy until now; views that are open go on with what has just been verified.
            record = await self._store.complete_layer(record)
            await self.on_completed(record)
            return record

    async def _try_lazy(
        self, finder: LazyFinder, descriptor: Descriptor, diff_id: DiffID
    ) -> LayerRecord | None:
        """Makes a layer known by its table of contents, if it has one."""
        found = await finder.find(descriptor)
        if found is None:
            return None
        index = LayerIndex(found.layer.index)
        record = LayerRecord(
            digest=descriptor.digest,
            diff_id=diff_id,
            media_type=descriptor.media_type,
            size=descriptor.size,
            unpacked_size=index.file_bytes,
            entries=index.entry_count,
            format=found.format,
            is_complete=False,
        )
        return await self._store.add_lazy_layer(record, found.layer, finder.origin)

    async def discard_layer(self, digest: Digest) -> int:
        """Removes a layer unless a pull or an image wants it by now; returns the bytes freed."""
        async with self._layer_lock(digest):
            if digest in self._held:
                return 0
            return await self._store.remove_layer(digest)

    @asynccontextmanager
    async def _layer_lock(self, digest: Digest) -> AsyncIterator[None]:
        """One task at a time for one layer."""
        counted = self._layer_locks.setdefault(digest, _CountedLock())
        counted.users += 1
        try:
            async with counted.lock:
                yield
        finally:
            counted.users -= 1
            if counted.users == 0:
                del self._layer_locks[digest]


async def _nothing_to_do(_record: LayerRecord) -> None:
    """For stores without open lazy layers."""


@dataclass(slots=True)
class _CountedLock:
    lock: trio.Lock = field(default_factory=trio.Lock)
    users: int = 0
