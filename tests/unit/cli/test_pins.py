"""`pin` and `unpin`, whole, against a fake daemon on a real socket."""

import json
import sys

import pytest

from imgvol.cli.main import run


@pytest.fixture
def imgvol(directory, capfd):
    """Runs `imgvol …`; gives its status, and what it wrote."""

    def imgvol(*arguments):
        places = ["--run", str(directory), "--root", str(directory.parent / "root")]
        status = run([*places, *arguments])
        sys.stdout.flush()
        out, err = capfd.readouterr()
        return status, out, err

    return imgvol


def test_pin_says_what_is_pinned_now(daemon, imgvol):
    assert imgvol("pin", "alpine:3.20") == (0, "pinned   alpine:3.20\n", "")
    assert daemon.images.calls[0] == ("pin", "alpine:3.20")
    (image,) = json.loads(imgvol("images", "--json")[1])
    assert (image["pinned"], image["pinned_by"]) == (True, ["user"])
    assert "pinned by" in imgvol("inspect", "alpine:3.20")[1]


def test_unpin_says_who_pins_it_still(daemon, imgvol):
    assert imgvol("unpin", "alpine:3.20") == (0, "unpinned alpine:3.20\n", "")
    assert daemon.images.calls[0] == ("unpin", "alpine:3.20")
    daemon.images.images["config"] = daemon.images.images["docker.io/library/alpine:3.20"]
    status, _, err = imgvol("unpin", "config")
    assert (status, err) == (0, "It stays pinned by: config.\n")


def test_rmi_by_force_takes_all_names(daemon, imgvol):
    status, out, _ = imgvol("rmi", "--force", "alpine:3.20")
    assert (status, out) == (0, "untagged alpine:3.20\n")
    assert daemon.images.calls == [("remove_image", "alpine:3.20")]


@pytest.mark.parametrize("command", ["pin", "unpin"])
def test_what_is_not_here_fails_alone(daemon, imgvol, command):
    status, out, err = imgvol(command, "nothing:1", "alpine:3.20", "--json")
    assert status == 1
    assert [image["names"] for image in json.loads(out)] == [["docker.io/library/alpine:3.20"]]
    assert "not in the store" in err
    assert imgvol(command, "-q", "alpine:3.20") == (0, "", "")
