"""The systemd unit that comes with imgvol says what the daemon relies on."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from imgvol import limits
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
    # A daemon that hangs is restarted, but not one that waits for the slowest of what it may.
    assert int(service["WatchdogSec"]) > 2 * limits.LOOP_BLOCKED
    assert int(service["TimeoutStopSec"]) > limits.STOP_DEADLINE
    # Of the worker alone, which has a successor: all of the service would be stopped.
    assert service["OOMPolicy"] == "continue"
    # A restart must not end in good order; SIGHUP is no failure, systemd.service(5).
    assert "restart && kill -HUP $MAINPID" in service["ExecStop"]
    _, *arguments = service["ExecReload"].split()
    assert CliRunner().invoke(cli, [*arguments, "--help"]).exit_code == 0
    # Without its run directory a restart would find none of its mount points.
    assert service["RuntimeDirectoryPreserve"] == "restart"
    assert service["StateDirectoryMode"] == service["RuntimeDirectoryMode"] == "0700"
    # What a supervisor may keep, systemd may keep for the next one.
    assert int(service["FileDescriptorStoreMax"]) == limits.DESCRIPTORS_KEPT
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
