"""Prometheus' text format of what the daemon's components have counted. docs/metrics.md has all.

The components keep plain numbers (`imgvol.tallies`) and know nothing of Prometheus; this module
turns one moment's statistics into metrics, from a registry of its own, made for each scrape. It is
given everything: it asks nobody, so it answers while the filesystem, the network or the disk does
not.

Labels have few values, all of which are known here or are names of handlers: never an image, a
digest, a path or a registry.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from imgvol.api.services import DaemonInfo, Statistics
from imgvol.images.fetch.flight import Landing, Purpose
from imgvol.tallies import Distribution, QueueLength, Result

# The newest one lets names be any UTF-8; this one every scraper reads.
MEDIA_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

Sample = tuple[tuple[str, ...], float]


def render(info: DaemonInfo, statistics: Statistics) -> bytes:
    """All metrics, as text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Moment(info, statistics))
    return generate_latest(registry)


class _Moment(Collector):
    """The metrics of one moment."""

    def __init__(self, info: DaemonInfo, statistics: Statistics) -> None:
        self._info = info
        self._statistics = statistics

    def collect(self) -> Iterable[Metric]:
        yield from _daemon(self._info)
        for part in _PARTS:
            yield from part(self._statistics)


def _daemon(info: DaemonInfo) -> Iterator[Metric]:
    yield _gauge("build_info", "Always 1.", ("version",), [((info.version,), 1)])
    yield _gauge("start_time_seconds", "When the daemon started.", (), [((), info.started_at)])


def _failing(statistics: Statistics) -> Iterator[Metric]:
    views = statistics.views
    states = {
        "filesystem": not statistics.is_serving,
        "layers": views.bad > 0,
        "registry": views.waiting > 0,
        "store": views.unsafe > 0,
    }
    yield _gauge(
        "failing",
        "1 while something is wrong that somebody should look at.",
        ("component",),
        [((component,), is_failing) for component, is_failing in states.items()],
    )


def _requests(statistics: Statistics) -> Iterator[Metric]:
    operations = statistics.requests.operations
    yield _counter(
        "filesystem_requests",
        "Requests of the kernel that have been answered.",
        ("operation", "result"),
        [
            ((counts.operation, result.name.lower()), counts.results[result])
            for counts in operations
            for result in Result
            if counts.results[result] or result is Result.OK
        ],
    )
    yield _gauge(
        "filesystem_requests_in_progress",
        "Requests of the kernel that have not been answered yet.",
        ("operation",),
        [((counts.operation,), counts.in_progress) for counts in operations],
    )
    yield _histogram(
        "filesystem_request_seconds",
        "How long the daemon took to answer.",
        ("operation",),
        [((counts.operation,), counts.seconds) for counts in operations],
    )
    yield _counter(
        "filesystem_read_bytes",
        "Bytes served in answers to reads; pages that the kernel keeps are not asked for again.",
        (),
        [((), statistics.requests.bytes_read)],
    )
    yield _counter(
        "filesystem_passed_opens",
        "Files opened that the kernel reads in the store itself; what is read so is not counted.",
        (),
        [((), statistics.requests.passed_opens)],
    )
    yield _gauge(
        "filesystem_backing_files",
        "Files of the store that the kernel holds for that.",
        (),
        [((), statistics.requests.backing_files)],
    )


def _demand(statistics: Statistics) -> Iterator[Metric]:
    fetching = statistics.fetching
    yield _histogram(
        "on_demand_read_seconds",
        "How long reads waited for bytes that had to be fetched, however that ended.",
        (),
        [((), fetching.demand.seconds)],
    )
    yield _counter(
        "on_demand_read_bytes",
        "Bytes that such reads returned.",
        (),
        [((), fetching.demand_bytes)],
    )
    yield _gauge(
        "on_demand_reads_waiting",
        "Reads that wait for a fetch now.",
        (),
        [((), fetching.demand.waiting)],
    )
    yield _gauge(
        "on_demand_oldest_wait_seconds",
        "For how long the first of them has waited; 0 if there is none.",
        (),
        [((), fetching.demand.oldest)],
    )


