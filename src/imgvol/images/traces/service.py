"""Traces of images: recorded, kept, shown, and followed when an image is mounted."""

import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field

import trio

from imgvol import limits
from imgvol.config import TraceConfig
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.content.reachability import Root, RootKind, Thing, ThingKind
from imgvol.content.records import ImageRecord, TraceRecord
from imgvol.content.records.traces import FOUND, RECORDED, repository_of
from imgvol.content.store import Store
from imgvol.errors import Conflict, ImgvolError, LimitExceeded, NotFound
from imgvol.images.fetch.engine import FetchEngine
from imgvol.images.fetch.layer import LayerFetcher
from imgvol.images.open_view import OpenView
from imgvol.images.traces.foreign import find_trace
from imgvol.images.traces.naming import Wanted, match, name_files
from imgvol.images.traces.recording import Recording, Recordings
from imgvol.images.traces.run import RunState, TraceRun, TraceUse
from imgvol.images.views import Views
from imgvol.oci.digest import Digest
from imgvol.view.trace import Trace, parse_trace

log = logging.getLogger(__name__)

# Recordings at once: each makes the reads of its view slower.
_RECORDINGS = 16


@dataclass(slots=True)
class RecordingProgress:
    """How far a recording is.

    Attributes:
        recording: Its ID.
        is_recording: Whether reads are being noted.
        files: Opened so far.
        read_bytes: Read of them.
        seconds: Since it began.
        dropped: Files and ranges that were too many to note.
    """

    recording: str = field(default_factory=lambda: secrets.token_hex(6))
    is_recording: bool = False
    files: int = 0
    read_bytes: int = 0
    seconds: float = 0.0
    dropped: int = 0

    def take(self, recording: Recording) -> None:
        """Becomes what a recording is at this moment."""
        self.files = len(recording.files)
        self.read_bytes = recording.read_bytes
        self.seconds = recording.seconds
        self.dropped = recording.dropped


