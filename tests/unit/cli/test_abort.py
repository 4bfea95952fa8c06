"""`abort`, over a directory that plays fusectl."""

import json
import os

import pytest

from imgvol.cli import abort
from imgvol.cli.main import run
from imgvol.errors import LocalError
from imgvol.volumes.mountinfo import MountInfo


def mount(point, minor=45, views="/run/imgvol/views", user_id=None):
    user_id = os.geteuid() if user_id is None else user_id
    line = f"36 25 0:{minor} / {point} rw - fuse.imgvol imgvol:{views} rw,user_id={user_id}"
    return MountInfo.parse(line.encode())


@pytest.fixture
def connections(tmp_path):
    for number in (45, 46, 99):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "abort").touch()
    return tmp_path


def test_each_connection_is_aborted_once_and_mounts_go_in_reverse(connections):
    asked = []
    mounts = [mount("/v"), mount("/mnt/a"), mount("/mnt/b", 46)]
    done = abort.abort_mounts(mounts, connections, asked.append)
    assert done.connections == [45, 46]
    assert asked == list(reversed(mounts))
    assert done.detached == [b"/mnt/b", b"/mnt/a", b"/v"]
    assert not done.failures
    assert (connections / "45" / "abort").read_text() == "1"
    assert (connections / "99" / "abort").read_text() == ""


def test_a_connection_that_is_gone_is_fine(connections):
    done = abort.abort_mounts([mount("/v", 50)], connections, lambda _: None)
    assert not done.failures


def test_no_fusectl_says_how_to_get_it(tmp_path):
    done = abort.abort_mounts([mount("/v")], tmp_path, lambda _: None)
    assert "mount -t fusectl" in done.failures[0].hint
    assert done.detached == [b"/v"]  # goes on


def test_what_cannot_be_unmounted_is_told_and_the_rest_goes_on(connections):
    def unmount(mount):
        if mount.mount_point == b"/b":
            raise LocalError("cannot unmount: Operation not permitted")

    done = abort.abort_mounts([mount("/a"), mount("/b")], connections, unmount)
    assert done.detached == [b"/a"]
    assert "Operation not permitted" in str(done.failures[0])


def test_only_this_daemons_mounts_unless_all(connections, monkeypatch, short_path, capsys):
    ours = mount("/ours", 45, views=f"{short_path}/run/views")
    other = MountInfo.parse(b"1 1 0:7 / / rw - ext4 /dev/sda rw")
    monkeypatch.setattr(abort, "read_mountinfo", lambda: [other, ours, mount("/theirs", 46)])
    monkeypatch.setattr(abort, "CONNECTIONS", connections)
    monkeypatch.setattr(abort, "_mount_fusectl", lambda: None)
    monkeypatch.setattr(abort, "_unmount", lambda _path: None)
    arguments = ["--run", f"{short_path}/run", "--root", f"{short_path}/root", "abort"]
    assert run(arguments) == 0
    assert capsys.readouterr().out == "aborted  connection 45\ndetached /ours\n"
    assert run([*arguments, "--all", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {"aborted": [45, 46], "detached": ["/theirs", "/ours"], "failures": []}


def test_root_aborts_what_is_of_whoever_owns_the_run_directory(
    monkeypatch, short_path, connections, capsys
):
    """And nothing that somebody else has mounted under the same name."""
    run_dir = short_path / "run"
    run_dir.mkdir(mode=0o700)
    owner = os.geteuid() or 4711
    os.chown(run_dir, owner, -1)
    views = f"{run_dir}/views"
    table = [mount("/theirs", 45, views, owner), mount("/forged", 46, views, owner + 1)]
    monkeypatch.setattr(abort, "read_mountinfo", lambda: table)
    monkeypatch.setattr(abort, "CONNECTIONS", connections)
    monkeypatch.setattr(abort, "_unmount", lambda _path: None)
    arguments = ["--run", str(run_dir), "--root", f"{short_path}/root", "abort"]
    assert run(arguments) == 0
    assert capsys.readouterr().out == "aborted  connection 45\ndetached /theirs\n"


def test_nothing_to_do(monkeypatch, short_path, capsys):
    monkeypatch.setattr(abort, "read_mountinfo", list)
    assert run(["--run", f"{short_path}/run", "abort"]) == 0
    assert "nothing to do" in capsys.readouterr().err
