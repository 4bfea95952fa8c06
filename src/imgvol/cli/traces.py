"""`trace record`, `trace show`, `trace push`, `trace ls`, `trace rm`."""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from imgvol import limits
from imgvol.cli import pulling, pushing, text, units
from imgvol.cli.completion_values import complete_image, complete_volume
from imgvol.cli.names import familiar, short_id
from imgvol.cli.render import Column, echo_error, echo_json, echo_note, echo_table
from imgvol.cli.session import (
    Session,
    examples,
    json_option,
    pass_session,
    quiet_option,
    verbose_option,
)
from imgvol.errors import ImgvolError, LocalError
from imgvol.view.trace import Trace, parse_trace

F = TypeVar("F", bound=Callable[..., Any])

_platform_option = click.option(
    "--platform", metavar="OS/ARCH", help="Another variant than this machine's."
)


@click.group(
    "trace",
    epilog=examples(
        "imgvol trace record python:3.12 -- python3 -c 'import json'",
        "imgvol trace show python:3.12",
        "imgvol trace ls",
    ),
)
def trace_command() -> None:
    """Learn what an image's start reads; later mounts bring that first.

    A trace also serves newer tags of the same repository: files are the same if path and size are.
    """


@trace_command.command(
    "record",
    epilog=examples(
        "imgvol trace record python:3.12 -- python3 -c 'import json'",
        "imgvol trace record --host debian -- sh -c 'cat $IMGVOL_VIEW/etc/os-release'",
        "imgvol trace record --volume /mnt --for 30s -o start.json",
    ),
)
@click.argument("image", required=False, shell_complete=complete_image)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--volume",
    metavar="ID|DIR",
    shell_complete=complete_volume,
    help="Record what is mounted already, instead of running a command.",
)
@click.option(
    "--for",
    "duration",
    metavar="TIME",
    help="How long, such as 30s or 2m; Ctrl-C ends it early, and keeps it.",
)
@click.option("--host", is_flag=True, help="Run the command here; the files are in $IMGVOL_VIEW.")
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(dir_okay=False), help="Write it there, too."
)
@pulling.fetch_options
@pulling.login_options
@json_option("Print what was recorded as JSON.")
@quiet_option()
@verbose_option()
@pass_session
def record_command(
    session: Session,
    /,
    *,
    image: str | None,
    command: tuple[str, ...],
    volume: str | None,
    duration: str | None,
    host: bool,
    output: str | None,
    username: str | None,
    password_stdin: bool,
    **options: Any,
) -> int:
    """Run COMMAND with IMAGE as its root, and keep what it reads as the image's trace.

    The root is read-only, /tmp is empty and writable, environment and working directory are the
    image's. Needs root, unless --host is given. Exits with the command's code.
    """
    if volume is not None:
        if image is not None or command or host:
            raise click.UsageError("give --volume, or an image and a command, not both")
        _record_volume(session, volume, _seconds(duration), output)
        return 0
    if image is None or not command:
        raise click.UsageError("name an image and, behind --, the command to trace")
    if duration is not None:
        raise click.UsageError("--for is for --volume: a command is traced until it ends")
    from imgvol.cli import trace_recording

    if not host:
        trace_recording.require_root()
    chosen = pulling.fetching(**options)
    body = {
        "image": pulling.absolute_image(image),
        **chosen,
        **pulling.logging_in(username=username, password_stdin=password_stdin),
    }
    mounted = pulling.follow(session, "/volumes", body, title=image)["volume"]
    try:
        recorder = trace_recording.Recorder(session.client, mounted["id"])
        recorder.start()
        try:
            if host:
                code = trace_recording.run_on_host(mounted["path"], command)
            else:
                config = _config(session, mounted["image_id"])
                code = trace_recording.run_in_view(mounted["path"], command, config)
        finally:
            recorder.finish()
        if code:
            echo_note(f"The command ended with {code}.")
        _tell(session, recorder.wait(), output)
    finally:
        # The command may have left processes: what they have open stays theirs.
        gone = {"volume": mounted["id"], "detach": True}
        try:
            session.client.call("DELETE", "/volumes", gone)
        except ImgvolError as error:
            echo_error(error)
    return code


