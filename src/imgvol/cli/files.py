"""`ls`, `cat`, `find`, `du`: looking into images without mounting them."""

import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import click

from imgvol.cli import pulling, text, units
from imgvol.cli.completion_values import complete_path
from imgvol.cli.names import short_id
from imgvol.cli.render import Column, echo_error, echo_json, echo_table
from imgvol.cli.session import (
    Session,
    examples,
    json_option,
    pass_session,
    quiet_option,
    verbose_option,
)
from imgvol.errors import ImgvolError

Entry = Mapping[str, Any]

_LETTERS: Final = {
    "f": "file",
    "d": "directory",
    "l": "symlink",
    "c": "char",
    "b": "block",
    "p": "fifo",
}
_FORMATS: Final = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}


def _entries(
    session: Session, chosen: Mapping[str, str | None], path: str, *, is_recursive: bool
) -> Iterator[Entry]:
    parameters = {**chosen, "path": _absolute(path), "recursive": is_recursive}
    for event in session.client.iter_events("GET", "/files/list", parameters):
        if event["event"] == "entry":
            yield event


def _absolute(path: str) -> str:
    return path if path.startswith("/") else f"/{path.removeprefix('./')}"


@click.command(
    "ls",
    epilog=examples(
        "imgvol ls alpine:3.20",
        "imgvol ls -lh alpine:3.20 /usr/bin",
        "imgvol ls -lR oci-archive:app.tar /etc",
    ),
)
@pulling.image_argument
@click.argument("path", default="/", shell_complete=complete_path)
@click.option("-l", "is_long", is_flag=True, help="Mode, links, owner, size, time, target.")
@click.option("-h", "--human", "is_human", is_flag=True, help="Sizes in kB, MB, GB.")
@click.option("-i", "--inode", "has_inode", is_flag=True, help="Inode numbers.")
@click.option("-R", "--recursive", "is_recursive", is_flag=True, help="All below, with full paths.")
@pulling.fetch_options
@json_option("Print one JSON object per line.")
@quiet_option()
@verbose_option()
@pass_session
def ls_command(
    session: Session,
    /,
    image: str,
    path: str,
    is_long: bool,
    is_human: bool,
    has_inode: bool,
    is_recursive: bool,
    **options: Any,
) -> None:
    """List the directory PATH of IMAGE (or a single file). Pulls the image if need be."""
    chosen = pulling.ensure_image(session, image, pulling.fetching(**options))
    entries = _entries(session, chosen, path, is_recursive=is_recursive)
    if session.is_json:
        _echo_json_lines(entries)
    elif is_long or has_inode or is_recursive or not text.has_terminal():
        for entry in entries:
            click.echo(_line(entry, is_long, is_human, has_inode, is_recursive))
    else:
        _echo_columns([_base_name(entry) for entry in entries])


def _echo_json_lines(entries: Iterator[Entry]) -> None:
    import json

    for entry in entries:
        click.echo(json.dumps({k: v for k, v in entry.items() if k != "event"}))


def _line(
    entry: Entry, is_long: bool, is_human: bool, has_inode: bool, is_full: bool
) -> str | bytes:
    parts = [f"{entry['ino']:>20}"] if has_inode else []
    name = entry["path"] if is_full else _base_name(entry)
    if not is_long:
        return _joined(parts, name, None)
    return _joined([*parts, *_columns_of(entry, is_human)], name, entry["target"])


def _columns_of(entry: Entry, is_human: bool) -> list[str]:
    if entry["type"] in {"char", "block"}:
        size = f"{_major(entry['rdev'])}, {_minor(entry['rdev'])}"
    else:
        size = units.size(entry["size"]) if is_human else str(entry["size"])
    return [
        stat.filemode(_FORMATS[entry["type"]] | entry["mode"]),
        f"{entry['nlink']:>3}",
        f"{entry['uid']:>5}",
        f"{entry['gid']:>5}",
        f"{size:>10}",
        units.date(entry["mtime_ns"] / 1e9),
    ]


def _joined(columns: Sequence[str], name: str, target: str | None) -> str | bytes:
    """A line: escaped for a terminal, the names' own bytes for a pipe."""
    arrow = "" if target is None else " -> "
    if text.has_terminal():
        shown = text.visible_name(name) + arrow + text.visible_name(target or "")
        return " ".join([*columns, shown])
    return b" ".join([*(c.encode() for c in columns), text.encode(f"{name}{arrow}{target or ''}")])


def _base_name(entry: Entry) -> str:
    return str(entry["path"]).rstrip("/").rpartition("/")[2] or "/"


def _major(device: int) -> int:
    import os

    return os.major(device)


def _minor(device: int) -> int:
    import os

    return os.minor(device)


