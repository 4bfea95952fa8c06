"""The daemon's log file."""

import gzip
import logging
import os
import time

import pytest

from imgvol import limits
from imgvol.errors import LocalError
from imgvol.logs import RotatingFile, logging_to

log = logging.getLogger("imgvol.test")


@pytest.fixture(autouse=True)
def _root_level():
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


@pytest.mark.expects_log("bad")
def test_what_is_logged_is_in_the_file_when_the_block_is_left(tmp_path, capsys):
    with logging_to(tmp_path / "log", "info"):
        log.info("hello %s", "there")
        log.error("bad")
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.partition(" imgvol.test: ")[2] for line in lines] == ["hello there", "bad"]
    shown = capsys.readouterr().err
    assert "bad" in shown
    assert "hello" not in shown


def test_debugging_is_shown_too(tmp_path, capsys):
    with logging_to(tmp_path / "log", "debug"):
        log.debug("a detail")
    assert "a detail" in capsys.readouterr().err
    assert "a detail" in (tmp_path / "log").read_text()


def test_without_a_file_everything_is_shown(capsys):
    with logging_to(None, "info"):
        log.info("hello")
        log.debug("a detail")
    shown = capsys.readouterr().err
    assert "hello" in shown
    assert "a detail" not in shown


def test_full_files_are_compressed_and_the_oldest_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "LOG_FILE_SIZE", 200)
    with logging_to(tmp_path / "log", "info"):
        for number in range(20):
            log.info("%s %d", "x" * 100, number)
    names = sorted(os.listdir(tmp_path))
    assert names == ["log", "log.1.gz", "log.2.gz", "log.3.gz"]
    assert " 18\n" in gzip.decompress((tmp_path / "log.1.gz").read_bytes()).decode()
    assert " 19\n" in (tmp_path / "log").read_text()


def test_old_files_go(tmp_path):
    for number, age in ((1, 1), (2, limits.LOG_AGE + 60)):
        path = tmp_path / f"log.{number}.gz"
        path.write_bytes(b"")
        os.utime(path, (time.time() - age,) * 2)
    RotatingFile(tmp_path / "log").close()
    assert sorted(os.listdir(tmp_path)) == ["log", "log.1.gz"]


def test_without_room_for_a_compressed_file_logging_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "LOG_FILE_SIZE", 200)
    struck = []

    def full(*_, **__):
        struck.append(True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gzip, "open", full)
    with logging_to(tmp_path / "log", "info"):
        for number in range(5):
            log.info("%s %d", "x" * 100, number)
    assert struck
    assert os.listdir(tmp_path) == ["log"]
    assert " 4\n" in (tmp_path / "log").read_text()


def test_a_file_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(LocalError, match="cannot write the log file"), logging_to(tmp_path, "info"):
        pass
