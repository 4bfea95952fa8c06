"""Gives back the page cache of what sequential readers have passed.

The kernel keeps those pages once more, as the view's own: without this a large file that is read
once would take twice its size. Files that are read here and there stay as they are.
"""

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

SEQUENTIAL_READERS: Final = 64
# Pages behind a sequential reader are dropped in steps of this size, and never closer than this to
# it: readahead makes a file's reads arrive slightly out of order.
DROP_STEP: Final = 8 << 20


@dataclass(slots=True)
class _SequentialReader:
    reached: int
    dropped: int = 0


class PassedPages:
    """Follows the readers of one layer's large files. For any number of threads."""

    def __init__(self) -> None:
        self._readers: OrderedDict[int, _SequentialReader] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, file: int, fd: int, position: int, size: int) -> None:
        """A range of a file has been read.

        Args:
            file: A number for the file, among those of its layer.
            fd: What it was read from.
            position: Of the range in `fd`.
            size: Of the range, in bytes.
        """
        end = position + size
        with self._lock:
            reader = self._readers.get(file)
            if (
                reader is None
                or not reader.reached - DROP_STEP <= position <= reader.reached + DROP_STEP
            ):
                self._readers[file] = _SequentialReader(reached=end, dropped=position)
                if len(self._readers) > SEQUENTIAL_READERS:
                    self._readers.popitem(last=False)
                return
            reader.reached = max(reader.reached, end)
            begin, until = reader.dropped, reader.reached - DROP_STEP
            if until - begin < DROP_STEP:
                return
            reader.dropped = until
        os.posix_fadvise(fd, begin, until - begin, os.POSIX_FADV_DONTNEED)
