"""The count of what the store takes: who may write, who waits, and who is refused."""

import contextlib
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol import limits
from imgvol.config import UNLIMITED, SpaceLimits, parse_percent, parse_size
from imgvol.content.space import SpaceLedger
from imgvol.errors import InvalidArgument, StoreFull


def ledger_of(used=0, free=10_000, **fields) -> SpaceLedger:
    ledger = SpaceLedger()
    ledger.limits = SpaceLimits(**fields)
    ledger.settle(used, ledger.begin_measuring(), free)
    return ledger


def write(ledger, size):
    with ledger.writing(size):
        pass


def write_ahead(ledger, size):
    with ledger.writing_ahead(size) as has_room:
        return has_room


def test_without_limits_everything_fits_and_is_counted():
    ledger = ledger_of(used=5)
    write(ledger, 10**15)
    assert ledger.level.used == 10**15 + 5
    assert (ledger.level.high, ledger.excess) == (None, 0)
    assert write_ahead(ledger, 10**18)


def test_the_lines_of_a_quota_and_of_what_has_to_be_free():
    assert SpaceLimits(quota=1000).lines(0, 0) == (800, 900, 1000)
    assert SpaceLimits(quota=1000, high=50, low=40).lines(7, 7) == (400, 500, 1000)
    # 300 + 200 are there; 90 of them have to stay free.
    assert SpaceLimits(min_free=90).lines(300, 200) == (400, 410, 410)
    assert SpaceLimits(quota=1000, min_free=90).lines(300, 200) == (400, 410, 410)
    assert SpaceLimits(quota=100, min_free=90).lines(300, 200) == (80, 90, 100)
    assert SpaceLimits(min_free=900).lines(300, 200) == (0, 0, 0)
    assert UNLIMITED.lines(1, 1) == (None, None, None)
    assert not UNLIMITED.is_any


@pytest.mark.parametrize(("low", "high"), [(0, 90), (90, 90), (91, 90), (50, 101)])
def test_watermarks_that_make_no_sense(low, high):
    with pytest.raises(InvalidArgument, match="watermarks"):
        SpaceLimits(low=low, high=high)


def test_sizes_and_percentages_as_people_write_them():
    assert parse_size("30M") == 30_000_000
    assert parse_size("1.5g") == 1_500_000_000
    assert parse_size("20GB") == 20_000_000_000
    assert parse_size("7") == 7
    for text in ("", "0", "-1", "1e9", "20 G", "G", "9" * 40):
        with pytest.raises(InvalidArgument):
            parse_size(text)
    assert parse_percent("90") == 90
    for text in ("", "0", "101", "-5", "9.5", "٩٠"):
        with pytest.raises(InvalidArgument):
            parse_percent(text)


@pytest.mark.parametrize("seen", [300, 350, 400])
def test_what_is_written_while_it_is_measured_counts_once(seen):
    ledger = ledger_of(quota=1000)
    write(ledger, 300)
    mark = ledger.begin_measuring()
    write(ledger, 100)
    ledger.settle(seen, mark, 0)
    assert ledger.level.used == 400


@pytest.mark.parametrize("seen", [300, 250, 200])
def test_what_goes_while_it_is_measured_is_gone(seen):
    ledger = ledger_of(quota=1000)
    write(ledger, 300)
    mark = ledger.begin_measuring()
    ledger.give(100)
    ledger.settle(seen, mark, 0)
    assert ledger.level.used == 200


@pytest.mark.parametrize("seen", [300, 400])
def test_what_is_being_written_when_a_measurement_begins_is_not_forgotten(seen):
    ledger = ledger_of(used=300, quota=1000)
    with ledger.writing(100):
        mark = ledger.begin_measuring()
        ledger.settle(seen, mark, 0)
        assert ledger.level.used == 400
    ledger.settle(400, ledger.begin_measuring(), 0)
    assert ledger.level.used == 400


@pytest.mark.parametrize("seen", [300, 200])
def test_what_is_being_given_back_when_a_measurement_ends_goes_once(seen):
    ledger = ledger_of(used=300, quota=1000)
    going = ledger.begin_giving()
    mark = ledger.begin_measuring()
    ledger.settle(seen, mark, 0)
    ledger.give(100, going)
    assert ledger.level.used == seen, "it may be gone already"
    ledger.settle(200, ledger.begin_measuring(), 0)
    assert ledger.level.used == 200


def test_what_could_not_be_written_does_not_count():
    ledger = ledger_of(used=300, quota=1000)
    for writing in (ledger.writing, ledger.writing_ahead):
        with pytest.raises(StoreFull), writing(100):
            raise StoreFull("no space left on device")
        assert ledger.level.used == 300
        ledger.settle(250, ledger.begin_measuring(), 0)
        assert ledger.level.used == 250, "nothing is under way any more"
        ledger.settle(300, ledger.begin_measuring(), 0)


