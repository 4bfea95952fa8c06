"""`gc`, `fsck`, `scrub`."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from imgvol.cli import units
from imgvol.cli.names import familiar, short_id
from imgvol.cli.render import Column, echo_json, echo_note, echo_table
from imgvol.cli.session import (
    Session,
    examples,
    json_option,
    pass_session,
    quiet_option,
    verbose_option,
)


@click.command("gc", epilog=examples("imgvol gc --dry-run", "imgvol gc"))
@click.option(
    "--dry-run", is_flag=True, help="Remove nothing: show why each thing stays, or that it goes."
)
@json_option()
@quiet_option("Print nothing.")
@verbose_option()
@pass_session
def gc_command(session: Session, /, *, dry_run: bool) -> None:
    """Remove from the store what no name, pin, lease, volume, open view or pull needs.

    The daemon does this by itself every hour, when an image is removed, and when the disk is full.
    """
    if dry_run:
        _echo_plan(session, session.client.call("GET", "/gc")["things"])
        return
    report = session.client.call("POST", "/gc")
    if session.is_json:
        echo_json(report)
    elif not session.is_quiet:
        for thing in report["removed"]:
            click.echo(f"{thing['kind']:8}  {thing['digest']}")
        echo_note(f"Freed {units.size(report['freed'])}.")


def _echo_plan(session: Session, things: Sequence[Mapping[str, Any]]) -> None:
    if session.is_json:
        echo_json(things)
        return
    columns = [
        Column("FATE"),
        Column("KIND"),
        Column("DIGEST"),
        Column("SIZE", is_number=True),
        Column("BECAUSE OF", shrinks=True),
    ]
    echo_table(columns, map(_plan_row, sorted(things, key=lambda thing: bool(thing["reasons"]))))


def _plan_row(thing: Mapping[str, Any]) -> list[str]:
    return [
        "stays" if thing["reasons"] else "goes",
        thing["kind"],
        short_id(thing["digest"]),
        units.size(thing["size"]) if thing["size"] else "",
        ", ".join(map(_reason, thing["reasons"])) or "nothing",
    ]


def _reason(reason: Mapping[str, str]) -> str:
    return f"{reason['kind']} {familiar(reason['name'])}"
