"""The commands for leases, whole, against a fake daemon on a real socket."""

import json
import sys

import pytest

from imgvol.cli.main import run


@pytest.fixture
def lease(directory, capfd):
    """Runs `imgvol lease …`; gives its status, and what it wrote."""

    def lease(*arguments):
        places = ["--run", str(directory), "--root", str(directory.parent / "root")]
        status = run([*places, "lease", *arguments])
        sys.stdout.flush()
        out, err = capfd.readouterr()
        return status, out, err

    return lease


def test_create_passes_everything_on_and_prints_the_id(daemon, lease):
    options = ["--image", "alpine:3.20", "--label", "a=b=c", "--expires", "1.5h"]
    assert lease("create", "web", *options) == (0, "web\n", "")
    called = ("create", "web", {"a": "b=c"}, 5400.0, ["alpine:3.20"])
    assert daemon.sandboxes.calls == [called]


def test_create_without_an_id_gets_one(daemon, lease):
    first, second = lease("create")[1], lease("create")[1]
    assert len(first.strip()) == len(second.strip()) == 16
    assert first != second


@pytest.mark.parametrize("text", ["0", "-1", "1y", "", "x", "1e3", "367d", "nan", "inf"])
def test_bad_durations_are_misuse(daemon, lease, text):
    status, _, err = lease("create", "--expires", text)
    assert status == 2
    assert "no duration" in err
    assert daemon.sandboxes.calls == []


def test_labels_have_a_key_and_a_value(daemon, lease):
    for label in ("a", "=b"):
        status, _, err = lease("create", "--label", label)
        assert (status, "KEY=VALUE" in err) == (2, True)


def test_ls_as_table_as_json_and_quiet(daemon, lease):
    lease("create", "web", "--image", "alpine:3.20", "--label", "k=v", "--expires", "2h")
    _, table, _ = lease("ls")
    assert {"web", "k=v", "2", "KEEPS"} <= set(table.split())
    (shown,) = json.loads(lease("ls", "--json")[1])
    assert (shown["id"], shown["expires"], len(shown["digests"])) == ("web", 7200, 1)
    assert lease("ls", "-q", "--label", "k=v")[1] == "web\n"
    assert daemon.sandboxes.calls[-1] == ("list", "k=v")


def test_renew(daemon, lease):
    lease("create", "web")
    assert lease("renew", "web", "--expires", "60") == (0, "", "")
    assert daemon.sandboxes.calls[-1] == ("renew", "web", 60.0)
    status, _, err = lease("renew", "other")
    assert (status, "no such lease" in err) == (1, True)


def test_rm_goes_on_over_failures(daemon, lease):
    lease("create", "web")
    status, out, err = lease("rm", "unknown", "web", "--drain", "5s", "--detach", "--json")
    assert status == 1
    assert "no such lease" in err
    assert [gone["lease"] for gone in json.loads(out)] == ["web"]
    assert daemon.sandboxes.calls[-1] == ("delete", "web", 5.0, True)
