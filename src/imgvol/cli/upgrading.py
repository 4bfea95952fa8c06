"""`upgrade`: have the daemon go on with the program that is on the disk now."""

from typing import Final

import click

from imgvol.cli.render import echo_json, echo_note
from imgvol.cli.session import (
    Session,
    examples,
    json_option,
    pass_session,
    quiet_option,
    verbose_option,
)
from imgvol.errors import DaemonUnavailable, LocalError, MachineLacks
from imgvol.supervisor import status
from imgvol.supervisor.upgrade import Result, ask_for_upgrade

_SECONDS: Final = 60.0


class Refused(LocalError):
    """An upgrade came to nothing."""


@click.command("upgrade", epilog=examples("imgvol upgrade", "imgvol upgrade --time-limit 10"))
@click.option(
    "--time-limit",
    "seconds",
    metavar="SECONDS",
    type=click.FloatRange(min=1.0, max=600.0),
    default=_SECONDS,
    show_default=True,
    help="How long the new daemon may load, and then take to become ready.",
)
@json_option()
@quiet_option("Print nothing.")
@verbose_option()
@pass_session
def upgrade_command(session: Session, /, *, seconds: float) -> None:
    """Have the daemon go on with the program that is on the disk now.

    Nothing is unmounted, and no read fails: who reads waits for a moment. A new daemon that could
    not go on leaves the old one as it is; if it fails later the old program goes on. Pulls that are
    under way break off.
    """
    run = str(session.config.run)
    found = status.read(run)
    if found is None:
        raise MachineLacks(
            "no supervisor runs a daemon here",
            hint="Start it with: imgvol serve --supervisor. Under systemd, with imgvol's "
            "unit, no read fails either with: systemctl restart imgvol",
        )
    result = _ask(run, found.pid, seconds)
    if result.version is None:
        raise Refused(
            "the new program does not go on",
            hint="The old one does. Its log may tell more (imgvol doctor).",
            reason=result.reason,
        )
    if session.is_json:
        echo_json({"version": result.version})
    elif not session.is_quiet:
        echo_note(f"Version {result.version} goes on.")


def _ask(run: str, pid: int, seconds: float) -> Result:
    try:
        return ask_for_upgrade(run, pid, seconds)
    except (OSError, ValueError, TypeError) as exc:
        raise DaemonUnavailable(
            "the supervisor has not told what came of it",
            hint="See how it goes: imgvol doctor",
            reason=exc,
        ) from exc
