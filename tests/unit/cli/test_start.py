"""Starting a daemon on demand, with programs that play the daemon."""

import json
import os
import sys
import time

import pytest

from imgvol.cli import start
from imgvol.config import Config
from imgvol.errors import DaemonUnavailable, StoreLocked

LISTEN = """
import os, socket, sys
run, fd = sys.argv[1], int(sys.argv[2])
s = socket.socket(socket.AF_UNIX); s.bind(run + "/imgvol.sock"); s.listen()
os.write(fd, b"ready\\n"); os.close(fd)
with open(run + "/facts", "w") as facts:
    facts.write(f"{os.getsid(0) == os.getpid()} {os.getcwd()} {os.listdir('/proc/self/fd')}")
print("a line of the log", flush=True)
s.settimeout(10); s.accept()
"""
LOSE = """
import os, sys
os.write(int(sys.argv[2]), b'{"error": {"code": "store-locked", "message": "locked"}}\\n')
"""


@pytest.fixture
def config(short_path):
    run = short_path / "run"
    run.mkdir(mode=0o700)
    return Config(root=short_path / "root", run=run, is_system=False)


@pytest.fixture
def play(monkeypatch, config):
    def play(program):
        def arguments(_config, ready_fd):
            return [sys.executable, "-c", program, str(config.run), str(ready_fd)]

        monkeypatch.setattr(start, "daemon_arguments", arguments)

    return play


def release(config):
    start.connect(str(config.socket), timeout=5).close()


def test_ready_means_that_somebody_listens(play, config):
    play(LISTEN)
    start.start_daemon(config)
    release(config)
    deadline = time.monotonic() + 5
    while not (config.run / "facts").exists() or "a line" not in config.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    facts = (config.run / "facts").read_text()
    assert facts.startswith("True / ")  # its own session, nobody's directory
    assert facts.count("'") == 2 * 6  # 0, 1, 2, its socket, the file, the listing: none of ours
    assert config.log.stat().st_mode & 0o777 == 0o600


def test_it_is_no_service_of_whoever_watches_the_command(play, config, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/somebody")
    monkeypatch.setenv("IMGVOL_BACKGROUND_RATE", "1M")
    where = config.run / "environment"
    play(
        f"import os, sys; open({str(where)!r}, 'w').write(' '.join(os.environ)); "
        r"os.write(int(sys.argv[2]), b'ready\n')"
    )
    start.start_daemon(config)
    names = where.read_text().split()
    assert "NOTIFY_SOCKET" not in names
    assert "IMGVOL_BACKGROUND_RATE" in names


def test_why_it_cannot_start_is_said(play, config):
    why = {"error": {"code": "machine-lacks", "message": "no pyfuse3", "hint": "Install it."}}
    line = json.dumps(why).encode() + b"\n"
    play(f"import os, sys; os.write(int(sys.argv[2]), {line!r})")
    with pytest.raises(Exception, match="no pyfuse3") as caught:
        start.start_daemon(config)
    assert caught.value.hint == "Install it."


@pytest.mark.parametrize(
    "program", ["raise SystemExit(3)", "import os,sys; os.write(int(sys.argv[2]), b'?')"]
)
def test_one_that_dies_points_to_its_log(play, config, program):
    play(program)
    with pytest.raises(DaemonUnavailable) as caught:
        start.start_daemon(config)
    assert str(config.log) in caught.value.hint


def test_one_that_hangs_is_killed(play, config, monkeypatch):
    monkeypatch.setattr(start, "START_DEADLINE", 0.3)
    play("import time; time.sleep(60)")
    with pytest.raises(DaemonUnavailable, match="not ready"):
        start.start_daemon(config)


def test_the_loser_of_a_race_uses_the_winners_daemon(play, config):
    play(LISTEN)
    start.start_daemon(config)
    play(LOSE)
    start.start_daemon(config)


def test_one_that_is_still_ending_is_waited_for(play, config, monkeypatch):
    monkeypatch.setattr(start, "_WINNER_DEADLINE", 0.05)
    again = config.run / "again"
    play(
        f"import os\nif not os.path.exists({str(again)!r}):\n    open({str(again)!r}, 'w').close()"
        + LOSE.replace("\n", "\n    ")
        + "\nelse:"
        + LISTEN.replace("\n", "\n    ")
    )
    start.start_daemon(config)
    release(config)


def test_a_lock_without_a_daemon_is_an_error(play, config, monkeypatch):
    monkeypatch.setattr(start, "_WINNER_DEADLINE", 0.2)
    monkeypatch.setattr(start, "START_DEADLINE", 0.3)
    play(LOSE)
    with pytest.raises(StoreLocked):
        start.start_daemon(config)


def test_a_log_that_cannot_be_written(config):
    config.root.mkdir()
    config.log.mkdir()
    with pytest.raises(DaemonUnavailable, match="log"):
        start.start_daemon(config)


def test_a_large_log_begins_anew(play, config, monkeypatch):
    monkeypatch.setattr(start, "_LOG_SIZE", 10)
    config.root.mkdir()
    config.log.write_text("x" * 100)
    play("raise SystemExit")
    with pytest.raises(DaemonUnavailable):
        start.start_daemon(config)
    assert config.log.stat().st_size == 0


def test_arguments_are_what_serve_takes(config):
    from imgvol.cli.main import cli

    arguments = start.daemon_arguments(config, 7)
    assert arguments[0] == sys.executable
    directories, serve = arguments[4:8], arguments[9:]
    assert directories == ["--root", str(config.root), "--run", str(config.run)]
    command = cli.get_command(None, arguments[8])
    parsed = command.make_context("serve", list(serve)).params
    assert (parsed["idle_exit"], parsed["ready_fd"]) == (300.0, 7)
    assert os.path.isabs(arguments[5])
