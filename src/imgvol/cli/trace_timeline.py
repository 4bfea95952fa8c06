"""A trace as a timeline for the terminal: one line a file, a bar over time."""

from collections.abc import Sequence
from typing import Final

from imgvol.cli import text, units
from imgvol.view.trace import Trace, TracedFile

# The least that a bar, and a name, are worth showing in.
_NARROWEST_BAR: Final = 10
_NARROWEST_NAME: Final = 16
_WIDEST_BAR: Final = 60
_WIDE: Final = 100
# Eighths of a cell.
_BLOCK: Final = "█"
_MARK: Final = "▏"
_EMPTY: Final = "·"
_ASCII: Final = {_BLOCK: "#", _MARK: "|", _EMPTY: "."}


def timeline(
    trace: Trace, *, width: int | None, most: int | None = None, is_ascii: bool = False
) -> list[str]:
    """The lines of a timeline, a header and an axis first.

    Args:
        trace: Which.
        width: Columns; None: of no terminal.
        most: Files that are shown; None: all.
        is_ascii: Whether only ASCII can be shown.
    """
    files = trace.files if most is None else trace.files[:most]
    total = _WIDE if width is None else width
    first = ["AT", *(units.duration(file.first / 1000) for file in files)]
    read = ["READ", *(_read(file) for file in files)]
    at_width, read_width = max(map(len, first)), max(map(len, read))
    rest = total - at_width - read_width - 6
    bar = max(_NARROWEST_BAR, min(_WIDEST_BAR, rest // 2))
    name_width = max(_NARROWEST_NAME, rest - bar)
    end = max(_end(trace), 1)
    lines = [
        f"{first[0]:>{at_width}}  {read[0]:>{read_width}}  {_axis(end, bar)}  FILE".rstrip(),
    ]
    for file, at, size in zip(files, first[1:], read[1:], strict=True):
        name = text.visible_name(file.path)
        shown = name if width is None else text.shortened(name, name_width)
        drawn = _bar(file, end, bar)
        if is_ascii:
            drawn = "".join(_ASCII[cell] for cell in drawn)
        lines.append(f"{at:>{at_width}}  {size:>{read_width}}  {drawn}  {shown}")
    return lines


def summary(trace: Trace) -> str:
    """`143 files, 9.1 of 25.3 MB read in 1.2 s`."""
    sizes = sum(file.size for file in trace.files)
    return (
        f"{units.plural(len(trace.files), 'file')}, {units.progress(trace.read_bytes, sizes)}"
        f" read, traced for {units.duration(trace.seconds)}"
    )


def _read(file: TracedFile) -> str:
    return units.size(file.read_bytes) if file.ranges else "opened"


def _end(trace: Trace) -> int:
    """The last access, in milliseconds: what comes after it is not worth its room."""
    times: Sequence[int] = [
        *(file.first for file in trace.files),
        *(item.milliseconds for file in trace.files for item in file.ranges),
    ]
    return max(times, default=0)


def _axis(end: int, width: int) -> str:
    label = units.duration(end / 1000)
    return "0" + label.rjust(width - 1)


def _bar(file: TracedFile, end: int, width: int) -> str:
    """A cell for each part of the time: opened, read, or nothing."""
    cells = [_EMPTY] * width
    cells[_cell(file.first, end, width)] = _MARK
    for item in file.ranges:
        cells[_cell(item.milliseconds, end, width)] = _BLOCK
    return "".join(cells)


def _cell(milliseconds: int, end: int, width: int) -> int:
    return min(width - 1, milliseconds * width // (end + 1))
