"""Which daemon `imgvol serve` runs."""

from pathlib import Path

import pytest

from imgvol import daemon
from imgvol.cli import main as command


@pytest.fixture
def served(monkeypatch):
    """Runs `imgvol serve`, and gives the configuration that the daemon gets."""
    configs = []

    def run(config, **_):
        configs.append(config)
        return 0

    def serve(*arguments, uid=0):
        monkeypatch.setattr(daemon, "run", run)
        monkeypatch.setattr("os.getuid", lambda: uid)
        monkeypatch.setattr("os.geteuid", lambda: uid)
        status = command.run(["--root", "/r", "--run", "/s", "serve", *arguments])
        assert status == 0
        return configs.pop()

    return serve


@pytest.mark.parametrize(
    ("arguments", "uid", "socket"),
    [
        ([], 0, "/s/cri.sock"),
        (["--no-cri"], 0, None),
        (["--cri-socket", "/x/y"], 0, "/x/y"),
        # A daemon that somebody's command starts is theirs, and not the kubelet's.
        (["--idle-exit", "60"], 0, None),
        (["--idle-exit", "60", "--cri-socket", "/x/y"], 0, "/x/y"),
        ([], 1000, None),
        (["--cri-socket", "/x/y"], 1000, "/x/y"),
    ],
)
def test_the_cri_is_served_by_daemons_of_the_system(served, arguments, uid, socket):
    assert served(*arguments, uid=uid).cri == (Path(socket) if socket else None)
