"""A real systemd, as the first process of namespaces of its own, and the unit of imgvol.

    with running_systemd(base) as systemd:
        systemd.install(supervisor=True)
        systemd.systemctl("start", SERVICE)

It is a system manager, and not a user's, because the unit is one for the system. What it could
change is its own: processes, mounts (with another /run and /var/lib, and /etc read-only), control
groups, network, host name. It has none of the machine's units, and the machine's systemd, if there
is one, does not know of it. When its process is killed, the kernel ends everything in it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.guards import RUN_VARIABLE
from support.programs import require, require_root, run, wait_until

SERVICE = "imgvol.service"
UNIT = Path(__file__).parents[2] / "packaging/systemd" / SERVICE
PROGRAM = "/lib/systemd/systemd"
# What our units ask for by default, without what a machine has behind it.
TARGETS = ("basic", "idle", "network-online", "shutdown", "sysinit")
START_SECONDS = 20.0
# Joins the control group before that becomes the root of all that is seen.
JOIN = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
BOOT = """
set -e
# What others have mounted goes when they unmount it, and not when this ends.
umount --all --lazy --no-canonicalize --types fuse,fuse.imgvol,fuse.pyfuse3
mount -t tmpfs -o mode=755 tmpfs /run
mount --bind "$1/lib" /var/lib
mount --bind /etc /etc
mount -o remount,bind,ro /etc
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec "$2" --system --unit=idle.target --log-target=null --show-status=no
"""
NAMESPACES = ("--pid", "--mount", "--cgroup", "--net", "--uts", "--ipc")


@dataclass(slots=True)
class Systemd:
    """One that runs.

    Attributes:
        base: Its directory, which is the same outside.
        pid: Of its first process, as the machine numbers it.
    """

    base: Path
    pid: int

    @property
    def within(self) -> list[str]:
        """Before a command that is to run in there."""
        return ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net"]

    @property
    def log(self) -> Path:
        """What the service writes."""
        return self.base / "service.log"

    def run(self, *command: str | os.PathLike[str], **options):
        return run(*self.within, *command, **options)

    def systemctl(self, *arguments: str, **options):
        return self.run("systemctl", *arguments, **options)

    def imgvol(self, *arguments: str, **options):
        return self.run(sys.executable, "-m", "imgvol", *arguments, **options)

    def install(
        self, *, supervisor: bool, settings: tuple[str, ...] = (), prelude: str = ""
    ) -> None:
        """Has the packaged unit run this program.

        Args:
            supervisor: Whether with a supervisor, as the unit says, or without.
            settings: More lines of the section `Service`.
            prelude: Python statements that it shall run before its own.
        """
        program = self.base / "program.py"
        program.write_text(f"{prelude}\nfrom imgvol.cli.main import main\nmain()\n")
        text = UNIT.read_text().replace("/usr/bin/imgvol", f"{sys.executable} {program}")
        assert "serve --supervisor" in text
        if not supervisor:
            text = text.replace("serve --supervisor", "serve --no-supervisor")
        (self.base / "units" / SERVICE).write_text(text)
        lines = (
            "[Service]",
            f"StandardOutput=append:{self.log}",
            "StandardError=inherit",
            # So guards find what is left behind.
            f"Environment={RUN_VARIABLE}={os.environ[RUN_VARIABLE]}",
            *settings,
        )
        drop_in = self.base / "units" / f"{SERVICE}.d"
        drop_in.mkdir(exist_ok=True)
        (drop_in / "test.conf").write_text("\n".join(lines))
        self.systemctl("daemon-reload")

    def show(self, name: str) -> str:
        """A property of the service."""
        return self.systemctl("show", f"--property={name}", "--value", SERVICE).stdout.strip()

    def stored(self) -> int:
        """How many descriptors are kept for the service."""
        return int(self.show("NFileDescriptorStore"))

    def kill_main(self, number: signal.Signals) -> None:
        """The service's main process alone gets a signal."""
        self.systemctl("kill", "--kill-who=main", f"--signal={number.name}", SERVICE)

    def wait_active(self, after: str) -> None:
        """Until the service is ready with another main process than that of before."""

        def is_so() -> bool:
            return self.show("ActiveState") == "active" and self.show("MainPID") != after

        wait_until(is_so, seconds=60, what="the next main process is ready")

    def wait_main(self, after: str) -> None:
        """Until the service has another main process than that of before, ready or not."""
        wait_until(
            lambda: self.show("MainPID") not in {after, "0"}, seconds=30, what="the next process"
        )

    def told(self) -> dict:
        """What the supervisor tells of itself."""
        path = Path(f"/proc/{self.pid}/root/run/imgvol/supervisor.json")
        wait_until(path.exists, what="the supervisor tells of itself")
        return json.loads(path.read_text())

    def wait_told(self, condition: Callable[[dict], bool], what: str) -> dict:
        """The same, as soon as it is so."""
        wait_until(lambda: condition(self.told()), seconds=30, what=what)
        return self.told()

    def mounts(self) -> list[str]:
        """Mount points of imgvol's filesystem in there."""
        rows = Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()
        return [row.split()[4] for row in rows if " fuse.imgvol " in row]


