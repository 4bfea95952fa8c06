"""What the commands that push share: options, the line that tells how far it is, its account."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from imgvol.cli import pulling, units
from imgvol.cli.client import Body
from imgvol.cli.progress import RateMeter
from imgvol.cli.session import Session
from imgvol.cli.text import shortened, visible
from imgvol.errors import InternalError

F = TypeVar("F", bound=Callable[..., Any])

# To the first column, and nothing of the old line after the new one.
_REDRAW: Final = "\r\x1b[K"


def push_options(function: F) -> F:
    """How the target's registry is reached, and as whom: named as `imgvol pull` has them."""
    return pulling.registry_options(pulling.login_options(function))


def pushing(
    *,
    plain_http: bool,
    insecure: bool,
    ca_file: str | None,
    username: str | None,
    password_stdin: bool,
) -> dict[str, str | bool | None]:
    """Members of a request's body, of `push_options`; asks for the password.

    Raises:
        InvalidArgument: There is no password, or nobody that it could be of.
    """
    return {
        **pulling.reaching(plain_http=plain_http, insecure=insecure, ca_file=ca_file),
        **pulling.logging_in(username=username, password_stdin=password_stdin),
    }


class ProgressLine:
    """One line on standard error that is drawn again and again; silent where nobody watches."""

    def __init__(self, *, is_quiet: bool) -> None:
        is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._is_shown = is_terminal and not is_quiet

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._draw("")

    def show(self, text: str) -> None:
        """Draw the line anew; what does not fit is left out."""
        self._draw(shortened(visible(text), shutil.get_terminal_size().columns - 1))

    def _draw(self, text: str) -> None:
        if self._is_shown:
            sys.stderr.write(f"{_REDRAW}{text}")
            sys.stderr.flush()


class PushLine:
    """What the line says of a push: `Pushing example.com/app:1: 4.5/34.5 MB, 3.2 MB/s, 2 of 5`.

    Args:
        target: Where to.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._meter = RateMeter()

    def text(self, event: Mapping[str, Any], now: float) -> str:
        """The line for an event with the members PUSH_PROGRESS of the API."""
        self._meter.add(now, event["sent"])
        begun = f"Pushing {self._target}"
        if event["stage"] != "blobs":
            return f"{begun}: manifests"
        parts = [f"{event['finished']} of {units.plural(event['blobs'], 'blob')}"]
        if event["sent"]:
            parts.insert(0, units.progress(event["sent"], event["size"]))
            rate = self._meter.rate(now)
            parts[1:1] = [units.rate(rate)] if rate else []
        return f"{begun}: {', '.join(parts)}"


def follow(
    session: Session,
    path: str,
    body: Body,
    *,
    describe: Callable[[Mapping[str, Any]], str],
    file: int | None = None,
) -> dict[str, Any]:
    """POST, show a line of each event, return the last one (`done`).

    Args:
        session: The command's.
        path: Of the route.
        body: Of the request.
        describe: What the line says of an event: `push_line(target)` for those of a push.
        file: An open file to send along.
    """
    with ProgressLine(is_quiet=session.is_quiet) as line:
        for event in session.client.iter_events("POST", path, body=body, file=file):
            if event["event"] == "done":
                return event
            line.show(describe(event))
    raise InternalError("a stream of events had no end")


def push_line(target: str) -> Callable[[Mapping[str, Any]], str]:
    """What `follow` describes the events of a push with."""
    line = PushLine(target)
    return lambda event: line.text(event, time.monotonic())


def push_summary(event: Mapping[str, Any], seconds: float) -> str:
    """`Pushed example.com/app:1: sent 3 blobs, 2.1 MB in 1.2 s (1.8 MB/s); 2 were there`."""
    parts = []
    if event["uploaded"]:
        size = event["uploaded_bytes"]
        rate = f" ({units.rate(size / seconds)})" if seconds > 0.05 else ""
        sent = f"{units.plural(event['uploaded'], 'blob')}, {units.size(size)}"
        parts.append(f"sent {sent} in {units.duration(seconds)}{rate}")
    if event["mounted"]:
        parts.append(f"{event['mounted']} taken from another repository")
    if event["existing"]:
        parts.append(f"{event['existing']} {'was' if event['existing'] == 1 else 'were'} there")
    return f"Pushed {visible(event['name'])}: {'; '.join(parts) or 'nothing to send'}"
