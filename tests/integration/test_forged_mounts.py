"""Another user's mounts, under the names by which we know our own: they are not ours.

The user mounts them with fusermount3, which lets anybody choose a source, before the daemon starts.
So they come first in the table of mounts, where the daemon looks for its own filesystem.
"""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from support import images, transports
from support.daemon import Imgvol
from support.programs import stop, wait_until
from support.users import NOBODY
from support.users import user as user

pytestmark = pytest.mark.fuse

IMAGE = images.Image([images.Layer([images.file("motd", b"hello\n")], "gzip")])
# The daemon lives where the user's mounts can be seen: setns(2), CLONE_NEWNS.
JOIN = """
import ctypes, os
if ctypes.CDLL(None, use_errno=True).setns(os.open({namespace!r}, os.O_RDONLY), 0x20000):
    raise OSError(ctypes.get_errno(), "setns")
"""
# The connection ends with the process that has mounted: then it looks like one of a dead daemon.
FORGE = """"$IMGVOL_PYTHON" -c '
import os, sys
from imgvol.volumes import fusermount
fusermount.mount(os.fsencode(sys.argv[1]), os.fsencode(sys.argv[2]))
' {target} {source}"""


@pytest.fixture
def imgvol(short_path, user):
    namespace = f"/proc/{user.keeper}/ns/mnt"
    imgvol = Imgvol(
        short_path,
        options=("--supervisor", "--transport", "kernel"),
        prelude=f"exec({JOIN.format(namespace=namespace)!r})",
        expected_log=["imgvol.supervisor"],
    )
    yield imgvol
    if imgvol.process is not None and imgvol.process.poll() is None:
        stop(imgvol.process)


def lines(user, text):
    """Of the table of mounts that the daemon sees: those with a text in it, by mount point."""
    table = Path(f"/proc/{user.keeper}/mountinfo").read_text().splitlines()
    return {line.split()[4]: line for line in table if text in line}


def content(user, path):
    enter = ["nsenter", f"--mount=/proc/{user.keeper}/ns/mnt", "timeout", "20", "cat", path]
    return subprocess.run(enter, capture_output=True, check=True, timeout=30).stdout


@pytest.mark.skipif(not transports.is_recent(), reason="nothing is taken over before Linux 6.9")
def test_what_another_user_mounts_under_our_name_is_left_alone_and_confuses_nobody(
    imgvol, user, short_path
):
    views = f"{imgvol.run_dir}/views"
    sources = {
        user.directory("a"): f"imgvol:{views}",
        user.directory("b"): f"imgvol-target:{views}",
    }
    for target, source in sources.items():
        user.sh(FORGE.format(target=target, source=source))
    forged = lines(user, views)
    assert forged.keys() == sources.keys(), "the user can have them"
    for where, line in forged.items():
        assert f" fuse.imgvol {sources[where]} " in line
        assert f"user_id={NOBODY}," in line

    imgvol.start()
    layout = images.write_layout(short_path / "layout", {"v1": IMAGE})
    target = imgvol.target("mnt")
    imgvol.run("mount", f"oci:{layout}:v1", target)
    # A worker that goes on with the filesystem has to find the one that is ours.
    status = json.loads((imgvol.run_dir / "supervisor.json").read_text())
    mounted = lines(user, views)
    os.kill(status["worker"], signal.SIGKILL)
    wait_until(lambda: "took the filesystem over" in imgvol.log.read_text(), seconds=30, what="it")
    assert content(user, f"{target}/motd") == b"hello\n"
    assert lines(user, views) == mounted
    # The one after a crash of both detaches what is dead, and mounts everything anew.
    imgvol.process.kill()
    imgvol.process.wait(20)
    imgvol.start()
    assert content(user, f"{target}/motd") == b"hello\n"
    (volume,) = imgvol.json("ps")
    assert volume["state"] == "mounted"
    imgvol.run("stop", "--force")
    assert imgvol.process.wait(20) == 0
    assert lines(user, views) == forged
    assert not imgvol.unexpected_log()
