"""OCI bundles: just enough of the runtime specification's config.json to run a program."""

import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from support.programs import SEARCH, run

# The programs are this machine's own, so that the image under test needs none.
LINKS = ("bin", "sbin", "lib", "lib64")
HOST_ID = 200_000
ID_COUNT = 65_536


def bind(source: str | Path, destination: str, *options: str) -> dict:
    """A bind mount for a container. Runtimes give it the attributes that they are told, whatever
    those of the source are."""
    return {
        "destination": destination,
        "type": "bind",
        "source": str(source),
        "options": ["bind", "ro", "nosuid", "nodev", *options],
    }


def make_rootfs(directory: Path) -> Path:
    """A root file system that gets its programs from /usr of this machine."""
    for name in ("usr", "proc", "dev", "tmp", "etc", "data"):
        (directory / name).mkdir(parents=True)
    for name in LINKS:
        (directory / name).symlink_to(f"usr/{name}")
    return directory


def write_bundle(
    directory: Path,
    command: Sequence[str],
    mounts: Sequence[dict],
    *,
    has_user_namespace: bool = False,
) -> Path:
    """A bundle whose container runs a command as its root, without a network or capabilities."""
    make_rootfs(directory / "rootfs")
    namespaces = ["pid", "ipc", "uts", "mount", "network"]
    linux: dict = {}
    if has_user_namespace:
        namespaces.append("user")
        mapping = [{"containerID": 0, "hostID": HOST_ID, "size": ID_COUNT}]
        linux |= {"uidMappings": mapping, "gidMappings": mapping}
    linux["namespaces"] = [{"type": kind} for kind in namespaces]
    config = {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(command),
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "noNewPrivileges": False,
        },
        "root": {"path": "rootfs", "readonly": False},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            bind("/usr", "/usr"),
            *mounts,
        ],
        "linux": linux,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


# In a mount namespace of its own, where crun finds one kind of cgroups and not two.
APART = (
    "unshare",
    "--mount",
    "sh",
    "-c",
    'umount -l /sys/fs/cgroup/unified 2>/dev/null; exec "$@"',
    "apart",
)
# No resources are limited, and not every machine's cgroups are to a runtime's liking.
_OPTIONS = {"crun": ["--cgroup-manager", "disabled"]}


class Runtime:
    """runc or crun, with its state in a directory of a test's own."""

    def __init__(self, program: str, state: Path):
        self.name = program
        self.command = [*APART, program, "--root", str(state), *_OPTIONS.get(program, ())]
        self._environment = {"PATH": SEARCH}

    def run(self, bundle: Path, name: str, *, check: bool = True):
        """Runs a container to its end; its output is text."""
        return run(
            *self.command, "run", "--bundle", bundle, name, env=self._environment, check=check
        )

    @contextlib.contextmanager
    def running(self, bundle: Path, name: str) -> Iterator[subprocess.Popen]:
        """A container with its standard streams in pipes; it is killed at the end."""
        process = subprocess.Popen(
            [*self.command, "run", "--bundle", str(bundle), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
        )
        try:
            yield process
        finally:
            subprocess.run(
                [*self.command, "kill", name, "KILL"],
                check=False,
                capture_output=True,
                env=self._environment,
                timeout=20,
            )
            process.wait(20)
            process.stdin.close()
            process.stdout.close()
            subprocess.run(
                [*self.command, "delete", "--force", name],
                check=False,
                capture_output=True,
                env=self._environment,
                timeout=20,
            )
