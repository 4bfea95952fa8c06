"""`index create`, `index ls`, `index rm`, `index push`."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from imgvol.cli import pulling, pushing, units
from imgvol.cli.names import familiar
from imgvol.cli.progress import short_digest
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
from imgvol.cli.text import visible_name
from imgvol.errors import InvalidArgument


class Size(click.ParamType[int]):
    """Bytes, or a number with K, M or G behind it, powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes."""
        try:
            return parse_size(str(value), may_be_zero=True)
        except InvalidArgument:
            self.fail(f"{value!r} is no size such as 512K, 4M or 1G.", param, ctx)


@click.group(
    "index",
    epilog=examples(
        "imgvol index create registry.example.com/app:1",
        "imgvol index push registry.example.com/app:1 registry.example.com/app:1-lazy",
        "imgvol index ls",
        "imgvol index rm registry.example.com/app:1",
    ),
)
def index_command() -> None:
    """Make images lazy that are not: SOCI indexes, which lie beside an image.

    With an index, layers are read before they are here, by imgvol and by soci-snapshotter. The
    layers themselves stay as they are.
    """


@index_command.command(
    "create",
    epilog=examples(
        "imgvol index create registry.example.com/app:1",
        "imgvol index create oci:./build:v1 --span-size 1M --min-layer-size 0",
    ),
)
@pulling.image_argument
@pulling.fetch_options
@pulling.login_options
@click.option(
    "--span-size",
    metavar="SIZE",
    type=Size(),
    help="What is fetched at once, unpacked [4M, and more for layers above 2G].",
)
@click.option(
    "--min-layer-size", metavar="SIZE", type=Size(), help="Leave smaller layers out [10M]."
)
@json_option("Print the index as JSON.")
@quiet_option("Print nothing.")
@verbose_option()
@pass_session
def create_command(
    session: Session,
    /,
    image: str,
    platform: str | None,
    plain_http: bool,
    insecure: bool,
    ca_file: str | None,
    username: str | None,
    password_stdin: bool,
    span_size: int | None,
    min_layer_size: int | None,
) -> int:
    """Index the layers of an image, and keep the index here.

    Reads every layer once, wherever the image is, and checks it. The image need not be pulled.
    For an image of several platforms, run it once for each of them.
    """
    body = {
        "image": pulling.absolute_image(image),
        **pulling.fetching(
            platform=platform, plain_http=plain_http, insecure=insecure, ca_file=ca_file
        ),
        **pulling.logging_in(username=username, password_stdin=password_stdin),
        "span_size": span_size,
        "min_layer_size": min_layer_size,
    }
    event = pushing.follow(
        session, "/indexes/create", body, describe=lambda event: _progress(image, event)
    )
    if session.is_json:
        echo_json(event["index"])
    elif not session.is_quiet:
        _echo_layers(event["index"])
    if not event["kept"] and not session.is_quiet:
        echo_note("No layer is indexed, so there is nothing to keep.")
    return 0 if event["kept"] else 1


@index_command.command("ls", epilog=examples("imgvol index ls", "imgvol index ls app:1"))
@click.argument("image", required=False)
@json_option("Print an array of indexes as JSON.")
@quiet_option("Print the names of images only.")
@verbose_option()
@pass_session
def list_command(session: Session, /, image: str | None) -> None:
    """List indexes that are kept here; of one image, layer by layer."""
    query = {"image": None if image is None else pulling.absolute_image(image)}
    indexes = session.client.call("GET", "/indexes", query)["indexes"]
    if session.is_json:
        echo_json(indexes)
    elif session.is_quiet:
        for index in indexes:
            click.echo(visible_name(index["image"]))
    elif image is None:
        _echo_indexes(indexes)
    else:
        for number, index in enumerate(indexes):
            if len(indexes) > 1:
                click.echo(("\n" if number else "") + visible_name(index["platform"]))
            _echo_layers(index)


@index_command.command("rm", epilog=examples("imgvol index rm app:1"))
@click.argument("image")
@json_option("Print an array of what was removed as JSON.")
@quiet_option("Print nothing.")
@verbose_option()
@pass_session
def remove_command(session: Session, /, image: str) -> None:
    """Remove the indexes of an image that are kept here, for all platforms.

    What has been pushed stays where it is.
    """
    query = {"image": pulling.absolute_image(image)}
    removed = session.client.call("DELETE", "/indexes", query)["indexes"]
    if session.is_json:
        echo_json(removed)
    elif not session.is_quiet:
        for index in removed:
            click.echo(f"removed  {visible_name(familiar(index['image']))} {index['platform']}")


@index_command.command(
    "push",
    epilog=examples(
        "imgvol index push app:1 registry.example.com/app:1-lazy",
        "imgvol index push registry.example.com/app:1 --v1",
    ),
)
@click.argument("image")
@click.argument("target", required=False)
@click.option("--v1", is_flag=True, help="Put the index beside the image, which stays as it is.")
@pushing.push_options
@json_option("Print what was pushed as JSON.")
@quiet_option("Print nothing.")
@verbose_option()
@pass_session
def push_command(
    session: Session,
    /,
    image: str,
    target: str | None,
    v1: bool,
    plain_http: bool,
    insecure: bool,
    ca_file: str | None,
    username: str | None,
    password_stdin: bool,
) -> None:
    """Push an image with its index to TARGET, or with --v1 the index alone to the image.

    TARGET names an image with the same layers, whose manifest pins the index: every node that
    knows SOCI reads it lazily. With --v1 the image keeps its digest, but nothing pins the index,
    and nodes use it only where they are told to trust such.
    """
    if v1 == (target is not None):
        raise InvalidArgument(
            "give TARGET, or --v1, and not both",
            hint="Without --v1 another image is made, which needs a name.",
        )
    started = time.monotonic()
    body = {
        "image": pulling.absolute_image(image),
        "target": target,
        "v1": v1 or None,
        **pushing.pushing(
            plain_http=plain_http,
            insecure=insecure,
            ca_file=ca_file,
            username=username,
            password_stdin=password_stdin,
        ),
    }
    describe = pushing.push_line(target or image)
    event = pushing.follow(session, "/indexes/push", body, describe=describe)
    if session.is_json:
        echo_json({name: value for name, value in event.items() if name != "event"})
    elif not session.is_quiet:
        click.echo(event["name"])
        echo_note(pushing.push_summary(event, time.monotonic() - started))


def _progress(image: str, event: Mapping[str, Any]) -> str:
    layers = event["layers"]
    done = sum(layer["state"] not in {"waiting", "indexing"} for layer in layers)
    parts = [f"{done} of {units.plural(len(layers), 'layer')}"] if layers else []
    for layer in layers:
        if layer["state"] == "indexing":
            parts.insert(0, units.progress(layer["done"], layer["size"]))
    return f"Indexing {image}: {', '.join(parts) or 'resolving'}"


def _echo_indexes(indexes: Sequence[Mapping[str, Any]]) -> None:
    columns = [
        Column("IMAGE", shrinks=True),
        Column("PLATFORM"),
        Column("LAYERS", is_number=True),
        Column("INDEX", is_number=True),
        Column("MADE"),
    ]
    rows = []
    for index in indexes:
        layers = index["layers"]
        made = [layer for layer in layers if _blobs_of(layer)]
        size = sum(blob["size"] for layer in made for blob in _blobs_of(layer))
        rows.append(
            [
                familiar(index["image"]),
                index["platform"],
                f"{len(made)}/{len(layers)}",
                units.size(size),
                units.age(index["created_at"]),
            ]
        )
    echo_table(columns, rows)


def _echo_layers(index: Mapping[str, Any]) -> None:
    columns = [
        Column("LAYER"),
        Column("FORMAT"),
        Column("SIZE", is_number=True),
        Column("SPANS", is_number=True),
        Column("ZTOC", is_number=True),
        Column("COMPRESSED", is_number=True),
        Column("SHARE", is_number=True),
        Column("WHY NOT", shrinks=True),
    ]
    echo_table(columns, [_layer_row(layer) for layer in index["layers"]])


def _layer_row(layer: Mapping[str, Any]) -> list[str]:
    head = [short_digest(layer["digest"]), _format(layer["media_type"]), units.size(layer["size"])]
    if not _blobs_of(layer):
        return [*head, "", "", "", "", layer["reason"]]
    # Of zstd frames there is the compressed form only.
    ztoc = units.size(layer["ztoc"]["size"]) if layer["ztoc"] else ""
    compressed = (layer["twin"] or layer["frames"])["size"]
    return [
        *head,
        units.count(layer["spans"]),
        ztoc,
        units.size(compressed),
        f"{100 * compressed / max(layer['size'], 1):.2f}%",
        "",
    ]


def _blobs_of(layer: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What an index has for a layer; empty: it is left out."""
    return [layer[kind] for kind in ("ztoc", "twin", "frames") if layer[kind]]


def _format(media_type: str) -> str:
    for name in ("gzip", "zstd"):
        if media_type.endswith(name):
            return name
    return "tar"
