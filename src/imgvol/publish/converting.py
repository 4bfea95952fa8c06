"""Converts images: other nodes mount the result lazily, without an index beside it.

Layers become others; so do the config, for it names their diff IDs, the manifest and the index. One
helper process per layer compresses, two at a time; the daemon only reads the store for them, and
writes the documents. Everything is made in a directory of its own, below the store's, before the
first byte goes to the target; there, the name comes last.
"""

import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import trio

from imgvol import limits
from imgvol.content.durable import translate_os_errors
from imgvol.content.reachability import Root, RootKind, Thing, ThingKind
from imgvol.content.records import ImageRecord
from imgvol.content.store import Store
from imgvol.errors import Conflict, InvalidArgument, LimitExceeded, LocalError, NotFound
from imgvol.images.pulls import PullOptions
from imgvol.images.views import Views
from imgvol.layers.lazy.locate import Format
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import Manifest, parse_manifest
from imgvol.oci.media_types import OCI_INDEX
from imgvol.publish.conversion import (
    FORMATS,
    ConversionProgress,
    ConversionReport,
    ConversionRequest,
)
from imgvol.publish.conversion_work import ConversionWork, ImageWork
from imgvol.publish.kept_blobs import KeptBlobs, open_kept_blobs
from imgvol.publish.layout_output import write_layout
from imgvol.publish.prioritizing import Priorities, assign
from imgvol.publish.pushing import Blob, Document, open_target, push_tree
from imgvol.publish.rewriting import rewrite_index
from imgvol.publish.variants import Images, Variants, find_variants
from imgvol.registry.credentials import StaticCredentials
from imgvol.registry.hosts import RegistryOptions
from imgvol.registry.registries import Registries
from imgvol.sources.parse import LayoutImage, RegistryImage, parse_image_argument
from imgvol.view.trace import Trace, parse_trace

_AT_ONCE: Final = 2
"""Layers that are compressed at once, of all conversions: each takes a processor for minutes."""


