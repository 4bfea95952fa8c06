"""A trace as a picture: one self-contained SVG, for light pages and dark ones.

A row a file in the order of first access, time from left to right, a mark where a range was read:
the wider the mark, the more was read. Above, how much had been read by then.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from imgvol.cli import text, units
from imgvol.view.trace import Trace, TracedFile

_WIDTH: Final = 960
_LEFT: Final = 330
_RIGHT: Final = 90
_PLOT: Final = _WIDTH - _LEFT - _RIGHT
_TOP: Final = 64
_CURVE: Final = 96
_GAP: Final = 34
_ROW: Final = 14
# Rows; more would be a picture that nobody scrolls through.
_ROWS: Final = 400
_NAME: Final = 46
_TICKS: Final = 6
# A mark's width in pixels: at least, and at most, for the largest range.
_THIN: Final = 2.0
_THICK: Final = 26.0
_STEPS: Final = (1, 2, 5)

_STYLE: Final = """
  svg { font-family: system-ui, sans-serif; font-size: 11px; color-scheme: light dark; }
  .page { fill: #ffffff; } .text { fill: #1f2430; } .soft { fill: #626a78; }
  .grid { stroke: #d9dde4; stroke-width: 1; } .row { fill: #f4f6f9; }
  .life { stroke: #b9c1ce; stroke-width: 1; } .mark { fill: #2467b8; }
  .open { fill: none; stroke: #2467b8; } .curve { fill: none; stroke: #b3541e; stroke-width: 2; }
  .area { fill: #b3541e; fill-opacity: .12; } .name { font-family: ui-monospace, monospace; }
  .title { font-size: 16px; font-weight: 600; } .end { text-anchor: end; }
  .middle { text-anchor: middle; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #14171d; } .text { fill: #e6e9ef; } .soft { fill: #9aa3b2; }
    .grid { stroke: #303743; } .row { fill: #1b2028; } .life { stroke: #4a5464; }
    .mark { fill: #6aa9f4; } .open { stroke: #6aa9f4; } .curve { stroke: #f0a067; }
    .area { fill: #f0a067; }
  }
"""


def svg(trace: Trace) -> str:
    """The picture, as text in UTF-8."""
    files = trace.files[:_ROWS]
    plot = _Plot(trace, files)
    name = text.visible(trace.name) or f"image {trace.image.short}"
    sizes = sum(file.size for file in trace.files)
    subtitle = (
        f"{units.plural(len(trace.files), 'file')} opened, {units.size(trace.read_bytes)} read of"
        f" their {units.size(sizes)}, {trace.platform}, traced for {units.duration(trace.seconds)}"
    )
    title = f"What {name} reads as it starts"
    about = (
        f"{title}. {subtitle}. Each row is a file, in the order of first access; marks show when"
        " ranges of it were read. The curve above shows how much had been read."
    )
    lines = [
        _head(plot.height),
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="about">{escape(about)}</desc>',
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{_WIDTH}" height="{plot.height}"/>',
        f'<text class="text title" x="20" y="28">{escape(text.shortened(title, 90))}</text>',
        f'<text class="soft" x="20" y="47">{escape(subtitle)}</text>',
        *(plot.stripe(number) for number in range(0, len(files), 2)),
        *plot.curve(),
        *plot.axis(),
        *(line for number, file in enumerate(files) for line in plot.row(number, file)),
    ]
    if len(files) < len(trace.files):
        more = f"… and {units.plural(len(trace.files) - len(files), 'file')} more"
        lines.append(f'<text class="soft" x="20" y="{plot.height - 12}">{escape(more)}</text>')
    lines.append("</svg>")
    return "\n".join(lines) + "\n"


def _head(height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}"'
        f' width="{_WIDTH}" height="{height}" role="img" aria-labelledby="title about">'
    )


class _Plot:
    """Where things are. Time is in milliseconds, places are pixels."""

    def __init__(self, trace: Trace, files: tuple[TracedFile, ...]) -> None:
        self._reads = sorted(
            (item.milliseconds, item.size) for file in trace.files for item in file.ranges
        )
        last = max((file.first for file in trace.files), default=0)
        self._end = max(last, self._reads[-1][0] if self._reads else 0, 1)
        self._largest = max((size for _, size in self._reads), default=1)
        self._total = max(sum(size for _, size in self._reads), 1)
        self._rows_top = _TOP + _CURVE + _GAP
        self._bottom = self._rows_top + max(1, len(files)) * _ROW
        self.height = self._bottom + (48 if len(files) < len(trace.files) else 32)

    def _x(self, milliseconds: int) -> float:
        return round(_LEFT + _PLOT * milliseconds / self._end, 1)

    def curve(self) -> Iterator[str]:
        """Bytes read by then, as steps."""
        base = _TOP + _CURVE
        points, so_far = [(float(_LEFT), float(base))], 0
        for at, size in self._reads:
            points.append((self._x(at), points[-1][1]))
            so_far += size
            points.append((self._x(at), round(base - _CURVE * so_far / self._total, 1)))
        points.append((float(_LEFT + _PLOT), points[-1][1]))
        kept = [points[0], *(b for a, b in pairwise(points) if a != b)]
        path = "M" + " L".join(f"{x:g},{y:g}" for x, y in kept)
        for share in (0, 0.5, 1):
            y = base - _CURVE * share
            label = units.size(self._total * share)
            yield f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + _PLOT}" y1="{y:g}" y2="{y:g}"/>'
            yield f'<text class="soft end" x="{_LEFT - 8}" y="{y + 4:g}">{label}</text>'
        yield f'<text class="text end" x="{_LEFT - 70}" y="{base - _CURVE / 2 + 4:g}">read</text>'
        yield f'<path class="area" d="{path} L{_LEFT + _PLOT},{base} L{_LEFT},{base} Z"/>'
        yield f'<path class="curve" d="{path}"/>'

    def axis(self) -> Iterator[str]:
        """Lines over all rows at round times, with their labels."""
        for at in _round_times(self._end):
            x = self._x(at)
            label = "0" if at == 0 else units.duration(at / 1000)
            yield (
                f'<line class="grid" x1="{x:g}" x2="{x:g}" y1="{_TOP}" y2="{self._bottom:g}"/>'
                f'<text class="soft middle" x="{x:g}" y="{_TOP + _CURVE + 18}">{label}</text>'
            )
        yield (
            f'<text class="soft" x="20" y="{_TOP + _CURVE + 18}">file</text>'
            f'<text class="soft end" x="{_WIDTH - 16}" y="{_TOP + _CURVE + 18}">read</text>'
            f'<text class="text end" x="{_LEFT - 24}" y="{_TOP + _CURVE + 18}">time</text>'
        )

    def stripe(self, number: int) -> str:
        """What lies behind every other row, and behind the lines over all of them."""
        y = self._rows_top + number * _ROW
        return f'<rect class="row" x="0" y="{y}" width="{_WIDTH}" height="{_ROW}"/>'

    def row(self, number: int, file: TracedFile) -> Iterator[str]:
        """One file."""
        y = self._rows_top + number * _ROW
        middle = y + _ROW / 2
        name = text.visible_name(file.path)
        told = f"{name}: opened after {units.duration(file.first / 1000)}"
        told += f", {units.size(file.read_bytes)} of {units.size(file.size)} read"
        yield f"<g><title>{escape(told)}</title>"
        shown = escape(text.shortened(name, _NAME))
        yield f'<text class="text name" x="20" y="{y + 10.5:g}" font-size="10.5">{shown}</text>'
        last = max((item.milliseconds for item in file.ranges), default=file.first)
        begin = self._x(file.first)
        yield (
            f'<line class="life" x1="{begin:g}" x2="{self._x(last):g}"'
            f' y1="{middle:g}" y2="{middle:g}"/>'
        )
        for item in file.ranges:
            width = max(_THIN, round(_THICK * (item.size / self._largest) ** 0.5, 1))
            x = self._x(item.milliseconds)
            place = f'x="{x:g}" y="{y + 3}" width="{width:g}" height="{_ROW - 6}" rx="1"'
            what = f"{units.size(item.size)} at {item.offset:,}"
            yield f'<rect class="mark" {place} aria-label={quoteattr(what)}/>'
        if not file.ranges:
            yield f'<circle class="open" cx="{begin:g}" cy="{middle:g}" r="2.5"/>'
        size = units.size(file.read_bytes) if file.ranges else "opened"
        yield f'<text class="soft end" x="{_WIDTH - 16}" y="{y + 10.5:g}">{size}</text></g>'


def _round_times(end: int) -> list[int]:
    """Some round times from 0 to the end, in milliseconds."""
    power = 1
    while True:
        for step in _STEPS:
            if end / (step * power) <= _TICKS:
                return list(range(0, end + 1, step * power))
        power *= 10
