"""The checks of `doctor`, each with what it finds on good and bad machines."""

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from imgvol.cli import doctor
from imgvol.cli.main import run
from imgvol.config import Config, TransportChoice
from imgvol.volumes.mountinfo import MountInfo
from support.api_fakes import FakeDaemon, served_in_thread


@pytest.fixture
def config(short_path):
    return Config(root=short_path / "root", run=short_path / "run", is_system=False)


def our_mount(config, point=None):
    line = "36 25 0:45 / %s rw,nosuid - fuse.imgvol imgvol:%s rw,user_id=%d"
    values = (point or config.views, config.views, os.geteuid())
    return MountInfo.parse((line % values).encode())


def test_a_machine_is_checked_and_each_failure_has_a_repair(config, short_path, capsys):
    arguments = ["--run", str(config.run), "--root", str(config.root), "doctor"]
    with served_in_thread(config.socket, FakeDaemon()):
        run([*arguments, "--json"])
        checks = json.loads(capsys.readouterr().out)
        status = run(arguments)
    text = capsys.readouterr().out
    names = [check["name"] for check in checks]
    assert len(names) == len(set(names))
    assert {"python", "kernel", "fuse device", "daemon", "mounts", "disk"} <= set(names)
    assert status == (1 if any(check["status"] == "fail" for check in checks) else 0)
    for check in checks:
        assert check["name"] in text
        assert check["repair"] or check["status"] == "ok"


@pytest.mark.parametrize(
    ("release", "status"),
    [("6.1.0-18-amd64", "ok"), ("5.12", "ok"), ("5.11.22", "fail"), ("4.19-x", "fail")],
)
def test_kernel(release, status):
    assert doctor.check_kernel(release, is_root=True).status == status


def test_device(tmp_path):
    assert "modprobe" in doctor.check_device(str(tmp_path / "nothing")).repair
    (tmp_path / "file").touch()
    assert doctor.check_device(str(tmp_path / "file")).status == "fail"
    assert doctor.check_device("/dev/null").status == "ok"


def test_transport_says_which_and_why():
    check = doctor.check_transport(TransportChoice.KERNEL)
    assert (check.status, check.detail) == ("ok", "kernel: asked for")
    assert doctor.check_transport(TransportChoice.AUTO).detail.startswith(("kernel:", "pyfuse3:"))


def test_passthrough_says_what_is_in_its_way(tmp_path):
    status = tmp_path / "status"
    status.write_text("CapEff:\t000001ffffffffff\n")
    config = Config(root=tmp_path / "not" / "made", run=tmp_path, is_system=True)

    def detail(release="6.18", config=config):
        check = doctor.check_passthrough(config, release, status)
        assert check.status == "ok", "it works without"
        return check.detail

    assert "store itself" in detail()
    assert detail("6.1.0-18-amd64") == "off: that takes Linux 6.9"
    assert detail(config=replace(config, passthrough=False)) == "off: asked for"
    status.write_text("CapEff:\t00000000a80425fb\n")
    assert "CAP_SYS_ADMIN" in detail()


def test_the_filesystem_of_a_path_is_the_one_on_top(tmp_path):
    def mounted(place, fstype):
        line = f"1 0 8:1 / {place} rw - {fstype} x rw"
        return MountInfo.parse(line.encode())

    mounts = [mounted("/", "overlay"), mounted("/va", "tmpfs"), mounted("/var/lib", "ext4")]
    assert doctor._filesystem_of(Path("/var/lib/imgvol"), mounts) == "ext4"
    assert doctor._filesystem_of(Path("/srv"), mounts) == "overlay"
    mounts.append(mounted("/var/lib", "xfs"))
    assert doctor._filesystem_of(Path("/var/lib"), mounts) == "xfs"
    assert doctor._filesystem_of(Path("/srv"), []) == ""


def test_pyfuse3_that_cannot_be_imported(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ImportError: libfuse3.so.3: no such file' >&2\nexit 1\n")
    python.chmod(0o755)
    check = doctor.check_pyfuse3(str(python))
    assert check.status == "fail"
    assert "libfuse3.so.3" in check.detail
    assert "apt-get install" in check.repair
    assert doctor.check_pyfuse3(str(tmp_path / "nothing")).status == "fail"


def test_privileges(tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapEff:\t000001ffffffffff\n")
    assert doctor.check_privileges(0, status).status == "ok"
    status.write_text("CapEff:\t00000000a80425fb\n")  # a container's root
    check = doctor.check_privileges(0, status)
    assert (check.status, "--cap-add SYS_ADMIN" in check.repair) == ("fail", True)
    check = doctor.check_privileges(1000, status)
    assert (check.status, "this user alone" in check.detail) == ("ok", True)


def test_directories(short_path):
    assert doctor.check_directory("run", short_path / "a" / "b").status == "ok"
    (short_path / "open").mkdir()
    (short_path / "open").chmod(0o755)
    check = doctor.check_directory("run", short_path / "open")
    assert (check.status, check.repair) == ("fail", f"chmod 700 {short_path}/open")
    (short_path / "file").touch()
    assert doctor.check_directory("run", short_path / "file").status == "fail"
    assert doctor.check_directory("run", short_path / "file" / "x").status == "fail"
    assert doctor.check_directory("run", Path("/proc/nothing/x")).status in {"ok", "fail"}


def test_space(short_path, monkeypatch):
    def statvfs(free, inodes=5):
        values = (4096, 4096, 10**9, 0, free // 4096, 100, 0, inodes, 0, 255)
        return lambda _path: os.statvfs_result(values)

    for free, status in [(10 << 30, "ok"), (1 << 30, "warn"), (1 << 20, "fail")]:
        monkeypatch.setattr(os, "statvfs", statvfs(free))
        assert doctor.check_space(short_path / "not" / "there").status == status
    monkeypatch.setattr(os, "statvfs", statvfs(10 << 30, inodes=0))
    assert doctor.check_space(short_path).status == "fail"


def test_a_daemon_that_hangs(config, monkeypatch):
    monkeypatch.setattr(doctor, "_PATIENCE", 0.2)
    config.run.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(config.socket))
        silent.listen()
        check = doctor.check_daemon(config)
    assert (check.status, "imgvol abort" in check.repair) == ("fail", True)
    assert doctor.check_daemon(config).detail.startswith("not running")


def test_mounts(config):
    other = MountInfo.parse(b"1 1 0:9 / /x rw - fuse.imgvol imgvol:/elsewhere/views rw")
    ours = [our_mount(config), our_mount(config, "/mnt"), other]
    assert doctor.check_mounts(config, [other], has_daemon=False).status == "ok"
    left = doctor.check_mounts(config, ours, has_daemon=False)
    assert (left.status, left.repair) == ("fail", "imgvol abort")
    assert left.detail.startswith("2 mounts")
    fine = doctor.check_mounts(config, ours, has_daemon=True, waiting=lambda _: 0)
    assert fine.status == "ok"
    stuck = doctor.check_mounts(config, ours, has_daemon=True, waiting=lambda _: 3)
    assert (stuck.status, stuck.detail[:10]) == ("warn", "3 requests")
