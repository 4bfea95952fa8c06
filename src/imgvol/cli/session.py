"""What one run of the command knows: where the daemon is, and how the user wants to be told."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import click

from imgvol.cli.client import Client
from imgvol.config import Config

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Session:
    """Global options, filled in as click meets them.

    Attributes:
        root: `--root`, if given.
        run: `--run`, if given.
        is_json: Results as JSON.
        is_quiet: No progress and no remarks; results in their shortest form.
        verbosity: How often `-v` was given.
    """

    root: str | None = None
    run: str | None = None
    is_json: bool = False
    is_quiet: bool = False
    verbosity: int = field(default=0)

    @cached_property
    def config(self) -> Config:
        """Where everything is."""
        environment = Config.from_environment(os.environ, os.getuid())
        return environment.with_directories(self.root, self.run)

    @cached_property
    def client(self) -> Client:
        """The daemon, started when it is not there."""
        return Client(str(self.config.socket), ensure_daemon=self._start)

    @cached_property
    def running_client(self) -> Client:
        """The daemon, if it is there: calls raise NotRunning when it is not."""
        return Client(str(self.config.socket))

    def _start(self) -> None:
        from imgvol.cli.start import start_daemon

        start_daemon(self.config)


pass_session = click.make_pass_decorator(Session, ensure=True)


def examples(*lines: str, after: str = "") -> str:
    """An epilog of command lines, marked so that click leaves their line breaks alone."""
    shown = "\n".join(f"  {line}" for line in lines)
    return f"\b\nExamples:\n{shown}\n\n{after}"


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def remember(context: click.Context, _parameter: click.Parameter, value: Any) -> None:
        session = context.ensure_object(Session)
        if value:
            setattr(session, name, value)

    return remember


def _option(*names: str, attribute: str, **habits: Any) -> Callable[[F], F]:
    return click.option(*names, expose_value=False, callback=_remember(attribute), **habits)


def json_option(what: str = "Print the result as JSON.") -> Callable[[F], F]:
    """`--json`; taken before the command's name as well as after it."""
    return _option("--json", attribute="is_json", is_flag=True, help=what)


def quiet_option(what: str = "Print no progress.") -> Callable[[F], F]:
    """`-q`."""
    return _option("-q", "--quiet", attribute="is_quiet", is_flag=True, help=what)


def verbose_option() -> Callable[[F], F]:
    """`-v`."""
    return _option(
        "-v", "--verbose", attribute="verbosity", count=True, help="Tell more about defects."
    )


def directory_options(function: F) -> F:
    """`--root` and `--run`."""
    root = _option(
        "--root",
        attribute="root",
        metavar="DIR",
        type=click.Path(file_okay=False),
        help="Where images are kept [IMGVOL_ROOT].",
    )
    run = _option(
        "--run",
        attribute="run",
        metavar="DIR",
        type=click.Path(file_okay=False),
        help="Where the socket and the views are [IMGVOL_RUN].",
    )
    return root(run(function))
