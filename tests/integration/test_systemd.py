"""The packaged unit under a real systemd: what readers and systemd see of ends and of restarts."""

import os
import random
import signal

import pytest

from support import images, transports
from support.agent import Agent
from support.programs import require_fuse, wait_until
from support.readers import Readers
from support.systemd import SERVICE, running_systemd

# Not `fuse`, which must not be skipped: where there is FUSE there need not be control groups.
pytestmark = [pytest.mark.root, pytest.mark.slow]

NOISE = random.Random(8)
FILES = {
    "motd": b"hello\n",
    **{f"etc/{n:02}": NOISE.randbytes(700 * n) for n in range(12)},
    # Beside one that is read through the daemon, one that the kernel reads in the store.
    **{f"usr/lib/{size}.so": NOISE.randbytes(size) for size in (300_000, 1_500_000)},
}
IMAGE = images.Image([images.Layer([images.file(p, d) for p, d in FILES.items()], "gzip")])

# A worker does not get further than to serve what it has taken over, as long as a file is there.
WAITING = """
import os, trio
from imgvol.volumes import recovery
whole = recovery.recover

async def recover(*arguments, **options):
    while os.path.exists({switch!r}):
        open({reached!r}, "w").close()
        await trio.sleep(0.01)
    await whole(*arguments, **options)

recovery.recover = recover
"""


@pytest.fixture
def systemd(short_path):
    require_fuse()
    if not transports.has_resend():
        pytest.skip("this kernel cannot send a successor what was not answered (Linux 6.9)")
    base = short_path / "systemd"
    base.mkdir()
    with running_systemd(base) as systemd:
        yield systemd


@pytest.fixture
def target(short_path):
    """Where the image is mounted, in there."""
    target = short_path / "mnt"
    target.mkdir()
    return str(target)


@pytest.fixture
def mount(systemd, short_path, target):
    """Mounts it."""
    layout = images.write_layout(short_path / "layout", {"v1": IMAGE})
    return lambda: systemd.imgvol("mount", f"oci:{layout}:v1", target)


class Reading(Readers):
    """Readers in there."""

    def __init__(self, systemd, target):
        views = [str(path) for path in views_in(systemd)]
        super().__init__([*views, target], FILES, readers=6, within=systemd.within)


def views_in(systemd):
    found = systemd.run("find", "/run/imgvol/views", "-mindepth", "1", "-maxdepth", "1").stdout
    return found.split()


def kill(systemd):
    systemd.kill_main(signal.SIGKILL)


def kill_twice(systemd):
    """The second one while the first one's successor starts, or has just done so."""
    before = systemd.show("MainPID")
    kill(systemd)
    systemd.wait_main(before)
    kill(systemd)


def restart(systemd):
    systemd.systemctl("restart", SERVICE)
    assert systemd.show("Result") == "success", "what is wanted is no failure"


def hang(systemd):
    """Its watchdog ends it: `WatchdogSec=` is short here."""
    systemd.kill_main(signal.SIGSTOP)


@pytest.mark.fault("F18")
@pytest.mark.parametrize(
    ("end", "supervisor"),
    [
        (kill, True),
        (kill, False),
        (kill_twice, True),
        (restart, True),
        (restart, False),
        (hang, True),
    ],
)
def test_readers_notice_nothing_of_another_main_process(systemd, mount, target, end, supervisor):
    systemd.install(supervisor=supervisor, settings=("WatchdogSec=3",))
    systemd.systemctl("start", SERVICE)
    mount()
    mounts, stored = systemd.mounts(), systemd.stored()
    assert target in mounts
    assert stored >= 2, "the listener and the filesystem"
    with Reading(systemd, target) as readers:
        for _ in range(2):
            before = systemd.show("MainPID")
            end(systemd)
            systemd.wait_active(before)
            readers.wait_rounds()
            assert systemd.stored() == stored, "none is lost, and none is left"
        assert readers.stop() == []
    assert systemd.mounts() == mounts
    log = systemd.log.read_text()
    assert log.count("took the filesystem over") >= 2
    assert log.count("took over the listener api") >= 2
    assert "WARNING" not in log
    systemd.systemctl("stop", SERVICE)
    assert systemd.mounts() == []


@pytest.mark.fault("F18")
def test_a_restart_of_what_only_just_starts_is_noticed_by_nobody(
    systemd, mount, target, short_path
):
    """systemd runs no `ExecStop=` then: the supervisor is told to stop, and no more."""
    switch, reached = short_path / "switch", short_path / "reached"
    waits = WAITING.format(switch=str(switch), reached=str(reached))
    systemd.install(supervisor=True, prelude=waits)
    systemd.systemctl("start", SERVICE)
    mount()
    mounts, stored = systemd.mounts(), systemd.stored()
    with Reading(systemd, target) as readers:
        switch.touch()
        restart = ("restart", "--no-block", SERVICE)
        first = systemd.show("MainPID")
        systemd.systemctl(*restart)
        wait_until(reached.exists, seconds=30, what="the filesystem has been taken over")
        second = systemd.show("MainPID")
        assert second != first
        assert systemd.show("ActiveState") == "activating"
        systemd.systemctl(*restart)
        systemd.wait_main(second)
        switch.unlink()
        systemd.wait_active(second)
        readers.wait_rounds()
        assert readers.stop() == []
    assert (systemd.mounts(), systemd.stored()) == (mounts, stored)


