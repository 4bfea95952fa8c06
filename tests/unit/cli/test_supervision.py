"""The supervisor as commands meet it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from imgvol.cli import supervision
from imgvol.config import Config
from imgvol.errors import DaemonUnavailable, InvalidArgument
from imgvol.fs import choice
from imgvol.supervisor import launch, status
from imgvol.supervisor.channel import Channel
from imgvol.supervisor.status import Status


class Became(Exception):
    """Instead of a process that goes on as another program."""


@pytest.fixture
def config(short_path):
    return Config(root=short_path / "root", run=short_path / "run", is_system=False)


@pytest.fixture
def supervise(config, monkeypatch):
    def become(run, ready_fd):
        raise Became(run, ready_fd)

    monkeypatch.setattr(launch, "become_supervisor", become)

    monkeypatch.delenv("IMGVOL_SUPERVISOR", raising=False)

    def supervise(wanted, ready_fd=None, transport="pyfuse3", **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        chosen = config.with_transport(transport, None)
        return supervision.supervise_if_wanted(chosen, wanted, ready_fd)

    return supervise


def test_it_is_there_where_the_filesystem_can_be_handed_over(supervise, config, monkeypatch):
    assert supervise(None, 7, "pyfuse3") == 7
    with pytest.raises(Became) as became:
        supervise(None, 7, "kernel")
    assert became.value.args == (str(config.run), 7)
    assert config.run.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(choice, "OLDEST_KERNEL", (0, 0))
    with pytest.raises(Became):
        supervise(None, 7, "auto")
    monkeypatch.setattr(choice, "OLDEST_KERNEL", (99, 0))
    assert supervise(None, 7, "auto") == 7


def test_the_command_line_decides_and_else_the_environment(supervise):
    assert supervise(False, 7, "kernel") == 7
    assert supervise(False, 7, "kernel", IMGVOL_SUPERVISOR="1") == 7
    with pytest.raises(Became):
        supervise(None, 7, "pyfuse3", IMGVOL_SUPERVISOR="1")
    assert supervise(None, 7, "kernel", IMGVOL_SUPERVISOR="0") == 7
    with pytest.raises(Became):
        supervise(True, IMGVOL_SUPERVISOR="0")
    with pytest.raises(InvalidArgument):
        supervise(None, IMGVOL_SUPERVISOR="yes")
    with pytest.raises(Became):
        supervise(None, 7, "kernel", IMGVOL_SUPERVISOR="")


def test_a_worker_does_not_become_one_and_only_the_first_tells_the_starter(supervise):
    parent = str(os.getppid())
    first = {"IMGVOL_SUPERVISOR_PID": parent, "IMGVOL_WORKER_RESTARTS": "0"}
    assert supervise(True, 7, **first) == 7
    assert supervise(True, 7, IMGVOL_WORKER_RESTARTS="1") is None
    with pytest.raises(Became):
        supervise(True, 7, IMGVOL_SUPERVISOR_PID="1" if parent != "1" else "2")


@pytest.mark.parametrize("what", ["open to others", "a link", "a file"])
def test_a_run_directory_that_is_not_ours_alone_is_left_to_the_daemon(supervise, config, what):
    elsewhere = config.run.parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if what == "open to others":
        config.run.mkdir(mode=0o755)
        config.run.chmod(0o755)
    elif what == "a link":
        config.run.symlink_to(elsewhere)
    else:
        config.run.touch()
    assert supervise(True, 7) == 7


def test_what_it_becomes_is_the_same_command_and_imports_little(short_path):
    """In a process of its own, which goes on as the supervisor of a worker that tells all."""
    tell = (
        "import json, os, sys; "
        "print(json.dumps([sys.argv[1:], os.getppid(), os.path.exists('/proc/self/fd/' + {fd!r})]))"
    )
    program = (
        "import os, sys\n"
        "from imgvol.supervisor import launch\n"
        "if launch.is_worker(os.environ):\n"
        "    exec(sys.argv[1])\n"
        "    sys.exit(5)\n"
        "launch.become_supervisor(sys.argv[2], int(sys.argv[3]))\n"
    )
    reading, writing = os.pipe()
    command = [sys.executable, "-P", "-c", program]
    arguments = [tell.format(fd=str(writing)), str(short_path), str(writing)]
    process = subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, text=True, pass_fds=[writing]
    )
    said, _ = process.communicate(timeout=30)
    os.close(reading)
    os.close(writing)
    assert process.returncode == 5
    assert json.loads(said) == [arguments, process.pid, True]
    loaded = "import sys; import imgvol.supervisor.loop; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-P", "-c", loaded], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"asyncio", "click", "dataclasses", "logging", "threading", "trio"} & set(modules)


# --- a worker that is down ----------------------------------------------------------------------


@pytest.fixture
def down(config):
    """This process is a supervisor that says so of its worker."""
    config.run.mkdir(mode=0o700)
    channel = Channel(str(config.run))
    told = Status(
        pid=os.getpid(),
        state="waiting",
        restarts=4,
        unready=4,
        last_end="exit code 1",
        next_try_at=time.time() + 20,
    )
    status.write(str(config.run), told)
    yield told
    channel.close()


def test_clients_are_told_what_is_known(config, down):
    with pytest.raises(DaemonUnavailable, match="crashes again and again") as caught:
        supervision.raise_if_down(str(config.run))
    fields = caught.value.fields
    assert (fields["restarts"], fields["last_end"]) == (4, "exit code 1")
    assert fields["next_try"] in {"in 19 s", "in 20 s"}


@pytest.mark.parametrize(
    ("state", "next_try"),
    [("starting", "under way"), ("waiting", "once it is loaded"), ("stopping", None)],
)
def test_clients_are_told_of_a_next_try_that_has_no_time(config, down, state, next_try):
    status.write(str(config.run), down._replace(state=state, next_try_at=None))
    with pytest.raises(DaemonUnavailable) as caught:
        supervision.raise_if_down(str(config.run))
    assert caught.value.fields.get("next_try") == next_try


def test_nothing_is_said_of_one_that_lives_or_is_due(config, down):
    for told in (
        Status(pid=os.getpid(), state="ready", restarts=9),
        Status(pid=os.getpid(), state="waiting", unready=1, next_try_at=time.time() + 0.5),
    ):
        status.write(str(config.run), told)
        supervision.raise_if_down(str(config.run))
        assert not supervision.stop_if_down(config, os.pidfd_open(os.getpid()))


def test_its_supervisor_is_ended_by_a_signal(config, down):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert not supervision.stop_if_down(config, None)
    descriptor = os.pidfd_open(process.pid)
    assert supervision.stop_if_down(config, descriptor)
    assert process.wait(10) == -signal.SIGTERM
    os.close(descriptor)
