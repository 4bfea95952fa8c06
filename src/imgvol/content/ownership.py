"""Directories that belong to one daemon at a time."""

import fcntl
import os
import stat
from pathlib import Path

from imgvol.content.durable import translate_os_errors
from imgvol.errors import LocalError, StoreLocked


def own_directory(path: Path) -> int:
    """Makes a directory ours alone: created 0700 if missing, locked against other daemons.

    A directory that exists keeps its mode: it is refused if others may enter it.

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
            ) from exc
    except BaseException:
        os.close(fd)
        raise
    return fd
