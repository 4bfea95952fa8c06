"""A daemon of one's own for an integration test, and the command that talks to it."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from support.api_client import ask
from support.programs import stop, wait_until

START_SECONDS = 30.0
STOP_SECONDS = 20.0
COMMAND = [sys.executable, "-m", "imgvol"]
# Asks in a pipe what a terminal would see, without colours or the width of this one.
ENVIRONMENT = {"NO_COLOR": "1", "COLUMNS": "100", "TERM": "dumb"}


@dataclass(slots=True)
class Imgvol:
    """The directories of a daemon, and the command line as a user types it, with these directories.

    Attributes:
        base: The parent of everything, open to other users; a place for targets.
        expected_log: Patterns of lines above INFO that a test provokes in the daemon's log.
        limits: Values that the daemon shall have in `imgvol.limits` instead of its own.
        options: Of `imgvol serve`.
        prelude: Python statements that it shall run before its own.
        serves_cri: Whether it serves the CRI, which costs each start some tenths of a second.
        preloads: Whether it has a preload directory without an option that names one.
        supervisor: Whether it has one as users have it by default. Without, it dies for good: so
            say tests of what it leaves behind.
        process: What was started: the supervisor, where there is one, and else the daemon.
    """

    base: Path
    expected_log: list[str] = field(default_factory=list)
    limits: dict[str, float] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    prelude: str = "pass"
    serves_cri: bool = False
    preloads: bool = False
    supervisor: bool = True
    process: subprocess.Popen | None = None

    @property
    def root(self) -> Path:
        return self.base / "store"

    @property
    def run_dir(self) -> Path:
        return self.base / "run"

    @property
    def log(self) -> Path:
        return self.base / "daemon.log"

    @property
    def command(self) -> list[str]:
        return [*COMMAND, "--root", str(self.root), "--run", str(self.run_dir)]

    @property
    def _serve_command(self) -> list[str]:
        changes = [f"limits.{name} = {value!r}" for name, value in self.limits.items()]
        start = "import runpy; runpy.run_module('imgvol', run_name='__main__', alter_sys=True)"
        program = "; ".join([self.prelude, "from imgvol import limits", *changes, start])
        directories = self.command[len(COMMAND) :]
        # What few tests are about, and all others would start and wait for.
        habits = [] if self.serves_cri else ["--no-cri"]
        if not self.preloads and "--preload" not in self.options:
            habits.append("--no-preload")
        if not self.supervisor:
            habits.append("--no-supervisor")
        return [sys.executable, "-c", program, *directories, "serve", *habits, *self.options]

    @property
    def cri_socket(self) -> Path:
        return self.run_dir / "cri.sock"

    def target(self, name: str) -> str:
        """A new empty directory to mount at."""
        path = self.base / name
        path.mkdir()
        return str(path)

    def run(
        self,
        *arguments,
        timeout: float = 120,
        check: bool = True,
        given: str | None = None,
        **options,
    ):
        """Runs `imgvol ARGUMENTS`; its output is text, and its input is what is given."""
        command = [*self.command, *map(os.fspath, arguments)]
        done = subprocess.run(
            command,
            **({"stdin": subprocess.DEVNULL} if given is None else {"input": given}),
            capture_output=True,
            timeout=timeout,
            check=False,
            text=True,
            errors="surrogateescape",
            env={**os.environ, **ENVIRONMENT},
            **options,
        )
        if check and done.returncode != 0:
            said = f"{done.stdout}{done.stderr}\n{self.log_end()}"
            raise AssertionError(f"imgvol {arguments} exited with {done.returncode}\n{said}")
        return done

    def json(self, *arguments, **options):
        return json.loads(self.run(*arguments, "--json", **options).stdout)

    def start(self, *options: str) -> None:
        """Starts `imgvol serve` and returns when it says that it is ready.

        Args:
            options: More of them than those it was made with.
        """
        ready_end, told_end = os.pipe()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*self._serve_command, *options, "--ready-fd", str(told_end)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[told_end],
            )
        os.close(told_end)
        with open(ready_end, "rb", buffering=0) as ready:
            readable, _, _ = select.select([ready], [], [], START_SECONDS)
            line = ready.read(65536) if readable else b""
        if not line.startswith(b"ready"):
            stop(self.process)
            raise AssertionError(f"the daemon did not start: {line!r}\n{self.log_end()}")

    @property
    def worker_pid(self) -> int:
        """The process that serves, as it says itself; whether it has a supervisor or not."""
        answer = ask(self.run_dir / "imgvol.sock", "GET", "/v1/version")
        return json.loads(answer.body)["pid"]

    def kill(self) -> None:
        """Kills all of it, the supervisor included: nobody goes on with what it had."""
        worker = os.pidfd_open(self.worker_pid)
        try:
            self.process.kill()
            assert self.process.wait(10) == -signal.SIGKILL
            # Where there is a supervisor, the kernel ends the worker for its sake.
            assert select.select([worker], [], [], 10)[0], "the worker lives on"
        finally:
            os.close(worker)

    def supervisor_status(self) -> dict:
        """What its supervisor tells, which begins a moment after the daemon is ready."""
        path = self.run_dir / "supervisor.json"
        wait_until(path.exists, what="the supervisor tells of itself")
        return json.loads(path.read_text())

    def terminate(self) -> None:
        """Stops it as a service manager does, and checks that it went in good order."""
        status = stop(self.process, seconds=STOP_SECONDS)
        assert status == 0, f"the daemon ended with {status}\n{self.log_end()}"

    def log_end(self) -> str:
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def unexpected_log(self) -> list[str]:
        """Lines above INFO, and tracebacks, that no test has announced."""
        found = re.compile(r" (WARNING|ERROR|CRITICAL) |^Traceback")
        lines = self.log.read_text(errors="replace").splitlines()
        return [
            line
            for line in lines
            if found.search(line) and not any(re.search(p, line) for p in self.expected_log)
        ]


@contextlib.contextmanager
def running_daemon(
    base: Path,
    *options: str,
    prelude: str = "pass",
    serves_cri: bool = False,
    preloads: bool = False,
    supervisor: bool = True,
    **limits: float,
) -> Iterator[Imgvol]:
    """A daemon over an empty store in `base`; it must end in good order and log nothing odd."""
    imgvol = Imgvol(
        base,
        options=options,
        limits=limits,
        prelude=prelude,
        serves_cri=serves_cri,
        preloads=preloads,
        supervisor=supervisor,
    )
    imgvol.start()
    try:
        yield imgvol
    except BaseException:
        stop(imgvol.process, seconds=STOP_SECONDS)
        raise
    imgvol.terminate()
    lines = imgvol.unexpected_log()
    assert not lines, "\n".join(lines)
