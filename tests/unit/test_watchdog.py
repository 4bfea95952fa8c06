"""What the watchdog makes of what it sees; a loop that is really blocked: tests/faults."""

import logging
import re
import threading

import pytest
import trio
import trio.testing

from imgvol import limits
from imgvol.service_manager import ServiceManager
from imgvol.watchdog import Watchdog, report


@pytest.mark.expects_log("ran code that lets no thread run")
def test_a_thread_that_was_late_itself_tells_busy_from_stopped(caplog):
    caplog.set_level(logging.INFO)
    watchdog = Watchdog(ServiceManager())
    watchdog._missed(60.0, busy=0.1)
    assert "this process did not run for 60.0 s" in caplog.text
    assert sum(watchdog.blocked().counts) == 0
    watchdog._missed(20.0, busy=19.0)
    assert (sum(watchdog.blocked().counts), watchdog.blocked().total) == (1, 20.0)


async def test_the_report_names_threads_and_tasks_and_counts_equal_ones():
    def wait(done):
        done.wait()

    done = threading.Event()
    thread = threading.Thread(target=wait, args=(done,), name="waiter")
    thread.start()
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(7):
                nursery.start_soon(idle)
            await trio.testing.wait_all_tasks_blocked()
            root = trio.lowlevel.current_root_task()
            lines = list(report(threading.get_ident(), root))
            nursery.cancel_scope.cancel()
    finally:
        done.set()
        thread.join()
    assert lines[0] == "thread MainThread:"
    assert "thread waiter:" in lines
    (line,) = [line for line in lines if "test_watchdog.idle" in line]
    assert re.search(r"test_watchdog\.py:\d+ idle \(7 times\)$", line)


async def idle():
    await trio.sleep_forever()


async def test_the_report_is_bounded(monkeypatch):
    monkeypatch.setattr(limits, "REPORT_TASKS", 5)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(nested)
        await trio.testing.wait_all_tasks_blocked()
        lines = list(report(threading.get_ident(), trio.lowlevel.current_root_task()))
        nursery.cancel_scope.cancel()
    assert len(lines) - lines.index("tasks, 5 at most:") == 6


async def nested():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(idle)