@dataclass(eq=False, slots=True)
class Traces:
    """The traces of one daemon; used on the event loop. Made by `open_traces`.

    Args:
        nursery: Where runs live.
        config: What the operator wants.
        fetcher: What brings the spans of a lazy layer.
    """

    store: Store
    views: Views
    engine: FetchEngine
    nursery: trio.Nursery
    config: TraceConfig
    fetcher: Callable[[LazyLayerStore], LayerFetcher | None]
    _recordings: Recordings = field(default_factory=Recordings)
    # What ends each recording, by its ID.
    _ends: dict[str, trio.Event] = field(default_factory=dict)

    # --- recording ------------------------------------------------------------------------------

    async def record(
        self,
        image: ImageRecord,
        view: OpenView,
        *,
        progress: RecordingProgress,
        seconds: float = limits.TRACE_SECONDS,
    ) -> TraceRecord:
        """Records what is read of an open view, and keeps it as the image's trace.

        Args:
            image: What the view shows.
            view: Open now; it stays so until the end.
            progress: Kept up to date; it says what `finish` takes.
            seconds: How long at most.

        Raises:
            Conflict: Too much is recorded already, or nothing was read.
            LimitExceeded: There are too many paths, or they are too long.
            StoreFull: No room for the trace.
        """
        if len(self._recordings) >= _RECORDINGS:
            raise Conflict("too many recordings at once", limit=_RECORDINGS)
        recording = Recording(view.tree, view.slot, view.layers)
        view = await self.views.acquire(image, view.id)
        try:
            await self._note(recording, view, progress, seconds)
            files = await name_files(recording.files, view.tree)
        finally:
            self.views.release(view)
        if not files:
            raise Conflict(
                "nothing was read: there is no trace",
                hint="Large files that were open before are not seen: start the program anew.",
            )
        if recording.dropped:
            log.warning("a trace leaves out %d reads: there were too many", recording.dropped)
        trace = Trace(
            image=image.manifest,
            platform=image.platform,
            name=_name_of(image) if _is_plain(_name_of(image)) else "",
            seconds=round(min(recording.seconds, limits.TRACE_SECONDS), 3),
            files=files,
        )
        return await self.add(image, trace, RECORDED)

    async def _note(
        self,
        recording: Recording,
        view: OpenView,
        progress: RecordingProgress,
        seconds: float,
    ) -> None:
        ended = self._ends[progress.recording] = trio.Event()
        self._recordings.add(recording)
        self.views.recordings = self._recordings
        try:
            # The kernel is to read less ahead from now on.
            await self.views.on_opened()
            for forget in tuple(self.views.on_recorded):
                await forget(view)
            progress.is_recording = True
            with trio.move_on_after(seconds):
                while not ended.is_set():
                    with trio.move_on_after(limits.TRACE_PROGRESS):
                        await ended.wait()
                    progress.take(recording)
        finally:
            del self._ends[progress.recording]
            self._recordings.remove(recording)
            if not self._recordings:
                self.views.recordings = None
        progress.take(recording)

    def finish(self, recording: str) -> None:
        """Ends a recording, which is then kept.

        Raises:
            NotFound: There is no such recording.
        """
        ended = self._ends.get(recording)
        if ended is None:
            raise NotFound("no such recording", recording=recording)
        ended.set()

    async def add(
        self, image: ImageRecord, trace: Trace, source: str, document: bytes | None = None
    ) -> TraceRecord:
        """Keeps a trace of an image, instead of the one that it had."""
        if document is None:
            document = await trio.to_thread.run_sync(trace.to_bytes)
            if len(document) > limits.TRACE_SIZE:
                raise LimitExceeded(
                    "the trace is too large", limit="TRACE_SIZE", allowed=limits.TRACE_SIZE
                )
        digest = Digest.of(document)
        record = TraceRecord(
            manifest=image.manifest,
            document=digest,
            platform=image.platform,
            repository=repository_of(_name_of(image)),
            name=_name_of(image),
            source=source,
            files=len(trace.files),
            read_bytes=trace.read_bytes,
            seconds=trace.seconds,
            recorded_at=time.time(),
        )
        root = Root(RootKind.TRACE, f"of {image.manifest}")
        with self.store.pins.holding(root, {Thing(ThingKind.DOCUMENT, digest)}):
            async with self.store.naming:
                await self.store.put_blob(digest, document)
                await self.store.records.put_trace(record)
        return record

    # --- what there is --------------------------------------------------------------------------

    async def list(self) -> Sequence[TraceRecord]:
        """All traces, the latest first."""
        return await self.store.records.traces()

    async def find(self, image: ImageRecord) -> TraceRecord:
        """The trace that a mount of an image follows.

        Raises:
            NotFound: There is none.
        """
        record = await self.store.records.trace_for(
            image.manifest, image.platform, sorted(_repositories(image))
        )
        if record is None:
            raise NotFound(
                "the image has no trace",
                hint="Record one: imgvol trace record IMAGE -- COMMAND",
                image=_name_of(image) or str(image.id),
            )
        return record

    async def document(self, record: TraceRecord) -> bytes:
        """A trace's document.

        Raises:
            NotFound: It has gone.
            StoreDamaged: It has changed.
        """
        return await self.store.read_blob(record.document)

    async def remove(self, image: ImageRecord) -> TraceRecord:
        """Forgets the trace that mounts of an image follow.

        Raises:
            NotFound: There is none.
        """
        record = await self.find(image)
        await self.store.records.remove_trace(record.manifest)
        return record

    # --- following ------------------------------------------------------------------------------

    def begin(self, view: OpenView, image: ImageRecord) -> None:
        """A view has been mounted: what its trace names is brought, if it is missing."""
        is_running = view.trace is not None and view.trace.state is RunState.RUNNING
        if self.config.follows and _lazy_layers(view) and not is_running:
            self.nursery.start_soon(self._follow, view, image)

    async def _follow(self, view: OpenView, image: ImageRecord) -> None:
        try:
            found = await self._trace_of(view, image)
            if found is not None:
                run = await self._plan(view, *found)
                view.trace = run.use
                with ExitStack() as following:
                    for fetcher in run.fetchers.values():
                        following.enter_context(fetcher.following_trace())
                    await run.run()
        except ImgvolError as exc:
            log.info("no trace is used for %s: %s", _name_of(image) or image.id, exc)
        except Exception:  # in the daemon's nursery it would end every view
            log.exception("a trace is not used: a defect")

    async def _trace_of(
        self, view: OpenView, image: ImageRecord
    ) -> tuple[Trace, TraceRecord] | None:
        record = await self.store.records.trace_for(
            image.manifest, image.platform, sorted(_repositories(image))
        )
        if record is not None:
            document = await self.document(record)
            return await trio.to_thread.run_sync(parse_trace, document), record
        if not self.config.referrers:
            return None
        return await self._search(view, image)

    async def _search(self, view: OpenView, image: ImageRecord) -> tuple[Trace, TraceRecord] | None:
        """The trace in the image's registry, which is kept from then on."""
        for layer in _lazy_layers(view):
            origin = await self.store.records.origin(layer.digest)
            if origin is None:
                continue
            with trio.move_on_after(limits.TRACE_SEARCH):
                async with self.engine.sources.use(origin) as source:
                    trace, document = await find_trace(source, image.manifest)
                return trace, await self.add(image, trace, FOUND, document)
            return None
        return None

    async def _plan(self, view: OpenView, trace: Trace, record: TraceRecord) -> TraceRun:
        wanted, matched = await match(trace, view.tree)
        use = TraceUse(
            image=record.manifest, source=record.source, traced=record.files, matched=matched
        )
        queue, fetchers = await self._queue(view, wanted, use)
        return TraceRun(
            queue=queue,
            fetchers=fetchers,
            use=use,
            most=limits.TRACE_FOREIGN_BYTES if record.source == FOUND else float("inf"),
            is_wanted=lambda: bool(view.patience),
        )

    async def _queue(
        self, view: OpenView, wanted: Sequence[Wanted], use: TraceUse
    ) -> tuple[deque[tuple[LazyLayerStore, int]], dict[LazyLayerStore, LayerFetcher]]:
        queue: deque[tuple[LazyLayerStore, int]] = deque()
        fetchers: dict[LazyLayerStore, LayerFetcher] = {}
        seen: set[tuple[LazyLayerStore, int]] = set()
        for number, part in enumerate(wanted):
            if number % limits.TRACE_STEP == 0:
                await trio.lowlevel.checkpoint()
            layer = view.layers[part.key.position]
            if not isinstance(layer, LazyLayerStore) or layer.is_complete:
                continue
            fetcher = fetchers.get(layer) or self.fetcher(layer)
            if fetcher is None:
                continue
            fetchers[layer] = fetcher
            for span in layer.missing(layer.spans_of(part.key.node, part.offset, part.size)):
                if (layer, span) not in seen:
                    seen.add((layer, span))
                    queue.append((layer, span))
                    start, end = layer.table.compressed_range(span)
                    use.planned += end - start
        return queue, fetchers


