"""`mount`, `unmount`, `ps`."""

import os
from itertools import pairwise
from typing import Any, Final

import click

from imgvol import limits
from imgvol.cli import binding, pulling, text, units
from imgvol.cli.completion_values import complete_volume
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
from imgvol.errors import ImgvolError

_WAITS: Final = ("manifest", "index", "all")


class _MountCommand(click.Command):
    """Takes `--wait` without a value, too; click would take the image for it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click."""
        end = args.index("--") if "--" in args else len(args)
        for option, following in pairwise(args[:end]):
            if option == "--wait" and following in _WAITS:
                raise click.UsageError(f"Did you mean --wait={following}?", ctx)
        given = ["--wait=all" if argument == "--wait" else argument for argument in args[:end]]
        return super().parse_args(ctx, given + args[end:])


@click.command(
    "mount",
    cls=_MountCommand,
    epilog=examples(
        "imgvol mount alpine:3.20 /mnt",
        "cd $(imgvol mount alpine:3.20)      # without DIR: the path of the view",
        "imgvol mount --noexec oci:./build:v1 /mnt",
        "imgvol mount --subpath usr/share/zoneinfo debian /mnt",
        "imgvol mount --verify=full alpine:3.20 /mnt   # check every byte first",
        "imgvol mount --wait=manifest alpine:3.20 /mnt   # at once; readers wait",
        "imgvol mount --verify=stream alpine:3.20 /mnt   # read while it is pulled",
        "imgvol mount --on-outage=block alpine:3.20 /mnt   # wait for the registry",
        "imgvol unmount /mnt",
    ),
)
@pulling.image_argument
@click.argument("directory", metavar="[DIR]", required=False, type=click.Path())
@click.option(
    "--pull",
    "pull_policy",
    type=click.Choice(["missing", "never", "always"]),
    default="missing",
    show_default=True,
    help="Whether to ask the registry.",
)
@binding.bind_options
@click.option(
    "--lazy",
    type=click.Choice(["auto", "off"]),
    default="auto",
    show_default=True,
    help="Whether to mount before everything is here, where the image allows it.",
)
@click.option(
    "--wait",
    type=click.Choice(_WAITS),
    help="What to wait for. index, which is the usual case: all names are known; that takes the "
    "whole of each layer that is not lazy. manifest: return at once; whoever looks for something "
    "waits until the layers that it depends on have been verified. all, and --wait alone: "
    "everything has been copied into the store, as with --lazy=off.",
)
@click.option(
    "--verify",
    type=click.Choice(["lazy", "full", "stream"]),
    default="lazy",
    show_default=True,
    help="What is trusted when the mount returns. lazy: each part is checked when it is read, "
    "every layer as a whole in the background. full: nothing is mounted before every byte of "
    "every layer has been checked. stream: mounted at once, and layers that have to be pulled as "
    "a whole are shown while they come, unchecked until the last byte; if a digest is then not "
    "right, readers get errors.",
)
@click.option(
    "--on-outage",
    type=click.Choice(["eio", "block"]),
    default="eio",
    show_default=True,
    help="What readers of missing parts get while the registry cannot be reached. eio: an error "
    "after a few tries. block: they wait, and nothing can kill them meanwhile.",
)
@click.option(
    "--outage-deadline",
    metavar="SECONDS",
    type=click.FloatRange(min=0, max=limits.PATIENCE),
    default=limits.PATIENCE_DEFAULT,
    show_default=True,
    help="How long blocked readers wait before they get the error after all.",
)
@click.option("--no-trace", is_flag=True, help="Do not bring first what a trace names.")
@pulling.fetch_options
@pulling.login_options
@pulling.stats_option
@json_option("Print the volume as JSON.")
@quiet_option()
@verbose_option()
@pass_session
def mount_command(
    session: Session,
    /,
    image: str,
    directory: str | None,
    pull_policy: str,
    lazy: str,
    wait: str | None,
    verify: str,
    on_outage: str,
    outage_deadline: float,
    no_trace: bool,
    show_stats: bool,
    username: str | None,
    password_stdin: bool,
    **options: Any,
) -> None:
    """Mount IMAGE read-only at DIR, an existing directory, and print the path.

    Without DIR the image's view is kept open and its path is printed. Without root, DIR has to be
    yours, and nobody else sees what is there. The image is pulled if it is not here.
    """
    body = {
        "image": pulling.absolute_image(image),
        "target": None if directory is None else os.path.abspath(directory),
        "pull": pull_policy,
        "lazy": "off" if wait == "all" or lazy == "off" else None,
        "wait": None if wait == "all" else wait,
        "verify": None if verify == "lazy" else verify,
        "patience": outage_deadline if on_outage == "block" else None,
        "no_trace": no_trace or None,
        **binding.take(options),
        **pulling.fetching(**options),
        **pulling.logging_in(username=username, password_stdin=password_stdin),
    }
    event = pulling.follow(session, "/volumes", body, title=image)
    volume = event["volume"]
    if session.is_json:
        echo_json({"volume": volume, "stats": event["stats"]})
    elif text.has_terminal():
        click.echo(text.visible_name(volume["path"]))
    else:
        click.echo(text.encode(volume["path"]))
    if show_stats:
        pulling.echo_stats(event["stats"])


