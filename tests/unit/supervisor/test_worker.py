"""Until when a worker has to show that it lives."""

import os
import signal

import pytest

from imgvol import limits
from imgvol.supervisor.datagram import Word
from imgvol.supervisor.worker import Worker


@pytest.fixture
def worker():
    """A worker, started at 100, that only waits, and the signals that it was sent."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    worker = Worker(pid, 100.0)
    sent = []
    worker.send = sent.append
    yield worker, sent
    os.kill(pid, signal.SIGKILL)
    end = worker.reap(200.0)
    assert end.status == -signal.SIGKILL


def test_it_has_to_get_ready_and_may_ask_for_more_time(worker):
    worker, sent = worker
    assert worker.deadline == 100 + limits.WORKER_START
    worker.hear(Word(extend=5.0), 110.0)
    assert worker.deadline == 115
    worker.hear(Word(is_alive=True), 112.0)
    assert worker.deadline == 115, "it lives, and is not ready"
    worker.forgive(3.0)
    assert worker.deadline == 118
    assert worker.overdue(120.0) == "not ready in time"
    assert sent == [signal.SIGABRT]
    worker.hear(Word(is_ready=True), 120.5)
    assert (worker.deadline, worker.is_ready) == (120 + limits.WORKER_ABORT, False), "too late"
    worker.overdue(122.0)
    assert sent == [signal.SIGABRT, signal.SIGKILL]
    assert worker.deadline == float("inf")


def test_once_ready_it_has_to_live(worker):
    worker, sent = worker
    worker.hear(Word(is_ready=True), 101.0)
    assert worker.deadline == 101 + limits.WORKER_WATCHDOG
    worker.hear(Word(extend=500.0), 102.0)
    worker.hear(Word(is_ready=True), 103.0)
    assert worker.deadline == 101 + limits.WORKER_WATCHDOG, "neither is a sign of life"
    worker.hear(Word(is_alive=True), 110.0)
    assert worker.deadline == 110 + limits.WORKER_WATCHDOG
    assert worker.overdue(200.0) == "no sign of life"
    assert sent == [signal.SIGABRT]


@pytest.mark.parametrize("by_itself", [False, True])
def test_when_it_stops_it_has_one_deadline_whatever_it_says(worker, by_itself):
    worker, sent = worker
    worker.hear(Word(is_ready=True), 101.0)
    if by_itself:
        worker.hear(Word(is_stopping=True), 110.0)
    else:
        worker.stops(110.0)
    for word in (Word(is_stopping=True), Word(is_alive=True), Word(extend=500.0)):
        worker.hear(word, 120.0)
    worker.stops(121.0)
    assert worker.deadline == 110 + limits.WORKER_STOP
    assert worker.overdue(140.0) == "not stopped in time"
    assert sent == [signal.SIGKILL]
