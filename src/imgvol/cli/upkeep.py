"""`gc`, `fsck`, `scrub`."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from imgvol.cli import pulling, text, units
from imgvol.cli.client import NotRunning
from imgvol.cli.completion_values import complete_image
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
from imgvol.config import parse_size
from imgvol.errors import Conflict

if TYPE_CHECKING:
    from imgvol.content.check import Finding


@click.command("gc", epilog=examples("imgvol gc --dry-run", "imgvol gc", "imgvol gc --to 20G"))
@click.option(
    "--dry-run", is_flag=True, help="Remove nothing: show why each thing stays, or that it goes."
)
@click.option(
    "--to",
    "wanted",
    metavar="SIZE",
    help="Also evict images that nobody uses, and parts of mounted lazy ones, those used longest "
    "ago first, until the store takes no more than SIZE: 20G. They are fetched again when needed.",
)
@json_option()
@quiet_option("Print nothing.")
@verbose_option()
@pass_session
def gc_command(session: Session, /, *, dry_run: bool, wanted: str | None) -> None:
    """Remove from the store what no name, pin, lease, volume, open view or pull needs.

    The daemon does this by itself every hour, when an image is removed, and when the disk is full.
    """
    if wanted is not None:
        _evict(session, parse_size(wanted), dry_run=dry_run)
        return
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


def _evict(session: Session, size: int, *, dry_run: bool) -> None:
    if dry_run:
        report = session.client.call("POST", "/space/plan", body={"to": size})
    else:
        report = session.client.call("POST", "/space/evict", body={"to": size})
    if session.is_json:
        echo_json(report)
        return
    if session.is_quiet:
        return
    verb = "would go" if dry_run else "evicted"
    for each in report["evicted"]:
        layers = units.plural(len(each["layers"]), "layer")
        click.echo(f"{verb}  {each['manifest']}  {units.size(each['size'])} in {layers}")
    if report["given_back"]:
        parts = units.plural(report["windows"], "part")
        click.echo(f"{verb}  {units.size(report['given_back'])} in {parts} of mounted lazy layers")
    left = units.size(max(0, report["used"] - report["freed"]))
    would = "would free" if dry_run else "freed"
    taken = units.size(report["used"])
    echo_note(f"The store took {taken}; this {would} {units.size(report['freed'])}: {left}.")


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


@click.command("fsck", epilog=examples("imgvol fsck", "imgvol stop && imgvol fsck --repair"))
@click.option("--repair", is_flag=True, help="Repair what can be; no daemon may be running.")
@json_option()
@quiet_option("Print only what is wrong.")
@verbose_option()
@pass_session
def fsck_command(session: Session, /, *, repair: bool) -> int:
    """Check the store, its database and the mounts; exit with 1 if anything is wrong.

    A running daemon is asked to look; it goes on meanwhile. Without one, nothing else can use the
    store while it is checked. Bytes of layers are not read: that is what `imgvol scrub` does.
    """
    try:
        wrong = session.running_client.call("GET", "/check")["wrong"]
    except NotRunning:
        return _check_offline(session, repair=repair)
    if repair:
        raise Conflict("a daemon uses the store", hint="Stop it first: imgvol stop")
    _echo_findings(session, wrong, [])
    return 1 if wrong else 0


def _check_offline(session: Session, *, repair: bool) -> int:
    import trio

    from imgvol import offline

    report = trio.run(partial(offline.check, session.config, repair=repair))
    if report.set_aside is not None:
        echo_note(f"The damaged database is kept: {report.set_aside}")
    _echo_findings(session, list(map(_finding, report.wrong)), list(map(_finding, report.repaired)))
    return 1 if report.wrong else 0


def _finding(finding: "Finding") -> dict[str, str]:
    return {
        "subject": finding.subject,
        "problem": finding.problem,
        "remedy": finding.remedy.value,
    }


def _echo_findings(
    session: Session, wrong: Sequence[Mapping[str, str]], repaired: Sequence[Mapping[str, str]]
) -> None:
    if session.is_json:
        echo_json({"wrong": wrong, "repaired": repaired})
        return
    rows = [["repaired", *_finding_cells(finding)] for finding in repaired]
    rows += [["wrong", *_finding_cells(finding)] for finding in wrong]
    if rows:
        columns = [
            Column("STATE"),
            Column("WHAT"),
            Column("PROBLEM", shrinks=True),
            Column("REMEDY"),
        ]
        echo_table(columns, rows)
    elif not session.is_quiet:
        echo_note("Nothing is wrong.")


def _finding_cells(finding: Mapping[str, str]) -> list[str]:
    return [finding["subject"], finding["problem"], finding["remedy"]]


@click.command("scrub", epilog=examples("imgvol scrub", "imgvol scrub --repair alpine:3.20"))
@click.argument("images", nargs=-1, metavar="[IMAGE]...", shell_complete=complete_image)
@click.option("--repair", is_flag=True, help="Pull images with damaged layers again.")
@click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS.")
@json_option()
@quiet_option("Print only what is damaged.")
@verbose_option()
@pass_session
def scrub_command(
    session: Session, /, *, images: tuple[str, ...], repair: bool, plain_http: bool
) -> int:
    """Read the data of images again and compare it with its digests; exit with 1 if it is damaged.

    Without IMAGE, of all. It gives way to everything else. What is damaged gives errors from then
    on, until its image has been pulled again; everything else is served.
    """
    faults: list[Mapping[str, Any]] = []
    checked = 0
    for image in images or (None,):
        body: dict[str, str | bool | float | None] = {"repair": repair, "plain_http": plain_http}
        if image is not None:
            body["image"] = pulling.absolute_image(image)
        for event in session.client.iter_events("POST", "/scrub", body=body):
            if event["event"] == "done":
                checked += event["checked"]
                faults += [fault for fault in event["faults"] if fault not in faults]
            elif not session.is_quiet:
                _echo_progress(event)
    if text.has_terminal() and not session.is_quiet:
        click.echo(err=True)
    if session.is_json:
        echo_json({"checked": checked, "faults": faults})
    else:
        _echo_faults(faults)
        if not session.is_quiet:
            echo_note(f"Read {units.size(checked)}: {units.plural(len(faults), 'fault')}.")
    return 1 if any(not fault["is_repaired"] for fault in faults) else 0


def _echo_progress(event: Mapping[str, Any]) -> None:
    if text.has_terminal():
        share = event["checked"] / event["total"] if event["total"] else 1.0
        click.echo(f"\r{share:4.0%} of {units.size(event['total'])}", nl=False, err=True)


def _echo_faults(faults: Sequence[Mapping[str, Any]]) -> None:
    if faults:
        columns = [Column("WHAT"), Column("PROBLEM", shrinks=True), Column("OUTCOME")]
        rows = []
        for fault in faults:
            rows.append([fault["subject"], fault["problem"], fault["outcome"]])
            rows += [["", _place_text(place), ""] for place in fault["places"]]
        echo_table(columns, rows)


def _place_text(place: Mapping[str, Any]) -> str:
    files = ", ".join(place["files"]) or "no file that is shown"
    return f"{units.size(place['size'])} at {place['offset']}: {files}"
