"""Recognises readers who go through a file from front to back, and how far ahead to be of them.

The kernel reads ahead, too, but no further than a megabyte, and only as fast as it is answered:
over a long line that keeps it waiting most of the time.
"""

from collections import OrderedDict

from imgvol import limits


class ReadaheadTracker:
    """Knows where the latest reads of each file ended. Used on the event loop."""

    def __init__(self) -> None:
        # node -> where the next read begins if it is sequential, and the window then; latest last
        self._files: OrderedDict[int, tuple[int, int]] = OrderedDict()

    def note(self, node: int, offset: int, size: int) -> int:
        """A read; returns how many bytes behind its end will be wanted, 0 if nobody can tell.

        The window doubles with each read that goes on where the one before ended.
        """
        expected, window = self._files.pop(node, (-1, 0))
        if offset == expected:
            window = min(max(2 * window, limits.READAHEAD_FIRST), limits.READAHEAD_LARGEST)
        else:
            window = 0
        self._files[node] = (offset + size, window)
        if len(self._files) > limits.READAHEAD_FILES:
            self._files.popitem(last=False)
        return window
