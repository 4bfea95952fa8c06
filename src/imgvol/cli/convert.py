"""`convert`: an image in a format that other nodes can mount lazily."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import click

from imgvol.cli import pulling, pushing, units
from imgvol.cli.render import Column, echo_json, echo_note, echo_table
from imgvol.cli.session import (
    Session,
    examples,
    json_option,
    pass_session,
    quiet_option,
    verbose_option,
)
from imgvol.cli.sizes import parse_size

_FORMATS = ("estargz", "zstd:chunked")
_ALL = "all"
_DIGITS = 12
_STAGES = {"pull": "Pulling", "convert": "Converting", "write": "Writing"}


@click.command(
    "convert",
    epilog=examples(
        "imgvol convert python:3.13 example.com/python:3.13 --format estargz",
        "imgvol convert app:1 oci:./lazy:1 --format zstd:chunked",
        "imgvol convert app:1 b.example/app:1 --format estargz --prefetch-from a.json",
        after="Plain clients can pull the result. The same image gives the same digests.",
    ),
)
@pulling.image_argument
@click.argument("target", metavar="TARGET")
@click.option(
    "--format",
    "format_",
    type=click.Choice(_FORMATS),
    required=True,
    help="Of the layers. zstd:chunked is smaller and quicker; more tools read eStargz.",
)
@click.option("--chunk-size", metavar="SIZE", help="Of large files, what is fetched at once.")
@click.option("--level", type=click.IntRange(1, 19), help="Of the compression.")
@click.option(
    "--prefetch-from",
    metavar="FILE|IMAGE",
    help="Put the files of a trace first; whoever mounts the image fetches them first.",
)
@click.option("--platform", metavar="OS/ARCH|all", default=_ALL, help="Only for this platform.")
@pushing.push_options
@json_option()
@quiet_option()
@verbose_option()
@pass_session
def convert_command(session: Session, /, **options: Any) -> None:
    """Write IMAGE to TARGET in a format that can be mounted lazily.

    TARGET is a registry's repository with a tag, or an OCI layout: oci:DIR[:TAG]. All platforms of
    the image are converted; those that are not here are pulled first.
    """
    body = _body(options)
    event = pushing.follow(session, "/images/convert", body, describe=_describe)
    if session.is_json:
        echo_json({key: value for key, value in event.items() if key != "event"})
        return
    if not session.is_quiet:
        for image in event["images"]:
            _echo_image(image, has_trace=bool(options["prefetch_from"]))
        for text in event["left_out"]:
            echo_note(f"Left out: {text}")
    click.echo(f"{event['name']} {event['digest']}")


def _body(options: Mapping[str, Any]) -> dict[str, Any]:
    platform, chunk_size = options["platform"], options["chunk_size"]
    return {
        "image": pulling.absolute_image(options["image"]),
        "target": pulling.absolute_image(options["target"]),
        "format": options["format_"],
        "platform": None if platform == _ALL else platform,
        "chunk_size": None if chunk_size is None else parse_size(chunk_size),
        "level": options["level"],
        "prefetch_from": _prefetch_from(options["prefetch_from"]),
        **pushing.pushing(
            plain_http=options["plain_http"],
            insecure=options["insecure"],
            ca_file=options["ca_file"],
            username=options["username"],
            password_stdin=options["password_stdin"],
        ),
    }


def _prefetch_from(given: str | None) -> str | None:
    """What exists is a file; whatever else is written with a slash at its start, too."""
    if given is None or not (os.path.exists(given) or given.startswith(("/", "./"))):
        return given
    return os.path.abspath(given)


def _describe(event: Mapping[str, Any]) -> str:
    done = sum(layer["done"] for layer in event["layers"])
    total = sum(layer["size"] for layer in event["layers"])
    begun = _STAGES[event["stage"]]
    return f"{begun}: {units.progress(done, total)}" if total else begun


def _echo_image(image: Mapping[str, Any], *, has_trace: bool) -> None:
    columns = [
        Column("LAYER"),
        Column("BEFORE", is_number=True),
        Column("AFTER", is_number=True),
        Column("NOW"),
        Column("FILES", is_number=True),
        Column("FIRST", is_number=True),
        Column("TIME", is_number=True),
    ]
    click.echo(f"{image['platform']} {image['manifest']}")
    echo_table(columns, [_row(layer) for layer in image["layers"]])
    if has_trace:
        first = sum(layer["prioritized"] for layer in image["layers"])
        passed = f"; {units.plural(image['missing'], 'file')} not in it" if image["missing"] else ""
        echo_note(f"{units.plural(first, 'file')} of the trace come first{passed}")


def _row(layer: Mapping[str, Any]) -> Sequence[str]:
    before, after = layer["before"], layer["after"]
    name = after["digest"].partition(":")[2][:_DIGITS]
    if layer["reason"]:
        kind = "as it was" if after["digest"] == before["digest"] else "plain tar"
        size = units.size(after["size"])
        return [name, units.size(before["size"]), size, f"{kind}: {layer['reason']}", "", "", ""]
    kind = after["media_type"].rpartition("+")[2]
    return [
        name,
        units.size(before["size"]),
        units.size(after["size"]),
        kind,
        units.count(layer["files"]),
        units.count(layer["prioritized"]),
        units.duration(layer["seconds"]),
    ]
