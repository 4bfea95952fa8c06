"""Puts a directory where another may be, so that there is always one of them.

rename(2) replaces no directory that has anything in it. `RENAME_EXCHANGE` (renameat2(2), Linux
3.15) lets two change places in one step: a process that is killed leaves either the one or the
other. Filesystems without it (NFS, some FUSE ones) and C libraries without renameat2 get two
renames, and with them a moment in which there is neither.
"""

import contextlib
import ctypes
import errno
import os
import shutil
from pathlib import Path
from typing import Final

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2

# What rename(2) says of a directory in the way.
_TAKEN: Final = frozenset({errno.ENOTEMPTY, errno.EEXIST})
# What renameat2(2) says where there is no such thing.
_UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})

_libc = ctypes.CDLL(None, use_errno=True)


def put_directory(directory: Path, place: Path) -> Path | None:
    """Renames a directory to a place, whether or not there is one already. Blocks.

    Two that come at once both succeed, one after the other.

    Returns:
        Where what was there is now, for the caller to remove once the change is durable.

    Raises:
        OSError: The filesystem fails.
    """
    aside: Path | None = None
    while True:
        try:
            os.rename(directory, place)
            return aside
        except OSError as exc:
            if exc.errno not in _TAKEN:
                raise
        # What is in the way may go meanwhile: then a rename will do after all.
        with contextlib.suppress(FileNotFoundError):
            try:
                exchange(directory, place)
                return directory
            except OSError as exc:
                if exc.errno not in _UNSUPPORTED:
                    raise
                if aside is not None:
                    shutil.rmtree(aside, ignore_errors=True)
                aside = directory.with_name(f"{directory.name}-aside")
                os.rename(place, aside)


def exchange(one: Path, other: Path) -> None:
    """Lets two names change places, in one step.

    Raises:
        OSError: EINVAL or ENOSYS where that is not possible; ENOENT when either is missing.
    """
    renameat2 = getattr(_libc, "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    names = os.fsencode(one), os.fsencode(other)
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_EXCHANGE)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one), None, str(other))
