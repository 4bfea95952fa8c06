"""SOCI indexes of images: made layer by layer in helper processes, kept, listed, removed.

Layers come from the image's source through the daemon's readers, and from nowhere else: the store
has their tars, and an index is of the very bytes of a blob. The image need not be in the store. An
index is recorded when all of it is there; what a failure leaves is collected.

Which layers are left out, and why, is part of the record: people want to know what stays slow.
"""

import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from imgvol import limits
from imgvol.content.reachability import Root, RootKind, Thing, ThingKind
from imgvol.content.records import IndexedBlob, IndexRecord, LayerIndexRecord, Origin
from imgvol.content.store import Store
from imgvol.errors import ImgvolError, InvalidArgument, NotFound, Unsupported
from imgvol.images.credentials import Logins
from imgvol.images.pulls import PullOptions
from imgvol.images.resolve import ResolvedImage, resolve_image, wanted_platform
from imgvol.layers.lazy.locate import find_toc
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import DiffID, Digest
from imgvol.publish import index_push
from imgvol.publish.index_job import FRAMES_NAME, TWIN_NAME, ZTOC_NAME
from imgvol.publish.pushing import Pushed, PushProgress
from imgvol.publish.worker import run_worker
from imgvol.registry.hosts import RegistryOptions
from imgvol.registry.push import Pusher
from imgvol.registry.registries import Registries
from imgvol.sources.base import ImageSource
from imgvol.sources.open import open_source
from imgvol.sources.parse import parse_image_argument

DEFAULT_MIN_LAYER_SIZE: Final = 10 * limits.MIB
"""As soci-snapshotter's: a smaller layer is here before its index has been asked for."""

_DEFAULT_SPAN_SIZE: Final = 4 * limits.MIB
# A blob of this size has the default; one of twice the size spans of twice the size, and so on.
_SPANS_OF_BLOB: Final = 512


def span_size_for(blob_size: int) -> int:
    """How large the spans of a layer are, unless somebody asks for another size.

    4 MiB up to 2 GiB of blob, then twice as large with each doubling, so that an index keeps to
    some 2000 spans; at most INDEX_LARGEST_SPAN, for readers hold one whole.
    """
    size = _DEFAULT_SPAN_SIZE
    while blob_size > size * _SPANS_OF_BLOB and size < limits.INDEX_LARGEST_SPAN:
        size *= 2
    return size


@dataclass(slots=True)
class IndexingLayer:
    """How far one layer is.

    Attributes:
        state: "waiting", "indexing", "exists" (an index of the very layer is here already), "done"
            or "left out".
        done: Bytes of the blob so far.
    """

    digest: Digest
    size: int
    state: str = "waiting"
    done: int = 0


@dataclass(slots=True)
class IndexProgress:
    """How far an index is. Written by its maker, read by whoever shows it."""

    layers: list[IndexingLayer] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRequest:
    """What is asked for.

    Attributes:
        image: As a user names it.
        platform: For which; None: this machine's.
        options: How its source is reached, and as whom.
        span_size: Plain bytes of a span; None: by the size of each layer.
        min_layer_size: Smaller layers are left out.
    """

    image: str
    platform: str | None = None
    options: PullOptions = field(default_factory=PullOptions)
    span_size: int | None = None
    min_layer_size: int = DEFAULT_MIN_LAYER_SIZE


