"""Directories that belong to one daemon at a time."""

import fcntl
import os
import re
import stat
from pathlib import Path
from typing import Final

from imgvol.config import PRELOAD_NAME
from imgvol.content.durable import translate_os_errors
from imgvol.errors import LocalError, StoreLocked

# proc_locks(5): `1: FLOCK  ADVISORY  WRITE 1234 fe:01:5678 0 EOF`, numbers of the device in hex.
_LOCK: Final = re.compile(r"FLOCK +\S+ +WRITE +(\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) ")


def own_directory(path: Path) -> int:
    """Makes a directory ours alone: created 0700 if missing, locked against other daemons.

    A directory that exists keeps its mode: it is refused if others may enter it. One that has only
    images to load in it was made for a store, by `mkdir` as a rule, and is closed to others.

    Blocks.

    Returns:
        A descriptor; the lock goes with it, hence also with a killed process.

    Raises:
        StoreLocked: Another daemon has it.
        LocalError: It belongs to somebody else, somebody else may enter it, or it is not a
            directory.
    """
    with translate_os_errors(f"open {path}"):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if status.st_uid == os.geteuid() and os.listdir(fd) == [PRELOAD_NAME]:
            os.fchmod(fd, 0o700)
            status = os.fstat(fd)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise LocalError(
                "the directory belongs to somebody else or is open to others",
                hint=f"If it is for imgvol: chown {os.geteuid()} {path} && chmod 700 {path}",
                path=path,
            )
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise StoreLocked(
                "another imgvol daemon uses this directory",
                hint="Stop it (imgvol stop), or choose another --root and --run.",
                path=path,
                pid=_holder(status),
            ) from exc
    except BaseException:
        os.close(fd)
        raise
    return fd


def _holder(status: os.stat_result) -> int | None:
    """The process that holds the lock of a directory; None where the kernel does not tell.

    From the kernel, as a file with a number in it would outlive its process. It tells nothing of
    processes in other containers, and names other devices where filesystems are stacked.
    """
    device = os.major(status.st_dev), os.minor(status.st_dev)
    try:
        with open("/proc/locks", encoding="ascii") as locks:
            for pid, major, minor, inode in _LOCK.findall(locks.read()):
                if (int(major, 16), int(minor, 16)) == device and int(inode) == status.st_ino:
                    return int(pid) or None
    except OSError:
        pass  # it is a help, and no more
    return None