def _lazy_layers(view: OpenView) -> list[LazyLayerStore]:
    """Layers of which something may be missing, the top one first."""
    return [
        layer
        for layer in reversed(view.layers)
        if isinstance(layer, LazyLayerStore) and not layer.is_complete and layer.failure is None
    ]


def _name_of(image: ImageRecord) -> str:
    """What an image is called; a name of a registry rather than another."""
    return next((name for name in image.names if repository_of(name)), next(iter(image.names), ""))


def _is_plain(name: str) -> bool:
    """Whether a name can stand in a trace: files may be called anything."""
    return name.isascii() and name.isprintable() and len(name) <= limits.REFERENCE_LENGTH


def _repositories(image: ImageRecord) -> set[str]:
    return {repository_of(name) for name in image.names} - {""}


@asynccontextmanager
async def open_traces(
    store: Store,
    views: Views,
    engine: FetchEngine,
    config: TraceConfig,
    fetcher: Callable[[LazyLayerStore], LayerFetcher | None],
) -> AsyncIterator[Traces]:
    """The traces of one daemon inside the block; leaving it gives up what is being followed."""
    async with trio.open_nursery() as nursery:
        traces = Traces(store, views, engine, nursery, config, fetcher)
        views.on_mounted = traces.begin
        yield traces
        views.on_mounted = lambda _view, _image: None
        nursery.cancel_scope.cancel()