class Indexes:
    """The indexes of one daemon; used on the event loop.

    Args:
        store: Where they are kept.
        logins: Who requests have said to be.
        registries: Where images of registries come from.
        collect: Removes what nobody needs any more.
    """

    def __init__(
        self,
        store: Store,
        *,
        logins: Logins,
        registries: Registries | None,
        collect: Callable[[], Awaitable[object]],
    ) -> None:
        self._store = store
        self._logins = logins
        self.registries = registries
        self._collect = collect
        # One at a time leaves a core to the readers of the machine.
        self._workers = trio.CapacityLimiter(1)

    async def create(self, request: IndexRequest, progress: IndexProgress) -> IndexRecord:
        """Makes the index of an image for one platform, in the place of an earlier one.

        One without a single indexed layer is not kept.

        Raises:
            InvalidArgument: The size of spans cannot be.
            NotFound: The source has no such image.
            Unsupported: It is an artifact, or nothing says what its layers hold.
            DigestMismatch: A layer is not what the image says; nothing is kept.
            ContentError, RemoteError, LocalError: Of the source, or the disk.
        """
        _check_span_size(request.span_size)
        matcher = wanted_platform(request.platform)
        argument = parse_image_argument(request.image)
        options = request.options
        origin = Origin(
            argument=str(argument),
            plain_http=options.plain_http,
            insecure=options.insecure,
            ca_file=options.ca_file,
        )
        async with self.open_source(origin, options) as source:
            image = await resolve_image(source, matcher, must_match=request.platform is not None)
            _check_image(image)
            progress.layers = [IndexingLayer(each.digest, each.size) for each in image.layers]
            held: list[Thing] = []
            is_clean = True
            root = Root(RootKind.INDEX, str(argument))
            try:
                return await self._create(source, image, origin, request, progress, held)
            except ImgvolError:
                is_clean = False
                raise
            finally:
                if held:
                    self._store.pins.release(root, held)
                if not is_clean:
                    await self._collect()

    async def _create(
        self,
        source: ImageSource,
        image: ResolvedImage,
        origin: Origin,
        request: IndexRequest,
        progress: IndexProgress,
        held: list[Thing],
    ) -> IndexRecord:
        root = Root(RootKind.INDEX, origin.argument)

        def hold(*digests: Digest) -> None:
            things = [Thing(ThingKind.DOCUMENT, digest) for digest in digests]
            self._store.pins.hold(root, things)
            held.extend(things)

        known = {
            (layer.digest, layer.diff_id, layer.span_size): layer
            for index in await self._store.records.indexes()
            for layer in index.layers
            if layer.is_indexed
        }
        layers: list[LayerIndexRecord] = []
        for descriptor, diff_id, state in zip(
            image.layers, image.diff_ids, progress.layers, strict=True
        ):
            layer = _outline(descriptor, diff_id, request)
            if not layer.reason:
                found = known.get((layer.digest, layer.diff_id, layer.span_size))
                if found is not None and await self._has(found, hold):
                    layer, state.state = found, "exists"
                else:
                    layer = await self._index(source, descriptor, layer, state, hold)
                    known[layer.digest, layer.diff_id, layer.span_size] = layer
            if not layer.is_indexed:
                state.state = "left out"
            layers.append(layer)
        documents = {digest for digest, _ in image.documents}
        record = IndexRecord(
            manifest=image.manifest.digest,
            target=image.indexes[-1].digest if image.indexes else image.manifest.digest,
            name=origin.argument,
            platform=image.platform,
            origin=origin,
            layers=tuple(layers),
            documents=frozenset(
                documents | {blob.digest for layer in layers for blob in layer.blobs}
            ),
            created_at=time.time(),
        )
        if record.is_empty:
            return record
        hold(*documents)
        for digest, raw in image.documents:
            await self._store.put_blob(digest, raw)
        await self._store.records.put_index(record)
        return record

    async def _has(self, layer: LayerIndexRecord, hold: Callable[..., None]) -> bool:
        """Whether what an earlier index has of a layer is here; it is held first."""
        digests = [blob.digest for blob in layer.blobs]
        hold(*digests)
        return all([await trio.to_thread.run_sync(self._store.blobs.has, d) for d in digests])

    async def _index(
        self,
        source: ImageSource,
        descriptor: Descriptor,
        layer: LayerIndexRecord,
        state: IndexingLayer,
        hold: Callable[..., None],
    ) -> LayerIndexRecord:
        def note(done: int) -> None:
            state.done = done

        state.state = "indexing"
        async with self._spool() as directory:
            result = await run_worker(
                "index",
                {
                    "digest": str(descriptor.digest),
                    "size": descriptor.size,
                    "diff_id": str(layer.diff_id),
                    "span_size": layer.span_size,
                },
                source=partial(source.open_blob, descriptor),
                output_directory=directory,
                progress=note,
                limiter=self._workers,
            )
            state.done = descriptor.size
            if "unfit" in result:
                return replace(layer, span_size=0, reason=str(result["unfit"]))
            names = (ZTOC_NAME, TWIN_NAME, FRAMES_NAME)
            made = {name: _blob(result[name]) for name in names if name in result}
            hold(*(blob.digest for blob in made.values()))
            for name, blob in made.items():
                await self._store.adopt_blob(blob.digest, directory / name)
        state.state = "done"
        return replace(
            layer,
            spans=int(result["spans"]),
            ztoc=made.get(ZTOC_NAME),
            twin=made.get(TWIN_NAME),
            frames=made.get(FRAMES_NAME),
        )

    @asynccontextmanager
    async def _spool(self) -> AsyncIterator[Path]:
        directory = Path(self._store.spool_directory) / f"index-{secrets.token_hex(8)}"
        await trio.to_thread.run_sync(partial(directory.mkdir, mode=0o700))
        try:
            yield directory
        finally:
            with trio.CancelScope(shield=True):
                remove = partial(shutil.rmtree, directory, ignore_errors=True)
                await trio.to_thread.run_sync(remove)

    async def kept(self, image: str | None = None) -> Sequence[IndexRecord]:
        """The indexes that are kept, or those of an image, the latest made first.

        Raises:
            NotFound: The image has none.
        """
        indexes = await self._store.records.indexes()
        if image is None:
            return indexes
        return _of_image(indexes, image)

    async def remove(self, image: str) -> Sequence[IndexRecord]:
        """Removes the indexes of an image, for all platforms; returns what they were.

        Raises:
            NotFound: It has none.
        """
        found = _of_image(await self._store.records.indexes(), image)
        await self._store.records.remove_indexes([index.manifest for index in found])
        await self._collect()
        return found

    async def push_referrers(self, image: str, pusher: Pusher, progress: PushProgress) -> Pushed:
        """Pushes an image's indexes as referrers of it: version 1.

        Raises:
            NotFound: It has none.
        """
        with self._holding(await self.kept(image)) as indexes:
            return await index_push.push_referrers(self._store, indexes, pusher, progress)

    async def push_image(
        self, image: str, pusher: Pusher, tag: str, progress: PushProgress
    ) -> Pushed:
        """Pushes an image as one that names its indexes: version 2.

        Raises:
            NotFound: It has none.
            Conflict: They are of different images.
        """
        with self._holding(await self.kept(image)) as indexes:
            async with self.open_source(indexes[0].origin) as source:
                await source.resolve()
                return await index_push.push_image(
                    self._store, indexes, source, pusher, tag, progress
                )

    @contextmanager
    def _holding(self, indexes: Sequence[IndexRecord]) -> Iterator[Sequence[IndexRecord]]:
        """Keeps what is being pushed, whatever is removed meanwhile."""
        things = [Thing(ThingKind.DOCUMENT, d) for index in indexes for d in index.documents]
        with self._store.pins.holding(Root(RootKind.INDEX, indexes[0].name), things):
            yield indexes

    @asynccontextmanager
    async def open_source(
        self, origin: Origin, options: PullOptions | None = None
    ) -> AsyncIterator[ImageSource]:
        """The source of an image, with the login of a request if there is one."""
        credential = options.credential if options else None
        async with open_source(
            parse_image_argument(origin.argument),
            RegistryOptions(
                plain_http=origin.plain_http,
                insecure=origin.insecure,
                ca_file=Path(origin.ca_file) if origin.ca_file else None,
            ),
            credentials=self._logins.for_pull(credential),
            registries=self.registries,
            spool_directory=self._store.spool_directory,
        ) as source:
            yield source


