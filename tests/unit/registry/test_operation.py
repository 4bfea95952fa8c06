"""Deadlines and cancellation of blocking work."""

import threading
import time
from concurrent.futures import Future

import pytest

from imgvol.registry.body import RateGuard
from imgvol.registry.operation import DeadlinePassed, OpenSockets, Operation, OperationCancelled


def test_sleep_ends_when_cancelled():
    operation = Operation()
    threading.Timer(0.05, operation.cancel).start()
    begun = time.monotonic()
    with pytest.raises(OperationCancelled):
        operation.sleep(30)
    assert time.monotonic() - begun < 1


def test_sleep_ends_at_the_deadline():
    with pytest.raises(DeadlinePassed):
        Operation(seconds=0.02).sleep(30)


def test_deadline_can_be_moved():
    operation = Operation(seconds=0)
    with pytest.raises(DeadlinePassed):
        operation.remaining()
    operation.allow_within(10)
    assert 9 < operation.remaining() <= 10


def test_wait_for_a_result_that_comes():
    operation, result = Operation(), Future()
    threading.Timer(0.02, result.set_result, [7]).start()
    assert operation.wait_for(result)
    assert result.result() == 7


def test_wait_for_a_result_that_does_not_come():
    assert not Operation().wait_for(Future(), seconds=0.01)
    with pytest.raises(DeadlinePassed):
        Operation(seconds=0.01).wait_for(Future())


def test_result_that_is_there_is_taken_after_the_deadline():
    result = Future()
    result.set_result(None)
    assert Operation(seconds=0).wait_for(result)


def test_cancel_reaches_the_sockets_that_are_in_use_only():
    class Sockets(OpenSockets):
        shutdowns = 0

        def shut_down(self):
            self.shutdowns += 1

    operation, sockets = Operation(), Sockets()
    with operation.using(sockets):
        operation.cancel()
    assert sockets.shutdowns == 1
    operation.cancel()
    assert sockets.shutdowns == 1
    assert operation.is_cancelled


def test_rate_is_looked_at_once_a_window():
    guard = RateGuard(rate=100, window=10)
    assert guard.note(1, 9.9)
    assert not guard.note(1, 0.2)
    assert guard.note(0, 9.9)
    assert guard.note(1000, 0.1)


def test_rate_counts_waiting_only():
    guard = RateGuard(rate=100, window=10)
    assert all(guard.note(1, 0.0) for _ in range(1000))
