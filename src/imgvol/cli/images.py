"""`pull`, `images`, `rmi`, `inspect`."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from imgvol.cli import pulling, units
from imgvol.cli.completion_values import complete_image
from imgvol.cli.names import familiar, short_id
from imgvol.cli.render import Column, echo_error, echo_facts, echo_json, echo_note, echo_table
from imgvol.cli.session import (
    Session,
    examples,
    json_option,
    pass_session,
    quiet_option,
    verbose_option,
)
from imgvol.cli.text import visible_name
from imgvol.errors import ImgvolError

# Of artifacts.
_ANY_PLATFORM: Final = "any"


@click.command(
    "pull",
    epilog=examples(
        "imgvol pull alpine:3.20",
        "imgvol pull --platform linux/arm64 --stats example.com/app:1.2",
        "imgvol pull --plain-http registry.example.com:5000/app",
        "imgvol pull oci:./build:v1                 # a layout: oci:DIR[:TAG]",
        "imgvol pull oci-archive:app.tar",
        "imgvol pull docker-archive:app.tar          # or FILE:REF, of several",
    ),
)
@pulling.image_argument
@pulling.fetch_options
@pulling.login_options
@pulling.stats_option
@json_option()
@quiet_option()
@verbose_option()
@pass_session
def pull_command(
    session: Session,
    /,
    image: str,
    show_stats: bool,
    username: str | None,
    password_stdin: bool,
    **options: Any,
) -> None:
    """Fetch IMAGE, verify every byte of it, and index it.

    Layers that are here already are not fetched again. Prints the image's ID.
    """
    login = pulling.logging_in(username=username, password_stdin=password_stdin)
    event = pulling.pull(session, image, {**pulling.fetching(**options), **login})
    found = event["image"]
    if session.is_json:
        echo_json({"image": found, "stats": event["stats"]})
    else:
        click.echo(visible_name(found["id"]))
    if show_stats:
        pulling.echo_stats(event["stats"])


@click.command(
    "images", epilog=examples("imgvol images", "imgvol images --json | jq -r '.[].names[]'")
)
@json_option("Print an array of images as JSON.")
@quiet_option("Print IDs only.")
@verbose_option()
@pass_session
def images_command(session: Session, /) -> None:
    """List the images that are here."""
    answer = session.client.call("GET", "/images")
    images = answer["images"]
    if session.is_json:
        echo_json(images)
    elif session.is_quiet:
        for image in dict.fromkeys(image["id"] for image in images):
            click.echo(image)
    else:
        columns = [
            Column("IMAGE", shrinks=True),
            Column("ID"),
            Column("PLATFORM"),
            Column("LAYERS", is_number=True),
            Column("SIZE", is_number=True),
            Column("PULLED"),
        ]
        rows = sorted(_image_rows(images) + _evicted_rows(answer["evicted"]))
        if any(image["pinned"] for image in images):
            columns.append(Column("PINNED BY"))
        echo_table(columns, [row[: len(columns)] for row in rows])


def _image_rows(images: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            familiar(name),
            short_id(image["id"]),
            image["platform"] or _ANY_PLATFORM,
            str(len(image["layers"])),
            units.size(image["size"]),
            units.age(image["pulled_at"]),
            ",".join(sorted({owner.partition(":")[0] for owner in image["pinned_by"]})),
        ]
        for image in images
        for name in image["names"] or ["<none>"]
    ]


def _evicted_rows(images: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Those that are not here for want of room: a mount fetches them."""
    return [
        [
            familiar(name),
            short_id(image["id"]),
            image["platform"] or _ANY_PLATFORM,
            "",
            units.size(image["size"]),
            "evicted",
            "",
        ]
        for image in images
        for name in image["names"]
    ]


