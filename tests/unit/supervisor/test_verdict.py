"""What follows when a worker has ended."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol import limits
from imgvol.supervisor.verdict import End, History, is_final

KILLED = -signal.SIGKILL


def history_of(*ends):
    history = History()
    for end in ends:
        history = history.after(end)
    return history


@pytest.mark.parametrize("status", [0, 1, 2, 3, 127, KILLED, -signal.SIGABRT])
def test_nothing_is_started_again_that_never_was_ready(status):
    end = End(status, None)
    assert is_final(history_of(end), end)


@pytest.mark.parametrize(
    ("status", "is_the_end"),
    [(0, True), (1, False), (2, True), (3, True), (127, True), (KILLED, False)],
)
@pytest.mark.parametrize("ready_for", [None, 0.0, 1e6])
def test_later_only_crashes_and_failures_are_followed_by_another(status, is_the_end, ready_for):
    end = End(status, ready_for)
    assert is_final(history_of(End(KILLED, 5.0), end), end) is is_the_end


def test_one_that_dies_while_it_stops_is_not_followed_by_another():
    history = history_of(End(KILLED, 5.0))
    for status, is_the_end in [(KILLED, True), (1, False)]:
        end = End(status, 5.0, was_stopping=True)
        assert is_final(history.after(end), end) is is_the_end


def test_pauses_grow_to_a_limit_and_begin_again_after_a_healthy_worker():
    history, pauses = history_of(End(KILLED, 0.5)), []
    for _ in range(13):
        pauses.append(history.pause)
        history = history.after(End(KILLED, 0.5))
    assert pauses[:3] == [0.0, 0.1, limits.WORKER_PAUSE_BRIEF]
    assert pauses[-1] == limits.WORKER_PAUSE_BRIEF, "each of them has served for a moment"
    for _ in range(12):
        history = history.after(End(KILLED, None))
        pauses.append(history.pause)
    assert pauses[-1] == limits.WORKER_PAUSE_MOST
    assert history.after(End(KILLED, limits.WORKER_HEALTHY)).pause == 0


def test_it_gives_up_when_none_becomes_ready():
    end = End(1, None)
    ends = [End(KILLED, 1.0), *[end] * (limits.WORKER_TRIES - 1)]
    assert not is_final(history_of(*ends), end)
    assert is_final(history_of(*ends, end), end)
    assert not is_final(history_of(*ends, End(KILLED, 0.1)), End(KILLED, 0.1)), "one was ready"


ENDS = st.builds(
    End, st.sampled_from([0, 1, 3, KILLED]), st.none() | st.floats(0, 1e9, allow_nan=False)
)


@given(st.lists(ENDS, min_size=1, max_size=400))
def test_pauses_are_within_their_limits(ends):
    history = history_of(*ends)
    assert 0.0 <= history.pause <= limits.WORKER_PAUSE_MOST
    assert history.was_ready == any(end.ready_for is not None for end in ends)
    worse = history.after(End(KILLED, None))
    assert worse.pause >= history.pause


@pytest.mark.parametrize(
    ("status", "text", "code"),
    [(0, "exit code 0", 0), (KILLED, "signal 9 (SIGKILL)", 137), (-40, "signal 40", 168)],
)
def test_how_it_is_told(status, text, code):
    end = End(status, None)
    assert (str(end), end.exit_code) == (text, code)
