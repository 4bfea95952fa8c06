"""What the commands that may have to fetch an image share: options, the call, its account."""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from imgvol import limits
from imgvol.cli import units
from imgvol.cli.client import Body, Parameters
from imgvol.cli.completion_values import complete_image
from imgvol.cli.render import Column, echo_note, table_lines
from imgvol.cli.session import Session
from imgvol.errors import InternalError, InvalidArgument, NotFound

F = TypeVar("F", bound=Callable[..., Any])

_LOCAL_SCHEMES: Final = ("oci:", "oci-archive:", "docker-archive:")


def image_argument(function: F) -> F:
    """`IMAGE`, completed with the names of local images."""
    return click.argument("image", shell_complete=complete_image)(function)


def fetch_options(function: F) -> F:
    """Which variant of an image, and how its registry is reached."""
    help_text = "Another platform than this machine's."
    option = click.option("--platform", metavar="OS/ARCH", help=help_text)
    return option(registry_options(function))


def registry_options(function: F) -> F:
    """How a registry is reached."""
    options = [
        click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS."),
        click.option("--insecure", is_flag=True, help="Do not check the registry's certificate."),
        click.option(
            "--ca-file",
            metavar="FILE",
            type=click.Path(exists=True, dir_okay=False),
            help="Trust the certificates in FILE (PEM) too.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def login_options(function: F) -> F:
    """Who to be to the registry, instead of what the login files say."""
    options = [
        click.option("--username", metavar="NAME", help="Log in to the registry as NAME."),
        click.option(
            "--password-stdin",
            is_flag=True,
            help="Read NAME's password from standard input, and do not ask for it.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def logging_in(*, username: str | None, password_stdin: bool) -> dict[str, str]:
    """Members of a request's body; asks for the password, which is in no command line.

    Raises:
        InvalidArgument: There is no password, or nobody that it could be of.
    """
    import sys

    if username is None:
        if password_stdin:
            raise InvalidArgument("a password without a user name", hint="Add --username NAME.")
        return {}
    if password_stdin:
        # One too many is the daemon's to refuse: a part of a password would only be wrong.
        password = sys.stdin.read(limits.LOGIN_LENGTH + 1).rstrip("\r\n")
    elif sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, err=True)
    else:
        password = ""
    if not password:
        raise InvalidArgument("no password is given", hint="Add --password-stdin, and pipe it in.")
    return {"username": username, "password": password}


def stats_option(function: F) -> F:
    """`--stats`."""
    explanation = "Print times and rates of each stage afterwards, on standard error."
    return click.option("--stats", "show_stats", is_flag=True, help=explanation)(function)


def absolute_image(image: str) -> str:
    """The same image for a daemon with another working directory."""
    for scheme in _LOCAL_SCHEMES:
        if image.startswith(scheme):
            path = image.removeprefix(scheme)
            if path and path[0] not in "/:@":
                path = f"{os.getcwd()}/{path.removeprefix('./')}"
            return f"{scheme}{path}"
    return image


def fetching(
    *, platform: str | None, plain_http: bool, insecure: bool, ca_file: str | None
) -> dict[str, str | bool | None]:
    """Members of a request's body; left out where they are the default."""
    reached = reaching(plain_http=plain_http, insecure=insecure, ca_file=ca_file)
    return {"platform": platform, **reached}


def reaching(
    *, plain_http: bool, insecure: bool, ca_file: str | None
) -> dict[str, str | bool | None]:
    """Those of `registry_options`."""
    return {
        "plain_http": plain_http or None,
        "insecure": insecure or None,
        "ca_file": None if ca_file is None else os.path.abspath(ca_file),
    }


def follow(
    session: Session, path: str, body: Body, *, title: str, file: int | None = None
) -> dict[str, Any]:
    """POST, show the progress, return the last event (`done`)."""
    from imgvol.cli.progress import open_reporter

    with open_reporter(title, is_quiet=session.is_quiet) as reporter:
        for event in session.client.iter_events("POST", path, body=body, file=file):
            if event["event"] == "done":
                return event
            reporter.update(event)
    raise InternalError("a stream of events had no end")


def pull(session: Session, image: str, options: Parameters) -> dict[str, Any]:
    """Pull an image and say what was done; returns the last event."""
    started = time.monotonic()
    body = {"image": absolute_image(image), **options}
    event = follow(session, "/images/pull", body, title=image)
    if not session.is_quiet and _is_person_watching():
        echo_note(pull_summary(image, event, time.monotonic() - started))
    return event


def ensure_image(session: Session, image: str, options: Parameters) -> dict[str, str | None]:
    """Make sure that an image is local, pulling it if need be; returns query parameters for it."""
    platform = options.get("platform")
    assert platform is None or isinstance(platform, str)
    chosen = {"image": absolute_image(image), "platform": platform}
    try:
        session.client.call("GET", "/images/inspect", chosen)
    except NotFound:
        pull(session, image, options)
    return chosen


def pull_summary(image: str, event: Mapping[str, Any], seconds: float) -> str:
    """`Pulled alpine: 3 layers, 3.4 MB; received 2.1 MB in 1.2 s (1.8 MB/s)`."""
    found = event["image"]
    received = event["stats"].get("received_bytes", 0)
    what = f"{units.plural(len(found['layers']), 'layer')}, {units.size(found['size'])}"
    if not received:
        return f"Pulled {image}: {what}; all of it was here already"
    rate = f" ({units.rate(received / seconds)})" if seconds > 0.05 else ""
    took = f"received {units.size(received)} in {units.duration(seconds)}{rate}"
    return f"Pulled {image}: {what}; {took}"


def echo_stats(stats: Mapping[str, float | int]) -> None:
    """Times and rates of each stage, then the counts, on standard error."""
    for line in stats_lines(stats):
        click.echo(line, err=True)


# What a stage works on, where its own count is not given: pulls count what came in and went out.
_AMOUNTS: Final = {
    "receive": "received_bytes",
    "hash": "received_bytes",
    "decompress": "unpacked_bytes",
    "store": "unpacked_bytes",
    "total": "unpacked_bytes",
}


def stats_lines(stats: Mapping[str, float | int]) -> list[str]:
    """One row per stage; `<stage>_seconds` and `<stage>_bytes` are one stage.

    Layers are worked on side by side: the stages' times can add up to more than the total.
    """
    rows, counts = [], []
    for key, value in stats.items():
        stage, _, kind = key.rpartition("_")
        if stage and kind == "seconds":
            amount = stats.get(f"{stage}_bytes", stats.get(_AMOUNTS.get(stage, "")))
            rows.append(_stage_row(stage, float(value), amount))
        elif stage and kind == "bytes":
            if f"{stage}_seconds" not in stats:
                counts.append([_words(stage), "", units.size(value), ""])
        else:
            counts.append([_words(key), "", units.count(int(value)), ""])
    columns = [
        Column("STAGE"),
        Column("TIME", is_number=True),
        Column("AMOUNT", is_number=True),
        Column("RATE", is_number=True),
    ]
    rows.sort(key=lambda row: row[0] == "total")
    return table_lines(columns, [*rows, *counts])


def _stage_row(stage: str, seconds: float, amount: float | None) -> list[str]:
    if amount is None:
        return [_words(stage), units.duration(seconds), "", ""]
    rate = units.rate(amount / seconds) if amount and seconds > 0 else ""
    return [_words(stage), units.duration(seconds), units.size(amount), rate]


def _words(key: str) -> str:
    return key.replace("_", " ")


def _is_person_watching() -> bool:
    import sys

    return sys.stderr.isatty()
