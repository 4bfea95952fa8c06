"""Tables, JSON and messages.

A table in a pipe is plain aligned text; on a terminal its header is bold and it shrinks to the
width. This is done by hand because rich takes longer to import than these commands take to run.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import click

from imgvol.cli import text
from imgvol.errors import ImgvolError

_GAP: Final = "  "
_NARROWEST: Final = 12


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        title: Its head.
        is_number: Aligned to the right.
        shrinks: Gives way when the terminal is too narrow.
    """

    title: str
    is_number: bool = False
    shrinks: bool = False


def echo_json(document: object) -> None:
    """One document; indented where a person looks at it."""
    click.echo(json.dumps(document, indent=2 if text.has_terminal() else None))


def echo_table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """An aligned table with a header. Cells may come from outside: they are made harmless here."""
    width = text.terminal_width() if text.has_terminal() else None
    lines = table_lines(columns, rows, width=width)
    for number, line in enumerate(lines):
        click.echo(click.style(line, bold=True) if number == 0 and text.has_colour() else line)


def table_lines(
    columns: Sequence[Column], rows: Iterable[Sequence[str]], *, width: int | None = None
) -> list[str]:
    """The lines of a table, header first; `width` is that of the terminal, None for no bound."""
    cells = [[column.title for column in columns]]
    cells += [[text.visible_name(cell) for cell in row] for row in rows]
    widths = [max(text.cell_width(row[i]) for row in cells) for i in range(len(columns))]
    if width is not None:
        _shrink(widths, columns, width)
    return [_line(columns, row, widths) for row in cells]


def _shrink(widths: list[int], columns: Sequence[Column], width: int) -> None:
    excess = sum(widths) + len(_GAP) * (len(widths) - 1) - width
    while excess > 0:
        wide = [i for i, c in enumerate(columns) if c.shrinks and widths[i] > _NARROWEST]
        if not wide:
            return
        widest = max(wide, key=lambda i: widths[i])
        widths[widest] -= 1
        excess -= 1


def _line(columns: Sequence[Column], row: Sequence[str], widths: Sequence[int]) -> str:
    parts = []
    for column, cell, width in zip(columns, row, widths, strict=True):
        shown = text.shortened(cell, width)
        padding = " " * (width - text.cell_width(shown))
        parts.append(padding + shown if column.is_number else shown + padding)
    return _GAP.join(parts).rstrip()


def echo_facts(facts: Iterable[tuple[str, str]]) -> None:
    """`name  value` lines, aligned."""
    pairs = [(name, text.visible_name(value)) for name, value in facts]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        padded = name.ljust(width)
        shown = click.style(padded, bold=True) if text.has_colour() else padded
        click.echo(f"{shown}{_GAP}{value}".rstrip())


def error_lines(error: ImgvolError) -> list[str]:
    """`imgvol: what is wrong (data)` and, indented, what to do next."""
    lines = [f"imgvol: {text.visible(str(error))}"]
    hint = error.hint or ("Trying again may help." if type(error).retryable else "")
    if hint:
        lines.append(f"  {text.visible(hint)}")
    return lines


def echo_error(error: ImgvolError) -> None:
    """Tell of an error on standard error."""
    for line in error_lines(error):
        click.echo(line, err=True)


def echo_note(message: str) -> None:
    """A remark on standard error, apart from the result."""
    click.echo(text.visible(message), err=True)
