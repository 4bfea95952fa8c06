"""`events`."""

import json
import time
from collections.abc import Mapping
from typing import Any, Final

import click

from imgvol.cli import text, units
from imgvol.cli.render import echo_note
from imgvol.cli.session import Session, examples, json_option, pass_session, verbose_option

_ID_DIGITS: Final = 12


@click.command(
    "events",
    epilog=examples(
        "imgvol events",
        "imgvol events --filter image.created --filter image.removed",
        "imgvol events --json | jq .image",
    ),
)
@click.option(
    "--filter",
    "kinds",
    metavar="KIND",
    multiple=True,
    help="Only events of this kind: image.created, image.updated, image.removed, image.evicted, "
    "pull.progress, pull.failed. May be repeated.",
)
@json_option("Print each event as a line of JSON.")
@verbose_option()
@pass_session
def events_command(session: Session, /, *, kinds: tuple[str, ...]) -> None:
    """Tell what happens to images from now on, until you interrupt it or the daemon ends.

    Nothing is told of what was before: look with `imgvol images` once this runs. A daemon that was
    started on demand stays as long as somebody follows.
    """
    for event in session.client.iter_events("GET", "/events", {"kinds": ",".join(kinds)}):
        if event["event"] in {"alive", "done"}:
            continue
        if session.is_json:
            click.echo(json.dumps(event))
        elif event["event"] == "lost":
            echo_note(f"{units.plural(event['count'], 'event')} lost: nobody read them in time")
        else:
            click.echo(event_line(event))


def event_line(event: Mapping[str, Any]) -> str:
    """`2026-05-01T12:00:00 image.removed alpine:3.20 0123456789ab reason=…`."""
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(event["at"]))
    parts = [at, event["event"], text.visible_name(event["image"])]
    if event["id"]:
        parts.append(event["id"].partition(":")[2][:_ID_DIGITS])
    told = ((key, _plain(value)) for key, value in event["data"].items())
    return " ".join([*parts, *(f"{key}={text.visible(value)}" for key, value in told if value)])


def _plain(value: object) -> str:
    """A value as a person would write it; what is empty, zero or no is left out."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return ("yes" if value is True else str(value)) if value else ""
