"""The commands for indexes, whole, against a fake daemon on a real socket."""

import json
import sys

import pytest

from imgvol.cli.main import run

IMAGE = "registry.example.com/app:1"


@pytest.fixture
def index(directory, capfd):
    """Runs `imgvol index …`; gives its status, and what it wrote."""

    def index(*arguments):
        places = ["--run", str(directory), "--root", str(directory.parent / "root")]
        status = run([*places, "index", *arguments])
        sys.stdout.flush()
        out, err = capfd.readouterr()
        return status, out, err

    return index


def test_create_passes_everything_on_and_shows_each_layer(daemon, index):
    options = ["--platform", "linux/arm64", "--span-size", "512K", "--min-layer-size", "1MiB"]
    status, out, _ = index("create", IMAGE, *options, "--plain-http")
    assert status == 0
    (request,) = daemon.indexes.requests
    assert (request.image, request.platform) == (IMAGE, "linux/arm64")
    assert (request.span_size, request.min_layer_size) == (512 << 10, 1 << 20)
    assert request.options.plain_http
    head, indexed, left_out = out.splitlines()
    titles = ["LAYER", "FORMAT", "SIZE", "SPANS", "ZTOC", "COMPRESSED", "SHARE", "WHY", "NOT"]
    assert head.split() == titles
    assert indexed.split()[1:] == ["gzip", "60.0", "MB", "41", "2.3", "MB", "370.0", "kB", "0.62%"]
    assert left_out.endswith("small: sooner fetched than looked up")


def test_create_leaves_sizes_to_the_daemon(daemon, index):
    index("create", IMAGE)
    (request,) = daemon.indexes.requests
    assert (request.span_size, request.min_layer_size) == (None, 10 << 20)


def test_create_of_nothing_shows_why_and_fails(daemon, index):
    status, out, err = index("create", "registry.example.com/empty:1")
    assert status == 1
    assert "small" in out
    assert "nothing to keep" in err


def test_as_json_and_quiet(daemon, index):
    shown = json.loads(index("create", IMAGE, "--json")[1])
    assert shown["layers"][0]["twin"]["size"] == 370_000
    assert index("create", IMAGE, "-q") == (0, "", "")
    assert [found["image"] for found in json.loads(index("ls", "--json")[1])] == [IMAGE]
    assert index("ls", "-q")[1] == f"{IMAGE}\n"


def test_ls_in_short_and_layer_by_layer(daemon, index):
    _, table, _ = index("ls")
    assert {IMAGE, "linux/amd64", "1/2", "2.7"} <= set(table.split())
    _, layers, _ = index("ls", IMAGE)
    assert "0.62%" in layers
    status, _, err = index("ls", "other")
    assert (status, "no index" in err) == (1, True)


def test_rm_says_what_is_gone(daemon, index):
    assert index("rm", IMAGE)[1] == f"removed  {IMAGE} linux/amd64\n"


@pytest.mark.parametrize("size", ["0x10", "-1", "1.5X", "4MM", "M", "", "1 M"])
def test_bad_sizes_are_misuse(daemon, index, size):
    status, _, err = index("create", IMAGE, "--span-size", size)
    assert (status, "no size" in err) == (2, True)
    assert not daemon.indexes.requests


@pytest.mark.parametrize("arguments", [(IMAGE,), (IMAGE, IMAGE, "--v1")])
def test_push_wants_a_target_or_version_1(daemon, index, arguments):
    status, _, err = index("push", *arguments)
    assert (status, "TARGET" in err) == (1, True)


def test_push_prints_the_name(daemon, index):
    target = "127.0.0.1:5000/app:lazy"
    status, out, err = index("push", IMAGE, target)
    assert (status, out) == (0, f"{target}\n")
    assert "4 were there" in err
    assert index("push", IMAGE, "--v1")[1].startswith(f"{IMAGE}@sha256:")
    shown = json.loads(index("push", IMAGE, target, "--json")[1])
    assert shown["existing"] == 4
