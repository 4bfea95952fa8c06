"""Which signals let a caller leave, as /proc tells of them."""

import os
import signal

import pytest

from imgvol.fs.kernel.callers import Caller

NONE, ALL = 0, (1 << 64) - 1
KILL, USER, QUIT = (1 << number - 1 for number in (signal.SIGKILL, signal.SIGUSR1, signal.SIGQUIT))


def status(own=NONE, shared=NONE, blocked=NONE, ignored=NONE, caught=NONE):
    sets = (own, shared, blocked, ignored, caught)
    names = ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")
    fields = (f"{name}:\t{each:016x}" for name, each in zip(names, sets, strict=True))
    lines = ["Name:\tcat", "SigQ:\t0/1", *fields]
    return "\n".join(lines).encode()


@pytest.mark.parametrize("is_direct", [True, False])
def test_whoever_is_killed_may_leave(is_direct):
    caller = Caller(1, is_direct)
    assert caller.may_leave_by(status(own=KILL, caught=USER))
    assert not caller.may_leave_by(status(own=ALL & ~KILL, blocked=ALL))
    assert not caller.may_leave_by(status(shared=KILL)), "another thread's, or not there yet"


def test_what_ends_a_process_with_a_core_dump_ends_a_direct_read():
    caller = Caller(1, is_direct=True)
    assert caller.may_leave_by(status(shared=QUIT))
    assert not caller.may_leave_by(status(shared=QUIT, ignored=QUIT))
    assert not Caller(1, is_direct=False).may_leave_by(status(shared=QUIT))


@pytest.mark.parametrize("where", ["own", "shared"])
def test_a_handler_may_run_in_the_middle_of_a_direct_read_alone(where):
    text = status(**{where: USER}, caught=USER)
    assert Caller(1, is_direct=True).may_leave_by(text)
    assert not Caller(1, is_direct=False).may_leave_by(text)


def test_signals_that_run_no_handler_mean_nothing():
    caller = Caller(1, is_direct=True)
    assert not caller.may_leave_by(status(own=USER))
    assert not caller.may_leave_by(status(own=USER, caught=USER, blocked=USER))
    assert not caller.may_leave_by(status(caught=USER))
    assert not caller.may_leave_by(b"Name:\tcat\n")


@pytest.mark.parametrize("tid", [0, os.getpid(), 1 << 30], ids=["unknown", "alive", "gone"])
def test_who_lives_or_cannot_be_seen_stays(tid):
    assert not Caller(tid, is_direct=True).may_leave()
