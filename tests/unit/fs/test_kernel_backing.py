"""What is passed through: the kernel's rules are kept in any order of things, and no id leaks."""

import contextlib
import errno
import os

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from imgvol import limits
from imgvol.fs.kernel.backing import BackingFiles, Withheld
from imgvol.fs.kernel.open_table import OpenTable

INODES = st.integers(1, 5)
FD = 100
MOST = 3


class Kernel:
    """Holds files, and refuses what the kernel would; says no for a reason when it is told to."""

    def __init__(self):
        self.held = set()
        self.refuses = None
        self.asked = 0
        self.dies = None
        self.is_searched = False
        self._last = 0

    def open_backing(self, fd):
        self.asked += 1
        if self.refuses is not None:
            raise OSError(self.refuses, "refused")
        assert fd == FD
        self._die("before")
        self._last += 1
        self.held.add(self._last)
        self._die("after")
        return self._last

    def close_backing(self, backing_id):
        self._die("before")
        if self.is_searched and backing_id not in self.held:
            raise OSError(errno.ENOENT, "no such id")
        self.held.remove(backing_id)
        self._die("after")

    def _die(self, when):
        if self.dies == when:
            raise Died


class Died(Exception):
    """The process ends here, whatever it was about to do."""


def settled(kernel, shared, known=None):
    """The table of a process that has died, as the next one finds it and makes it true."""
    table = OpenTable(shared.fd)
    kernel.is_searched = True
    table.settle(
        lambda inodes: set(inodes) if known is None else set(inodes) & known, kernel.close_backing
    )
    kernel.is_searched = False
    return table


class Modes(RuleBasedStateMachine):
    """Files are opened and closed, found damaged and repaired; a RELEASE comes late, or at once.

    At any time another process goes on with the connection, which knows what the last one wrote.

    `opened` is what the kernel has: by inode, the backing id of each open file, 0 for cached ones.
    """

    @initialize()
    def begin(self):
        self.kernel = Kernel()
        self.shared = OpenTable.create(room=8)
        self.table = BackingFiles(self.kernel, MOST, self.shared)
        self.opened = {}
        self.late = []
        self.damaged = set()
        self.withheld = set()

    @rule(inode=INODES, has_file=st.booleans())
    def open(self, inode, has_file):
        is_open = inode in self.opened or inode in self.late
        fd = FD if has_file and inode not in self.damaged else None
        may_pass = self.table.may_pass(inode)
        assert may_pass <= (not is_open)
        try:
            backing_id = self.table.open(inode, fd)
        except Withheld:
            assert inode in self.withheld
            return
        assert inode not in self.withheld
        if not is_open:
            would = may_pass and fd is not None and self.kernel.refuses is None
            assert bool(backing_id) == would
        if backing_id:
            assert backing_id in self.kernel.held, "the kernel does not know the id"
        # fs/fuse/iomode.c: EIO otherwise.
        assert set(self.opened.setdefault(inode, [])) <= {backing_id}
        self.opened[inode].append(backing_id)

    @precondition(lambda self: self.opened)
    @rule(data=st.data(), is_late=st.booleans())
    def close(self, data, is_late):
        inode = data.draw(st.sampled_from(sorted(self.opened)))
        self.opened[inode].pop()
        if not self.opened[inode]:
            del self.opened[inode]
        self.late.append(inode)
        if not is_late:
            self.release()

    @precondition(lambda self: self.late)
    @rule()
    def release(self):
        inode = self.late.pop(0)
        self.table.release(inode)
        if inode not in self.opened and inode not in self.late:
            self.withheld.discard(inode)

    @rule()
    def die(self):
        self.kernel.dies = None
        there = self.opened.keys() | set(self.late)
        self.table = BackingFiles(self.kernel, MOST, settled(self.kernel, self.shared, there))

    @rule(inode=INODES, when=st.sampled_from(["before", "after"]))
    def die_on_opening(self, inode, when):
        """The kernel has no answer, and asks again."""
        if inode in self.opened or inode in self.late or not self.table.may_pass(inode):
            return
        if self.kernel.refuses is not None:
            return
        self.kernel.dies = when
        with pytest.raises(Died):
            self.table.open(inode, FD)
        self.die()

    @precondition(lambda self: self.late)
    @rule(when=st.sampled_from(["before", "after"]))
    def die_on_releasing(self, when):
        """The kernel has had its answer."""
        inode = self.late[0]
        self.kernel.dies = when
        with contextlib.suppress(Died):
            self.release()
        if inode not in self.opened and inode not in self.late:
            self.withheld.discard(inode)
        self.die()

    @rule(inode=INODES)
    def damage(self, inode):
        self.damaged.add(inode)
        passed = {
            each for each, ids in self.opened.items() if any(ids) and each not in self.withheld
        }
        before = self.table.count
        found = self.table.withhold(lambda each: each not in self.damaged)
        assert before - self.table.count == found
        self.withheld |= passed & self.damaged
        # One that is closed, with its RELEASE on the way, is open as far as anybody knows.
        for each in set(self.late) - self.opened.keys():
            try:
                self.table.open(each, None)
            except Withheld:
                self.withheld.add(each)
            else:
                self.late.append(each)

    @rule(inode=INODES)
    def repair(self, inode):
        self.damaged.discard(inode)

    @rule(reason=st.sampled_from([None, errno.ENFILE, errno.ENOMEM]))
    def refuse(self, reason):
        self.kernel.refuses = reason

    @invariant()
    def nothing_leaks(self):
        if not hasattr(self, "kernel"):
            return
        assert len(self.kernel.held) == self.table.count <= MOST
        used = {
            backing_id
            for inode, ids in self.opened.items()
            for backing_id in ids
            if inode not in self.withheld
        } - {0}
        assert used <= self.kernel.held

    def teardown(self):
        if not hasattr(self, "kernel"):
            return
        for inode, ids in self.opened.items():
            for _ in ids:
                self.table.release(inode)
        for inode in self.late:
            self.table.release(inode)
        assert not self.kernel.held
        assert self.table.count == 0
        assert OpenTable(self.shared.fd).recorded() == []
        self.shared.close()


