"""Where the daemon's log goes: to standard error, or to a file that never grows without end.

A file is written by a thread of its own: neither a slow disk nor the compression of a full file
keeps the event loop waiting.
"""

import contextlib
import gzip
import logging
import logging.handlers
import os
import queue
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from imgvol import limits
from imgvol.errors import LocalError

FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class RotatingFile(logging.handlers.RotatingFileHandler):
    """A log file; when it is full it is compressed and put aside, and the oldest of these go.

    Args:
        path: The file. The others are beside it: `<path>.1.gz`, the latest, and so on.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(
            path, maxBytes=limits.LOG_FILE_SIZE, backupCount=limits.LOG_FILES, encoding="utf-8"
        )
        self.namer = lambda name: f"{name}.gz"
        self.rotator = _compress
        self._forget_old()

    def doRollover(self) -> None:  # noqa: N802 - the library's name
        """Puts the full file aside."""
        super().doRollover()
        self._forget_old()

    def _forget_old(self) -> None:
        for number in range(1, limits.LOG_FILES + 1):
            path = Path(self.rotation_filename(f"{self.baseFilename}.{number}"))
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > limits.LOG_AGE:
                    path.unlink()


def _compress(source: str, target: str) -> None:
    try:
        with open(source, "rb") as full, gzip.open(target, "wb", compresslevel=6) as compressed:
            shutil.copyfileobj(full, compressed)
    except OSError:
        # No room, most likely: what is logged now matters more than what was.
        with contextlib.suppress(OSError):
            os.unlink(target)
    os.unlink(source)


@contextlib.contextmanager
def logging_to(path: Path | None, level: str) -> Iterator[None]:
    """Logs to a file, or to standard error when there is none, inside the block.

    With a file, standard error gets errors, and at level `debug` everything.

    Raises:
        LocalError: The file cannot be written.
    """
    root = logging.getLogger()
    root.setLevel(level.upper())
    shown = logging.StreamHandler(sys.stderr)
    shown.setFormatter(logging.Formatter(FORMAT))
    if path is not None and level != "debug":
        shown.setLevel(logging.ERROR)
    root.addHandler(shown)
    # These print every request's URL at INFO.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        if path is None:
            yield
        else:
            with _writing(root, path):
                yield
    finally:
        root.removeHandler(shown)


@contextlib.contextmanager
def _writing(root: logging.Logger, path: Path) -> Iterator[None]:
    try:
        file = RotatingFile(path)
    except OSError as exc:
        raise LocalError(f"cannot write the log file: {exc.strerror}", path=str(path)) from exc
    file.setFormatter(logging.Formatter(FORMAT))
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    listener = logging.handlers.QueueListener(records, file)
    sender = logging.handlers.QueueHandler(records)
    root.addHandler(sender)
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(sender)
        listener.stop()
        file.close()
