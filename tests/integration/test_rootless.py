"""A daemon without privilege: fusermount3 mounts, nobody else sees the view, nothing is bound."""

import os
import subprocess
import sys

import pytest

from support import images
from support.programs import require, require_fuse, require_root

NOBODY = 65534
# A private mount namespace with a /dev/fuse that everybody may open, as most machines have it.
PREPARE = """
set -e
mknod "$1/fuse" c 10 229
chmod 666 "$1/fuse"
mount --bind "$1/fuse" /dev/fuse
shift
exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
"""


@pytest.fixture
def rootless(short_path):
    """Runs a shell script as nobody, with `imgvol` in its PATH; returns what it did."""
    require_root()
    require_fuse()
    require("fusermount3", "unshare", "setpriv")
    check = [
        "setpriv",
        f"--reuid={NOBODY}",
        "--clear-groups",
        sys.executable,
        "-c",
        "import imgvol",
    ]
    if subprocess.run(check, capture_output=True, check=False, cwd="/").returncode != 0:
        pytest.skip(f"user nobody cannot run {sys.executable} and import imgvol from it")
    home = short_path / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)

    def run(script: str) -> subprocess.CompletedProcess:
        function = f'imgvol() {{ "{sys.executable}" -m imgvol "$@"; }}\n'
        return subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", PREPARE, "sh",
             short_path, "env", f"HOME={home}", "sh", "-c", function + script],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd="/",
            env={"PATH": os.environ["PATH"]},
        )  # fmt: skip

    return run


@pytest.mark.root
def test_a_user_mounts_a_view_of_their_own(rootless, short_path):
    image = images.Image([images.Layer([images.file("motd", b"hello")])])
    layout = images.write_layout(short_path / "layout", {"v1": image})
    reference = f"oci:{layout}:v1"
    done = rootless(
        f"""
        set -e
        view=$(imgvol mount {reference})
        cat "$view/motd"; echo
        touch "$view/new" 2>&1 || true
        imgvol mount {reference} "$HOME" 2>&1 || echo "status $?"
        imgvol unmount "$view"
        imgvol ps --json
        imgvol stop
        grep -c "fuse.imgvol imgvol:$HOME" /proc/self/mountinfo || true
        """
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "hello"
    assert "Read-only file system" in lines[1]
    assert "needs root" in done.stdout
    assert "status 1" in lines
    assert lines[-2:] == ["[]", "0"]