@click.command(
    "rmi", epilog=examples("imgvol rmi alpine:3.20", "imgvol rmi $(imgvol images -q)  # all")
)
@click.argument(
    "images", nargs=-1, required=True, metavar="IMAGE...", shell_complete=complete_image
)
@click.option(
    "-f",
    "--force",
    is_flag=True,
    help="All names and pins of each image at once, mounted or not; not here is fine.",
)
@json_option()
@quiet_option("Print nothing.")
@verbose_option()
@pass_session
def rmi_command(session: Session, /, images: tuple[str, ...], *, force: bool) -> int:
    """Remove images by name, ID or digest.

    A name is dropped; with its last name the image goes, and with it the layers that no other image
    uses. An image that is mounted stays; with --force it has no name any more, and goes when it
    is unmounted.
    """
    reports = []
    failures = 0
    for image in images:
        try:
            chosen: dict[str, str | bool | float | None]
            chosen = {"image": pulling.absolute_image(image), "force": force}
            reports.append(session.client.call("DELETE", "/images", chosen))
        except ImgvolError as error:
            echo_error(error)
            failures += 1
    _echo_removals(session, reports)
    return 1 if failures else 0


def _echo_removals(session: Session, reports: Sequence[Mapping[str, Any]]) -> None:
    if session.is_json:
        echo_json(reports)
        return
    if session.is_quiet:
        return
    for report in reports:
        for name in report["untagged"]:
            click.echo(f"untagged {visible_name(name)}")
        for digest in report["deleted"]:
            click.echo(f"deleted  {visible_name(digest)}")
    freed = sum(report["freed"] for report in reports)
    if freed:
        echo_note(f"Freed {units.size(freed)}.")


@click.command(
    "inspect",
    epilog=examples(
        "imgvol inspect alpine:3.20",
        "imgvol inspect --json alpine:3.20 | jq .config.config.Env",
    ),
)
@pulling.image_argument
@pulling.fetch_options
@json_option("Print image, manifest and config as JSON.")
@quiet_option()
@verbose_option()
@pass_session
def inspect_command(session: Session, /, image: str, **options: Any) -> None:
    """Show IMAGE: what it is, its layers, how it would be run. Pulls it if need be."""
    chosen = pulling.ensure_image(session, image, pulling.fetching(**options))
    details = session.client.call("GET", "/images/inspect", chosen)
    if session.is_json:
        echo_json(details)
        return
    echo_facts(_facts(details["image"]))
    # Artifacts have none that would be an image's.
    settings = _settings((details["config"] or {}).get("config") or {})
    if settings:
        click.echo()
        echo_facts(settings)
    click.echo()
    _echo_layers(details["image"]["layers"])


def _facts(image: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        *(("name", name) for name in image["names"]),
        *(("pinned by", owner) for owner in image["pinned_by"]),
        ("id", image["id"]),
        ("manifest", image["manifest"]),
        ("chain ID", image["chain_id"]),
        ("platform", image["platform"] or _ANY_PLATFORM),
        ("created", image["created"] or "not said"),
        ("size", f"{units.size(image['size'])} in {units.plural(len(image['layers']), 'layer')}"),
    ]


def _settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a container would be run with. The config is the image's: any member may be anything."""
    facts = []
    for label, key in (("entrypoint", "Entrypoint"), ("command", "Cmd")):
        value = config.get(key)
        if isinstance(value, list) and value:
            facts.append((label, _command_line(value)))
    for label, key in (
        ("directory", "WorkingDir"),
        ("user", "User"),
        ("stop signal", "StopSignal"),
    ):
        if config.get(key):
            facts.append((label, str(config[key])))
    facts += [("environment", str(item)) for item in _items(config.get("Env"))]
    labels = config.get("Labels")
    if isinstance(labels, dict):
        facts += [("label", f"{key}={value}") for key, value in sorted(labels.items())]
    return facts


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _command_line(words: Sequence[object]) -> str:
    import shlex

    return shlex.join(str(word) for word in words)


def _known_by(layer: Mapping[str, Any]) -> str:
    if layer["is_complete"]:
        return str(layer["format"])
    return f"{layer['format']}, {'bad' if layer['fault'] else 'lazy'}"


def _echo_layers(layers: Sequence[Mapping[str, Any]]) -> None:
    columns = [
        Column("LAYER"),
        Column("SIZE", is_number=True),
        Column("UNPACKED", is_number=True),
        Column("ENTRIES", is_number=True),
        Column("KNOWN BY"),
        Column("MEDIA TYPE", shrinks=True),
    ]
    rows = [
        [
            short_id(layer["digest"]),
            units.size(layer["size"]),
            units.size(layer["unpacked_size"]),
            units.count(layer["entries"]),
            _known_by(layer),
            layer["media_type"],
        ]
        for layer in layers
    ]
    echo_table(columns, rows)
