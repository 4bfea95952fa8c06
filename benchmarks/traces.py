"""Mounts that follow a trace against mounts that do not: how soon work is done, at which cost.

The image and the lines are those of `lazy`. The trace is recorded once over an open line; then the
image is removed, and mounted again over the line that is measured. Another tag of the repository
keeps the trace meanwhile. WORK: from the begin of `imgvol mount` until `import numpy` has run out
of the view; FETCHED: what had crossed the line by then; NEEDED: the spans that were read;
ASKED: ranges.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lazy import LINES, WORK, Line, _needed, make_images, work_directory, work_in

from support.daemon import Imgvol, running_daemon
from support.images import Image, Layer, directory, push, write_layout
from support.proxy import Proxy, running_proxy
from support.registry import Registry

FORMATS = ("soci", "estargz", "estargz-256k", "zstd:chunked")
RUNS = 3


@dataclass(frozen=True)
class Figures:
    """Of one mount."""

    mount: float
    work: float
    fetched: int
    needed: int
    asked: int


def bench_traces(
    registry: Registry, work: Path, lines: Sequence[str] = (), formats: Sequence[str] = ()
) -> None:
    """Prints one table.

    Args:
        registry: Where the images go.
        work: A directory.
        lines: Names of the lines to measure; none: 3 MB/s and 50 ms.
        formats: Which; none: all.
    """
    references = make_images(registry, work)
    tiny = Image([Layer([directory("tiny")])])
    push(write_layout(work / "tiny", {"x": tiny}), "x", registry.reference("lazy:tiny"))
    print(
        f"{'LINE':<10}{'FORMAT':<14}{'TRACE':<7}{'MOUNT':>8}{'WORK':>8}{'FETCHED':>10}{'NEEDED':>10}"
        f"{'ASKED':>7}"
    )
    for line in LINES:
        if line.name not in (lines or ("3 MB/s", "50 ms")):
            continue
        for kind in formats or FORMATS:
            for follows in (False, True):
                runs = [
                    measure(registry, references[kind], line, work, follows=follows)
                    for _ in range(RUNS)
                ]
                figures = sorted(runs, key=lambda run: run.work)[len(runs) // 2]
                print(_row(line, kind, figures, follows=follows), flush=True)


def measure(
    registry: Registry, reference: str, line: Line, work: Path, *, follows: bool
) -> Figures:
    """One mount over a line, into a store that has nothing of the image but its trace."""
    with (
        work_directory(work) as base,
        running_proxy(registry.host) as proxy,
        running_daemon(base) as daemon,
    ):
        image = proxy.reference(reference)
        daemon.run("pull", proxy.reference("lazy:tiny"))
        if follows:
            daemon.run("trace", "record", image, "--", "/usr/bin/python3", "-c", WORK)
            daemon.run("rmi", image)
        if line.round_trip:
            proxy.delay(line.round_trip)
        if line.rate:
            proxy.throttle(line.rate, shared=True)
        return _measured(daemon, proxy, image)


def _measured(daemon: Imgvol, proxy: Proxy, image: str) -> Figures:
    target = daemon.target("mnt")
    seen = len(proxy.seen)
    began = time.perf_counter()
    daemon.run("mount", image, target, timeout=600)
    mounted = time.perf_counter() - began
    worked = work_in(target) + mounted
    fetched, asked = proxy.blob_bytes(seen), len(proxy.ranges(seen))
    figures = Figures(mounted, worked, fetched, _needed(daemon), asked)
    daemon.run("unmount", target)
    return figures


def _row(line: Line, kind: str, figures: Figures, *, follows: bool) -> str:
    return (
        f"{line.name:<10}{kind:<14}{'yes' if follows else 'no':<7}{figures.mount:>6.2f} s"
        f"{figures.work:>6.2f} s{figures.fetched / 1e6:>7.1f} MB{figures.needed / 1e6:>7.1f} MB"
        f"{figures.asked:>7}"
    )
