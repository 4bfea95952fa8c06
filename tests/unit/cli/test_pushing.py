"""What commands that push say while they push, and afterwards."""

import io

import click
import pytest
from click.testing import CliRunner

from imgvol.cli import pushing
from imgvol.cli.images import pull_command
from imgvol.errors import InvalidArgument


def event(stage="blobs", blobs=5, finished=2, size=34_500_000, sent=4_500_000):
    return {"stage": stage, "blobs": blobs, "finished": finished, "size": size, "sent": sent}


def test_the_line_tells_bytes_rate_and_blobs():
    line = pushing.PushLine("example.com/app:1")
    assert line.text(event(sent=0), 0.0) == "Pushing example.com/app:1: 2 of 5 blobs"
    assert line.text(event(), 1.0) == (
        "Pushing example.com/app:1: 4.5/34.5 MB, 4.5 MB/s, 2 of 5 blobs"
    )
    assert line.text(event("manifests"), 2.0) == "Pushing example.com/app:1: manifests"


def test_the_rate_survives_an_upload_that_begins_again():
    line = pushing.PushLine("x")
    line.text(event(sent=9_000_000), 0.0)
    line.text(event(sent=1_000_000), 1.0)
    assert "1.0 MB/s" in line.text(event(sent=2_000_000), 2.0)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((3, 2_100_000, 0, 0), "sent 3 blobs, 2.1 MB in 1.5 s (1.4 MB/s)"),
        ((1, 5, 1, 0), "sent 1 blob, 5 B in 1.5 s (3 B/s); 1 taken from another repository"),
        ((1, 5, 0, 1), "sent 1 blob, 5 B in 1.5 s (3 B/s); 1 was there"),
        ((0, 0, 2, 3), "2 taken from another repository; 3 were there"),
        ((0, 0, 0, 0), "nothing to send"),
    ],
)  # fmt: skip
def test_the_summary_says_what_went_where(counts, words):
    uploaded, size, mounted, existing = counts
    done = {"name": "example.com/app:1", "uploaded": uploaded, "uploaded_bytes": size}
    text = pushing.push_summary({**done, "mounted": mounted, "existing": existing}, 1.5)
    assert text == f"Pushed example.com/app:1: {words}"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_line_is_drawn_on_terminals_only(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "xterm")
    for stream, is_quiet in ((io.StringIO(), False), (Terminal(), True)):
        monkeypatch.setattr("sys.stderr", stream)
        with pushing.ProgressLine(is_quiet=is_quiet) as line:
            line.show("text")
        assert stream.getvalue() == ""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with pushing.ProgressLine(is_quiet=False) as line:
        line.show("much too long a line\x1b[2J for this")
    drawn = terminal.getvalue().split("\r\x1b[K")
    assert len(drawn[1]) == 19
    assert "\x1b" not in drawn[1]
    assert drawn[-1] == ""


@click.command()
@pushing.push_options
def command(**options):
    try:
        click.echo(sorted((k, v) for k, v in pushing.pushing(**options).items() if v))
    except InvalidArgument as error:
        click.echo(error.message)


def test_options_are_those_of_pull():
    pull = {option for each in pull_command.params for option in each.opts}
    push = {option for each in command.params for option in each.opts}
    assert push - pull == set()
    assert push == {"--plain-http", "--insecure", "--ca-file", "--username", "--password-stdin"}


def test_options_become_members_of_the_request():
    run = CliRunner().invoke
    assert run(command, ["--plain-http"]).output == "[('plain_http', True)]\n"
    given = run(command, ["--username", "me", "--password-stdin"], input="secret\n").output
    assert given == "[('password', 'secret'), ('username', 'me')]\n"
    assert run(command, ["--username", "me"]).output == "no password is given\n"
    assert run(command, ["--password-stdin"]).output == "a password without a user name\n"
