"""Somebody who exchanges two entries of a directory, once or all the time: renameat2(2)."""

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)


def swap(one: Path, other: Path) -> None:
    """Exchanges two entries in one step."""
    if _libc.renameat2(_AT_FDCWD, bytes(one), _AT_FDCWD, bytes(other), _RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2", os.fspath(one))


@contextlib.contextmanager
def swapping(one: Path, other: Path) -> Iterator[None]:
    """Exchanges them again and again while the block runs."""
    stop = threading.Event()

    def swap_on() -> None:
        while not stop.is_set():
            swap(one, other)
            time.sleep(0.0005)

    thread = threading.Thread(target=swap_on)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
