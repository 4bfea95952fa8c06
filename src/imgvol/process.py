"""The daemon's process: its log, its limits, its exit codes, and whoever has started it."""

import contextlib
import faulthandler
import json
import logging
import os
import resource
import sys
from typing import NoReturn

from imgvol.api.problems import error_document
from imgvol.errors import ImgvolError
from imgvol.supervisor.verdict import EXIT_STUCK

log = logging.getLogger(__name__)


class Starter:
    """Whoever has started us and waits for a word on a descriptor; perhaps nobody."""

    def __init__(self, ready_fd: int | None) -> None:
        self._ready_fd = ready_fd

    def report_ready(self) -> None:
        """There is a daemon."""
        self._tell(b"ready\n")

    def report_failure(self, error: ImgvolError) -> None:
        """There is none, and why."""
        log.error("%s", error)
        if error.hint:
            log.error("%s", error.hint)
        self._tell(json.dumps(error_document(error)).encode() + b"\n")

    def _tell(self, line: bytes) -> None:
        if self._ready_fd is not None:
            with contextlib.suppress(OSError):  # the starter may have gone: then nobody waits
                os.write(self._ready_fd, line)
            os.close(self._ready_fd)
            self._ready_fd = None


def leave_stuck() -> NoReturn:
    """Ends the process at once, with all that does not end by itself."""
    faulthandler.dump_traceback(sys.stderr)
    logging.shutdown()
    os._exit(EXIT_STUCK)


def raise_file_limit() -> None:
    """Each open layer takes a descriptor, each large file that is read another."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