def _record_volume(
    session: Session, volume: str, seconds: float | None, output: str | None
) -> None:
    from imgvol.cli.trace_recording import Recorder, interrupt_ends

    is_path = "/" in volume or os.path.isdir(volume)
    recorder = Recorder(session.client, os.path.abspath(volume) if is_path else volume, seconds)
    recorder.start()
    with interrupt_ends(recorder):
        if not session.is_quiet:
            until = "Ctrl-C ends it" if seconds is None else f"for {units.duration(seconds)}"
            echo_note(f"Recording, {until} …")
        trace = recorder.wait()
    _tell(session, trace, output)


def _config(session: Session, image_id: str) -> dict[str, Any]:
    found = session.client.call("GET", "/images/inspect", {"image": image_id})
    return found["config"] or {}


def _tell(session: Session, trace: dict[str, Any], output: str | None) -> None:
    if output is not None:
        pieces = session.client.iter_bytes("GET", "/traces/document", {"image": trace["manifest"]})
        _write(output, b"".join(pieces))
    if session.is_json:
        echo_json(trace)
    elif not session.is_quiet:
        echo_note(
            f"Recorded {familiar(trace['name'])}: {units.plural(trace['files'], 'file')},"
            f" {units.size(trace['read_bytes'])} read in {units.duration(trace['seconds'])}"
        )


@trace_command.command(
    "show",
    epilog=examples(
        "imgvol trace show python:3.12",
        "imgvol trace show start.json --svg start.svg",
        "imgvol trace show python:3.12 --json | jq -r '.files[].path'",
    ),
)
@click.argument("trace", metavar="IMAGE|FILE", shell_complete=complete_image)
@click.option(
    "--svg", "svg_file", metavar="FILE", type=click.Path(dir_okay=False), help="Draw it in FILE."
)
@_platform_option
@json_option("Print the trace itself.")
@quiet_option("Print the paths of the files only.")
@verbose_option()
@pass_session
def show_command(
    session: Session, /, *, trace: str, svg_file: str | None, platform: str | None
) -> None:
    """Show a trace: which files, when, and how much of them.

    A word with a slash, or the name of a file that is here, means that file.
    """
    raw = _document(session, trace, platform)
    parsed = parse_trace(raw)
    if svg_file is not None:
        from imgvol.cli.trace_svg import svg

        _write(svg_file, svg(parsed).encode())
    if session.is_json:
        import json

        echo_json(json.loads(raw))
    elif session.is_quiet:
        for file in parsed.files:
            click.echo(text.visible_name(file.path))
    elif svg_file is None:
        _echo_timeline(parsed)


def _echo_timeline(trace: Trace) -> None:
    from imgvol.cli.trace_timeline import summary, timeline

    width = text.terminal_width() if text.has_terminal() else None
    is_ascii = (sys.stdout.encoding or "").lower() not in {"utf-8", "utf8"}
    title = f"{text.visible_name(familiar(trace.name))}: " if trace.name else ""
    click.echo(f"{title}{summary(trace)}")
    click.echo()
    for number, line in enumerate(timeline(trace, width=width, is_ascii=is_ascii)):
        click.echo(click.style(line, bold=True) if number == 0 and text.has_colour() else line)


@trace_command.command(
    "push",
    epilog=examples(
        "imgvol trace push registry.example.com/team/app:1",
        "imgvol trace push registry.example.com/team/app:1 start.json",
        after="Nodes look for it with: imgvol serve --trace-referrers",
    ),
)
@click.argument("image", shell_complete=complete_image)
@click.argument("file", metavar="[FILE]", required=False, type=click.Path(dir_okay=False))
@_platform_option
@pushing.push_options
@json_option("Print what was pushed as JSON.")
@quiet_option()
@verbose_option()
@pass_session
def push_command(
    session: Session,
    /,
    *,
    image: str,
    file: str | None,
    platform: str | None,
    **options: Any,
) -> None:
    """Push the trace of IMAGE, or the one in FILE, into the image's own repository.

    It becomes an artifact that refers to the image, and replaces the one that was there if the
    registry allows that.
    """
    body = {"image": image, "platform": platform, **pushing.pushing(**options)}
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        descriptor = None
        if file is not None:
            parse_trace(read_document(file))  # says what is wrong with it, before anything is sent
            descriptor = stack.enter_context(open(file, "rb")).fileno()
        event = pushing.follow(
            session,
            "/traces/push",
            body,
            describe=pushing.push_line(f"a trace of {image}"),
            file=descriptor,
        )
    if session.is_json:
        echo_json({key: value for key, value in event.items() if key != "event"})
    elif not session.is_quiet:
        echo_note(pushing.push_summary(event, time.monotonic() - started))