def _outline(descriptor: Descriptor, diff_id: DiffID, request: IndexRequest) -> LayerIndexRecord:
    """What is known of a layer before its bytes are."""
    reason = _reason_against(descriptor, request.min_layer_size)
    span_size = request.span_size or span_size_for(descriptor.size)
    return LayerIndexRecord(
        digest=descriptor.digest,
        diff_id=diff_id,
        media_type=descriptor.media_type,
        size=descriptor.size,
        span_size=0 if reason else span_size,
        reason=reason,
    )


def _reason_against(descriptor: Descriptor, min_layer_size: int) -> str:
    """Why a layer is not indexed; empty: it is."""
    if find_toc(descriptor.annotations, descriptor.size) is not None:
        return "has a table of contents of its own"
    if descriptor.size < min_layer_size:
        return "small: sooner fetched than looked up"
    return ""


def _of_image(indexes: Sequence[IndexRecord], image: str) -> Sequence[IndexRecord]:
    """The indexes of a name, or of a manifest's digest.

    Raises:
        NotFound: There are none.
    """
    name = str(parse_image_argument(image))
    found = [index for index in indexes if name == index.name or image == str(index.manifest)]
    if not found:
        raise NotFound(
            "there is no index of this image here",
            hint=f"Make one: imgvol index create {image}",
            image=image,
        )
    return sorted(found, key=lambda index: -index.created_at)


def _blob(document: dict[str, Any]) -> IndexedBlob:
    return IndexedBlob(digest=Digest.parse(document["digest"]), size=int(document["size"]))


def _check_span_size(span_size: int | None) -> None:
    smallest, largest = limits.INDEX_SMALLEST_SPAN, limits.INDEX_LARGEST_SPAN
    if span_size is not None and not smallest <= span_size <= largest:
        raise InvalidArgument(
            "spans of this size make no sense",
            hint=f"Choose between {smallest >> 10} KiB and {largest >> 20} MiB.",
            span_size=span_size,
        )


def _check_image(image: ResolvedImage) -> None:
    if image.artifact is not None:
        raise Unsupported("an artifact has no layers to index", image=image.manifest.digest)
    if len(image.diff_ids) != len(image.layers):
        raise Unsupported(
            "the image's config does not tell what its layers unpack to: nothing could be verified",
            image=image.manifest.digest,
        )
