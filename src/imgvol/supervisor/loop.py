"""The supervisor: one worker at a time, and what outlives it.

Rule 1: there is never a second worker: the next one has its turn when the last one has been waited
for, so that its locks are free. Until then it may load what it needs, and takes nothing.
Rule 2: nothing here waits without a deadline or a signal that ends it, and nothing blocks but
poll(2), and what systemd must not miss, for `limits.NOTIFY_PATIENCE`.
Rule 3: what a worker says is taken from the worker alone, and bounded.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Final

from imgvol import limits
from imgvol.supervisor import descriptors as fds
from imgvol.supervisor import notify, turn
from imgvol.supervisor import status as status_file
from imgvol.supervisor.channel import Channel, Received
from imgvol.supervisor.datagram import BadDatagram, Word
from imgvol.supervisor.launch import RESTARTS, SUPERVISOR
from imgvol.supervisor.line import Line
from imgvol.supervisor.spawn import spawn
from imgvol.supervisor.status import Status
from imgvol.supervisor.turn import Standby
from imgvol.supervisor.upgrade import Asker
from imgvol.supervisor.verdict import EXIT_FAILED, EXIT_STOPPED, EXIT_STUCK, End, History, is_final
from imgvol.supervisor.worker import Worker

_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Supervisor:
    """Starts workers until one ends for good.

    Args:
        run: The run directory: 0700, and ours.
        command: What a worker is: a program by its path, and its arguments.
        environ: For workers; what is meant for us is taken out.
        stands_by: Whether the next worker is started while the last one lives, and waits.
    """

    def __init__(
        self,
        run: str,
        command: Sequence[str],
        environ: dict[str, str],
        *,
        stands_by: bool = False,
    ) -> None:
        self._run = run
        self._command = command
        self._kept = fds.Descriptors(fds.inherited(environ))
        self._has_inherited = len(self._kept) > 0
        self._manager = notify.manager_of(environ)
        self._environ = environ
        self._history = History()
        self._restarts = 0
        self._line = Line(self._start_standby, _say, stands_by=stands_by)
        self._told: Status | None = None
        self._last_end: End | None = None
        self._last_end_at: float | None = None
        self._is_told_to_stop = False
        self._signals: list[int] = []

    def run(self, ready_fd: int | None) -> int:
        """Blocks until the last worker has ended.

        Args:
            ready_fd: Inherited by the first worker, and by no other.

        Returns:
            The exit code.
        """
        with contextlib.ExitStack() as stack:
            self._wakeup = stack.enter_context(self._catching_signals())
            try:
                self._channel = Channel(self._run)
            except OSError as error:
                _say("ERROR", f"cannot listen in {self._run}: {error.strerror}")
                return EXIT_FAILED
            stack.callback(self._channel.close)
            stack.callback(self._remove_status)
            stack.callback(self._line.close)
            _wait_for_last_worker(self._run)
            return self._supervise(ready_fd)

    def _supervise(self, ready_fd: int | None) -> int:
        while True:
            end, is_explained = self._live(ready_fd)
            ready_fd = None
            if self._is_told_to_stop:
                return EXIT_STOPPED if self._is_taking_over else _code_when_stopped(end)
            if is_explained:
                continue
            self._history = self._history.after(end)
            self._last_end, self._last_end_at = end, time.time()
            if is_final(self._history, end):
                if end.status < 0 or (self._history.was_ready and end.status != EXIT_STOPPED):
                    _say("ERROR", f"the worker ended with {end}; there is no next one")
                if self._history.unready >= limits.WORKER_TRIES:
                    self._let_go()
                return end.exit_code
            pause = self._history.pause
            due = f"in {pause:g} s" if pause else "at once"
            _say("ERROR", f"the worker ended with {end}; the next one starts {due}")
            if not ((not pause or self._wait(pause)) and self._wait_for_standby()):
                return EXIT_STOPPED
            self._restarts += 1

    @property
    def _is_taking_over(self) -> bool:
        """Whether systemd keeps what no worker of ours has gone on with yet."""
        return self._has_inherited and not self._history.was_ready

    # --- a worker -------------------------------------------------------------------------------

    def _live(self, ready_fd: int | None) -> tuple[End, bool]:
        """One worker's life; how it ended, and whether that was an upgrade's doing."""
        try:
            worker = self._start()
        except OSError as error:
            _say("ERROR", f"cannot start a process: {error.strerror}")
            return End(EXIT_FAILED, None), False
        finally:
            if ready_fd is not None:
                os.close(ready_fd)
        end = self._watch(worker)
        return end, self._line.explains(worker, end)

    def _start(self) -> Worker:
        kept = list(self._kept)
        standby = self._line.next(self._restarts, kept)
        if standby is not None:
            worker = Worker(standby.pid, time.monotonic(), standby.channel)
        else:
            pid = spawn(self._command, self._environment(self._restarts), kept)
            worker = Worker(pid, time.monotonic())
        self._tell_status("starting", worker)
        return worker

    def _start_standby(self) -> Standby:
        ours, theirs = turn.pair()
        # The first worker alone has a starter to tell: this is not it.
        environment = self._environment(self._restarts + 1)
        try:
            with theirs:
                pid = spawn(self._command, environment, [(turn.NAME, theirs.fileno())])
        except OSError:
            ours.close()
            raise
        return Standby(pid, ours, [name for name, _ in self._kept])

    def _environment(self, restarts: int) -> dict[str, str]:
        return {
            **self._environ,
            "NOTIFY_SOCKET": self._channel.address,
            "WATCHDOG_USEC": str(int(limits.WORKER_WATCHDOG * 1e6)),
            SUPERVISOR: str(os.getpid()),
            RESTARTS: str(restarts),
        }

    def _watch(self, worker: Worker) -> End:
        """Until it has ended."""
        while True:
            self._line.tend(worker, time.monotonic())
            self._tell_standby()
            has_ended = self._poll(worker.deadline, worker.pidfd, worker)
            # What it said before it died counts.
            for received in self._channel.iter_received(worker.pid):
                self._hear(worker, received)
            if has_ended:
                return worker.reap(time.monotonic())
            for number in self._take_signals():
                if self._is_taking_over:
                    # The service may be told to start again: what the last supervisor has left is
                    # left as it is. If it is not, systemd closes that.
                    worker.kill()
                    continue
                worker.send(number)
                worker.stops(time.monotonic())
                self._tell_status("stopping", worker)
            if time.monotonic() >= worker.deadline:
                why = worker.overdue(time.monotonic())
                _say("ERROR", f"the worker, process {worker.pid}: {why}; it is ended")

    def _wait(self, seconds: float) -> bool:
        """The pause between two workers; False when it was cut short, as there is to be none."""
        until = time.monotonic() + seconds
        self._tell_status("waiting", None, pause=seconds)
        while time.monotonic() < until:
            if not self._pass_time(until):
                return False
        return True

    def _wait_for_standby(self) -> bool:
        """Until one that loads has done so: it is not a worker before. False: there is to be none.

        So whatever ends workers again and again does not keep the next one from being loaded.
        """
        until = time.monotonic() + limits.WORKER_START
        if self._line.is_loading:
            self._tell_status("waiting", None)
        while self._line.is_loading and time.monotonic() < until:
            if not self._pass_time(until):
                return False
        return True

    def _pass_time(self, until: float) -> bool:
        """Until something happens, or the time has come; False when we are told to stop."""
        self._poll(until, None, None)
        # Nobody speaks for the service now: this empties the queue.
        for received in self._channel.iter_received(0):
            fds.close_all(received.descriptors)
        self._line.listen(time.monotonic())
        return not self._take_signals()

    # --- waiting --------------------------------------------------------------------------------

    def _poll(self, deadline: float, pidfd: int | None, worker: Worker | None) -> bool:
        """Waits for something to do, or for the deadline; returns whether the process has ended."""
        poll = select.poll()
        for readable in (self._channel, self._wakeup, pidfd, *self._line.channels):
            if readable is not None:
                poll.register(readable, select.POLLIN)
        now = time.monotonic()
        if worker is not None:
            deadline = min(deadline, self._line.deadline(now))
        period = self._manager.watchdog
        if period is not None:
            notify.tell(self._manager.address, "WATCHDOG=1")
            deadline = min(deadline, now + period / 3)
        left = min(max(deadline - now, 0.0), limits.WORKER_START_MOST)
        ready = {descriptor for descriptor, _ in poll.poll(left * 1000)}
        late = time.monotonic() - now - left
        if worker is not None and late > limits.SUPERVISOR_LATE:
            worker.forgive(late)
        if self._wakeup in ready:
            os.read(self._wakeup, 512)
        return pidfd in ready

    @contextlib.contextmanager
    def _catching_signals(self) -> Iterator[int]:
        """Signals wake poll(2) up; yields what becomes readable then."""
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in _STOP_SIGNALS:
            signal.signal(number, self._note_signal)
        try:
            yield reading
        finally:
            for number in _STOP_SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            os.close(reading)
            os.close(writing)

    def _note_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)

    def _take_signals(self) -> list[int]:
        """Those that were received since; the first one is the end of all."""
        signals, self._signals = self._signals, []
        if signals and not self._is_told_to_stop:
            self._is_told_to_stop = True
            # Whoever has sent it may have sent it to all of us: their ends are no news any more.
            self._line.close()
            notify.tell(self._manager.address, "STOPPING=1")
        return signals

    # --- what workers say -----------------------------------------------------------------------

    def _hear(self, worker: Worker, received: Received) -> None:
        word = received.word
        if isinstance(word, BadDatagram):
            self._complain(worker, str(word))
            fds.close_all(received.descriptors)
            return
        if word.upgrade is not None:
            self._ask(worker, word.upgrade, received.descriptors)
            return
        self._store(worker, word, received.descriptors)
        was_ready = worker.is_ready
        worker.hear(word, time.monotonic())
        if worker.is_ready and not was_ready:
            self._history = self._history._replace(was_ready=True, unready=0)
            self._tell_status("ready", worker)
        if word.is_stopping:
            self._tell_status("stopping", worker)
        self._pass_on(word)

    def _ask(self, worker: Worker, seconds: float, descriptors: list[int]) -> None:
        """Somebody wants an upgrade; the first descriptor is where to tell what came of it."""
        fds.close_all(descriptors[1:])
        if descriptors:
            self._line.ask(Asker(descriptors[0]), seconds, worker, time.monotonic())

    def _store(self, worker: Worker, word: Word, descriptors: list[int]) -> None:
        name = f"FDNAME={word.name}"
        if not word.stores:
            fds.close_all(descriptors)
        elif self._kept.add(word.name, descriptors):
            self._insist("FDSTORE=1", name, descriptors=descriptors)
        else:
            self._complain(worker, f"more than {limits.DESCRIPTORS_KEPT} descriptors to keep")
        if word.removes:
            self._kept.remove(word.name)
            self._insist("FDSTOREREMOVE=1", name)

    def _let_go(self) -> None:
        """Has systemd keep nothing: who waits for what nobody can go on with gets an error."""
        for name in dict(self._kept):
            self._insist("FDSTOREREMOVE=1", f"FDNAME={name}")

    def _pass_on(self, word: Word) -> None:
        """What systemd is to know. Of a worker's end it is told only if that is ours, too."""
        said = [] if word.status is None else [f"STATUS={word.status}"]
        if word.extend is not None:
            said.append(f"EXTEND_TIMEOUT_USEC={int(word.extend * 1e6)}")
        if word.is_ready:
            self._insist("READY=1", *said)
        elif said:
            notify.tell(self._manager.address, *said)

    def _insist(self, *assignments: str, descriptors: Sequence[int] = ()) -> None:
        """Tells systemd what it must not miss. Waits a little, if it has to."""
        address = self._manager.address
        was_taken = notify.tell(
            address, *assignments, descriptors=descriptors, patience=limits.NOTIFY_PATIENCE
        )
        if address is not None and not was_taken:
            _say("WARNING", f"the service manager did not take {' '.join(assignments)}")

    def _complain(self, worker: Worker, why: str) -> None:
        worker.complaints += 1
        if worker.complaints <= limits.NOTIFY_COMPLAINTS:
            _say("WARNING", f"refused a notification: {why}")

    # --- what is told ---------------------------------------------------------------------------

    def _tell_status(self, state: str, worker: Worker | None, pause: float | None = None) -> None:
        # Until then another daemon may own the directory, with a supervisor that tells of it.
        if not self._history.was_ready:
            return
        status = Status(
            pid=os.getpid(),
            state=state,
            worker=None if worker is None else worker.pid,
            restarts=self._restarts,
            unready=self._history.unready,
            last_end=None if self._last_end is None else str(self._last_end),
            last_end_at=self._last_end_at,
            next_try_at=None if pause is None else time.time() + pause,
            standby=self._line.pid,
        )
        self._told = status
        status_file.write(self._run, status)

    def _tell_standby(self) -> None:
        """The same again, if another worker stands by."""
        if self._told is not None and self._told.standby != self._line.pid:
            self._told = self._told._replace(standby=self._line.pid)
            status_file.write(self._run, self._told)

    def _remove_status(self) -> None:
        if self._history.was_ready:
            status_file.remove(self._run)


def _wait_for_last_worker(run: str) -> None:
    """That of a supervisor that was killed: the kernel ends it, and then its locks are free."""
    left = status_file.left_behind(run)
    if left is None or left.worker is None:
        return
    try:
        process = os.pidfd_open(left.worker)
    except (OSError, ValueError, OverflowError):
        return  # it has gone
    try:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        # Its number may be another process's by now: that one is not waited for any longer.
        poll.poll(limits.WORKER_LEFT * 1000)
    finally:
        os.close(process)


def _code_when_stopped(end: End) -> int:
    """Of a worker that was told to stop."""
    if end.status in {-signal.SIGTERM, -signal.SIGINT}:  # before it listened to them
        return EXIT_STOPPED
    return EXIT_STUCK if end.status == -signal.SIGKILL else end.exit_code


def _say(level: str, what: str) -> None:
    """A line in the form of the daemon's log, on standard error."""
    now = time.time()
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    line = f"{at},{int(now % 1 * 1000):03} {level} imgvol.supervisor: {what}\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
