"""The `imgvol` command: the list of its commands, and how it ends.

Only the module of the command that runs is imported: a command costs little more than click itself.
"""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import click

from imgvol.cli.session import (
    Session,
    directory_options,
    examples,
    json_option,
    quiet_option,
    verbose_option,
)
from imgvol.errors import ImgvolError, InternalError

EXIT_ERROR: Final = 1
EXIT_INTERRUPTED: Final = 128 + signal.SIGINT
EXIT_BROKEN_PIPE: Final = 128 + signal.SIGPIPE
# What the scripts of `imgvol completion` set.
_COMPLETE: Final = "_IMGVOL_COMPLETE"


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command lives, and its line in the overview."""

    module: str
    summary: str


# Attribute names follow the commands: `images` is `images_command`.
SECTIONS: Final[dict[str, dict[str, Entry]]] = {
    "Mount images": {
        "mount": Entry("volumes", "Mount an image read-only."),
        "unmount": Entry("volumes", "Unmount it again."),
        "ps": Entry("volumes", "List what is mounted."),
    },
    "Look into images": {
        "ls": Entry("files", "List a directory of an image."),
        "cat": Entry("files", "Print files of an image."),
        "find": Entry("files", "Find files in an image by name and type."),
        "du": Entry("files", "Sum up sizes in an image, by layer if wanted."),
        "inspect": Entry("images", "Show an image's manifest and config."),
    },
    "Keep images": {
        "pull": Entry("images", "Fetch an image and verify it."),
        "import": Entry("bundles", "Bring in all images of an archive."),
        "export": Entry("bundles", "Write images into an archive."),
        "images": Entry("images", "List the images that are here."),
        "rmi": Entry("images", "Remove images."),
        "pin": Entry("pins", "Keep images until they are unpinned."),
        "unpin": Entry("pins", "Let them go again."),
        "preload": Entry("preload", "Show what came of archives and lists in a directory."),
        "lease": Entry("leases", "Keep images, and volumes together."),
        "df": Entry("system", "Show what the store holds."),
        "gc": Entry("upkeep", "Remove what nobody needs, or explain why things stay."),
        "fsck": Entry("upkeep", "Check the store, and repair it."),
        "scrub": Entry("upkeep", "Read stored data again and compare it with its digests."),
    },
    "Make images lazy, and start sooner": {
        "index": Entry("index", "Index plain images, so that their layers are read lazily."),
        "convert": Entry("convert", "Write an image so that others can mount it lazily."),
        "trace": Entry("traces", "Learn what a start reads, and bring that first."),
    },
    "For container runtimes": {
        "hook": Entry("hook", "Mount images in containers, as a hook of an OCI runtime."),
    },
    "The daemon and the machine": {
        "events": Entry("events", "Tell what happens to images, as it happens."),
        "doctor": Entry("doctor", "Check the machine, and say how to repair it."),
        "abort": Entry("abort", "Free processes that hang in a view."),
        "serve": Entry("system", "Run the daemon in the foreground."),
        "stop": Entry("system", "Stop the daemon."),
        "upgrade": Entry("upgrading", "Go on with the program that is installed now."),
        "version": Entry("system", "Print the versions of command and daemon."),
        "completion": Entry("completion", "Print the completion script of a shell."),
    },
}
COMMANDS: Final = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class LazyGroup(click.Group):
    """A group whose commands are imported when they run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the overview."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        del ctx
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        from importlib import import_module

        module = import_module(f"imgvol.cli.{entry.module}")
        return cast("click.Command", getattr(module, f"{cmd_name}_command"))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but with a suggestion that needs no import."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches

            near = get_close_matches(name, COMMANDS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            ctx.fail(f"there is no command {name!r}{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The overview, by section."""
        del ctx
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, entry.summary) for name, entry in section.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        "imgvol mount alpine:3.20 /mnt      # mount an image",
        "imgvol ls -l alpine:3.20 /etc      # look into one without mounting it",
        "imgvol mount oci:./build:v1 /mnt   # images need no registry",
        after="`imgvol COMMAND --help` shows examples of each command.",
    ),
)
@directory_options
@json_option("Print results as JSON.")
@quiet_option()
@verbose_option()
@click.version_option(package_name="imgvol", message="imgvol %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Container images as read-only directories."""
    ctx.ensure_object(Session)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0 well, 1 error, 2 misuse, 130 interrupted."""
    code = run(sys.argv[1:] if arguments is None else arguments)
    sys.exit(code if _flush() else EXIT_BROKEN_PIPE)


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    instruction = os.environ.get(_COMPLETE)
    if instruction:
        return _complete(instruction)
    session = Session()
    try:
        # Not `cli.main`: it has its own ideas about exit statuses.
        with cli.make_context("imgvol", list(arguments) or ["--help"], obj=session) as context:
            result: Any = cli.invoke(context)
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        return _report_misuse(error)
    except ImgvolError as error:
        return _report(error)
    except BrokenPipeError:
        return EXIT_BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - a defect is told of in our own words
        return _report_defect(error, session)
    return result if isinstance(result, int) else 0


def _complete(instruction: str) -> int:
    from click.shell_completion import shell_complete

    from imgvol.cli.completion import register

    register()
    return shell_complete(cli, {}, "imgvol", _COMPLETE, instruction)


def _report_misuse(error: click.ClickException) -> int:
    from imgvol.cli.text import visible

    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        click.echo(context.get_usage(), err=True)
    click.echo(f"imgvol: {visible(error.format_message())}", err=True)
    if context is not None:
        click.echo(f"  See: {context.command_path} --help", err=True)
    return error.exit_code


def _report(error: ImgvolError) -> int:
    from imgvol.cli.render import echo_error

    echo_error(error)
    return EXIT_ERROR


def _report_defect(error: Exception, session: Session) -> int:
    if session.verbosity:
        import traceback

        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    hint = "Please report it, with what the same command says with -v."
    if isinstance(error, OSError):
        hint = "See what is wrong with: imgvol doctor"
    return _report(InternalError(f"{type(error).__name__}: {error}", hint=hint))


def _flush() -> bool:
    """Whether everything could be written; a reader that left early (`| head`) is no error."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        # Python flushes once more at exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True
