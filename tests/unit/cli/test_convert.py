"""`convert` over a fake daemon: what it is asked for, and what is printed."""

import json

import pytest

from imgvol.cli.main import run
from imgvol.cli.sizes import parse_size
from imgvol.errors import InvalidArgument


@pytest.fixture
def imgvol(directory, monkeypatch, capfd):
    monkeypatch.setenv("IMGVOL_RUN", str(directory))

    def call(*arguments):
        status = run([str(argument) for argument in arguments])
        return status, *capfd.readouterr()

    return call


def asked(daemon):
    return daemon.converter.requests.pop()


def test_every_option_is_passed_on(daemon, imgvol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.trace").touch()
    format_ = ("--format", "zstd:chunked")
    options = ("--chunk-size", "64K", "--level", "5", "--prefetch-from", "app.trace")
    status, *_ = imgvol("convert", "a:1", "oci:out:1", *format_, *options, "--plain-http")
    assert status == 0
    request = asked(daemon)
    assert request.image == "a:1"
    assert request.target == f"oci:{tmp_path}/out:1"
    assert request.format == "zstd:chunked"
    assert (request.chunk_size, request.level, request.platform) == (65536, 5, None)
    assert request.prefetch_from == f"{tmp_path}/app.trace"
    assert request.options.plain_http
    imgvol("convert", "a:1", "b:1", *format_, "--prefetch-from", "c:1", "--platform", "linux/arm64")
    request = asked(daemon)
    assert (request.prefetch_from, request.platform) == ("c:1", "linux/arm64")
    imgvol("convert", "a:1", "b:1", *format_, "--platform", "all")
    request = asked(daemon)
    assert (request.prefetch_from, request.platform, request.chunk_size) == ("", None, 0)


def test_a_row_per_layer_tells_what_has_become_of_it(daemon, imgvol):
    arguments = ("convert", "a:1", "oci:/x:1", "--format", "estargz", "--prefetch-from", "c:1")
    status, out, err = imgvol(*arguments)
    assert status == 0
    first, head, converted, kept, last = out.splitlines()
    assert first.startswith("linux/amd64 sha256:")
    assert head.split() == ["LAYER", "BEFORE", "AFTER", "NOW", "FILES", "FIRST", "TIME"]
    assert converted.split()[1:] == ["6.0", "kB", "5.0", "kB", "gzip", "3", "1", "1.2", "s"]
    assert "as it was: eStargz already" in kept
    assert last.startswith("oci:/x:1 sha256:")
    assert "Left out: linux/s390x: an artifact" in err
    assert "1 file of the trace come first; 2 files not in it" in err
    _, out, err = imgvol(*arguments, "--quiet")
    assert (len(out.splitlines()), err) == (1, "")


def test_as_json(daemon, imgvol):
    _, out, _ = imgvol("convert", "a:1", "oci:/x:1", "--format", "estargz", "--json")
    report = json.loads(out)
    assert report.keys() == {"name", "digest", "images", "left_out"}
    assert report["images"][0]["layers"][0]["prioritized"] == 1


def test_misuse(daemon, imgvol):
    assert imgvol("convert", "a:1", "b:1")[0] == 2
    assert imgvol("convert", "a:1", "b:1", "--format", "estargz", "--level", "99")[0] == 2
    status, _, err = imgvol("convert", "a:1", "b:1", "--format", "estargz", "--chunk-size", "x")
    assert status == 1
    assert "not a size" in err
    assert daemon.converter.requests == []


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("64K", 65536), ("4MiB", 4 << 20), ("1.5m", 3 << 19), ("2g", 2 << 30)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1X", "K", "1_0", "1e3"])
def test_what_is_no_size(text):
    with pytest.raises(InvalidArgument, match="not a size"):
        parse_size(text)
