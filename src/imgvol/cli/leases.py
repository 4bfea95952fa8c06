"""`lease create`, `lease ls`, `lease renew`, `lease rm`."""

import re
from typing import Any, Final

import click

from imgvol import limits
from imgvol.cli import pulling, text, units
from imgvol.cli.completion_values import complete_image, complete_lease
from imgvol.cli.render import Column, echo_error, echo_json, echo_note, echo_table
from imgvol.cli.session import (
    Session,
    examples,
    json_option,
    pass_session,
    quiet_option,
    verbose_option,
)
from imgvol.errors import ImgvolError, NotFound

_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd]?)")


class Duration(click.ParamType[float]):
    """Seconds, or a number with s, m, h or d behind it."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Seconds."""
        match = _DURATION.fullmatch(str(value))
        seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
        if not 0 < seconds <= limits.LEASE_DURATION:
            self.fail(
                f"{value!r} is no duration such as 90s, 30m, 24h or 7d, up to a year.", param, ctx
            )
        return seconds


_expires_option = click.option(
    "--expires",
    metavar="DURATION",
    type=Duration(),
    help="How long it lasts from now on, such as 30m, 24h or 7d.",
)


@click.group(
    "lease",
    epilog=examples(
        "imgvol lease create web-1 --image alpine:3.20 --label team=web",
        "imgvol lease ls --label team=web",
        "imgvol lease renew web-1 --expires 24h",
        "imgvol lease rm web-1               # unmounts its volumes, too",
    ),
)
def lease_command() -> None:
    """Keep images here, and the volumes of sandboxes together.

    A lease keeps images that nobody has mounted, or that have lost their names. The lease of a
    sandbox has the sandbox's ID, and its volumes end with it.
    """


@lease_command.command(
    "create",
    epilog=examples(
        "imgvol lease create web-1 --image alpine:3.20",
        "imgvol lease create --expires 24h --image alpine:3.20   # prints its ID",
    ),
)
@click.argument("lease", metavar="[ID]", required=False)
@click.option(
    "--image",
    "images",
    metavar="IMAGE",
    multiple=True,
    shell_complete=complete_image,
    help="An image that is here, to be kept.",
)
@click.option("--label", "labels", metavar="KEY=VALUE", multiple=True, help="To find it by.")
@_expires_option
@json_option("Print the lease as JSON.")
@quiet_option("Print nothing.")
@verbose_option()
@pass_session
def create_command(
    session: Session,
    /,
    lease: str | None,
    images: tuple[str, ...],
    labels: tuple[str, ...],
    expires: float | None,
) -> None:
    """Make a lease and print its ID; one that exists keeps the images, too."""
    body = {
        "lease": lease,
        "images": [pulling.absolute_image(image) for image in images],
        "labels": dict(map(_label, labels)),
        "expires": expires,
    }
    made = session.client.call("POST", "/leases", body=body)
    if session.is_json:
        echo_json(made)
    elif not session.is_quiet:
        click.echo(text.visible_name(made["id"]))


@lease_command.command("ls", epilog=examples("imgvol lease ls", "imgvol lease ls --label team=web"))
@click.option("--label", metavar="KEY[=VALUE]", help="Only leases that have it.")
@json_option("Print an array of leases as JSON.")
@quiet_option("Print IDs only.")
@verbose_option()
@pass_session
def ls_command(session: Session, /, *, label: str | None) -> None:
    """List the leases."""
    leases = session.client.call("GET", "/leases", {"label": label})["leases"]
    if session.is_json:
        echo_json(leases)
        return
    if session.is_quiet:
        for lease in leases:
            click.echo(text.visible_name(lease["id"]))
        return
    columns = [
        Column("ID", shrinks=True),
        Column("KEEPS", is_number=True),
        Column("ENDS IN"),
        Column("SINCE"),
        Column("LABELS", shrinks=True),
    ]
    rows = [
        [
            lease["id"],
            str(len(lease["digests"])),
            "" if lease["remaining"] is None else units.duration(lease["remaining"]),
            units.age(lease["created_at"]),
            ",".join(f"{key}={value}" for key, value in sorted(lease["labels"].items())),
        ]
        for lease in leases
    ]
    echo_table(columns, rows)
    if not rows and text.has_terminal():
        echo_note("There are no leases.")


@lease_command.command(
    "renew",
    epilog=examples("imgvol lease renew web-1", "imgvol lease renew web-1 --expires 24h"),
)
@click.argument("lease", metavar="ID", shell_complete=complete_lease)
@_expires_option
@json_option("Print the lease as JSON.")
@quiet_option("Print nothing.")
@verbose_option()
@pass_session
def renew_command(session: Session, /, lease: str, expires: float | None) -> None:
    """Start a lease's time again: that of --expires, or as long as it was to last before."""
    body = {"lease": lease, "expires": expires}
    renewed = session.client.call("POST", "/leases/renew", body=body)
    if session.is_json:
        echo_json(renewed)


@lease_command.command(
    "rm",
    epilog=examples(
        "imgvol lease rm web-1",
        "imgvol lease rm --drain 30s --detach web-1   # in use or not, half a minute from now",
    ),
)
@click.argument("leases", metavar="ID...", nargs=-1, required=True, shell_complete=complete_lease)
@click.option(
    "--drain",
    metavar="DURATION",
    type=Duration(),
    default=limits.DRAIN_DEFAULT,
    show_default="2s",
    help="How long to wait for users of its volumes to leave; a minute at most.",
)
@click.option(
    "--detach", is_flag=True, help="Then take volumes out of the tree that are still in use."
)
@json_option("Print what became of them as JSON.")
@quiet_option("Print nothing.")
@verbose_option()
@pass_session
def rm_command(session: Session, /, leases: tuple[str, ...], drain: float, detach: bool) -> int:
    """Delete leases: unmount their volumes, and let go of their images."""
    gone = []
    failures = 0
    for lease in leases:
        try:
            chosen: dict[str, str | bool | float | None]
            chosen = {"lease": lease, "drain": drain, "detach": detach}
            deleted = session.client.call("DELETE", "/leases", chosen)
            if not deleted["existed"]:
                hint = "imgvol lease ls lists the leases."
                raise NotFound("no such lease", hint=hint, lease=lease)
            gone.append(deleted)
        except ImgvolError as error:
            echo_error(error)
            failures += 1
    if session.is_json:
        echo_json(gone)
    return 1 if failures else 0


def _label(argument: str) -> tuple[str, str]:
    key, has_value, value = argument.partition("=")
    if not key or not has_value:
        raise click.UsageError(f"--label {argument!r} is not KEY=VALUE")
    return key, value
