"""Notes of what is read of a view, while somebody records it.

The filesystem tells of every open and read if anything is recorded at all, else it asks one
attribute. What it tells is bounded in memory, costs microseconds, and cannot fail: a defect here
ends the notes, never a read.

Rule 1: files are told by their layer and their number in it, as the kernel asks for them; which
paths these are is found out at the end.
Rule 2: a layer belongs to all views that have it, and the kernel does not say through which of them
a file is read. So what others read of shared layers meanwhile is noted, too.
"""

import logging
import time
from bisect import bisect_right
from collections.abc import Callable
from typing import Final, NamedTuple

from imgvol import limits
from imgvol.content.layer import Layer
from imgvol.layers.index import NodeType
from imgvol.view.chain import ChainView
from imgvol.view.inodes import LayerInode, decode
from imgvol.view.trace import TracedRange

log = logging.getLogger(__name__)

_MILLISECONDS: Final = 1000


class FileKey(NamedTuple):
    """A file by its place: the layer in the view, and its number there."""

    position: int
    node: int


class NotedFile:
    """What was read of one file, as ranges that do not touch.

    Args:
        size: Of the file.
        first: When it was opened, in milliseconds.
    """

    def __init__(self, size: int, first: int) -> None:
        self.size = size
        self.first = first
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._times: list[int] = []

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, offset: int, size: int, milliseconds: int) -> None:
        """Notes a read; what it touches becomes one range, with the earliest time of all."""
        start, end = offset, min(offset + size, self.size)
        if start >= end:
            return
        starts, ends, times = self._starts, self._ends, self._times
        low = bisect_right(starts, start)
        if low and ends[low - 1] >= start:
            low -= 1
        high = bisect_right(starts, end)
        if low < high:
            start, end = min(start, starts[low]), max(end, ends[high - 1])
            milliseconds = min(milliseconds, *times[low:high])
        starts[low:high], ends[low:high], times[low:high] = [start], [end], [milliseconds]

    def ranges(self) -> tuple[TracedRange, ...]:
        """In the order of their times."""
        found = zip(self._starts, self._ends, self._times, strict=True)
        ranges = [TracedRange(start, end - start, at) for start, end, at in found]
        return tuple(sorted(ranges, key=lambda item: (item.milliseconds, item.offset)))

    @property
    def read_bytes(self) -> int:
        """Bytes that were read, each once."""
        return sum(self._ends) - sum(self._starts)


class Recording:
    """Notes of one view. Used on the event loop.

    Args:
        tree: The view's.
        chain_slot: Its number in inode numbers.
        layers: Its layers, the bottom one first.
        clock: Seconds.

    Attributes:
        files: What was opened, in that order.
        dropped: Files and ranges that were too many to note.
    """

    def __init__(
        self,
        tree: ChainView,
        chain_slot: int,
        layers: tuple[Layer, ...],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.files: dict[FileKey, NotedFile] = {}
        self.dropped = 0
        self._tree = tree
        self._chain_slot = chain_slot
        self._layers = layers
        # A layer that is in the chain twice shows its files at the place of the upper one.
        self._positions = {layer.slot: position for position, layer in enumerate(layers)}
        self._clock = clock
        self._began = clock()
        self._ranges = 0

    @property
    def seconds(self) -> float:
        """Since it began."""
        return self._clock() - self._began

    @property
    def read_bytes(self) -> int:
        """Bytes that were read, each once."""
        return sum(file.read_bytes for file in self.files.values())

    def find(self, inode: int) -> FileKey | None:
        """Which file of the view an inode is; None: of another view."""
        meaning = decode(inode)
        if isinstance(meaning, LayerInode):
            position = self._positions.get(meaning.layer_slot)
            return None if position is None else FileKey(position, meaning.node)
        if meaning.chain_slot != self._chain_slot:
            return None
        return FileKey(*self._tree.content(meaning.node))

    def note_open(self, key: FileKey) -> NotedFile | None:
        """A file is opened; None if there is no room for it."""
        file = self.files.get(key)
        if file is None:
            if len(self.files) >= limits.TRACE_FILES or self.seconds > limits.TRACE_SECONDS:
                self.dropped += 1
                return None
            record = self._layers[key.position].index.record(key.node)
            if record.type is not NodeType.FILE:
                return None
            file = self.files[key] = NotedFile(record.size, self._now())
        return file

    def note_read(self, key: FileKey, offset: int, size: int) -> None:
        """A file is read; one that was open before is noted from now on."""
        file = self.note_open(key)
        if file is None:
            return
        if self._ranges >= limits.TRACE_RANGES or self.seconds > limits.TRACE_SECONDS:
            self.dropped += 1
            return
        before = len(file)
        file.add(offset, size, self._now())
        self._ranges += len(file) - before

    def _now(self) -> int:
        return min(int(self.seconds * _MILLISECONDS), limits.TRACE_MILLISECONDS)


class Recordings:
    """All that is recorded at this moment: what the filesystem tells of opens and reads."""

    def __init__(self) -> None:
        self._active: list[Recording] = []

    def __len__(self) -> int:
        return len(self._active)

    def add(self, recording: Recording) -> None:
        """Begins one."""
        self._active.append(recording)

    def remove(self, recording: Recording) -> None:
        """Ends one, if a defect has not done so before."""
        if recording in self._active:
            self._active.remove(recording)

    def note_open(self, inode: int) -> bool:
        """A file is opened; returns whether it is recorded, so that its reads must be asked for."""
        return self._note(inode, Recording.note_open)

    def note_read(self, inode: int, offset: int, size: int) -> None:
        """A range of a file is asked for."""
        self._note(inode, Recording.note_read, offset, size)

    def _note(self, inode: int, note: Callable[..., object], *details: int) -> bool:
        is_noted = False
        for recording in tuple(self._active):
            try:
                key = recording.find(inode)
                if key is not None:
                    note(recording, key, *details)
                    is_noted = True
            except Exception:  # a read must not fail because it is noted
                log.exception("a recording ends early: a defect")
                self.remove(recording)
        return is_noted