def _echo_columns(names: Sequence[str]) -> None:
    """Names in columns, down and then across, as ls does."""
    shown = [text.visible_name(name) for name in names]
    if not shown:
        return
    width = max(text.cell_width(name) for name in shown) + 2
    across = max(1, text.terminal_width() // width)
    rows = -(-len(shown) // across)
    for row in range(rows):
        cells = shown[row::rows]
        padded = [name + " " * (width - text.cell_width(name)) for name in cells]
        click.echo("".join(padded).rstrip())


@click.command(
    "cat",
    epilog=examples(
        "imgvol cat alpine:3.20 /etc/os-release",
        "imgvol cat alpine:3.20 /bin/busybox > busybox",
    ),
)
@pulling.image_argument
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, shell_complete=complete_path)
@pulling.fetch_options
@quiet_option()
@verbose_option()
@pass_session
def cat_command(session: Session, /, image: str, paths: tuple[str, ...], **options: Any) -> int:
    """Print files of IMAGE, byte for byte. Links are followed inside the image."""
    chosen = pulling.ensure_image(session, image, pulling.fetching(**options))
    output = sys.stdout.buffer
    failures = 0
    for path in paths:
        parameters = {**chosen, "path": _absolute(path)}
        try:
            for piece in session.client.iter_bytes("GET", "/files/content", parameters):
                output.write(piece)
        except ImgvolError as error:
            output.flush()
            echo_error(error)
            failures += 1
    output.flush()
    return 1 if failures else 0


def _parse_types(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> frozenset[str]:
    letters = (value or "").split(",") if value else []
    for letter in letters:
        if letter not in _LETTERS:
            known = ", ".join(f"{k} ({v})" for k, v in _LETTERS.items())
            raise click.BadParameter(f"{letter!r} is not one of {known}")
    return frozenset(_LETTERS[letter] for letter in letters)


@click.command(
    "find",
    epilog=examples(
        "imgvol find alpine:3.20 /etc -name '*.conf'",
        "imgvol find alpine:3.20 -type f,l -print0 | xargs -0 ...",
        "imgvol find --json alpine:3.20 / | jq 'select(.mode == 2541)'",
    ),
)
@pulling.image_argument
@click.argument("path", default="/", shell_complete=complete_path)
@click.option("-name", "--name", metavar="GLOB", help="The last part matches GLOB (quote it).")
@click.option("-iname", "--iname", metavar="GLOB", help="As -name, upper case or lower.")
@click.option("-path", "--path", "whole", metavar="GLOB", help="The whole path matches GLOB.")
@click.option(
    "-type",
    "--type",
    "types",
    metavar="T[,T...]",
    callback=_parse_types,
    help="f file, d directory, l link, c and b device, p fifo.",
)
@click.option("-maxdepth", "--maxdepth", metavar="N", type=click.IntRange(min=0), help="Levels.")
@click.option("-0", "-print0", "--print0", "is_null", is_flag=True, help="NUL after each path.")
@pulling.fetch_options
@json_option("Print one JSON object per line.")
@quiet_option()
@verbose_option()
@pass_session
def find_command(
    session: Session,
    /,
    image: str,
    path: str,
    name: str | None,
    iname: str | None,
    whole: str | None,
    types: frozenset[str],
    maxdepth: int | None,
    is_null: bool,
    **options: Any,
) -> None:
    """Find what is below PATH of IMAGE. Pulls the image if need be.

    Tests are combined: an entry must pass all of them. Links are not followed.
    """
    from imgvol.cli.finding import Tests

    tests = Tests.make(name=name, iname=iname, whole=whole, types=types, maxdepth=maxdepth)
    chosen = pulling.ensure_image(session, image, pulling.fetching(**options))
    top = _absolute(path)
    found = (
        entry
        for entry in _entries(session, chosen, top, is_recursive=True)
        if tests.accept(entry["path"], entry["type"], top)
    )
    if session.is_json:
        _echo_json_lines(found)
        return
    for entry in found:
        if is_null:
            click.echo(text.encode(entry["path"]) + b"\0", nl=False)
        else:
            click.echo(_joined([], entry["path"], None))


@click.command(
    "du", epilog=examples("imgvol du alpine:3.20", "imgvol du --layers alpine:3.20 /usr/lib")
)
@pulling.image_argument
@click.argument("path", default="/", shell_complete=complete_path)
@click.option("--layers", "by_layer", is_flag=True, help="Also how much each layer brings.")
@pulling.fetch_options
@json_option()
@quiet_option()
@verbose_option()
@pass_session
def du_command(session: Session, /, image: str, path: str, by_layer: bool, **options: Any) -> None:
    """Sum up the sizes of the files below PATH of IMAGE; hard links count once."""
    chosen = pulling.ensure_image(session, image, pulling.fetching(**options))
    usage = session.client.call("GET", "/files/usage", {**chosen, "path": _absolute(path)})
    if session.is_json:
        echo_json(usage)
        return
    columns = [
        Column("SIZE", is_number=True),
        Column("ENTRIES", is_number=True),
        Column("FILES", is_number=True),
        Column("DIRECTORIES", is_number=True),
        Column("PATH", shrinks=True),
    ]
    counts = [units.count(usage[key]) for key in ("entries", "files", "directories")]
    echo_table(columns, [[units.size(usage["bytes"]), *counts, path]])
    if by_layer:
        click.echo()
        _echo_layers(usage.get("layers", []))


def _echo_layers(layers: Sequence[Mapping[str, Any]]) -> None:
    columns = [Column("LAYER"), Column("SIZE", is_number=True), Column("ENTRIES", is_number=True)]
    rows = [
        [short_id(layer["layer"]), units.size(layer["bytes"]), units.count(layer["entries"])]
        for layer in layers
    ]
    echo_table(columns, rows)
