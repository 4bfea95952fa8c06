"""The file in which a supervisor tells how it goes."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol import limits
from imgvol.supervisor import status
from imgvol.supervisor.channel import Channel
from imgvol.supervisor.status import Status


@pytest.fixture
def run(short_path):
    """A run directory with a supervisor, which is this process."""
    channel = Channel(str(short_path))
    yield str(short_path)
    channel.close()


def test_what_is_written_is_read(run):
    told = Status(os.getpid(), "waiting", None, 4, 3, "signal 9 (SIGKILL)", 5.5, 6.5)
    status.write(run, told)
    assert status.read(run) == told
    assert status.left_behind(run) is None
    assert os.stat(f"{run}/{status.NAME}").st_mode & 0o777 == 0o600
    status.write(run, told._replace(restarts=5))
    assert status.read(run).restarts == 5
    assert sorted(os.listdir(run)) == [f".supervisor.{os.getpid()}", status.NAME]
    status.remove(run)
    status.remove(run)
    assert status.read(run) is None


def test_what_one_was_killed_over_is_taken_away_by_the_next(run):
    with open(f"{run}/{status.NAME}.new", "w") as file:
        file.write('{"pid": 12345678901234')
    assert status.read(run) is None
    status.write(run, Status(os.getpid(), "ready"))
    assert status.read(run) == Status(os.getpid(), "ready")
    assert sorted(os.listdir(run)) == [f".supervisor.{os.getpid()}", status.NAME]


def test_what_a_dead_supervisor_has_left_says_nothing(short_path):
    channel = Channel(str(short_path))
    status.write(str(short_path), Status(os.getpid(), "ready"))
    channel.close()
    assert status.read(str(short_path)) is None
    assert status.left_behind(str(short_path)) == Status(os.getpid(), "ready")


def test_one_of_another_version_is_read(run):
    document = {**Status(os.getpid(), "ready")._asdict(), "news": 1}
    del document["unready"]
    with open(f"{run}/{status.NAME}", "w") as file:
        json.dump(document, file)
    assert status.read(run) == Status(os.getpid(), "ready")


WRONG = [
    {"pid": "1"},
    {"state": "odd"},
    {"restarts": True},
    {"unready": 1.5},
    {"last_end": 1},
    {"next_try_at": "soon"},
    {"worker": "1"},
    {"last_end_at": []},
]


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_nonsense_says_nothing(run, change):
    with open(f"{run}/{status.NAME}", "w") as file:
        json.dump({**Status(os.getpid(), "ready")._asdict(), **change}, file)
    assert status.read(run) is None


@given(data=st.binary(max_size=200) | st.from_type(dict).map(str).map(str.encode))
def test_garbage_says_nothing(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("run")
    (directory / status.NAME).write_bytes(data)
    assert status.read(str(directory)) is None


def test_a_directory_that_has_gone_is_no_failure(tmp_path):
    status.write(str(tmp_path / "gone"), Status(1, "ready"))


def test_when_waiting_is_of_no_use():
    assert not Status(1, "ready").is_down(0)
    assert Status(1, "starting", unready=limits.WORKER_FAILING).is_down(0)
    paused = Status(1, "waiting", next_try_at=100.0)
    assert paused.is_down(99 - limits.WORKER_PATIENCE)
    assert not paused.is_down(101 - limits.WORKER_PATIENCE)
