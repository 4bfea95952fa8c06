"""Brings what a trace names, for one view, in the trace's order and ahead of its readers.

Theory of operation. The spans that the trace wants, and that are missing, stand in one queue over
all layers of the view. The next of them, up to a horizon of some time of the line, are put together
into windows: neighbours in the blob, with what lies between them if that is little; the window that
is wanted first goes first. Several windows are in the air at once, so that the line does not stand
still for a round trip, and each is small, so that a reader who wants something else does not wait
behind it for long. Nobody ends them for a reader's sake: what they bring, that reader wants next.

All of it has PREFETCH rank: where flights queue for a place, readers come first. Other work in the
background waits until the run has ended.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import trio

from imgvol import limits
from imgvol.content.lazy_layer import LazyLayerStore
from imgvol.errors import ContentError, ImgvolError, RemoteError
from imgvol.images.fetch.layer import LayerFetcher
from imgvol.oci.digest import Digest

log = logging.getLogger(__name__)


class RunState(StrEnum):
    """How far a run is."""

    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"


@dataclass(slots=True, kw_only=True)
class TraceUse:
    """What a trace has done for a view.

    Attributes:
        image: The manifest of the image that was traced.
        source: Where the trace comes from; see `TraceRecord`.
        traced: Files in the trace.
        matched: Those of them that the view has.
        planned: Bytes of the blobs that were missing and are to be brought.
        launched: Bytes that were asked for, with what lies between.
        state: How far it is.
    """

    image: Digest
    source: str
    traced: int
    matched: int
    planned: int = 0
    launched: int = 0
    state: RunState = RunState.RUNNING


@dataclass(frozen=True, slots=True)
class Window:
    """Neighbouring spans of a layer that are fetched at once.

    Attributes:
        rank: The place in the queue of the first that is wanted.
        spans: In the order of the blob.
    """

    rank: int
    layer: LazyLayerStore
    spans: tuple[int, ...]


@dataclass(eq=False, slots=True)
class TraceRun:
    """One run.

    Args:
        queue: Layers and spans, each once, in the order in which they will be wanted.
        fetchers: Of the layers.
        use: What to tell of it.
        most: Bytes that may be asked for.
        is_wanted: Whether the view is still shown.
    """

    queue: deque[tuple[LazyLayerStore, int]]
    fetchers: dict[LazyLayerStore, LayerFetcher]
    use: TraceUse
    most: float
    is_wanted: Callable[[], bool]
    _is_cut: bool = False
    _in_air: int = 0
    _failures: int = 0
    _landed: trio.Event = field(default_factory=trio.Event)

    async def run(self) -> None:
        """Brings everything, or gives up; raises nothing but what ends the daemon."""
        state = RunState.STOPPED
        try:
            async with trio.open_nursery() as nursery:
                while self.queue and self.is_wanted() and not self._has_failed:
                    await self._launch_next(nursery)
                    await trio.lowlevel.checkpoint()
            if not (self.queue or self._is_cut or self._has_failed):
                state = RunState.DONE
        finally:
            self.use.state = state

    async def _launch_next(self, nursery: trio.Nursery) -> None:
        for window in self._next_windows():
            await self._wait_for_turn(self.fetchers[window.layer])
            has_room = await self._wait_for_room(window)
            if self.use.launched >= self.most or self._has_failed or not has_room:
                self._is_cut = True
                self.queue.clear()
                return
            self._in_air += 1
            nursery.start_soon(self._bring, window)

    @property
    def _has_failed(self) -> bool:
        return self._failures >= limits.TRACE_FAILURES

    async def _wait_for_room(self, window: Window) -> bool:
        """Whether the store has room for it; readers' own guesses rest no longer than this."""
        fetcher = self.fetchers[window.layer]
        with trio.move_on_after(limits.TRACE_ROOM) as waiting:
            await fetcher.wait_room(fetcher.size(window.spans))
        return not waiting.cancelled_caught

    async def _wait_for_turn(self, fetcher: LayerFetcher) -> None:
        while self._in_air >= fetcher.line.depth(fetcher.line.window):
            self._landed = trio.Event()
            await self._landed.wait()

    async def _bring(self, window: Window) -> None:
        fetcher = self.fetchers[window.layer]
        try:
            # Readers may have asked for some of it meanwhile.
            missing = fetcher.unclaimed(window.spans)
            for part in split(window.layer, missing, gap=_gap(fetcher), most=fetcher.line.window):
                self.use.launched += fetcher.size(part)
                await fetcher.bring_traced(part)
        except RemoteError:
            # Told by the fetcher. Readers try on their own; we do when they succeed.
            self._failures += 1
            await fetcher.wait_recovered(limits.FETCH_FAILURE_REST)
        except ContentError as exc:
            log.warning("what a trace names is not brought: %s", exc)
            self._failures = limits.TRACE_FAILURES
        except ImgvolError as exc:
            log.warning("what a trace names is not brought: %s", exc)
            self._failures += 1
        finally:
            self._in_air -= 1
            self._landed.set()

    def _next_windows(self) -> list[Window]:
        """Takes what comes next from the queue, as windows in the order of urgency."""
        taken: dict[LazyLayerStore, list[tuple[int, int]]] = {}
        size, rank = 0, 0
        while self.queue:
            layer, span = self.queue[0]
            line = self.fetchers[layer].line
            if size >= max(limits.TRACE_HORIZON, line.bandwidth * limits.TRACE_HORIZON_SECONDS):
                break
            self.queue.popleft()
            # Nothing is left to fetch of a layer that has been completed meanwhile.
            if not layer.is_complete and self.fetchers[layer].unclaimed([span]):
                start, end = layer.table.compressed_range(span)
                size += end - start
                taken.setdefault(layer, []).append((span, rank))
                rank += 1
        windows = [
            window for layer, spans in taken.items() for window in self._windows(layer, spans)
        ]
        return sorted(windows, key=lambda window: window.rank)

    def _windows(
        self, layer: LazyLayerStore, wanted: Sequence[tuple[int, int]]
    ) -> Iterator[Window]:
        ranks = dict(wanted)
        fetcher = self.fetchers[layer]
        for part in split(layer, sorted(ranks), gap=_gap(fetcher), most=fetcher.line.window):
            yield Window(min(ranks[span] for span in part), layer, tuple(part))


def _gap(fetcher: LayerFetcher) -> int:
    """Bytes that are brought along rather than ask once more."""
    return min(limits.FETCH_GAP, fetcher.line.worthwhile // 2)


def split(
    layer: LazyLayerStore, spans: Sequence[int], *, gap: int, most: int
) -> Iterator[list[int]]:
    """Spans in the order of the blob, neighbours together.

    Args:
        layer: Whose.
        spans: Ascending.
        gap: Bytes between neighbours.
        most: Bytes of one part, unless one span has more.
    """
    part: list[int] = []
    start = reached = 0
    for span in spans:
        first, end = layer.table.compressed_range(span)
        if part and (first - reached > gap or end - start > most):
            yield part
            part = []
        if not part:
            start = first
        part.append(span)
        reached = end
    if part:
        yield part
