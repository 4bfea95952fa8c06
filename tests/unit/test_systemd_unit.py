"""The systemd unit that comes with imgvol says what the daemon relies on."""

import configparser
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from imgvol import daemon
from imgvol.cli.main import cli

UNIT = Path(__file__).parents[2] / "packaging/systemd/imgvol.service"


@pytest.mark.fault("F16")
def test_the_unit_says_what_the_daemon_needs():
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str
    unit.read(UNIT)
    service = unit["Service"]
    _, *arguments = service["ExecStart"].split()
    assert CliRunner().invoke(cli, [*arguments, "--help"]).exit_code == 0
    assert service["Type"] == "notify"
    # The daemon is asked to end, what it has started is ended after it.
    assert service["KillMode"] == "mixed"
    assert service["Restart"] == "on-failure"
    # Without its run directory a restart would find none of its mount points.
    assert service["RuntimeDirectoryPreserve"] == "restart"
    assert service["StateDirectoryMode"] == service["RuntimeDirectoryMode"] == "0700"
    # Its volumes are to be seen by everybody: nothing may give it mounts of its own.
    for own in ("PrivateTmp", "ProtectSystem", "ProtectHome", "PrivateMounts", "MountFlags"):
        assert own not in service
    if shutil.which("systemd-analyze"):
        text = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", UNIT],
            check=False,
            capture_output=True,
            text=True,
        ).stderr
        assert not [line for line in text.splitlines() if "Unknown" in line]


@pytest.mark.fault("F16")
def test_a_service_manager_is_told_when_the_daemon_is_ready(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        daemon._notify_systemd("READY=1")
        assert manager.recv(100) == b"READY=1"
