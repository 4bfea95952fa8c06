"""`preload status`."""

import time
from typing import Any, Final

import click

from imgvol.cli import text, units
from imgvol.cli.render import Column, echo_json, echo_note, echo_table
from imgvol.cli.session import (
    Session,
    examples,
    json_option,
    pass_session,
    quiet_option,
    verbose_option,
)

_POLL: Final = 0.2


@click.group(
    "preload",
    epilog=examples(
        "imgvol preload status              # what has become of each file",
        "imgvol preload status --wait       # when all of them have been dealt with",
    ),
)
def preload_command() -> None:
    """Images of archives and lists in a directory, kept here without a network.

    Put archives (.tar, .tar.gz, .tar.zst, ...) and lists of images (.txt) into the directory that
    `imgvol serve --preload` names; for the system's daemon it is `images` in the store.
    """


@preload_command.command(
    "status", epilog=examples("imgvol preload status", "imgvol preload status --wait --json")
)
@click.option(
    "--wait",
    "waits",
    is_flag=True,
    help="Wait until every file has been dealt with; exit with 1 if one has failed.",
)
@json_option()
@quiet_option("Print nothing.")
@verbose_option()
@pass_session
def status_command(session: Session, /, *, waits: bool) -> int:
    """Show what has become of the files of the preload directory."""
    status = session.running_client.call("GET", "/preload")
    while waits and status["is_busy"]:
        time.sleep(_POLL)
        status = session.running_client.call("GET", "/preload")
    if session.is_json:
        echo_json(status)
    elif not session.is_quiet:
        _echo(status)
    failed = [each for each in status["files"] if each["state"] in {"failed", "partial"}]
    return 1 if waits and failed else 0


def _echo(status: dict[str, Any]) -> None:
    if status["directory"] is None:
        echo_note("The daemon has no preload directory; see: imgvol serve --preload.")
        return
    columns = [
        Column("FILE", shrinks=True),
        Column("STATE"),
        Column("SIZE", is_number=True),
        Column("IMAGES", is_number=True),
        Column("SINCE"),
    ]
    prefix = f"{status['directory']}/"
    rows = [
        [
            text.visible_name(each["path"].removeprefix(prefix)),
            each["state"],
            "" if each["size"] is None else units.size(each["size"]),
            str(len(each["images"])),
            units.age(each["at"]) if each["at"] else "",
        ]
        for each in status["files"]
    ]
    echo_table(columns, rows)
    for each in status["files"]:
        name = text.visible_name(each["path"].removeprefix(prefix))
        for problem in each["problems"]:
            echo_note(f"{name}: {text.visible(problem)}")
        more = each["problem_count"] - len(each["problems"])
        if more:
            echo_note(f"{name}: and {units.plural(more, 'problem')} more")
    for problem in status["problems"]:
        echo_note(text.visible(problem))