class Converter:
    """Converts images of a store. One per daemon.

    Args:
        store: Where they are.
        images: Finds and pulls them.
        views: Shows which layer a file comes from.
        registries: How registries are reached.
        find_trace: Knows the traces that are kept of images; None: there are none.
    """

    def __init__(
        self,
        store: Store,
        images: Images,
        views: Views,
        registries: Registries | None = None,
        find_trace: Callable[[str], Awaitable[Trace | None]] | None = None,
    ) -> None:
        self._store = store
        self._images = images
        self._views = views
        self._registries = registries
        self._find_trace = find_trace
        self._workers = trio.CapacityLimiter(_AT_ONCE)
        self._threads = trio.CapacityLimiter(2)
        self._layouts = trio.Lock()  # one reads and replaces the index at a time

    async def convert(
        self, request: ConversionRequest, progress: ConversionProgress
    ) -> ConversionReport:
        """Converts an image. A conversion that fails leaves nothing at the target but blobs.

        Raises:
            InvalidArgument: The target, the format or an option makes no sense.
            Conflict: There is nothing to convert.
            NotFound, Unsupported, RemoteError: See `find_variants`.
            ContentError: No layer can be converted, for each has what the format cannot tell.
            StoreFull, StoreDamaged, LocalError: It cannot be made.
            And what `push_tree` or `write_layout` raises.
        """
        target = _parse_target(request.target)
        format_ = _parse_format(request.format)
        trace = await self._read_trace(request.prefetch_from)
        variants = await find_variants(
            self._store,
            self._images,
            request.image,
            platform=request.platform,
            options=_source_options(request, target),
            progress=progress.pull,
        )
        progress.stage = "convert"
        things = [thing for image in variants.images for thing in _things(image)]
        origin = _origin(request, variants)
        with self._store.pins.holding(Root(RootKind.CONVERSION, request.image), things):
            async with self._directory() as directory, AsyncExitStack() as stack:
                kept = await self._open_kept(request, target, origin, directory, stack)
                work = ConversionWork(
                    self._store,
                    request,
                    format_,
                    directory=directory,
                    kept=kept,
                    workers=self._workers,
                    progress=progress,
                )
                images = [await self._plan(work, image, trace) for image in variants.images]
                if not work.has_jobs:
                    raise _nothing_to_do(images, request)
                await work.run()
                finished = [image.finish() for image in images]
                documents = [document for image in finished for document in image.documents]
                if variants.index is not None:
                    manifests = {
                        record.manifest: image.documents[-1].raw
                        for record, image in zip(variants.images, finished, strict=True)
                    }
                    raw = rewrite_index(variants.index.raw, manifests)
                    documents.append(_document(OCI_INDEX, raw))
                progress.stage = "write"
                blobs = [*work.blobs(), *(image.config for image in finished)]
                digest, name = await self._write(
                    target, request, blobs, documents, origin, progress
                )
        return ConversionReport(
            name=name,
            digest=digest,
            images=tuple(image.report for image in finished),
            left_out=variants.left_out,
        )

    async def _plan(
        self, work: ConversionWork, image: ImageRecord, trace: Trace | None
    ) -> ImageWork:
        raw = await self._store.read_blob(image.manifest)
        manifest = parse_manifest(raw, media_type=image.media_type, expected=image.manifest)
        assert isinstance(manifest, Manifest), "as it was when it was pulled"
        config = await self._store.read_blob(image.id)
        priorities = Priorities({}, 0, 0)
        if trace is not None:
            async with self._views.hold(image) as view:
                priorities = await trio.to_thread.run_sync(
                    assign, view.tree, trace, limiter=self._threads
                )
        return await work.add(image, manifest, config, priorities)

    async def _read_trace(self, source: str) -> Trace | None:
        """The trace of a file, or of an image; None: none is asked for."""
        if source.startswith("/"):
            read = partial(_read_file, source)
            return parse_trace(await trio.to_thread.run_sync(read, limiter=self._threads))
        if not source:
            return None
        trace = await self._find_trace(source) if self._find_trace is not None else None
        if trace is None:
            raise NotFound(
                "no trace is kept of this image",
                hint="Record one, or name a file: imgvol trace record IMAGE -- COMMAND",
                image=source,
            )
        return trace

    @asynccontextmanager
    async def _directory(self) -> AsyncIterator[Path]:
        """A directory for what is made, as long as it takes."""

        def make() -> Path:
            with translate_os_errors("convert an image"):
                return Path(tempfile.mkdtemp(prefix="convert-", dir=self._store.spool_directory))

        directory = await trio.to_thread.run_sync(make, limiter=self._threads)
        try:
            yield directory
        finally:
            with trio.CancelScope(shield=True):
                remove = partial(shutil.rmtree, directory, ignore_errors=True)
                await trio.to_thread.run_sync(remove, limiter=self._threads)

    async def _open_kept(
        self,
        request: ConversionRequest,
        target: RegistryImage | LayoutImage,
        origin: RegistryImage | None,
        directory: Path,
        stack: AsyncExitStack,
    ) -> KeptBlobs | None:
        """Where layers are that need no conversion; None: nowhere."""
        if origin is None:
            return None
        options = _source_options(request, target)
        credentials = StaticCredentials(options.credential) if options.credential else None
        opening = open_kept_blobs(
            origin, directory, _registry_options(options), credentials, self._registries
        )
        return await stack.enter_async_context(opening)

    async def _write(
        self,
        target: RegistryImage | LayoutImage,
        request: ConversionRequest,
        blobs: Sequence[Blob],
        documents: Sequence[Document],
        origin: RegistryImage | None,
        progress: ConversionProgress,
    ) -> tuple[Digest, str]:
        """All of it to the target; returns the top document's digest, and what it is called."""
        if isinstance(target, LayoutImage):
            write = partial(write_layout, Path(target.path), blobs, documents, target.tag)
            async with self._layouts:
                digest = await trio.to_thread.run_sync(write, limiter=self._threads)
            return digest, str(target)
        reference, options = target.reference, request.options
        async with open_target(
            reference, _registry_options(options), options.credential, registries=self._registries
        ) as pusher:
            mount_from = None if origin is None else pusher.mount_source(origin.reference)
            mountable = [Blob(one.descriptor, one.open_body, mount_from) for one in blobs]
            pushed = await push_tree(pusher, mountable, documents, reference.tag, progress.push)
        return pushed.digest, pushed.name