STEPS = ["count", "write", "remove", "removed", "look", "measure"]


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1)), max_size=60))
def test_the_count_is_never_too_low_and_right_after_a_quiet_measurement(steps):
    """Files are counted, written, measured, removed and given back, each at any moment."""
    ledger = ledger_of(quota=10**9)
    files: dict[int, int] = {}
    writing: list[contextlib.ExitStack] = []
    going: list[tuple[int, int]] = []
    mark, measured, seen = ledger.begin_measuring(), 0, set()

    def settle():
        nonlocal mark, measured
        measured += sum(size for number, size in files.items() if number not in seen)
        ledger.settle(measured, mark, 0)
        seen.clear()
        mark, measured = ledger.begin_measuring(), 0

    for what, number in steps:
        if what == "count":
            under_way = contextlib.ExitStack()
            under_way.enter_context(ledger.writing(5))
            under_way.callback(lambda n=number: files.update({n: files.get(n, 0) + 5}))
            writing.append(under_way)
        elif what == "write" and writing:
            writing.pop(number % len(writing)).close()
        elif what == "remove":
            going.append((ledger.begin_giving(), files.pop(number, 0)))
        elif what == "removed" and going:
            before, size = going.pop(number % len(going))
            ledger.give(size, before)
        elif what == "look" and number not in seen:
            seen.add(number)
            measured += files.get(number, 0)
        elif what == "measure":
            settle()
        assert ledger.level.used >= sum(files.values())
    for under_way in writing:
        under_way.close()
    for before, size in going:
        ledger.give(size, before)
    settle()
    settle()
    assert ledger.level.used == sum(files.values())


@given(st.lists(st.tuples(st.sampled_from(["write", "remove", "look"]), st.integers(0, 9))))
def test_a_measurement_of_a_store_that_changes_spoils_no_count(steps):
    """Files are looked at one after the other, while others are written and removed."""
    ledger = ledger_of(quota=10**9)
    files: dict[int, int] = {number: 10 + number for number in range(10)}
    for size in files.values():
        write(ledger, size)
    mark, measured, seen = ledger.begin_measuring(), 0, set()
    for what, number in steps:
        if what == "write":
            write(ledger, 5)
            files[number] = files.get(number, 0) + 5
        elif what == "remove":
            ledger.give(files.pop(number, 0))
        elif number not in seen:
            seen.add(number)
            measured += files.get(number, 0)
    measured += sum(size for number, size in files.items() if number not in seen)
    ledger.settle(measured, mark, 0)
    assert ledger.level.used == sum(files.values())


def test_what_nobody_counts_is_in_the_next_measurement():
    ledger = ledger_of(quota=1000)
    write(ledger, 300)
    ledger.settle(350, ledger.begin_measuring(), 0)
    assert ledger.level.used == 350
    mark = ledger.begin_measuring()
    write(ledger, 10)
    ledger.settle(500, mark, 0)
    assert ledger.level.used == 500
    mark = ledger.begin_measuring()
    write(ledger, 10)
    ledger.settle(100, mark, 0)
    assert ledger.level.used == 110, "no more than there can be"


def test_spare_room_ends_at_the_high_line_and_the_rest_at_the_hard_one():
    ledger = ledger_of(quota=1000)
    assert write_ahead(ledger, 900)
    assert not write_ahead(ledger, 1)
    assert not ledger.has_room(1)
    assert ledger.excess == 0
    write(ledger, 50)
    assert ledger.excess == 150
    write(ledger, 50)
    began = time.monotonic()
    with pytest.raises(StoreFull, match="within the size"):
        write(ledger, 1)
    assert time.monotonic() - began < 2
    assert ledger.level.used == 1000, "nothing was counted"
    assert ledger.level.seconds_above > 0


def test_a_writer_waits_until_somebody_makes_room():
    ledger = ledger_of(used=950, quota=1000)
    asked = threading.Event()
    ledger.on_pressure = asked.set

    def make_room():
        asked.wait(5)
        assert ledger.excess == 750, "down to where what is waited for fits"
        ledger.give(800)

    thread = threading.Thread(target=make_room)
    thread.start()
    write(ledger, 800)
    thread.join()
    assert ledger.level.used == 950


def test_a_writer_is_refused_when_rounds_have_found_nothing(monkeypatch):
    monkeypatch.setattr(limits, "SPACE_WAIT", 60.0)
    ledger = ledger_of(used=1000, quota=1000)
    rounds = []

    def look():
        while len(rounds) < 3:
            ledger.begin_round()
            ledger.end_round()
            rounds.append(None)
            time.sleep(0.02)

    thread = threading.Thread(target=look)
    ledger.on_pressure = lambda: None if thread.ident else thread.start()
    with pytest.raises(StoreFull):
        write(ledger, 1)
    thread.join()


def test_memory_for_what_does_not_fit_is_bounded():
    ledger = SpaceLedger()
    assert ledger.borrow_memory(limits.SPARE_SPANS)
    assert not ledger.borrow_memory(1)
    ledger.repay_memory(10)
    assert ledger.borrow_memory(10)


def test_a_writer_waits_no_longer_than_it_may_and_not_at_all_when_nobody_evicts(monkeypatch):
    monkeypatch.setattr(limits, "SPACE_WAIT", 0.2)
    ledger = ledger_of(used=1000, quota=1000)
    for tell, least, most in [(None, 0.0, 0.1), (lambda: None, 0.2, 5.0)]:
        ledger.on_pressure = tell
        began = time.monotonic()
        with pytest.raises(StoreFull):
            write(ledger, 1)
        assert least <= time.monotonic() - began < most


def test_who_stops_to_evict_lets_writers_go():
    ledger = ledger_of(used=1000, quota=1000)
    asked = threading.Event()
    ledger.on_pressure = asked.set

    def stop():
        asked.wait(5)
        ledger.on_pressure = None
        ledger.end_round()

    thread = threading.Thread(target=stop)
    thread.start()
    began = time.monotonic()
    with pytest.raises(StoreFull):
        write(ledger, 1)
    thread.join()
    assert time.monotonic() - began < limits.SPACE_WAIT / 2