@trace_command.command("ls", epilog=examples("imgvol trace ls"))
@json_option("Print an array of traces as JSON.")
@quiet_option("Print digests of manifests only.")
@verbose_option()
@pass_session
def ls_command(session: Session, /) -> None:
    """List the traces."""
    traces = session.client.call("GET", "/traces")["traces"]
    if session.is_json:
        echo_json(traces)
        return
    if session.is_quiet:
        for trace in traces:
            click.echo(trace["manifest"])
        return
    columns = [
        Column("IMAGE", shrinks=True),
        Column("MANIFEST"),
        Column("PLATFORM"),
        Column("FILES", is_number=True),
        Column("READ", is_number=True),
        Column("TIME", is_number=True),
        Column("FROM"),
        Column("SINCE"),
    ]
    rows = [
        [
            familiar(trace["name"]) if trace["name"] else "",
            short_id(trace["manifest"]),
            trace["platform"],
            units.count(trace["files"]),
            units.size(trace["read_bytes"]),
            units.duration(trace["seconds"]),
            "here" if trace["source"] == "recorded" else "registry",
            units.age(trace["recorded_at"]),
        ]
        for trace in traces
    ]
    echo_table(columns, rows)
    if not rows and text.has_terminal():
        echo_note("There are no traces. Record one with: imgvol trace record IMAGE -- COMMAND")


@trace_command.command("rm", epilog=examples("imgvol trace rm python:3.12"))
@click.argument(
    "images", metavar="IMAGE...", nargs=-1, required=True, shell_complete=complete_image
)
@_platform_option
@json_option("Print what was forgotten as JSON.")
@quiet_option("Print nothing.")
@verbose_option()
@pass_session
def rm_command(session: Session, /, *, images: tuple[str, ...], platform: str | None) -> int:
    """Forget the traces that mounts of these images follow."""
    gone, failures = [], 0
    for image in images:
        chosen = {"image": pulling.absolute_image(image), "platform": platform}
        try:
            gone.append(session.client.call("DELETE", "/traces", chosen))
        except ImgvolError as error:
            echo_error(error)
            failures += 1
    if session.is_json:
        echo_json(gone)
    return 1 if failures else 0


def _document(session: Session, trace: str, platform: str | None) -> bytes:
    """The trace in a file, or that of an image."""
    if os.path.isfile(trace) or trace.startswith(("/", "./", "../")):
        return read_document(trace)
    chosen = {"image": pulling.absolute_image(trace), "platform": platform}
    return b"".join(session.client.iter_bytes("GET", "/traces/document", chosen))


def read_document(path: str) -> bytes:
    """A file that may be a trace; not more of it than a trace can have."""
    try:
        with open(path, "rb") as file:
            return file.read(limits.TRACE_SIZE + 1)
    except OSError as error:
        raise LocalError(f"cannot open the file: {error.strerror}", path=path) from error


def _write(path: str, data: bytes) -> None:
    try:
        with open(path, "wb") as file:
            file.write(data)
    except OSError as error:
        raise LocalError(f"cannot write the file: {error.strerror}", path=path) from error


def _seconds(duration: str | None) -> float | None:
    from imgvol.cli.leases import Duration

    if duration is None:
        return None
    seconds = Duration().convert(duration, None, None)
    if seconds > limits.TRACE_SECONDS:
        raise click.UsageError("a day is the longest that can be traced")
    return seconds
