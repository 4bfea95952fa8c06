"""Which large inodes are open, and how, written down for whoever goes on with the connection.

The kernel has one mode, and one backing file, for an inode as long as it is open, and does not tell
which (see `backing.py`). So each process writes it into shared memory, which is kept along with the
descriptor of the connection.

Rule 1: every step can be the last one. Each changes one word, which is one store of the machine.
Rule 2: an inode that the kernel may have open is in the table, with at least so many opens: they
are counted before the kernel is told, and discounted after. One too many does no harm: the inode
keeps its mode for longer.
Rule 3: what did not fit in is told: who comes next then knows nothing of what is not in the table.

    header   version, last backing id, backing id that is just being given back, whether all fits
    entry    inode, and a word: number of opens, whether it is withheld, backing id; 0: free
"""

import contextlib
import mmap
import os
import stat
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Self

from imgvol import limits

_WORD: Final = 8
_VERSION: Final = 1
_HEADER: Final = 4
_VERSION_AT, _LAST_AT, _GOING_AT, _LACKS_AT = range(_HEADER)
_OPENS_SHIFT: Final = 32
_WITHHELD: Final = 1 << 31
_ID_MASK: Final = _WITHHELD - 1


class Recorded(NamedTuple):
    """An open inode.

    Attributes:
        place: Of its entry.
        inode: Which.
        opens: How often it is open, at most.
        backing_id: 0: none.
        is_withheld: It was passed through, and nobody else may open it.
    """

    place: int
    inode: int
    opens: int
    backing_id: int
    is_withheld: bool


class OpenTable:
    """The shared memory. Used by one thread.

    Args:
        fd: A memory file of ours: a new one, or that of the process before. It is the caller's.

    Raises:
        OSError: It cannot be mapped.
        ValueError: It is something else, or of another version.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        found = os.fstat(fd)
        room = (found.st_size // _WORD - _HEADER) // 2
        is_whole = found.st_size == _size_for(room) and 0 < room <= limits.FUSE_OPEN_FILES
        if not stat.S_ISREG(found.st_mode) or not is_whole:
            raise ValueError("not a table of open files")
        self._map = mmap.mmap(fd, found.st_size)
        self._words = memoryview(self._map).cast("Q")
        version = self._words[_VERSION_AT]
        if version not in {0, _VERSION}:
            raise ValueError("a table of open files of another version")
        self._words[_VERSION_AT] = _VERSION
        self._places = range(_HEADER, len(self._words), 2)
        self._free = [place for place in reversed(self._places) if not self._words[place + 1]]

    @classmethod
    def create(cls, room: int = limits.FUSE_OPEN_FILES) -> Self:
        """A new one, empty, for so many inodes.

        Raises:
            OSError: There is no memory.
        """
        fd = os.memfd_create("imgvol-open-files", os.MFD_CLOEXEC)
        try:
            os.truncate(fd, _size_for(room))
            return cls(fd)
        except BaseException:
            os.close(fd)
            raise

    @property
    def has_room(self) -> bool:
        """Whether another inode can be written down."""
        return bool(self._free)

    @property
    def lacks_some(self) -> bool:
        """Whether inodes may be open that are not in it."""
        return bool(self._words[_LACKS_AT])

    def recorded(self) -> list[Recorded]:
        """What is in it."""
        words = self._words
        return [
            Recorded(
                place=place,
                inode=words[place],
                opens=word >> _OPENS_SHIFT,
                backing_id=word & _ID_MASK,
                is_withheld=bool(word & _WITHHELD),
            )
            for place in self._places
            if (word := words[place + 1])
        ]

    def note_id(self, backing_id: int) -> None:
        """The kernel has just given it."""
        self._words[_LAST_AT] = backing_id

    def note_going(self, backing_id: int) -> None:
        """It is about to be given back; 0: it was."""
        self._words[_GOING_AT] = backing_id

    def note_lack(self) -> None:
        """An inode is open that does not fit in."""
        self._words[_LACKS_AT] = 1

    def add(self, inode: int) -> int:
        """A place for an inode; `put` makes it count."""
        place = self._free.pop()
        self._words[place] = inode
        return place

    def put(self, place: int, *, opens: int, backing_id: int, is_withheld: bool) -> None:
        """How an inode is open; with no opens its place is free again."""
        if not opens:
            self._words[place + 1] = 0
            self._free.append(place)
            return
        withheld = _WITHHELD if is_withheld else 0
        self._words[place + 1] = opens << _OPENS_SHIFT | withheld | backing_id

    def settle(
        self, known: Callable[[Sequence[int]], set[int]], give_back: Callable[[int], None]
    ) -> None:
        """Makes it true again after the death of whoever wrote it. Call it before it is used.

        That one may have been given a backing id, and not have told of it, or just have been giving
        one back: the kernel counts them up. And what the kernel has not even in its memory is not
        open, whatever was counted.

        Args:
            known: Which of some inodes the kernel has in its memory.
            give_back: Tells it that it need not hold a file any more; raises OSError if it does
                not.
        """
        found = self.recorded()
        last, going = self._words[_LAST_AT], self._words[_GOING_AT]
        used = {each.backing_id for each in found}
        for backing_id in sorted({last, last + 1, going} - used - {0}):
            with contextlib.suppress(OSError):
                give_back(backing_id)
                self.note_id(max(last, backing_id))
        there = known([each.inode for each in found])
        for each in found:
            if each.inode not in there:
                self.note_going(each.backing_id)
                self.put(each.place, opens=0, backing_id=0, is_withheld=False)
                if each.backing_id:
                    with contextlib.suppress(OSError):
                        give_back(each.backing_id)
        self.note_going(0)

    def close(self) -> None:
        """Lets go of the memory; the kernel keeps it as long as anybody has the file."""
        self._words.release()
        self._map.close()
        with contextlib.suppress(OSError):
            os.close(self.fd)


def _size_for(room: int) -> int:
    return (_HEADER + 2 * room) * _WORD
