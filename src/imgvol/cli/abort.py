"""`abort`: free the processes that hang in a view, without asking the daemon for anything.

A process that waits for a FUSE filesystem whose daemon does not answer cannot be killed. Aborting
the kernel's connection fails all of its waiting requests with ENOTCONN. Nothing here may touch a
path below a view: that would hang as well, so everything is read from mountinfo and fusectl.
"""

import contextlib
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from imgvol.cli.render import echo_error, echo_json, echo_note
from imgvol.cli.session import (
    Session,
    examples,
    json_option,
    pass_session,
    quiet_option,
    verbose_option,
)
from imgvol.cli.text import decode, visible_name
from imgvol.errors import ImgvolError, LocalError, MachineLacks
from imgvol.volumes.mountinfo import FILESYSTEM_TYPE, MountInfo, is_ours, read_mountinfo

CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
_MOUNT_DEADLINE: Final = 10.0

Unmount = Callable[[MountInfo], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aborted:
    """What was done.

    Attributes:
        connections: Numbers of the kernel's connections that were aborted.
        detached: Mount points that were taken out of the tree.
        failures: What did not work.
    """

    connections: list[int]
    detached: list[bytes]
    failures: list[ImgvolError]


@click.command(
    "abort", epilog=examples("imgvol abort", "imgvol abort --all   # of every imgvol daemon here")
)
@click.option(
    "--all", "is_all", is_flag=True, help="Views of every daemon, not only of this --run."
)
@json_option()
@quiet_option("Print nothing.")
@verbose_option()
@pass_session
def abort_command(session: Session, /, is_all: bool) -> int:
    """Free processes that hang in a view: reads fail, and the mounts are taken away.

    For when the daemon does not answer. Programs that use a view get errors; images stay. A daemon
    that still runs ends, and the next command starts a new one.
    """
    views, owner = session.config.views, _owner_of(session.config.run)
    mounts = [
        mount
        for mount in read_mountinfo()
        if (mount.fstype == FILESYSTEM_TYPE if is_all else is_ours(mount, views, user_id=owner))
    ]
    done = abort_mounts(mounts, CONNECTIONS, _unmount)
    if session.is_json:
        failures = [error.message for error in done.failures]
        detached = [decode(path) for path in done.detached]
        echo_json({"aborted": done.connections, "detached": detached, "failures": failures})
    elif not session.is_quiet:
        _echo_done(done, is_nothing=not mounts)
    for error in done.failures:
        echo_error(error)
    return 1 if done.failures else 0


def _owner_of(run: Path) -> int | None:
    """Whose daemon it is that has a run directory, as root may abort anybody's; None: unknown."""
    try:
        return os.stat(run).st_uid
    except OSError:
        return None


def _echo_done(done: Aborted, *, is_nothing: bool) -> None:
    if is_nothing:
        echo_note("No view is mounted: nothing to do.")
    for number in done.connections:
        click.echo(f"aborted  connection {number}")
    for path in done.detached:
        click.echo(f"detached {visible_name(path)}")


def abort_mounts(mounts: Sequence[MountInfo], connections: Path, unmount: Unmount) -> Aborted:
    """Abort the connections behind `mounts`, then take the mounts away, the latest first.

    Args:
        mounts: Ours, in the order they were made.
        connections: Where fusectl is mounted, or is to be.
        unmount: Detaches a mount lazily, and no other at its place; raises ImgvolError.
    """
    done = Aborted(connections=[], detached=[], failures=[])
    for number in dict.fromkeys(mount.minor for mount in mounts):
        try:
            _abort_connection(number, connections)
        except ImgvolError as error:
            done.failures.append(error)
        else:
            done.connections.append(number)
    for mount in reversed(mounts):
        try:
            unmount(mount)
        except ImgvolError as error:
            done.failures.append(_unmount_failure(mount.mount_point, error))
        else:
            done.detached.append(mount.mount_point)
    return done


def _abort_connection(number: int, connections: Path) -> None:
    control = connections / str(number) / "abort"
    if not control.exists() and connections == CONNECTIONS:
        _mount_fusectl()
    try:
        control.write_bytes(b"1")
    except FileNotFoundError:
        if any(connections.iterdir()):
            return  # the connection is gone: its daemon is, and nothing waits for it any more
        raise MachineLacks(
            "the kernel's list of FUSE connections is not there",
            hint=f"As root: mount -t fusectl fusectl {connections}",
        ) from None
    except OSError as error:
        raise LocalError(
            f"cannot abort a FUSE connection: {error.strerror}",
            hint="Run the command as root, or as the user whose daemon it is.",
            connection=number,
        ) from error


def _mount_fusectl() -> None:
    # Most distributions have it mounted; where it is not and cannot be, the caller says so.
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(
            ["mount", "-t", "fusectl", "fusectl", str(CONNECTIONS)],
            check=False,
            capture_output=True,
            timeout=_MOUNT_DEADLINE,
        )


def _unmount(mount: MountInfo) -> None:
    from imgvol.volumes.unmounting import detach_listed

    detach_listed(mount)


def _unmount_failure(path: bytes, error: ImgvolError) -> ImgvolError:
    return LocalError(
        f"cannot take a mount away: {error}",
        hint=error.hint or "Run the command as root.",
        path=path,
    )
