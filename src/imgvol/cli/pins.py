"""`pin`, `unpin`."""

from collections.abc import Sequence
from typing import Any

import click

from imgvol.cli import pulling
from imgvol.cli.completion_values import complete_image
from imgvol.cli.names import familiar
from imgvol.cli.render import echo_error, echo_json, echo_note
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

_images_argument = click.argument(
    "images", nargs=-1, required=True, metavar="IMAGE...", shell_complete=complete_image
)


@click.command(
    "pin", epilog=examples("imgvol pin alpine:3.20", "imgvol pin $(imgvol images -q)  # all")
)
@_images_argument
@json_option("Print an array of the images as JSON.")
@quiet_option("Print nothing.")
@verbose_option()
@pass_session
def pin_command(session: Session, /, images: tuple[str, ...]) -> int:
    """Keep images that are here until they are unpinned or removed.

    A name stays pinned when it comes to mean a newer image. By its ID, an image is kept even
    when it has lost its names.
    """
    found, failures = _call(session, "/images/pin", images)
    if session.is_json:
        echo_json(found)
    elif not session.is_quiet:
        for image in found:
            click.echo(f"pinned   {visible_name(_name(image))}")
    return 1 if failures else 0


@click.command("unpin", epilog=examples("imgvol unpin alpine:3.20"))
@_images_argument
@json_option("Print an array of the images as JSON.")
@quiet_option("Print nothing.")
@verbose_option()
@pass_session
def unpin_command(session: Session, /, images: tuple[str, ...]) -> int:
    """Let images go that were pinned, by whatever name.

    An image without a name is then collected. What `imgvol serve --pin-image` pins stays pinned.
    """
    found, failures = _call(session, "/images/unpin", images)
    if session.is_json:
        echo_json(found)
    elif not session.is_quiet:
        for image in found:
            click.echo(f"unpinned {visible_name(_name(image))}")
            if image["pinned"]:
                echo_note(f"It stays pinned by: {', '.join(image['pinned_by'])}.")
    return 1 if failures else 0


def _call(session: Session, path: str, images: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """Asks for each image; returns the images, and how many failed."""
    found = []
    failures = 0
    for image in images:
        try:
            body = {"image": pulling.absolute_image(image)}
            found.append(session.client.call("POST", path, body=body))
        except ImgvolError as error:
            echo_error(error)
            failures += 1
    return found, failures


def _name(image: dict[str, Any]) -> str:
    return familiar(image["names"][0]) if image["names"] else str(image["id"])