def _fetches(statistics: Statistics) -> Iterator[Metric]:
    fetching = statistics.fetching
    yield _counter(
        "fetches",
        "Ranges of lazy layers' blobs that were asked for.",
        ("purpose", "result"),
        [
            ((purpose.value, landing.value), fetching.flights.get((purpose, landing), 0))
            for purpose in Purpose
            for landing in Landing
        ],
    )
    yield _counter(
        "fetched_bytes",
        "Bytes that they brought, as the registry stores them.",
        ("purpose",),
        [((purpose.value,), fetching.fetched.get(purpose, 0)) for purpose in Purpose],
    )
    yield _counter(
        "needed_bytes",
        "Bytes of the spans that readers were waiting for, as the registry stores them.",
        (),
        [((), fetching.needed)],
    )
    yield _histogram(
        "fetch_seconds",
        "How long ranges took from being asked for to being verified and stored.",
        (),
        [((), fetching.seconds)],
    )
    yield _gauge(
        "sources_open", "Sources of lazy layers that are open.", (), [((), fetching.sources)]
    )


def _copies(statistics: Statistics) -> Iterator[Metric]:
    copies, pulls = statistics.fetching.copies, statistics.pulls
    yield _counter(
        "copied_spans",
        "Spans of lazy layers that were copied from other layers instead of fetched.",
        (),
        [((), copies.spans)],
    )
    yield _counter(
        "copied_bytes", "Their bytes, as the registry stores them.", (), [((), copies.size)]
    )
    yield _counter(
        "cloned_bytes",
        "Bytes of their content that share blocks with other layers.",
        (),
        [((), copies.cloned)],
    )
    yield _counter(
        "copies_refused",
        "Pieces that were to be copied and had other bytes.",
        ("reason",),
        [(("unlike",), copies.unlike), (("damaged",), copies.damaged)],
    )
    yield _counter(
        "shared_layers",
        "Layers that were not fetched: they were here under another blob's digest.",
        (),
        [((), pulls.shared_layers)],
    )
    yield _counter("shared_bytes", "Bytes of their blobs.", (), [((), pulls.shared_bytes)])


def _pulls(statistics: Statistics) -> Iterator[Metric]:
    pulls = statistics.pulls
    results = {"ok": pulls.succeeded, "failed": pulls.failed, "cancelled": pulls.cancelled}
    yield _counter(
        "pulls",
        "Pulls of images that have ended.",
        ("result",),
        [((result,), count) for result, count in results.items()],
    )
    yield _histogram(
        "pull_seconds", "How long those took that succeeded.", (), [((), pulls.seconds)]
    )
    yield _counter(
        "pull_received_bytes", "Bytes of layers that pulls received.", (), [((), pulls.received)]
    )
    yield _counter(
        "pull_unpacked_bytes", "Bytes of uncompressed layers.", (), [((), pulls.unpacked)]
    )
    yield _gauge("pulls_in_progress", "Pulls that have not ended.", (), [((), pulls.under_way)])


def _layers(statistics: Statistics) -> Iterator[Metric]:
    views, lazy = statistics.views, statistics.lazy
    states = {
        "complete": views.complete,
        "here": views.settled,
        "lazy": views.lazy,
        "bad": views.bad,
    }
    yield _gauge(
        "layers",
        "Layers of open views.",
        ("state",),
        [((state,), count) for state, count in states.items()],
    )
    yield _gauge(
        "missing_bytes",
        "Bytes of lazy layers of open views that are not here yet, as the registry stores them.",
        (),
        [((), views.missing)],
    )
    yield _counter(
        "layers_verified",
        "Lazy layers that were completed in the background.",
        ("result",),
        [(("ok",), lazy.verified), (("bad",), lazy.bad)],
    )


def _views(statistics: Statistics) -> Iterator[Metric]:
    views = statistics.views
    states = {
        "published": views.published,
        "looked_into": views.looked_into,
        "lingering": views.lingering,
    }
    yield _gauge(
        "views",
        "Views that are open.",
        ("state",),
        [((state,), count) for state, count in states.items()],
    )
    yield _gauge("volumes", "Volumes.", (), [((), statistics.volumes)])