TestModes = Modes.TestCase


def test_an_id_lives_as_long_as_its_inode_is_open():
    kernel = Kernel()
    table = BackingFiles(kernel)
    first = table.open(1, FD)
    assert table.open(1, None) == first, "no matter what the later ones could have"
    other = table.open(2, FD)
    assert other != first
    table.release(1)
    assert kernel.held == {first, other}
    table.release(1)
    assert kernel.held == {other}
    table.release(1)  # of an open that the kernel never saw
    assert table.open(1, FD) not in {first, other}


def test_what_was_opened_first_without_a_file_stays_so():
    table = BackingFiles(Kernel())
    assert table.open(1, None) == 0
    assert table.open(1, FD) == 0
    table.release(1)
    assert table.open(1, FD) == 0
    table.release(1)
    table.release(1)
    assert table.open(1, FD)


def test_beyond_the_limit_files_are_read_as_ever():
    kernel = Kernel()
    table = BackingFiles(kernel, most=2)
    assert [bool(table.open(inode, FD)) for inode in (1, 2, 3)] == [True, True, False]
    table.release(1)
    assert table.may_pass(4)
    assert not table.may_pass(3), "its mode is decided"
    assert table.open(4, FD)


@pytest.mark.parametrize("reason", [errno.EPERM, errno.ELOOP, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_kernel_that_never_will_is_asked_once(caplog, reason):
    caplog.set_level("DEBUG", "imgvol")
    kernel = Kernel()
    kernel.refuses = reason
    table = BackingFiles(kernel)
    for inode in range(1, 10):
        assert table.open(inode, FD) == 0
        assert not table.may_pass(inode + 1)
    assert kernel.asked == 1
    assert [record.levelname for record in caplog.records] == ["DEBUG"]


def test_one_that_cannot_at_the_moment_is_asked_again():
    kernel = Kernel()
    kernel.refuses = errno.ENFILE
    table = BackingFiles(kernel)
    assert table.open(1, FD) == 0
    kernel.refuses = None
    assert table.open(2, FD)


def test_what_is_damaged_opens_again_when_all_have_closed_it():
    kernel = Kernel()
    table = BackingFiles(kernel)
    for _ in range(2):
        table.open(1, FD)
    whole = table.open(2, FD)
    table.open(3, None)
    assert table.withhold(lambda inode: inode == 2) == 1, "what we are asked for needs none of this"
    assert kernel.held == {whole}
    table.release(1)
    with pytest.raises(Withheld):
        table.open(1, FD)
    assert table.withhold(lambda inode: inode == 2) == 0, "known already"
    table.release(1)
    assert table.open(1, FD)


def test_nothing_is_held_at_the_end():
    kernel = Kernel()
    table = BackingFiles(kernel)
    for inode in range(1, 5):
        table.open(inode, FD)
    table.close()
    assert not kernel.held
    assert table.count == 0
    table.release(2)  # on its way when the session ended
    assert table.open(9, FD) == 0


def test_a_connection_that_has_ended_is_no_trouble(monkeypatch):
    def ended(_backing_id):
        raise OSError(errno.ENOENT, "ended")

    kernel = Kernel()
    table = BackingFiles(kernel)
    table.open(1, FD)
    monkeypatch.setattr(kernel, "close_backing", ended)
    table.release(1)
    assert table.count == 0


# --- what the next process is told --------------------------------------------------------------


@pytest.fixture
def shared():
    table = OpenTable.create()
    yield table
    table.close()


def test_an_open_that_is_asked_again_only_keeps_its_inode_for_longer(shared):
    """It was counted, and the process died before the kernel had the answer."""
    kernel = Kernel()
    backing_id = BackingFiles(kernel, table=shared).open(1, FD)
    table = BackingFiles(kernel, table=settled(kernel, shared))
    assert table.open(1, None) == backing_id
    table.release(1)
    assert kernel.held == {backing_id}, "as far as anybody knows it is open"
    assert BackingFiles(kernel, table=settled(kernel, shared, set())).count == 0
    assert not kernel.held


def test_what_was_withheld_stays_so(shared):
    kernel = Kernel()
    table = BackingFiles(kernel, table=shared)
    table.open(1, FD)
    table.withhold(lambda _: False)
    table = BackingFiles(kernel, table=settled(kernel, shared))
    with pytest.raises(Withheld):
        table.open(1, FD)
    table.release(1)
    assert table.open(1, FD)


def test_what_does_not_fit_in_keeps_the_next_process_from_guessing():
    shared, kernel = OpenTable.create(room=2), Kernel()
    table = BackingFiles(kernel, table=shared)
    assert table.open(1, FD)
    assert table.open(2, None) == 0
    assert table.open(3, None, is_large=False) == 0, "it never has a file: nobody need know"
    assert not shared.lacks_some
    assert not table.may_pass(4), "nobody could be told"
    assert table.open(4, FD) == 0
    assert shared.lacks_some
    table.release(2)
    table = BackingFiles(kernel, table=settled(kernel, shared))
    assert table.open(4, FD) == 0, "it may be open so"
    assert table.open(1, None)
    shared.close()


def test_a_file_that_is_no_such_table_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    descriptor = os.open(tmp_path / "file", os.O_RDWR)
    with pytest.raises(ValueError, match="not a table"):
        OpenTable(descriptor)
    os.truncate(descriptor, (4 + 2 * (limits.FUSE_OPEN_FILES + 1)) * 8)
    with pytest.raises(ValueError, match="not a table"):
        OpenTable(descriptor)
    os.truncate(descriptor, (4 + 2 * 100) * 8)
    os.pwrite(descriptor, b"\x07", 0)
    with pytest.raises(ValueError, match="another version"):
        OpenTable(descriptor)
    os.close(descriptor)
