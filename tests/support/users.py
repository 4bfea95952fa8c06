"""A user without privilege, on a machine as most are: with a /dev/fuse that everybody may open.

The user's processes live in a mount namespace of their own, which goes with the fixture.
"""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from support import transports
from support.programs import require, require_fuse, stop, wait_until

NOBODY = 65534
# Then stays, for others to come in.
PREPARE = """
set -e
mknod "$1/fuse" c 10 229
chmod 666 "$1/fuse"
mount --bind "$1/fuse" /dev/fuse
mount --bind "$1/fuse.conf" /etc/fuse.conf
touch "$1/prepared"
exec sleep infinity
"""
# `imgvol` is found nowhere that this user may look.
FUNCTION = 'imgvol() { "$IMGVOL_PYTHON" -m imgvol "$@"; }\n'


@dataclass(slots=True)
class User:
    """A user with a home.

    Attributes:
        home: Of the user.
        base: The home's parent, which is somebody else's.
        keeper: A process in the user's mount namespace.
        environment: Of every command, beside HOME, PATH and XDG_RUNTIME_DIR.
    """

    home: Path
    base: Path
    keeper: int
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def fuse_conf(self) -> Path:
        """What is /etc/fuse.conf for this user."""
        return self.base / "fuse.conf"

    @property
    def views(self) -> Path:
        return self.home / "run" / "imgvol" / "views"

    def directory(self, name: str) -> str:
        """A new directory in the user's home."""
        path = self.home / name
        path.mkdir()
        os.chown(path, NOBODY, NOBODY)
        return str(path)

    def command(self, script: str) -> list[str]:
        """What runs a shell script as this user; `imgvol` is a command there."""
        environment = {
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.home / "run"),
            "PATH": os.environ["PATH"],
            "IMGVOL_PYTHON": sys.executable,
            **self.environment,
        }
        variables = [f"{name}={value}" for name, value in environment.items()]
        identity = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        return [
            *("nsenter", f"--mount=/proc/{self.keeper}/ns/mnt", "setpriv", *identity, "env"),
            *(*variables, "/bin/sh", "-c", FUNCTION + script),
        ]

    def sh(self, script: str, *, check: bool = True) -> subprocess.CompletedProcess:
        """Runs a shell script in a process of its own; output is text."""
        done = subprocess.run(
            self.command(script), capture_output=True, text=True, check=False, timeout=60, cwd="/"
        )
        if check and done.returncode:
            raise AssertionError(f"{script}\n{done.stdout}{done.stderr}{self.log()}")
        return done

    def imgvol(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        return self.sh(f"imgvol {shlex.join(arguments)}", check=check)

    def json(self, *arguments: str):
        return json.loads(self.imgvol(*arguments, "--json").stdout)

    @contextmanager
    def using(self, path: str) -> Iterator[subprocess.Popen]:
        """Has a file open, in a process that tells its digest when it is sent a line."""
        script = f"exec 3<{shlex.quote(path)}; echo open; read line; sha256sum <&3"
        process = subprocess.Popen(
            self.command(script), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
        )
        try:
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            process.kill()
            process.communicate()

    def mounts(self) -> dict[str, str]:
        """Where filesystems of this user's daemon are mounted, and how: lines of mountinfo."""
        lines = Path(f"/proc/{self.keeper}/mountinfo").read_text().splitlines()
        ours = [line for line in lines if " fuse.imgvol " in line and str(self.views) in line]
        return {line.split()[4]: line for line in ours}

    def log(self) -> str:
        """What the daemon has said."""
        with contextlib.suppress(OSError):
            return "\n".join(path.read_text() for path in self.home.glob("**/*.log"))
        return ""


@pytest.fixture
def user(short_path) -> Iterator[User]:
    require_fuse()
    require("fusermount3", "nsenter", "setpriv", "unshare")
    _check_interpreter()
    home = short_path / "home"
    for path in (home, home / "run"):
        path.mkdir(mode=0o700)
        os.chown(path, NOBODY, NOBODY)
    (short_path / "fuse.conf").touch()
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", PREPARE, "sh"]
    keeper = subprocess.Popen([*command, str(short_path)])
    try:
        wait_until((short_path / "prepared").exists, what="the user's mount namespace")
        # Users can mount at directories over this one alone.
        environment = {} if transports.is_recent() else {"IMGVOL_TRANSPORT": "kernel"}
        user = User(home=home, base=short_path, keeper=keeper.pid, environment=environment)
        yield user
        user.imgvol("stop", "--force", check=False)
        assert user.mounts() == {}
    finally:
        stop(keeper)
        shutil.rmtree(home)


def _check_interpreter() -> None:
    identity = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    check = [*identity, sys.executable, "-c", "import imgvol"]
    if subprocess.run(check, capture_output=True, check=False, cwd="/").returncode:
        pytest.skip(f"user nobody cannot run {sys.executable} and import imgvol from it")
