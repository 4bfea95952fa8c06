"""Notices when the event loop does not turn, which it cannot do itself.

A task beats; a thread looks whether it still does. If it has not for `LOOP_BLOCKED` seconds, the
thread logs once what every thread and every task is doing: code and line numbers, never values.
The service manager is told that we live by the task, so only while the loop turns: it restarts a
daemon that hangs for good.

A thread that was late itself has seen nothing: the process was stopped, or the machine had no time
for it. That is no fault of the loop, unless the process was busy meanwhile: then it ran code that
lets no other thread run.
"""

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from types import FrameType

import trio

from imgvol import limits
from imgvol.service_manager import ServiceManager
from imgvol.tallies import LOOP_BOUNDS, Distribution, Histogram

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Watchdog:
    """Watches the event loop that `run` runs in.

    Args:
        manager: Who is told that we live, twice as often as it wants.
    """

    manager: ServiceManager
    _beats: int = 0
    _blocked: Histogram = field(default_factory=lambda: Histogram(LOOP_BOUNDS))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _is_over: threading.Event = field(default_factory=threading.Event)

    def blocked(self) -> Distribution:
        """For how long the loop was blocked, each time that has ended."""
        with self._lock:
            return self._blocked.snapshot()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Beats, and is watched, until it is cancelled."""
        root = trio.lowlevel.current_root_task()
        loop = threading.get_ident()
        watching = threading.Thread(
            target=self._watch, args=(loop, root), name="watchdog", daemon=True
        )
        watching.start()
        task_status.started()
        try:
            await self._beat()
        finally:
            self._is_over.set()

    async def _beat(self) -> None:
        period = self.manager.watchdog
        pause = limits.LOOP_BEAT if period is None else min(limits.LOOP_BEAT, period / 2)
        told_at = -float("inf")
        while True:
            self._beats += 1
            if period is not None and trio.current_time() - told_at >= period / 2 - pause:
                told_at = trio.current_time()
                self.manager.alive()
            await trio.sleep(pause)

    # --- in the thread --------------------------------------------------------------------------

    def _watch(self, loop: int, root: trio.lowlevel.Task | None) -> None:
        look = _Look.now(self._beats)
        beaten_at, is_told = look.at, False
        while not self._is_over.wait(limits.LOOP_BEAT):
            before, look = look, _Look.now(self._beats)
            late = look.at - before.at - limits.LOOP_BEAT
            if late > limits.LOOP_BEAT:
                beaten_at += late
            if late >= limits.LOOP_BLOCKED:
                self._missed(late, look.busy - before.busy)
            if look.beats != before.beats:
                if is_told:
                    self._end(look.at - beaten_at)
                beaten_at, is_told = look.at, False
            elif look.at - beaten_at >= limits.LOOP_BLOCKED and not is_told:
                is_told = True
                log.error(
                    "the event loop has been blocked for %.1f s\n%s",
                    look.at - beaten_at,
                    "\n".join(report(loop, root)),
                )

    def _end(self, seconds: float) -> None:
        self._observe(seconds)
        log.error("the event loop turns again, after %.1f s", seconds)

    def _missed(self, seconds: float, busy: float) -> None:
        if busy < seconds / 2:
            log.info("this process did not run for %.1f s", seconds)
            return
        self._observe(seconds)
        log.error("for %.1f s the process ran code that lets no thread run", seconds)

    def _observe(self, seconds: float) -> None:
        with self._lock:
            self._blocked.observe(seconds)


@dataclass(frozen=True, slots=True)
class _Look:
    """What the thread sees at one moment; times in seconds."""

    at: float
    busy: float
    beats: int

    @classmethod
    def now(cls, beats: int) -> "_Look":
        return cls(time.monotonic(), time.process_time(), beats)


def report(loop: int, root: trio.lowlevel.Task | None) -> Iterator[str]:
    """What every thread and every task does, as lines; the loop's thread first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()  # noqa: SLF001 - the documented way to see other threads
    threads = sorted(frames, key=lambda thread: thread != loop)
    for thread in threads[: limits.REPORT_THREADS]:
        yield f"thread {names.get(thread, thread)}:"
        yield from _calls(frames[thread])
    if root is not None:
        yield f"tasks, {limits.REPORT_TASKS} at most:"
        try:
            yield from islice(_tasks(root, 1), limits.REPORT_TASKS)
        except Exception as exc:  # noqa: BLE001 - the loop may turn again meanwhile
            yield f"  they have changed meanwhile: {exc!r}"


def _calls(frame: FrameType | None) -> Iterator[str]:
    stack: list[FrameType] = []
    while frame is not None and len(stack) < limits.REPORT_CALLS:
        stack.append(frame)
        frame = frame.f_back
    for called in reversed(stack):
        yield f"  {_place(called)}"


def _tasks(task: trio.lowlevel.Task, depth: int) -> Iterator[str]:
    """A task, and below it those of its nurseries; equal ones are counted."""
    for nursery in task.child_nurseries:
        leaves: Counter[str] = Counter()
        for child in nursery.child_tasks:
            line = f"{'  ' * depth}{child.name}: {_waits_at(child)}"
            if child.child_nurseries:
                yield line
                yield from _tasks(child, depth + 1)
            else:
                leaves[line] += 1
        for line, count in leaves.items():
            yield line if count == 1 else f"{line} ({count} times)"


def _waits_at(task: trio.lowlevel.Task) -> str:
    """The innermost calls of a task that are not the library's."""
    places = [_place(frame) for frame, _ in _await_frames(task)]
    return " < ".join(reversed(places[-3:])) or "not begun"


def _await_frames(task: trio.lowlevel.Task) -> Iterable[tuple[FrameType, int]]:
    library = trio.__path__[0]
    return (
        (frame, line)
        for frame, line in task.iter_await_frames()
        if not frame.f_code.co_filename.startswith(library)
    )


def _place(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_filename}:{frame.f_lineno} {code.co_qualname}"