def test_another_program_goes_on_by_reload(systemd, mount, target):
    systemd.install(supervisor=True)
    systemd.systemctl("start", SERVICE)
    mount()
    supervisor, stored = systemd.show("MainPID"), systemd.stored()
    with Reading(systemd, target) as readers:
        worker = systemd.wait_told(lambda told: told["standby"], "a worker stands by")["worker"]
        systemd.systemctl("reload", SERVICE)
        assert systemd.told()["worker"] != worker
        readers.wait_rounds()
        assert readers.stop() == []
    assert systemd.show("MainPID") == supervisor
    assert systemd.stored() == stored
    assert "goes on" in systemd.log.read_text()


@pytest.mark.fault("F16")
@pytest.mark.parametrize("supervisor", [True, False], ids=["supervisor", "alone"])
def test_stop_leaves_nothing_and_start_mounts_everything_again(systemd, mount, target, supervisor):
    systemd.install(supervisor=supervisor)
    systemd.systemctl("start", SERVICE)
    mount()
    mounts, stored = systemd.mounts(), systemd.stored()
    systemd.systemctl("stop", SERVICE)
    assert systemd.show("Result") == "success"
    assert systemd.mounts() == []
    assert systemd.stored() == 0
    assert systemd.run("ls", target).stdout == ""
    assert not os.path.exists(f"/proc/{systemd.pid}/root/run/imgvol")
    systemd.systemctl("start", SERVICE)
    assert systemd.mounts() == mounts
    assert systemd.stored() == stored
    assert systemd.run("cat", f"{target}/motd").stdout == "hello\n"
    assert "took the filesystem over" not in systemd.log.read_text()


def test_a_worker_is_killed_and_systemd_does_not_notice(systemd, mount, target):
    systemd.install(supervisor=True)
    systemd.systemctl("start", SERVICE)
    mount()
    supervisor, stored = systemd.show("MainPID"), systemd.stored()
    with Reading(systemd, target) as readers:
        for _ in range(3):
            worker = systemd.wait_told(lambda told: told["state"] == "ready", "it is ready")[
                "worker"
            ]
            systemd.run("kill", "-KILL", str(worker))
            systemd.wait_told(lambda told, last=worker: told["worker"] != last, "the next worker")
            readers.wait_rounds()
        assert readers.stop() == []
    assert (systemd.show("MainPID"), systemd.stored()) == (supervisor, stored)
    assert systemd.show("NRestarts") == "0"


def test_what_has_ended_is_not_kept(systemd, mount, target):
    """systemd lets go of it by itself: the next worker's takes its place, and no more."""
    systemd.install(supervisor=True)
    systemd.systemctl("start", SERVICE)
    mount()
    stored = systemd.stored()
    for restarts in (1, 2):
        systemd.imgvol("abort")
        systemd.wait_told(
            lambda told, n=restarts: (told["restarts"], told["state"]) == (n, "ready"),
            "the next one",
        )
        assert systemd.run("cat", f"{target}/motd").stdout == "hello\n"
        assert systemd.stored() == stored


@pytest.mark.fault("F16")
def test_without_a_kept_connection_a_restart_mounts_everything_again(systemd, mount, target):
    systemd.install(supervisor=True, settings=("Environment=IMGVOL_TRANSPORT=pyfuse3",))
    systemd.systemctl("start", SERVICE)
    mount()
    mounts = systemd.mounts()
    stored = systemd.stored()
    assert stored == 2, "the listeners of the API and the CRI"
    restart(systemd)
    assert systemd.mounts() == mounts
    assert systemd.run("cat", f"{target}/motd").stdout == "hello\n"
    assert systemd.stored() == stored
    assert "took over the listener api" in systemd.log.read_text()


@pytest.mark.fault("F19")
def test_a_program_that_cannot_start_is_given_up_and_who_waits_gets_an_error(
    systemd, mount, target
):
    systemd.install(supervisor=True)
    systemd.systemctl("start", SERVICE)
    mount()
    # As after an upgrade that went wrong: the interpreter finds none of its modules.
    broken = ("Environment=PYTHONHOME=/nowhere", "RestartSec=10ms")
    systemd.install(supervisor=True, settings=broken)
    kill(systemd)
    with Agent(within=systemd.within) as agent:
        # It waits meanwhile: nothing of this directory was asked for before.
        assert agent.errno_of("list", path=target) in {"ENOTCONN", "ECONNABORTED"}
    assert systemd.show("ActiveState") == "failed"
    assert int(systemd.show("NRestarts")) > 10
    assert systemd.stored() == 0
    systemd.install(supervisor=True)
    systemd.systemctl("reset-failed", SERVICE)
    systemd.systemctl("start", SERVICE)
    assert systemd.run("cat", f"{target}/motd").stdout == "hello\n"