def _queues(statistics: Statistics) -> Iterator[Metric]:
    queues: dict[str, QueueLength] = {
        "fetch": statistics.fetching.queue,
        "pull": statistics.pulls.layers,
        "verify": statistics.lazy.completing,
        "disk": statistics.disk,
    }
    yield _gauge(
        "queue_running",
        "Pieces of work that are being done.",
        ("queue",),
        [((name,), queue.running) for name, queue in queues.items()],
    )
    yield _gauge(
        "queue_waiting",
        "Pieces of work that wait for their turn.",
        ("queue",),
        [((name,), queue.waiting) for name, queue in queues.items()],
    )


def _space(statistics: Statistics) -> Iterator[Metric]:
    space = statistics.space
    level = space.level
    yield _gauge(
        "store_used_bytes", "What the store takes, as it was counted last.", (), [((), level.used)]
    )
    lines = {"low": level.low, "high": level.high, "hard": level.hard}
    yield _gauge(
        "store_limit_bytes",
        "Where eviction ends and begins, and where nothing is written any more; none: no limit.",
        ("line",),
        [((line,), at) for line, at in lines.items() if at is not None],
    )
    yield _counter(
        "store_above_high_seconds",
        "How long the store was above its high watermark.",
        (),
        [((), level.seconds_above)],
    )
    yield _counter("evictions", "Rounds that freed something.", (), [((), space.rounds)])
    yield _counter(
        "evicted_bytes",
        "Bytes evicted: of whole layers, and of parts of lazy ones that are mounted.",
        ("what",),
        [(("layers",), space.evicted), (("spans",), space.given_back)],
    )
    yield _counter("evicted_images", "Images that lost layers.", (), [((), space.images)])
    yield _counter("spans_given_back", "Spans of mounted layers.", (), [((), space.spans)])


def _cri(statistics: Statistics) -> Iterator[Metric]:
    methods = statistics.cri.methods
    yield _counter(
        "cri_calls",
        "Calls of the Container Runtime Interface that have ended.",
        ("method", "code"),
        [((counts.method, code), ended) for counts in methods for code, ended in counts.codes],
    )
    yield _histogram(
        "cri_call_seconds",
        "How long they took.",
        ("method",),
        [((counts.method,), counts.seconds) for counts in methods],
    )
    yield _gauge(
        "cri_calls_in_progress",
        "Calls that have not ended.",
        ("method",),
        [((counts.method,), counts.in_progress) for counts in methods],
    )


def _loop(statistics: Statistics) -> Iterator[Metric]:
    yield _histogram(
        "loop_blocked_seconds",
        "How long the event loop did not turn, each time that was too long and has ended.",
        (),
        [((), statistics.loop_blocked)],
    )


def _supervision(statistics: Statistics) -> Iterator[Metric]:
    yield _counter(
        "worker_restarts",
        "How often the supervisor had to start another worker.",
        (),
        [((), statistics.worker_restarts)],
    )


_PARTS: Final[tuple[Callable[[Statistics], Iterator[Metric]], ...]] = (
    _failing,
    _requests,
    _demand,
    _fetches,
    _copies,
    _pulls,
    _layers,
    _views,
    _queues,
    _space,
    _cri,
    _loop,
    _supervision,
)


def _gauge(name: str, text: str, labels: tuple[str, ...], samples: Iterable[Sample]) -> Metric:
    family = GaugeMetricFamily(f"imgvol_{name}", text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _counter(name: str, text: str, labels: tuple[str, ...], samples: Iterable[Sample]) -> Metric:
    family = CounterMetricFamily(f"imgvol_{name}", text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _histogram(
    name: str,
    text: str,
    labels: tuple[str, ...],
    samples: Iterable[tuple[tuple[str, ...], Distribution]],
) -> Metric:
    family = HistogramMetricFamily(f"imgvol_{name}", text, labels=labels)
    for values, distribution in samples:
        buckets, below = [], 0
        bounds = [*map(repr, distribution.bounds), "+Inf"]
        for bound, count in zip(bounds, distribution.counts, strict=True):
            below += count
            buckets.append((bound, float(below)))
        family.add_metric(values, buckets, distribution.total)
    return family
