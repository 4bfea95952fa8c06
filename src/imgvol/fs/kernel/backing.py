"""Which open inodes are passed through: read by the kernel in a file of the store, past us.

Rule 1 (the kernel's, fs/fuse/iomode.c): all opens of an inode are of one mode as long as it is
open, and with one backing file; whoever breaks that gets EIO. So the first one decides, for all
until the last is released.
Rule 2: an inode that is passed through has one backing id, which goes with its last release.
Rule 3: nothing takes a file from those who read it so. One that is found to be damaged is withheld:
its id goes at once, and nobody else opens it before all of them have closed it.
Rule 4: where another process may go on with the connection, all of that is in a table that it will
have, before the kernel is told.
"""

import contextlib
import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from imgvol import limits
from imgvol.fs.kernel.open_table import OpenTable

log = logging.getLogger(__name__)

# Refused to this process, by this kernel or on this filesystem: asking again would not help.
_HOPELESS: Final = {errno.EPERM, errno.EINVAL, errno.ELOOP, errno.ENOTTY, errno.EOPNOTSUPP}
_CACHED: Final = 0


class Kernel(Protocol):
    """What holds files: a `Connection`."""

    def open_backing(self, fd: int) -> int:
        """Has it hold a file; returns its backing id."""

    def close_backing(self, backing_id: int) -> None:
        """Has it let go of one."""


class Withheld(Exception):
    """A file must not be opened now: see rule 3."""


@dataclass(slots=True)
class _OpenInode:
    """`backing_id` is _CACHED where the kernel asks us for its bytes, `place` is in the table."""

    is_passed: bool
    backing_id: int
    opens: int = 0
    is_withheld: bool = False
    place: int | None = None


class BackingFiles:
    """The open inodes of one connection. Used on the event loop.

    Args:
        kernel: Holds the files.
        most: How many at once; what is opened beyond is read as without all this.
        table: For whoever goes on with the connection, and of whoever was before; None: nobody is.

    Attributes:
        count: How many it holds.
    """

    def __init__(
        self,
        kernel: Kernel,
        most: int = limits.FUSE_BACKING_FILES,
        table: OpenTable | None = None,
    ) -> None:
        self.count = 0
        self._table = table
        self._kernel = kernel
        self._most = most
        self._is_off = False
        self._open: dict[int, _OpenInode] = {}
        if table is not None:
            self._inherit(table)

    @property
    def is_useless(self) -> bool:
        """Whether nothing is passed through, and nothing will be."""
        return self._is_off and not self.count

    def may_pass(self, inode: int) -> bool:
        """Whether an inode would be passed through if it were opened now with a file."""
        return self._can_hold and inode not in self._open

    def open(self, inode: int, fd: int | None, *, is_large: bool = True) -> int:
        """Counts one open of an inode.

        Args:
            inode: Which.
            fd: Of the file that may be read in its place. It counts for the first open alone, and
                is not needed any more afterwards.
            is_large: Whether there may be such a file at another time, if not now.

        Returns:
            The backing id; 0: the inode is not passed through.

        Raises:
            Withheld: Nothing is counted.
        """
        found = self._open.get(inode)
        if found is None:
            backing_id = _CACHED if fd is None else self._hold(fd)
            found = self._open[inode] = _OpenInode(backing_id != _CACHED, backing_id)
            if found.is_passed or is_large:
                self._find_place(inode, found)
        elif found.is_withheld:
            raise Withheld
        found.opens += 1
        self._record(found)
        return found.backing_id

    def release(self, inode: int) -> None:
        """Counts the end of one open."""
        found = self._open.get(inode)
        if found is None:
            return  # its reply was one that the kernel did not take
        found.opens -= 1
        if found.opens:
            self._record(found)
        else:
            del self._open[inode]
            self._let_go(found)

    def withhold(self, is_sound: Callable[[int], bool]) -> int:
        """Withholds what is passed through and must not be shown; returns how many inodes."""
        withheld = 0
        for inode, found in self._open.items():
            if found.is_passed and not found.is_withheld and not is_sound(inode):
                found.is_withheld = True
                withheld += 1
                self._let_go(found)
        return withheld

    def close(self) -> None:
        """Lets go of everything; nothing is passed through from now on."""
        self._is_off = True
        for found in self._open.values():
            self._let_go(found)
        self._open.clear()

    @property
    def _can_hold(self) -> bool:
        has_room = self._table is None or self._table.has_room
        return not self._is_off and self.count < self._most and has_room

    def _inherit(self, table: OpenTable) -> None:
        """Goes on with what the process before had open; the table is settled."""
        # An inode that is not in it may be open in either mode.
        self._is_off = table.lacks_some
        for each in table.recorded():
            is_passed = each.is_withheld or each.backing_id != _CACHED
            self._open[each.inode] = _OpenInode(
                is_passed, each.backing_id, each.opens, each.is_withheld, each.place
            )
            self.count += each.backing_id != _CACHED

    def _find_place(self, inode: int, found: _OpenInode) -> None:
        if self._table is None:
            return
        if self._table.has_room:
            found.place = self._table.add(inode)
        else:
            self._table.note_lack()

    def _record(self, found: _OpenInode) -> None:
        if self._table is not None and found.place is not None:
            self._table.put(
                found.place,
                opens=found.opens,
                backing_id=found.backing_id,
                is_withheld=found.is_withheld,
            )

    def _hold(self, fd: int) -> int:
        if not self._can_hold:
            return _CACHED
        try:
            backing_id = self._kernel.open_backing(fd)
        except OSError as exc:
            self._is_off = exc.errno in _HOPELESS
            if self._is_off:
                log.debug("nothing is passed through: %s", exc.strerror)
            return _CACHED
        if self._table is not None:
            self._table.note_id(backing_id)
        self.count += 1
        return backing_id

    def _let_go(self, found: _OpenInode) -> None:
        """Gives the id of an inode back, if it has one, and tells so before."""
        backing_id, found.backing_id = found.backing_id, _CACHED
        if backing_id == _CACHED:
            self._record(found)
            return
        if self._table is not None:
            self._table.note_going(backing_id)
        self._record(found)
        self._give_back(backing_id)
        if self._table is not None:
            self._table.note_going(_CACHED)
        self.count -= 1

    def _give_back(self, backing_id: int) -> None:
        # The connection may have ended, and all ids with it.
        with contextlib.suppress(OSError):
            self._kernel.close_backing(backing_id)