@click.command(
    "unmount",
    epilog=examples(
        "imgvol unmount /mnt",
        "imgvol unmount 3f9c2a71             # by the ID that `imgvol ps` shows",
        "imgvol unmount --detach /mnt        # now, though programs still use it",
    ),
)
@click.argument(
    "volumes", metavar="DIR|ID...", nargs=-1, required=True, shell_complete=complete_volume
)
@click.option(
    "--detach", is_flag=True, help="Take it out of the tree at once; its users keep what is open."
)
@json_option("Print the volumes as JSON.")
@quiet_option("Print nothing.")
@verbose_option()
@pass_session
def unmount_command(session: Session, /, volumes: tuple[str, ...], detach: bool) -> int:
    """Unmount volumes, by directory or ID. The image stays."""
    gone = []
    failures = 0
    for volume in volumes:
        # An ID has no slash and is no directory here; everything else is a path.
        is_path = "/" in volume or os.path.isdir(volume)
        chosen: dict[str, str | bool | None]
        chosen = {"volume": os.path.abspath(volume) if is_path else volume, "detach": detach}
        try:
            gone.append(session.client.call("DELETE", "/volumes", chosen))
        except ImgvolError as error:
            echo_error(error)
            failures += 1
    if session.is_json:
        echo_json(gone)
    return 1 if failures else 0


@click.command(
    "ps",
    epilog=examples(
        "imgvol ps",
        "imgvol ps --layers                  # what of each layer is here already",
        "imgvol ps --json | jq -r '.[].path'",
    ),
)
@click.option("--layers", "show_layers", is_flag=True, help="Show the layers of each volume.")
@json_option("Print an array of volumes as JSON.")
@quiet_option("Print IDs only.")
@verbose_option()
@pass_session
def ps_command(session: Session, /, *, show_layers: bool) -> None:
    """List what is mounted."""
    volumes = session.client.call("GET", "/volumes")["volumes"]
    if session.is_json:
        echo_json(volumes)
        return
    if session.is_quiet:
        for volume in volumes:
            click.echo(text.visible_name(volume["id"]))
        return
    columns = [
        Column("ID"),
        Column("IMAGE", shrinks=True),
        Column("IMAGE ID"),
        Column("PATH", shrinks=True),
        Column("STATE"),
        Column("HERE", is_number=True),
        Column("SINCE"),
    ]
    rows = [
        [
            volume["id"],
            familiar(volume["image"]),
            short_id(volume["image_id"] or ""),
            volume["path"],
            _state(volume),
            _here(volume["layers"]) if volume["view"] else "",
            units.age(volume["created_at"]),
        ]
        for volume in volumes
    ]
    echo_table(columns, rows)
    _echo_losses(volumes)
    if show_layers and rows:
        click.echo()
        _echo_layers(volumes)
        _echo_traces(volumes)
    if not rows and text.has_terminal():
        echo_note("Nothing is mounted. Mount something with: imgvol mount IMAGE DIR")


def _state(volume: dict[str, Any]) -> str:
    is_bad = any(layer["state"] == "bad" for layer in volume["layers"])
    return "bad" if is_bad else str(volume["state"])


def _echo_losses(volumes: list[dict[str, Any]]) -> None:
    lost = [[volume["id"], volume["reason"]] for volume in volumes if volume["reason"]]
    if lost:
        click.echo()
        echo_table([Column("LOST"), Column("REASON", shrinks=True)], lost)


def _here(layers: list[dict[str, Any]]) -> str:
    """How much of an image is here; of a lazy one all is, once nothing of it will be fetched."""
    size = sum(layer["size"] for layer in layers)
    present = sum(layer["present"] for layer in layers)
    if all(layer["state"] in {"complete", "here"} for layer in layers) or not size:
        return "100 %"
    return f"{min(99, present * 100 // size)} %"


def _echo_traces(volumes: list[dict[str, Any]]) -> None:
    columns = [
        Column("VOLUME"),
        Column("TRACE OF"),
        Column("FROM"),
        Column("FILES", is_number=True),
        Column("MISSING", is_number=True),
        Column("ASKED FOR", is_number=True),
        Column("STATE"),
    ]
    rows = [
        [
            volume["id"],
            short_id(trace["image"]),
            "here" if trace["source"] == "recorded" else "registry",
            f"{trace['matched']}/{trace['traced']}",
            units.size(trace["planned"]),
            units.size(trace["launched"]),
            trace["state"],
        ]
        for volume in volumes
        if (trace := volume["trace"]) is not None
    ]
    if rows:
        click.echo()
        echo_table(columns, rows)


def _echo_layers(volumes: list[dict[str, Any]]) -> None:
    columns = [
        Column("VOLUME"),
        Column("LAYER"),
        Column("FORMAT"),
        Column("STATE"),
        Column("HERE", is_number=True),
        Column("FETCHED", is_number=True),
        Column("WAITED FOR", is_number=True),
        Column("REASON", shrinks=True),
    ]
    rows = [
        [
            volume["id"],
            short_id(layer["digest"]),
            layer["format"],
            layer["state"],
            units.progress(layer["present"], layer["size"]),
            units.size(layer["fetched"]),
            units.size(layer["needed"]),
            layer["reason"],
        ]
        for volume in volumes
        for layer in volume["layers"]
    ]
    echo_table(columns, rows)
