"""Which daemon `imgvol serve` runs."""

from pathlib import Path

import pytest

from imgvol import daemon
from imgvol.cli import main as command


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """Else this process would go on as a supervisor."""
    monkeypatch.setenv("IMGVOL_SUPERVISOR", "0")


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


def test_the_systems_daemon_preloads_from_its_store_unless_it_leaves_when_idle(served):
    assert served().preload.directory == Path("/r/images")
    assert served("--idle-exit", "5").preload.directory is None
    assert served("--no-preload").preload.directory is None
    assert served(uid=1000).preload.directory is None
    assert served("--preload", "/i", uid=1000).preload.directory == Path("/i")


def test_what_is_said_of_preloading_is_passed_on(served):
    switches = ("--preload-link", "--preload-wait", "--keep-pins")
    registries = ("--retag-registry", "a.example", "--retag-registry", "b.example/x")
    preload = served(*switches, *registries).preload
    assert (preload.links, preload.waits, preload.keeps_pins) == (True, True, True)
    assert preload.registries == ("a.example", "b.example/x")


def test_a_directory_and_none_contradict_each_other(capfd):
    options = ["serve", "--preload", "/i", "--no-preload"]
    assert command.run(["--root", "/r", "--run", "/s", *options]) == 1
    assert "not both" in capfd.readouterr().err


def test_the_log_is_configured_by_the_environment(monkeypatch):
    given = []
    monkeypatch.setattr(daemon, "run", lambda _, **options: given.append(options) or 0)
    monkeypatch.setenv("IMGVOL_LOG_LEVEL", "debug")
    monkeypatch.setenv("IMGVOL_LOG_FILE", "/l/log")
    places = ["--root", "/r", "--run", "/s", "serve"]
    assert command.run(places) == 0
    assert command.run([*places, "--log-level", "error", "--log-file", "/m"]) == 0
    assert [(each["log_level"], each["log_file"]) for each in given] == [
        ("debug", Path("/l/log")),
        ("error", Path("/m")),
    ]


def test_the_prefix_of_variables_for_pulls_can_be_chosen(monkeypatch):
    configs = []
    monkeypatch.setattr(daemon, "run", lambda config, **_: configs.append(config) or 0)
    places = ["--root", "/r", "--run", "/s", "serve"]
    assert command.run(places) == 0
    assert command.run([*places, "--exec-env-prefix", "IMGVOL_"]) == 0
    assert [config.exec_env_prefix for config in configs] == ["IMGVOL_ENV_", "IMGVOL_"]
