"""The compressed bytes of a lazy layer that have been fetched, at their places in a sparse file.

They are kept until the whole layer has been verified, which then fetches nothing twice. None of
them is ever shown: a span is, once it has been verified and decoded.
"""

import threading

from imgvol.content.durable import translate_os_errors, write_all
from imgvol.content.open_file import OpenFile
from imgvol.content.ranges import Ranges
from imgvol.content.reading import pread_exact
from imgvol.errors import InternalError
from imgvol.oci.digest import Digest


class KeptBlob:
    """What is here of one blob. For any thread; all but `size` and what says so may block.

    Args:
        file: Where its bytes are.
        digest: Of the blob, for errors.
    """

    def __init__(self, file: OpenFile, digest: Digest) -> None:
        self._file: OpenFile | None = file
        self._digest = digest
        self._ranges = Ranges()
        # Held for bookkeeping only, never while the disk works: the event loop takes it, too.
        self._lock = threading.Lock()
        # Held while bytes are written, or given back: never by the event loop.
        self.writing = threading.Lock()

    @property
    def file(self) -> OpenFile | None:
        """Where its bytes are; None once nobody needs them any more."""
        return self._file

    @property
    def size(self) -> int:
        """Bytes that are here. From memory: whoever is writing is not waited for."""
        return self._ranges.size

    def note(self, start: int, end: int) -> None:
        """A range is in the file from an earlier time."""
        with self._lock:
            self._ranges.add(start, end)

    def put(self, start: int, data: bytes) -> None:
        """Keeps a range. What is here already is left as it is: it may have been verified since.

        Raises:
            StoreFull: No room; the range has to be fetched again.
        """
        with self.writing:
            file = self._file
            end = start + len(data)
            holes = self.holes(start, end)
            if file is not None:
                with translate_os_errors("store a part of a layer"):
                    for first, last in holes:
                        write_all(file.fd, data[first - start : last - start], first)
            with self._lock:
                self._ranges.add(start, end)

    def drop(self, start: int, end: int) -> None:
        """Forgets a range that turned out to be damaged. Does not block."""
        with self._lock:
            self._ranges.discard(start, end)

    def holes(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of a range that are not here. Does not block."""
        with self._lock:
            return list(self._ranges.holes(start, end))

    def reach(self, start: int, end: int) -> int:
        """Up to where a range is here, from its start on without a hole. Does not block."""
        with self._lock:
            return next(self._ranges.holes(start, end), (end, end))[0]

    def covers(self, start: int, end: int) -> bool:
        """Whether all of a range is here. Does not block."""
        with self._lock:
            return self._ranges.covers(start, end)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes that are here.

        Raises:
            StoreDamaged: They cannot be read any more.
            InternalError: Nobody needs them any more.
        """
        if self._file is None:
            raise InternalError("a lazy layer is complete already", digest=self._digest)
        return pread_exact(self._file.fd, offset, size, self._digest)

    def close(self) -> None:
        """Nobody needs the bytes any more: what they take on disk is given back."""
        self._file = None
        with self._lock:
            self._ranges = Ranges()
