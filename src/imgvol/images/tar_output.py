"""A tar archive written piece by piece into an open file or pipe. Everything here blocks.

Whoever reads a pipe may stop reading: the writer looks up from time to time whether it has been
given up. The pipe is somebody else's as well, so it is not made non-blocking.
"""

import os
import select
import stat
import tarfile
import threading
from collections.abc import Iterable
from typing import Final

from imgvol.errors import InternalError, LocalError

# pipe(7): when poll says that a pipe can be written, so much does not block.
_PIPE_PIECE: Final = select.PIPE_BUF
# Milliseconds between looks.
_PATIENCE: Final = 250
_END: Final = bytes(2 * tarfile.BLOCKSIZE)


class TarOutput:
    """Writes members, one after the other; `cancel` ends that from any thread.

    Args:
        output: An open file or pipe; it stays the caller's.
    """

    def __init__(self, output: int) -> None:
        self._output = output
        self._is_stopped = threading.Event()
        self._is_file = stat.S_ISREG(os.fstat(output).st_mode)

    def cancel(self) -> None:
        """Makes what is being written fail soon."""
        self._is_stopped.set()

    def directory(self, name: str) -> None:
        """Writes an empty directory."""
        self._header(name, 0, tarfile.DIRTYPE, 0o755)

    def file(self, name: str, data: bytes) -> None:
        """Writes a small file."""
        self.stream(name, len(data), [data])

    def stream(self, name: str, size: int, pieces: Iterable[bytes]) -> None:
        """Writes a file of `size` bytes, which the pieces have to have in all."""
        self._header(name, size, tarfile.REGTYPE, 0o644)
        for piece in pieces:
            self._write(piece)
        self._write(bytes(-size % tarfile.BLOCKSIZE))

    def end(self) -> None:
        """Writes the archive's end."""
        self._write(_END)

    def _header(self, name: str, size: int, kind: bytes, mode: int) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.type, info.mode = size, kind, mode
        self._write(info.tobuf(tarfile.PAX_FORMAT))

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if not self._is_file:
                self._wait_for_reader()
            if self._is_stopped.is_set():
                raise InternalError("an export was cancelled")
            view = view[self._write_some(view if self._is_file else view[:_PIPE_PIECE]) :]

    def _write_some(self, view: memoryview) -> int:
        try:
            return os.write(self._output, view)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise LocalError(f"cannot write the archive: {exc.strerror or exc}") from exc

    def _wait_for_reader(self) -> None:
        poll = select.poll()
        poll.register(self._output, select.POLLOUT)
        while not poll.poll(_PATIENCE) and not self._is_stopped.is_set():
            pass
