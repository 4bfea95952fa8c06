"""Options of `mount` that say what of an image is bound, and how."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., object])


def bind_options(function: F) -> F:
    """What of the image is mounted, and what its users may do."""
    options = [
        click.option("--noexec", is_flag=True, help="Programs in the volume cannot be run."),
        click.option(
            "--nosymfollow", is_flag=True, help="Symbolic links in the volume are not followed."
        ),
        click.option(
            "--subpath",
            metavar="PATH",
            help="Mount only this directory or file of the image; DIR is a file then, too.",
        ),
        click.option("--dirs-only", is_flag=True, help="Refuse a --subpath that is no directory."),
        click.option(
            "--uidmap",
            metavar="IN:HOST:COUNT",
            multiple=True,
            help="Show COUNT users from IN on as those from HOST on. With --gidmap; where the "
            "kernel maps owners of FUSE filesystems.",
        ),
        click.option(
            "--gidmap", metavar="IN:HOST:COUNT", multiple=True, help="The same for groups."
        ),
        click.option(
            "--propagation",
            type=click.Choice(["private", "rslave"]),
            default="private",
            show_default=True,
            help="Who sees what is mounted beneath DIR later: nobody else, or also those who bind "
            "DIR as a slave.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def take(options: dict[str, Any]) -> dict[str, str | bool | None]:
    """Members of a request's body, taken out of a command's options; None for the default."""
    propagation = options.pop("propagation")
    return {
        "noexec": options.pop("noexec") or None,
        "nosymfollow": options.pop("nosymfollow") or None,
        "sub_path": options.pop("subpath"),
        "dirs_only": options.pop("dirs_only") or None,
        "uid_mappings": ",".join(options.pop("uidmap")) or None,
        "gid_mappings": ",".join(options.pop("gidmap")) or None,
        "propagation": None if propagation == "private" else propagation,
    }
