"""`imgvol preload status`, whole, against a fake daemon on a real socket."""

import json
import sys

import pytest

from imgvol.cli import preload
from imgvol.cli.main import run
from imgvol.images.preload.scan import FileKind
from imgvol.images.preload.status import FileState, PreloadedFile, PreloadStatus


def a_file(name, state, **more):
    defaults = {"images": (), "problems": (), "problem_count": 0}
    return PreloadedFile(
        path=f"/images/{name}",
        kind=FileKind.ARCHIVE,
        state=state,
        size=None if state is FileState.WAITING else 1500,
        at=0.0 if state is FileState.WAITING else 1_714_000_000.0,
        **{**defaults, **more},
    )


def a_status(*files, is_busy=False):
    return PreloadStatus(
        directory="/images",
        is_watched=True,
        is_ready=True,
        is_busy=is_busy,
        imported=2,
        unchanged=1,
        failed=1,
        problems=("/images/\udcff.tar: the name is not UTF-8",),
        files=files,
    )


BAD = a_file("bad.tar", FileState.FAILED, problems=("it is cut", "and odd"), problem_count=5)
GOOD = a_file("below/a.tar", FileState.IMPORTED, images=("docker.io/library/a:1",))
LATE = a_file("late.tar", FileState.WAITING)


@pytest.fixture
def status(directory, capfd):
    """Runs `imgvol preload status …`; gives its status, and what it wrote."""

    def status(*arguments):
        places = ["--run", str(directory), "--root", str(directory.parent / "root")]
        code = run([*places, "preload", "status", *arguments])
        sys.stdout.flush()
        out, err = capfd.readouterr()
        return code, out, err

    return status


def test_each_file_is_a_row_and_problems_follow(daemon, status):
    daemon.preload = a_status(BAD, GOOD, LATE)
    code, out, err = status()
    rows = [line.split()[:2] for line in out.splitlines()[1:]]
    assert rows == [["bad.tar", "failed"], ["below/a.tar", "imported"], ["late.tar", "waiting"]]
    assert code == 0
    for text in ("bad.tar: it is cut", "bad.tar: and odd", "and 3 problems more", "not UTF-8"):
        assert text in err


def test_json_has_everything(daemon, status):
    daemon.preload = a_status(GOOD)
    shown = json.loads(status("--json")[1])
    assert (shown["imported"], shown["unchanged"], shown["failed"]) == (2, 1, 1)
    (each,) = shown["files"]
    assert (each["kind"], each["state"], each["size"]) == ("archive", "imported", 1500)
    assert each["images"] == ["docker.io/library/a:1"]


def test_waiting_ends_when_nothing_is_to_be_done_and_tells_of_failures(daemon, status, monkeypatch):
    daemon.preload = a_status(GOOD, LATE, is_busy=True)

    def pause(_):
        daemon.preload = a_status(GOOD, BAD)

    monkeypatch.setattr(preload.time, "sleep", pause)
    code, out, _ = status("--wait", "--quiet")
    assert (code, out) == (1, "")
    daemon.preload = a_status(GOOD)
    assert status("--wait", "--quiet")[0] == 0


def test_without_a_directory_it_says_so(daemon, status):
    code, out, err = status()
    assert (code, out) == (0, "")
    assert "no preload directory" in err
    assert json.loads(status("--json")[1])["directory"] is None
