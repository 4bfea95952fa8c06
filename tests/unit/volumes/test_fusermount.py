"""fusermount3: what is asked of it, and what becomes of what it says."""

import errno
import os

import pytest

from imgvol import limits
from imgvol.errors import LocalError, MachineLacks, PermissionDenied
from imgvol.volumes import fusermount

# Sends a descriptor back as the real one does, and tells what it was asked.
SENDING = """#!{python}
import os, socket, sys
with open({asked!r}, "w") as file:
    print(*sys.argv[1:], sep="\\n", file=file)
    print(*sorted(os.environ), sep="\\n", file=file)
answers = socket.socket(fileno=int(os.environ["_FUSE_COMMFD"]))
socket.send_fds(answers, [b"x"], [os.open("/dev/null", os.O_RDWR)])
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts another fusermount3 in the place of the real one: a shell script."""

    def write(script: str) -> None:
        path = tmp_path / "fusermount3"
        path.write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return write


def says(text: str) -> str:
    return f"echo 'fusermount3: {text}' >&2; exit 1"


def test_the_descriptor_comes_back_and_is_ours_alone(program, tmp_path):
    asked = tmp_path / "asked"
    program(SENDING.format(python="/usr/bin/env -S /usr/bin/python3 -I", asked=str(asked)))
    descriptor = fusermount.mount(b"/home/me/mnt", b"imgvol:/a,b\\c", noexec=True)
    assert not os.get_inheritable(descriptor)
    assert not os.get_blocking(descriptor)
    os.close(descriptor)
    lines = asked.read_text().splitlines()
    options = lines[1].split(",", 6)
    assert set(options[:6]) == {
        *("ro", "nosuid", "nodev", "noatime", "default_permissions", "subtype=imgvol"),
    }
    assert options[6] == "fsname=imgvol:/a\\,b\\\\c,noexec"
    assert lines[2:4] == ["--", "/home/me/mnt"]
    assert "HOME" not in lines


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ("user has no write access to mountpoint /x", PermissionDenied, "you may not mount"),
        ("mountpoint /x not owned by user", PermissionDenied, "you may not mount"),
        ("too many FUSE filesystems mounted; mount_max=N can be set", MachineLacks, "as many"),
        ("mounting over filesystem type 0x6969 is forbidden", LocalError, "0x6969 is forbidden"),
    ],
)
def test_refusals_to_mount(program, said, error, message):
    program(says(said))
    with pytest.raises(error, match=message):
        fusermount.mount(b"/x", b"imgvol:/views")


def test_no_descriptor_is_an_error(program):
    program("exit 0")
    with pytest.raises(LocalError, match="no descriptor"):
        fusermount.mount(b"/x", b"imgvol:/views")


def test_one_that_hangs_is_left(program, monkeypatch):
    monkeypatch.setattr(limits, "FUSERMOUNT_DEADLINE", 0.1)
    program("exec /bin/sleep 60")
    with pytest.raises(LocalError, match="does not come to an end"):
        fusermount.mount(b"/x", b"imgvol:/views")


def test_without_it(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MachineLacks, match="not installed"):
        fusermount.unmount(b"/x", detach=False)


def test_unmounting(program):
    program('test "$*" = "-u -z -- /x"')
    fusermount.unmount(b"/x", detach=True)
    program(says("entry for /x not found in /etc/mtab"))
    fusermount.unmount(b"/x", detach=False)
    program(says("failed to unmount /x: Device or resource busy"))
    with pytest.raises(OSError, match="busy") as caught:
        fusermount.unmount(b"/x", detach=False)
    assert caught.value.errno == errno.EBUSY
    program(says("failed to unmount /x: Operation not permitted"))
    with pytest.raises(LocalError, match="not permitted"):
        fusermount.unmount(b"/x", detach=False)
