"""`import` and `export`: archives of images."""

import contextlib
import os
import stat
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from imgvol.cli import pulling, units
from imgvol.cli.completion_values import complete_image
from imgvol.cli.names import familiar
from imgvol.cli.render import echo_json, echo_note
from imgvol.cli.session import (
    Session,
    examples,
    json_option,
    pass_session,
    quiet_option,
    verbose_option,
)
from imgvol.cli.text import visible_name
from imgvol.errors import InternalError, LocalError

_STANDARD = "-"


@click.command(
    "import",
    epilog=examples(
        "imgvol import app.tar.zst        # of docker save, podman save, skopeo",
        "imgvol import --link huge.tar    # no copy: the archive has to stay",
        "imgvol import --name example.com/app layout/   # images with tags only",
        "ssh builder docker save app:1 | imgvol import -",
        after="Archives are plain, or packed with gzip, zstd, lz4, bzip2 or xz.",
    ),
)
@click.argument("archive", metavar="FILE|DIR|-", type=click.Path(allow_dash=True))
@click.option("--link", is_flag=True, help="Read uncompressed layers where they are, in FILE.")
@click.option(
    "--platform",
    "platforms",
    metavar="OS/ARCH",
    multiple=True,
    help="Only variants for this platform; may be given again.",
)
@click.option("--all-platforms", is_flag=True, help="All variants that are complete: the default.")
@click.option(
    "--name", "base_name", metavar="REPOSITORY", help="Of images that have a tag, but no name."
)
@click.option("--digests", is_flag=True, help="Name images by their digests, too.")
@pulling.stats_option
@json_option()
@quiet_option()
@verbose_option()
@pass_session
def import_command(
    session: Session,
    /,
    *,
    archive: str,
    platforms: tuple[str, ...],
    all_platforms: bool,
    show_stats: bool,
    **options: Any,
) -> int:
    """Bring in all images of an archive, verified, under their own names.

    Either all of them come in or none. Blobs of other platforms may be missing. Prints the names;
    exits with 1 if an image of the archive did not come in, and says why.
    """
    if platforms and all_platforms:
        raise click.UsageError("give --platform or --all-platforms, not both")
    started = time.monotonic()
    with _opened_archive(archive) as (path, file):
        given = {key: value or None for key, value in options.items()}
        body = {"path": path, "platforms": list(platforms) or None, **given}
        event = pulling.follow(session, "/images/import", body, title=archive, file=file)
    if session.is_json:
        echo_json({key: event[key] for key in ("images", "passed_over", "stats")})
    else:
        for name in _names(event["images"]):
            click.echo(visible_name(name))
        _echo_passed_over(session, event["passed_over"])
        if not session.is_quiet and sys.stderr.isatty():
            what = units.plural(len(event["images"]), "image")
            echo_note(f"Imported {what} in {units.duration(time.monotonic() - started)}")
    if show_stats:
        pulling.echo_stats(event["stats"])
    return 1 if any(one["is_whole"] for one in event["passed_over"]) else 0


@click.command(
    "export",
    epilog=examples(
        "imgvol export alpine:3.20 -o alpine.tar",
        "imgvol export app:1 app:2 -o - | ssh host docker load",
    ),
)
@click.argument(
    "images", metavar="IMAGE...", nargs=-1, required=True, shell_complete=complete_image
)
@click.option(
    "-o",
    "--output",
    metavar="FILE|-",
    required=True,
    type=click.Path(dir_okay=False, allow_dash=True),
    help="The archive to write.",
)
@click.option("--platform", metavar="OS/ARCH", help="Another variant than this machine's.")
@json_option()
@quiet_option()
@verbose_option()
@pass_session
def export_command(
    session: Session, /, *, images: tuple[str, ...], output: str, platform: str | None
) -> None:
    """Write images into one archive, which is an OCI layout and a docker-archive.

    Layers are written uncompressed. The image IDs stay; the digests of the manifests do not.
    """
    if session.is_json and output == _STANDARD:
        raise click.UsageError("--json and the archive cannot both go to standard output")
    body = {"images": [pulling.absolute_image(image) for image in images], "platform": platform}
    with _opened_output(output) as file:
        event = _export(session, body, file)
    if session.is_json:
        echo_json({key: event[key] for key in ("images", "size")})
        return
    for image in event["images"]:
        if image["is_changed"]:
            what = ", ".join(map(familiar, image["names"])) or "an image"
            echo_note(
                f"{what} has the ID {image['id']} in the archive: a file that its own layer"
                " replaces was not kept."
            )
    if not session.is_quiet and sys.stderr.isatty():
        what = units.plural(len(event["images"]), "image")
        echo_note(f"Exported {what}, {units.size(event['size'])}")


def _export(session: Session, body: Mapping[str, object], file: int) -> dict[str, Any]:
    shows = sys.stderr.isatty() and not session.is_quiet
    for event in session.client.iter_events("POST", "/images/export", body=body, file=file):
        if event["event"] == "done":
            return event
        if shows and event["total"]:
            share = event["written"] / event["total"]
            click.echo(f"\r{share:4.0%} of {units.size(event['total'])}\r", nl=False, err=True)
    raise InternalError("a stream of events had no end")


@contextlib.contextmanager
def _opened_archive(archive: str) -> Iterator[tuple[str | None, int | None]]:
    """The path for the daemon; or an open file, where a path means nothing to it."""
    if archive == _STANDARD:
        if sys.stdin.isatty():
            raise click.UsageError("standard input is a terminal: name an archive, or pipe one in")
        yield None, sys.stdin.fileno()
        return
    is_named = not os.path.realpath(archive).startswith("/proc/")
    if is_named and (
        os.path.isfile(archive) or os.path.isdir(archive) or not os.path.exists(archive)
    ):
        yield os.path.abspath(archive), None
        return
    # A pipe, or what is open in this process only.
    with _file_errors(archive):
        opened = open(archive, "rb", buffering=0)  # noqa: SIM115 - closed below
    with opened:
        yield None, opened.fileno()


@contextlib.contextmanager
def _opened_output(output: str) -> Iterator[int]:
    """The file to write to. One with a name gets it at the end, when it is whole."""
    if output == _STANDARD:
        if sys.stdout.isatty():
            raise click.UsageError("standard output is a terminal: name a file with -o")
        sys.stdout.flush()
        yield sys.stdout.fileno()
        return
    if os.path.exists(output) and not stat.S_ISREG(os.stat(output).st_mode):
        with _file_errors(output):
            device = open(output, "wb", buffering=0)  # noqa: SIM115 - closed below
        with device:
            yield device.fileno()
        return
    target = os.path.realpath(output)
    partial = f"{target}.{os.getpid()}.partial"
    with _file_errors(output):
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
        with _file_errors(output):
            os.fsync(descriptor)
            os.rename(partial, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _file_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LocalError(f"cannot open the file: {error.strerror}", path=path) from error


def _names(images: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each name once: variants of an image share theirs."""
    return list(dict.fromkeys(name for image in images for name in image["names"] or [image["id"]]))


def _echo_passed_over(session: Session, passed_over: Sequence[Mapping[str, Any]]) -> None:
    for one in passed_over:
        if one["is_whole"]:
            hint = " (give one with --name, or --digests)" if "no name" in one["reason"] else ""
            echo_note(f"Not imported: {one['what']}: {one['reason']}{hint}")
        elif not session.is_quiet:
            echo_note(f"Left out: {one['what']}: {one['reason']}")
