"""The Vagrantfile is one that vagrant accepts. Needs no box, no provider and no network."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

DIRECTORY = Path(__file__).parents[2] / "vagrant"


def test_vagrantfile_is_valid(tmp_path):
    if shutil.which("vagrant") is None:
        pytest.skip("vagrant is not installed (apt-get install vagrant)")
    # A home of its own: vagrant writes there, and asks no server in this command.
    environment = {
        **os.environ,
        "VAGRANT_CWD": str(DIRECTORY),
        "VAGRANT_HOME": str(tmp_path / "home"),
        "VAGRANT_DOTFILE_PATH": str(tmp_path / "dot"),
        "VAGRANT_CHECKPOINT_DISABLE": "1",
    }
    done = subprocess.run(
        ["vagrant", "validate", "--ignore-provider"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validated successfully" in done.stdout
