"""`doctor`: is this machine fit for imgvol, and if not, which command makes it so?"""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Final, Literal

import click

from imgvol.cli import units
from imgvol.cli.client import Client, NotRunning
from imgvol.cli.session import Session, examples, json_option, pass_session, quiet_option
from imgvol.cli.text import decode, has_colour, visible
from imgvol.config import Config, TransportChoice
from imgvol.errors import ImgvolError
from imgvol.supervisor import status
from imgvol.volumes.mountinfo import MountInfo, is_ours, read_mountinfo

Status = Literal["ok", "warn", "fail"]

_FUSE: Final = "/dev/fuse"
# mount_setattr(2), with which volumes become read-only before anybody sees them.
_KERNEL: Final = (5, 12)
_CAP_SYS_ADMIN: Final = 21
_LITTLE_SPACE: Final = 5 << 30
_NO_SPACE: Final = 512 << 20
_IMPORT_DEADLINE: Final = 30.0
# A daemon that has not said its version by then hangs.
_PATIENCE: Final = 5.0
_COLOURS: Final = {"ok": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line.

    Attributes:
        name: What was looked at.
        status: `warn`: imgvol works, with less; `fail`: something will not work.
        detail: What was found.
        repair: The command, or what to do; empty when there is nothing to do.
    """

    name: str
    status: Status
    detail: str
    repair: str = ""


@click.command(
    "doctor",
    epilog=examples("imgvol doctor", "imgvol doctor --json", "imgvol doctor --registry docker.io"),
)
@click.option(
    "--registry",
    metavar="DOMAIN",
    help="Also show who is asked for images of this registry, in order, and which file says so.",
)
@json_option("Print an array of checks as JSON.")
@quiet_option("Print only what is not ok.")
@pass_session
def doctor_command(session: Session, /, *, registry: str | None) -> int:
    """Check the machine, and say for each thing that is missing how to repair it.

    Exits with 1 when something will not work.
    """
    checks = []
    for check in chain(run_checks(session), check_registry(session.config, registry)):
        checks.append(check)
        if not session.is_json and not (session.is_quiet and check.status == "ok"):
            _echo(check)
    if session.is_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    return 1 if any(check.status == "fail" for check in checks) else 0


def _echo(check: Check) -> None:
    word = f"{check.status:<4}"
    shown = click.style(word, fg=_COLOURS[check.status]) if has_colour() else word
    click.echo(f"{shown}  {check.name:<12}  {visible(check.detail)}")
    if check.repair:
        click.echo(f"{'':18}  -> {visible(check.repair)}")


def run_checks(session: Session) -> Iterator[Check]:
    """All checks, one by one; the daemon is asked last, it may not answer."""
    config = session.config
    yield check_python(sys.version_info[:3])
    yield check_kernel(os.uname().release, is_root=os.geteuid() == 0)
    yield check_device(_FUSE)
    transport = check_transport(config.transport)
    yield transport
    if transport.detail.startswith(TransportChoice.KERNEL):
        yield check_passthrough(config, os.uname().release, Path("/proc/self/status"))
    if transport.detail.startswith(TransportChoice.PYFUSE3):
        yield check_pyfuse3()
    yield check_privileges(os.geteuid(), Path("/proc/self/status"))
    if os.geteuid() != 0:
        yield check_fusermount()
    yield check_directory("store", config.root)
    yield check_directory("run", config.run)
    yield check_space(config.root)
    daemon = check_daemon(config)
    yield daemon
    yield from check_supervisor(config)
    yield check_mounts(config, read_mountinfo(), has_daemon=not daemon.detail.startswith("not "))


def check_python(version: tuple[int, ...]) -> Check:
    """The interpreter."""
    shown = ".".join(str(part) for part in version)
    if version >= (3, 11):
        return Check(name="python", status="ok", detail=f"{shown}, {sys.executable}")
    return Check(name="python", status="fail", detail=f"{shown}; 3.11 is the oldest that works")


def check_kernel(release: str, *, is_root: bool) -> Check:
    """New enough for read-only binds without a gap."""
    parts = release.replace("-", ".").split(".")
    version = tuple(int(part) for part in parts[:2] if part.isdecimal())
    if version >= _KERNEL:
        return Check(name="kernel", status="ok", detail=release)
    wanted = ".".join(str(part) for part in _KERNEL)
    return Check(
        name="kernel",
        status="fail" if is_root else "warn",
        detail=f"{release}; `imgvol mount IMAGE DIR` needs {wanted}",
        repair="Upgrade the kernel, or mount without DIR and use the view's path.",
    )


def check_device(path: str) -> Check:
    """/dev/fuse: there, the right one, and ours to open."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return _device_failure(path, error)
    try:
        is_device = stat.S_ISCHR(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
    if not is_device:
        return Check(name="fuse device", status="fail", detail=f"{path} is not a device")
    return Check(name="fuse device", status="ok", detail=path)


def _device_failure(path: str, error: OSError) -> Check:
    repair = "modprobe fuse   (in a container: start it with --device /dev/fuse)"
    if isinstance(error, PermissionError):
        repair = "Run as root, or: sudo chmod 666 /dev/fuse   (in a container: --device /dev/fuse)"
    detail = f"cannot open {path}: {error.strerror}"
    return Check(name="fuse device", status="fail", detail=detail, repair=repair)


def check_transport(wanted: TransportChoice) -> Check:
    """What a daemon would carry the kernel's requests with, and why."""
    from imgvol.fs.choice import choose

    choice = choose(wanted, release=os.uname().release)
    return Check(name="transport", status="ok", detail=f"{choice.transport}: {choice.reason}")


def check_passthrough(config: Config, release: str, status_file: Path) -> Check:
    """Whether the kernel reads large files in the store itself. It works without, slower."""
    from imgvol.fs.choice import passthrough_obstacle

    if not config.passthrough:
        return Check(name="passthrough", status="ok", detail="off: asked for")
    obstacle = passthrough_obstacle(
        release=release,
        may_mount=has_capability(status_file.read_text(), _CAP_SYS_ADMIN),
        filesystem=_filesystem_of(config.root, read_mountinfo()),
    )
    detail = f"off: {obstacle}" if obstacle else "the kernel reads large files in the store itself"
    return Check(name="passthrough", status="ok", detail=detail)


def _filesystem_of(path: Path, mounts: list[MountInfo]) -> str:
    """The type of what a path lies on, or will when it has been made."""
    whole = os.fsencode(os.path.realpath(path)) + b"/"
    # Of mounts at the same place the last one is on top.
    holding = [each for each in mounts if whole.startswith(each.mount_point.rstrip(b"/") + b"/")]
    places = [len(each.mount_point) for each in holding]
    types = [each.fstype for each in holding if len(each.mount_point) == max(places)]
    return types[-1] if types else ""


def check_pyfuse3(python: str = sys.executable) -> Check:
    """The binding, by importing it in another process: a missing libfuse3 shows only then."""
    program = "import pyfuse3; print(pyfuse3.__version__)"
    try:
        result = subprocess.run(
            [python, "-P", "-c", program],
            capture_output=True,
            timeout=_IMPORT_DEADLINE,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Check(name="pyfuse3", status="fail", detail=f"cannot be tried: {error}")
    if result.returncode == 0:
        return Check(name="pyfuse3", status="ok", detail=decode(result.stdout).strip())
    reason = (decode(result.stderr).strip().splitlines() or ["no reason given"])[-1]
    return Check(
        name="pyfuse3",
        status="fail",
        detail=f"{reason}; images can be looked into, but not mounted",
        repair="apt-get install fuse3 libfuse3-dev pkg-config gcc && "
        f"{python} -m pip install 'imgvol[fuse]'",
    )


def check_privileges(uid: int, status_file: Path) -> Check:
    """May we mount? Root needs CAP_SYS_ADMIN, which containers take away."""
    if uid == 0:
        if has_capability(status_file.read_text(), _CAP_SYS_ADMIN):
            return Check(name="privileges", status="ok", detail="root, may mount")
        return Check(
            name="privileges",
            status="fail",
            detail="root, but without CAP_SYS_ADMIN: nothing can be mounted",
            repair="Start the container with --cap-add SYS_ADMIN --device /dev/fuse",
        )
    detail = f"uid {uid}: mounts by fusermount3, which this user alone sees"
    return Check(name="privileges", status="ok", detail=detail)


def has_capability(status: str, number: int) -> bool:
    """Whether the effective set in /proc/self/status holds a capability."""
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def check_fusermount() -> Check:
    """The setuid helper that lets users mount."""
    found = shutil.which("fusermount3")
    if found:
        return Check(name="fusermount3", status="ok", detail=found)
    return Check(
        name="fusermount3",
        status="fail",
        detail="not installed; users cannot mount without it",
        repair="sudo apt-get install fuse3",
    )


def check_directory(name: str, path: Path) -> Check:
    """Ours and closed to others, or possible to make."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return _check_parent(name, path)
    except OSError as error:
        return Check(name=name, status="fail", detail=f"{path}: {error.strerror}")
    if not stat.S_ISDIR(found.st_mode):
        return Check(name=name, status="fail", detail=f"{path} is not a directory")
    if found.st_uid != os.geteuid():
        detail = f"{path} belongs to uid {found.st_uid}"
        repair = f"Choose another with --root and --run, or: sudo chown {os.geteuid()} {path}"
        return Check(name=name, status="fail", detail=detail, repair=repair)
    if found.st_mode & 0o077:
        detail = f"{path} is open to other users ({stat.S_IMODE(found.st_mode):04o})"
        return Check(name=name, status="fail", detail=detail, repair=f"chmod 700 {path}")
    return Check(name=name, status="ok", detail=str(path))


def _check_parent(name: str, path: Path) -> Check:
    parent = existing_parent(path)
    if os.access(parent, os.W_OK | os.X_OK):
        return Check(name=name, status="ok", detail=f"{path}, will be made")
    return Check(
        name=name,
        status="fail",
        detail=f"{path} is not there, and {parent} is not writable",
        repair=f"sudo install -d -m 700 -o {os.geteuid()} {path}",
    )


def existing_parent(path: Path) -> Path:
    """The nearest directory above that exists."""
    return next((parent for parent in path.parents if parent.exists()), Path("/"))


def check_space(root: Path) -> Check:
    """Room for layers."""
    where = root if root.exists() else existing_parent(root)
    try:
        usage = os.statvfs(where)
    except OSError as error:
        return Check(name="disk", status="fail", detail=f"{where}: {error.strerror}")
    free = usage.f_bavail * usage.f_frsize
    status: Status = "fail" if free < _NO_SPACE else "warn" if free < _LITTLE_SPACE else "ok"
    repair = (
        "" if status == "ok" else "Remove images (imgvol images; imgvol rmi), or move the store."
    )
    detail = f"{units.size(free)} free at {where}"
    if usage.f_favail == 0 and usage.f_files:
        status, detail = "fail", f"no inodes left at {where}"
    return Check(name="disk", status=status, detail=detail, repair=repair)


def check_daemon(config: Config) -> Check:
    """Does it answer, and soon?"""
    try:
        info = Client(str(config.socket), timeout=_PATIENCE).call("GET", "/version")
    except NotRunning:
        return Check(name="daemon", status="ok", detail="not running; commands start it")
    except ImgvolError as error:
        return Check(
            name="daemon",
            status="fail",
            detail=str(error),
            repair=f"Read {config.log}; free programs that hang in its views with: imgvol abort",
        )
    detail = f"version {info['version']}, process {info['pid']}"
    if not info["can_mount"]:
        return Check(
            name="daemon",
            status="warn",
            detail=f"{detail}, cannot mount",
            repair="Repair what failed above, then: imgvol stop",
        )
    return Check(name="daemon", status="ok", detail=detail)


def check_registry(config: Config, domain: str | None) -> Iterator[Check]:
    """Whom a daemon asks for images of a registry, one check each."""
    if domain is None:
        return
    from imgvol.cli.doctor_registry import describe_registry

    try:
        for line in describe_registry(config, domain):
            yield Check(name="registry", status="ok", detail=line)
    except ImgvolError as error:
        yield Check(name="registry", status="fail", detail=str(error), repair=error.hint)


def check_supervisor(config: Config) -> Iterator[Check]:
    """How often the daemon had to be started again; nothing without a supervisor."""
    found = status.read(str(config.run))
    if found is None:
        return
    detail = f"process {found.pid}, {units.plural(found.restarts, 'restart')}"
    if found.last_end is not None and found.last_end_at is not None:
        detail += f", the last after {found.last_end}, {units.age(found.last_end_at)}"
    if not found.restarts:
        yield Check(name="supervisor", status="ok", detail=detail)
        return
    repair = f"See why in the service's log, or in {config.log}"
    yield Check(name="supervisor", status="warn", detail=detail, repair=repair)


def check_mounts(
    config: Config,
    mounts: list[MountInfo],
    *,
    has_daemon: bool,
    waiting: Callable[[int], int] | None = None,
) -> Check:
    """Mounts without a daemon, and processes that wait in a view."""
    ours = [mount for mount in mounts if is_ours(mount, config.views)]
    if ours and not has_daemon:
        return Check(
            name="mounts",
            status="fail",
            detail=f"{units.plural(len(ours), 'mount')} left behind by a daemon that is gone",
            repair="imgvol abort",
        )
    count = waiting or waiting_requests
    stuck = sum(count(minor) for minor in {mount.minor for mount in ours})
    if stuck:
        return Check(
            name="mounts",
            status="warn",
            detail=f"{units.plural(stuck, 'request')} of programs wait for an answer",
            repair="If that does not pass: imgvol abort",
        )
    return Check(name="mounts", status="ok", detail=units.plural(len(ours), "mount"))


def waiting_requests(minor: int) -> int:
    """Requests that the kernel has not got an answer to; 0 where it does not say."""
    try:
        return int(Path(f"/sys/fs/fuse/connections/{minor}/waiting").read_text())
    except (OSError, ValueError):
        return 0
