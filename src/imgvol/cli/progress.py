"""Progress of a pull on standard error: a bar per layer on a terminal, nothing in a pipe.

What is finished collapses into one line, so that an image of a hundred layers fits any window. The
bars vanish at the end; one line that says what was done stays.
"""

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import click

from imgvol.cli import units
from imgvol.cli.text import visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

_FINISHED: Final = frozenset({"done", "exists", "lazy"})
_RATE_WINDOW: Final = 3.0
_REFRESH: Final = 8
# Rows below the bars: what is collapsed, the rest, the sum; one more for the cursor.
_OTHER_ROWS: Final = 5
_BAR: Final = 22


class Reporter(Protocol):
    """Shows the events of one pull; a context manager."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Clean the terminal up, whatever happened."""

    def update(self, event: Mapping[str, Any]) -> None:
        """Take a progress event."""


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, event: Mapping[str, Any]) -> None:
        """Nothing."""


def open_reporter(title: str, *, is_quiet: bool) -> Reporter:
    """Bars when standard error is a terminal that can move its cursor, else silence."""
    if is_quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return Silent()
    return Bars(title)


class RateMeter:
    """Bytes per second over the last few seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, received: int) -> None:
        """Note how much there is now."""
        if self._samples and self._samples[-1][1] > received:
            self._samples.clear()  # a retry began anew
        self._samples.append((now, received))
        self._forget(now)

    def rate(self, now: float) -> float:
        """The rate; falls to 0 when nothing comes."""
        self._forget(now)
        if not self._samples:
            return 0.0
        first, last = self._samples[0], self._samples[-1]
        elapsed = now - first[0]
        return (last[1] - first[1]) / elapsed if elapsed > 0.2 else 0.0

    def _forget(self, now: float) -> None:
        while len(self._samples) > 1 and self._samples[1][0] <= now - _RATE_WINDOW:
            self._samples.popleft()


class Bars:
    """A live display; redrawn by rich's thread, so that rates fall when nothing comes."""

    def __init__(self, title: str, console: "Console | None" = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._title = visible(title)
        self._console = console or Console(stderr=True, highlight=False)
        self._live = Live(
            console=self._console,
            get_renderable=lambda: self,
            refresh_per_second=_REFRESH,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._stage = "resolving"
        self._layers: Sequence[Mapping[str, Any]] = ()
        self._meters: dict[str, RateMeter] = {}
        self._total = RateMeter()
        self._started = time.monotonic()
        self._terminate: Any = None

    def __enter__(self) -> Self:
        # The cursor is hidden while bars are drawn: SIGTERM must not leave it so.
        self._terminate = signal.signal(signal.SIGTERM, _exit_on_signal)
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()
        signal.signal(signal.SIGTERM, self._terminate)

    def update(self, event: Mapping[str, Any]) -> None:
        """Take a progress event."""
        now = time.monotonic()
        self._stage, self._layers = event["stage"], event["layers"]
        for layer in self._layers:
            self._meters.setdefault(layer["digest"], RateMeter()).add(now, layer["received"])
        self._total.add(now, sum(layer["received"] for layer in self._layers))

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        now = time.monotonic()
        elapsed = units.duration(now - self._started)
        if not self._layers:
            yield Text.assemble(("Resolving ", "bold"), self._title, (f"  {elapsed}", "dim"))
            return
        yield Text.assemble(("Pulling ", "bold"), self._title, overflow="ellipsis", no_wrap=True)
        active = [layer for layer in self._layers if layer["state"] not in _FINISHED]
        room = max(1, console.height - _OTHER_ROWS)
        # What moves is shown before what waits.
        active.sort(key=lambda layer: layer["state"] == "waiting")
        yield self._grid(active[:room], now, max(options.max_width, 20))
        yield Text(self._collapsed(active[room:]), style="dim", no_wrap=True, overflow="ellipsis")

    def _grid(
        self, layers: Sequence[Mapping[str, Any]], now: float, width: int
    ) -> "RenderableType":
        from rich.table import Table

        grid = Table.grid(padding=(0, 2, 0, 0))
        # Widths do not follow the numbers: columns that jump cannot be read.
        for column_width in (12, None):
            grid.add_column(min_width=column_width, no_wrap=True)
        for column_width in (14, 10):
            grid.add_column(justify="right", min_width=column_width, no_wrap=True)
        grid.add_column(no_wrap=True)
        bar_width = max(4, min(_BAR, width - 54))
        for layer in layers:
            grid.add_row(*_layer_row(layer, self._meters[layer["digest"]].rate(now), bar_width))
        if len(self._layers) > 1:
            received = sum(layer["received"] for layer in self._layers if not _exists(layer))
            size = sum(layer["size"] for layer in self._layers if not _exists(layer))
            rate = self._total.rate(now)
            grid.add_row(*_total_row(received, size, rate, bar_width))
        return grid

    def _collapsed(self, hidden: Sequence[Mapping[str, Any]]) -> str:
        done = sum(layer["state"] == "done" for layer in self._layers)
        present = sum(_exists(layer) for layer in self._layers)
        parts = [f"{done + present} of {units.plural(len(self._layers), 'layer')} done"]
        if present:
            parts[0] += f" ({present} already here)"
        if hidden:
            parts.append(f"{len(hidden)} more to come")
        parts.append(units.duration(time.monotonic() - self._started))
        return ", ".join(parts)


def _exists(layer: Mapping[str, Any]) -> bool:
    return bool(layer["state"] == "exists")


def short_digest(digest: str) -> str:
    """The first 12 digits, without the algorithm."""
    return visible(digest.rpartition(":")[2][:12])


def _layer_row(layer: Mapping[str, Any], rate: float, width: int) -> "list[RenderableType]":
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    received, size = layer["received"], layer["size"]
    is_waiting = layer["state"] == "waiting"
    # The last bytes have come, the index and both digests have not been checked yet.
    state = "waiting" if is_waiting else "fetching" if received < size else "checking"
    return [
        Text(short_digest(layer["digest"]), style="dim" if is_waiting else "cyan"),
        ProgressBar(total=max(size, 1), completed=received, width=width),
        Text(units.size(size) if is_waiting else units.progress(received, size)),
        Text("" if is_waiting or received >= size else units.rate(rate)),
        Text(state, style="dim"),
    ]


def _total_row(received: int, size: int, rate: float, width: int) -> "list[RenderableType]":
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    # A guess in milliseconds would pretend to know.
    seconds = max(1, round((size - received) / rate)) if rate else 0
    left = f"{units.countdown(seconds)} left" if seconds and received < size else ""
    return [
        Text("all", style="bold"),
        ProgressBar(total=max(size, 1), completed=received, width=width),
        Text(units.progress(received, size)),
        Text(units.rate(rate) if received < size else ""),
        Text(left, style="dim"),
    ]


def _exit_on_signal(number: int, _frame: FrameType | None) -> None:
    raise click.exceptions.Exit(128 + number)
