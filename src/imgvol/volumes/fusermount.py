"""fusermount3, the set-user-ID program by which users mount FUSE filesystems: fusermount3(1).

It checks that the user may write to the mount point, mounts, and sends the descriptor of the
connection back over a socket whose number it finds in _FUSE_COMMFD, as libfuse has it. What it
mounts is known by the user's ID, and only that user may have it unmounted.

Everything here blocks: call it from threads only.
"""

import errno
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Sequence
from typing import Final

from imgvol import limits
from imgvol.errors import LocalError, MachineLacks, PermissionDenied

PROGRAM: Final = "fusermount3"
# What it says, in the C locale, as it never sets another.
_BUSY: Final = os.strerror(errno.EBUSY)
_GONE: Final = "not found in"
_TOO_MANY: Final = "mount_max"
_NOT_ALLOWED: Final = ("no write access", "not owned by user")


def check_target(target: bytes) -> None:
    """Refuses a target early at which it would not mount.

    Raises:
        PermissionDenied: The user may not write there, or the directory is somebody else's and
            sticky.
        LocalError: The target cannot be looked at.
    """
    try:
        found = os.lstat(target)
        may_write = os.access(target, os.W_OK)
    except OSError as exc:
        raise LocalError(
            f"target cannot be used: {exc.strerror}", target=os.fsdecode(target)
        ) from exc
    is_others_sticky = found.st_mode & stat.S_ISVTX and found.st_uid != os.geteuid()
    if not may_write or is_others_sticky:
        raise _not_yours(target)


def mount(target: bytes, source: bytes, *, noexec: bool = False) -> int:
    """Mounts a new filesystem, read-only, nosuid and nodev, for this user alone.

    Args:
        target: A directory or a file that the user may write to.
        source: How it is known in mountinfo.
        noexec: Programs in it cannot be run.

    Returns:
        The connection's descriptor, which the caller owns: not inheritable, and never blocking.

    Raises:
        MachineLacks: The program is not installed, or as many filesystems are mounted as
            /etc/fuse.conf allows.
        PermissionDenied: The user may not mount there.
        LocalError: It fails otherwise.
    """
    # It is the program that reads the options: commas and backslashes of a path are its escapes.
    name = source.replace(b"\\", b"\\\\").replace(b",", b"\\,")
    options = b"ro,nosuid,nodev,noatime,default_permissions,subtype=imgvol,fsname=" + name
    if noexec:
        options += b",noexec"
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            done = _run([b"-o", options, b"--", target], theirs)
        if done.returncode:
            raise _refusal(target, os.fsdecode(done.stderr).strip())
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        raise LocalError(f"{PROGRAM} sent no descriptor", target=os.fsdecode(target))
    os.set_inheritable(descriptors[0], False)
    os.set_blocking(descriptors[0], False)
    return descriptors[0]


def unmount(target: bytes, *, detach: bool) -> None:
    """Unmounts what is mounted at a path, if it is this user's; nothing there is fine.

    Args:
        target: The mount point.
        detach: Take it out of the tree at once; users keep what they have open.

    Raises:
        OSError: EBUSY: it is in use.
        MachineLacks: The program is not installed.
        LocalError: It fails otherwise.
    """
    done = _run([b"-u", *([b"-z"] if detach else []), b"--", target])
    said = os.fsdecode(done.stderr).strip()
    if not done.returncode or _GONE in said:
        return
    if _BUSY in said:
        raise OSError(errno.EBUSY, _BUSY)
    raise LocalError(f"cannot unmount: {said}", target=os.fsdecode(target))


def _run(
    arguments: Sequence[bytes], answers: socket.socket | None = None
) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which(PROGRAM)
    if program is None:
        raise MachineLacks(
            f"{PROGRAM} is not installed",
            hint="Users cannot mount without it: sudo apt-get install fuse3",
        )
    # A set-user-ID program gets nothing of ours that it does not need.
    environment = {} if answers is None else {"_FUSE_COMMFD": str(answers.fileno())}
    try:
        return subprocess.run(
            [os.fsencode(program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            pass_fds=() if answers is None else (answers.fileno(),),
            cwd="/",
            timeout=limits.FUSERMOUNT_DEADLINE,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise LocalError(f"{PROGRAM} does not come to an end") from exc
    except OSError as exc:
        raise LocalError(f"{PROGRAM} cannot be run: {exc.strerror}") from exc


def _refusal(target: bytes, said: str) -> LocalError | PermissionDenied:
    if any(words in said for words in _NOT_ALLOWED):
        return _not_yours(target)
    if _TOO_MANY in said:
        return MachineLacks(
            "users have as many FUSE filesystems mounted as this machine allows",
            hint="Unmount one, or have the administrator raise mount_max in /etc/fuse.conf.",
            target=os.fsdecode(target),
        )
    return LocalError(f"the filesystem cannot be mounted: {said}", target=os.fsdecode(target))


def _not_yours(target: bytes) -> PermissionDenied:
    return PermissionDenied(
        "you may not mount there",
        hint="Without root, name a directory of your own.",
        target=os.fsdecode(target),
    )
