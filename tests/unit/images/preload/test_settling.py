"""When a file is finished."""

from dataclasses import replace

import pytest

from imgvol.images.preload.scan import Look
from imgvol.images.preload.settling import Settling
from imgvol.images.preload.stamp import Stamp
from imgvol.limits import PRELOAD_GRACE, PRELOAD_SETTLE

NEW = Stamp(size=3, mtime_ns=1000 * 10**9)
OLD = replace(NEW, mtime_ns=0)


def looked(settling, stamp, now, *, is_open=None):
    found = Look(stamp=stamp, is_open=is_open)
    return settling.is_settled("a", found, now=now, wall_ns=1000 * 10**9 + int(now * 10**9))


@pytest.fixture
def settling():
    return Settling()


def test_one_that_was_moved_in_is_looked_at_at_once_and_believed(settling):
    settling.arrive("a", 0.0)
    assert settling.due(0.0) == ["a"]
    assert looked(settling, NEW, 0.0)
    assert settling.next_due() is None


def test_one_that_was_closed_is_believed_when_its_writer_has_had_time_for_its_times(settling):
    settling.close("a", 0.0)
    assert settling.due(0.0) == []
    settling.change("a", 0.1)
    assert settling.due(PRELOAD_GRACE) == ["a"]
    assert looked(settling, NEW, PRELOAD_GRACE)


def test_one_that_is_closed_and_opened_again_waits_for_the_last_writer(settling):
    settling.close("a", 0.0)
    assert not looked(settling, NEW, PRELOAD_GRACE, is_open=True)
    settling.close("a", 5.0)
    assert looked(settling, NEW, 5.0 + PRELOAD_GRACE, is_open=False)


def test_one_that_is_open_is_waited_for_however_long_it_stays_the_same(settling):
    settling.change("a", 0.0)
    now = 0.0
    for _ in range(5):
        assert settling.due(now) == ["a"]
        assert not looked(settling, OLD, now, is_open=True)
        now += PRELOAD_SETTLE
    assert looked(settling, OLD, now, is_open=False)


def test_one_that_is_new_is_believed_when_it_is_the_same_at_the_next_look(settling):
    settling.change("a", 0.0)
    assert not looked(settling, NEW, 0.0)
    assert settling.due(PRELOAD_SETTLE - 0.01) == []
    longer = replace(NEW, size=4)
    assert not looked(settling, longer, PRELOAD_SETTLE)
    assert looked(settling, longer, 2 * PRELOAD_SETTLE)


def test_one_that_nobody_has_open_is_believed_at_once(settling):
    settling.change("a", 0.0)
    assert looked(settling, NEW, 0.0, is_open=False)


def test_one_that_has_not_changed_for_long_is_believed_at_once(settling):
    settling.change("a", 0.0)
    assert looked(settling, OLD, 0.0)


def test_one_from_the_future_is_looked_at_twice(settling):
    settling.change("a", 0.0)
    future = replace(NEW, mtime_ns=10**13)
    assert not looked(settling, future, 0.0)
    assert looked(settling, future, PRELOAD_SETTLE)


def test_one_that_has_gone_is_forgotten(settling):
    settling.change("a", 0.0)
    assert not looked(settling, None, 0.0)
    assert "a" not in settling


def test_many_changes_are_one_wait_and_names_are_in_order(settling):
    for name in "cab":
        settling.change(name, 1.0)
        settling.change(name, 1.5)
    assert settling.due(1.0) == ["a", "b", "c"]
    assert settling.next_due() == 1.0
