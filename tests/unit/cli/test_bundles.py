"""`import` and `export` over a fake daemon: what it is asked for, what is printed and left."""

import io
import json
import os

import pytest

from imgvol.cli.main import run

NAME = "docker.io/library/imported:1"


@pytest.fixture
def imgvol(directory, monkeypatch, capfd):
    monkeypatch.setenv("IMGVOL_RUN", str(directory))

    def call(*arguments):
        status = run([os.fspath(argument) for argument in arguments])
        return status, *capfd.readouterr()

    return call


def asked(daemon):
    (call,) = daemon.images.calls
    daemon.images.calls.clear()
    return call


def test_a_file_is_named_by_its_absolute_path(daemon, imgvol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.tar").touch()
    status, out, err = imgvol("import", "a.tar", "--link", "--name", "app", "--digests")
    assert asked(daemon) == ("import", f"{tmp_path}/a.tar", None, (True, (), "app", True))
    assert (status, out) == (1, f"{NAME}\n")
    assert "Not imported: v2: it has no name (give one with --name, or --digests)" in err
    imgvol("import", "a.tar", "--platform", "linux/arm64", "--platform", "amd64")
    assert asked(daemon)[3] == (False, ("linux/arm64", "amd64"), None, False)


def test_what_has_no_path_is_passed_open(daemon, imgvol, tmp_path):
    reading, writing = os.pipe()
    status, *_ = imgvol("import", f"/dev/fd/{reading}")
    assert status == 1
    _, path, stream, _ = asked(daemon)
    assert path == "standard input"
    assert stream not in {None, reading, writing}, "a descriptor of the daemon's own"
    os.close(reading)
    os.close(writing)


def test_an_import_as_json(daemon, imgvol, tmp_path):
    report = json.loads(imgvol("import", "--json", tmp_path / "a.tar")[1])
    assert report["images"][0]["names"] == [NAME]
    assert report["passed_over"][0]["is_whole"] is True
    assert report["stats"]["received_bytes"] == 120_000_000


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_misuse(daemon, imgvol, monkeypatch):
    assert imgvol("import", "a.tar", "--platform", "arm64", "--all-platforms")[0] == 2
    assert imgvol("export", "alpine:3.20")[0] == 2
    assert imgvol("export", "alpine:3.20", "-o", "-", "--json")[0] == 2
    monkeypatch.setattr("sys.stdin", Terminal())
    status, _, err = imgvol("import", "-")
    assert status == 2
    assert "standard input is a terminal" in err
    assert daemon.images.calls == []


def test_an_archive_is_not_written_to_a_terminal(daemon, imgvol, monkeypatch):
    monkeypatch.setattr("sys.stdout", Terminal())
    status, _, err = imgvol("export", "alpine:3.20", "-o", "-")
    assert status == 2
    assert "standard output is a terminal" in err


def test_a_file_gets_its_name_when_it_is_whole(daemon, imgvol, tmp_path):
    target = tmp_path / "images.tar"
    target.write_bytes(b"before")
    status, *_ = imgvol("export", "alpine:3.20", "nothing:1", "-o", target)
    assert status == 1
    assert target.read_bytes() == b"before"
    assert imgvol("export", "alpine:3.20", "-o", target)[0] == 0
    assert target.read_bytes() == b"", "the fake has written nothing"
    assert os.listdir(tmp_path) == ["images.tar"]
    status, _, err = imgvol("export", "alpine:3.20", "-o", tmp_path / "none" / "images.tar")
    assert status == 1
    assert "no such file or directory" in err.lower()


def test_devices_are_written_to_as_they_are(daemon, imgvol):
    assert imgvol("export", "alpine:3.20", "-o", "/dev/null")[0] == 0
    assert os.path.exists("/dev/null")