def _read_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            raw = file.read(limits.TRACE_SIZE + 1)
    except FileNotFoundError as exc:
        raise NotFound("there is no such trace", path=path) from exc
    except OSError as exc:
        raise LocalError(f"cannot read the trace: {exc.strerror}", path=path) from exc
    if len(raw) > limits.TRACE_SIZE:
        raise LimitExceeded("trace too large", limit="TRACE_SIZE", allowed=limits.TRACE_SIZE)
    return raw


def _parse_target(text: str) -> RegistryImage | LayoutImage:
    target = parse_image_argument(text)
    if not isinstance(target, RegistryImage | LayoutImage):
        raise InvalidArgument(
            "an image cannot be converted into an archive",
            hint="Name a registry's repository, or oci:DIR[:TAG].",
            target=text,
        )
    digest = target.reference.digest if isinstance(target, RegistryImage) else target.digest
    if digest is not None:
        raise InvalidArgument(
            "the target cannot be a digest: it is not known before",
            hint="Give it a tag.",
            target=text,
        )
    if isinstance(target, LayoutImage) and not target.path.startswith("/"):
        raise InvalidArgument("the layout's path must be absolute", target=text)
    return target


def _parse_format(text: str) -> Format:
    found = FORMATS.get(text)
    if found is None:
        raise InvalidArgument(
            "no such format", hint=f"There are {' and '.join(FORMATS)}.", format=text
        )
    return found


def _source_options(request: ConversionRequest, target: RegistryImage | LayoutImage) -> PullOptions:
    """How the image's own registry is reached: as the target's, if it is the same one."""
    try:
        source = parse_image_argument(request.image)
    except InvalidArgument:  # an ID
        return PullOptions()
    if isinstance(target, LayoutImage):
        return request.options
    if isinstance(source, RegistryImage) and source.reference.domain == target.reference.domain:
        return request.options
    return PullOptions()


def _registry_options(options: PullOptions) -> RegistryOptions:
    return RegistryOptions(
        plain_http=options.plain_http,
        insecure=options.insecure,
        ca_file=Path(options.ca_file) if options.ca_file else None,
    )


def _origin(request: ConversionRequest, variants: Variants) -> RegistryImage | None:
    """The registry's image that blobs can be had from; None: there is none."""
    for text in (request.image, *(name for image in variants.images for name in image.names)):
        try:
            source = parse_image_argument(text)
        except InvalidArgument:
            continue
        if isinstance(source, RegistryImage) and _is_named(source, variants):
            return source
    return None


def _is_named(source: RegistryImage, variants: Variants) -> bool:
    return any(str(source) in image.names for image in variants.images)


def _things(image: ImageRecord) -> list[Thing]:
    layers = [Thing(ThingKind.LAYER, layer.digest) for layer in image.layers]
    return [*layers, Thing(ThingKind.IMAGE, image.manifest)]


def _document(media_type: str, raw: bytes) -> Document:
    return Document(Descriptor(media_type=media_type, digest=Digest.of(raw), size=len(raw)), raw)


def _nothing_to_do(images: Sequence[ImageWork], request: ConversionRequest) -> Conflict:
    if not any(image.layers for image in images):
        return Conflict("the image has no layers to convert", image=request.image)
    return Conflict(
        "there is nothing to convert: the layers are what they should become",
        hint="With --prefetch-from they are written anew, in another order.",
        image=request.image,
        format=request.format,
    )