@contextlib.contextmanager
def running_systemd(base: Path) -> Iterator[Systemd]:
    """Skips the test where there can be none, saying why.

    Args:
        base: An empty directory.
    """
    require_root()
    require("systemctl", "unshare", "nsenter")
    if not os.access(PROGRAM, os.X_OK):
        pytest.skip(f"no {PROGRAM} (scripts/setup installs it)")
    unshare = ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc"]
    probe = run(*unshare, "mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup", check=False)
    if probe.returncode != 0:
        pytest.skip(f"systemd cannot have namespaces of its own: {probe.stderr.strip()}")
    for name in ("lib", "units"):
        (base / name).mkdir()
    for name in TARGETS:
        target = base / "units" / f"{name}.target"
        target.write_text("[Unit]\nDefaultDependencies=no\n")
    with _control_group() as group:
        boot = ["sh", "-c", BOOT, "boot", os.fspath(base), PROGRAM]
        with open(base / "boot.log", "ab") as log:
            process = subprocess.Popen(
                ["sh", "-c", JOIN, os.fspath(group), *unshare, *boot],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    RUN_VARIABLE: os.environ[RUN_VARIABLE],
                    "PATH": os.environ["PATH"],
                    # It leaves the clock, the console and the kernel's settings alone then.
                    "container": "imgvol-test",
                    "SYSTEMD_UNIT_PATH": os.fspath(base / "units"),
                    "SYSTEMD_GENERATOR_PATH": os.fspath(base / "none"),
                },
            )
        try:
            yield Systemd(base, _wait_running(process, base / "boot.log"))
        finally:
            # The first process is its child: the kernel kills that with it, and all others, too.
            process.kill()
            process.wait(10)


def _wait_running(process: subprocess.Popen, log: Path) -> int:
    """Until it takes commands; the number of its first process."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    found = Systemd(log.parent, 0)

    def is_running() -> bool:
        assert process.poll() is None, f"systemd has ended: {log.read_text()}"
        found.pid = int((children.read_text().split() or ["0"])[0])
        if found.pid == 0 or Path(f"/proc/{found.pid}/comm").read_text().strip() != "systemd":
            return False
        return found.systemctl("is-system-running", check=False).stdout.strip() == "running"

    wait_until(is_running, seconds=START_SECONDS, what="systemd")
    return found.pid


@contextlib.contextmanager
def _control_group() -> Iterator[Path]:
    """A new one of version 2, which is removed at the end with all below it."""
    rows = [row.split() for row in Path("/proc/self/mounts").read_text().splitlines()]
    mounted = [row[1] for row in rows if row[2] == "cgroup2"]
    if not mounted:
        pytest.skip("no cgroup2 is mounted, which systemd needs")
    group = Path(mounted[0]) / f"imgvol-test-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a control group for systemd: {error}")
    try:
        yield group
    finally:
        wait_until(lambda: _is_empty(group), what="all processes of systemd are gone")
        for directory, _, _ in os.walk(group, topdown=False):
            os.rmdir(directory)


def _is_empty(group: Path) -> bool:
    return "populated 0" in (group / "cgroup.events").read_text()
