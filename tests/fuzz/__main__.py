"""`scripts/fuzz [--seconds N] [--seed N] [--replay FILE] [PARSER...]`

Every parser gets its seconds in a process of its own, as many at once as there are cores. A case
must give a result or a declared error, within a time and an amount of memory. One that does not is
written to a file, whose name is printed:

    scripts/fuzz --replay fuzz-tar-0a1b2c3d
"""

import argparse
import hashlib
import itertools
import mmap
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fuzz.mutation import LARGEST, mutated
from fuzz.parsers import PARSERS

CASE_SECONDS = 5.0
CASE_MEMORY = 512 << 20
# After this a process that does not come back from C code is killed.
STUCK_SECONDS = 30.0
# cases so far, and the size of the case that is being tried; then the case
_NOTE = struct.Struct("<QQ")


class TooMuch(Exception):
    """A case took too long, or too much memory."""


def try_case(name: str, case: bytes) -> None:
    """Runs one case; raises what a parser must not raise."""
    parser = PARSERS[name]
    before = _peak_memory()
    with _deadline(), suppress(*parser.declared):
        parser.run(case)
    if _peak_memory() - before > CASE_MEMORY:
        raise TooMuch(f"{_peak_memory() - before} bytes of memory")


@contextmanager
def _deadline() -> Iterator[None]:
    def end(*_: object) -> None:
        raise TooMuch(f"more than {CASE_SECONDS} s")

    previous = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, CASE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def fuzz(name: str, seed: int, seconds: float, note: mmap.mmap) -> str:
    """Tries cases for a while; what is wrong with the last one, or nothing."""
    chosen = random.Random(f"{name} {seed}")
    seeds = PARSERS[name].seeds()
    end = time.monotonic() + seconds
    for number in itertools.count():
        # A good seed first: a parser that refuses everything finds nothing.
        case = seeds[number] if number < len(seeds) else mutated(seeds, chosen)
        note[: _NOTE.size + len(case)] = _NOTE.pack(number + 1, len(case)) + case
        try:
            try_case(name, case)
        except BaseException:
            return traceback.format_exc()
        if time.monotonic() >= end:
            return ""
    return ""


class Run:
    """The fuzzing of one parser in a process of its own, which may die."""

    def __init__(self, name: str, seed: int, seconds: float) -> None:
        self._name = name
        self._note = mmap.mmap(-1, _NOTE.size + 2 * LARGEST)
        self._stuck_at = time.monotonic() + seconds + STUCK_SECONDS
        self._report = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as this
        self._child = os.fork()
        if self._child == 0:
            limit = _address_space() + CASE_MEMORY * 4
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            os.environ["PATH"] = ""  # nothing that a file of logins names is run
            problem = fuzz(name, seed, seconds, self._note)
            self._report.write(problem.encode("utf-8", "replace"))
            self._report.flush()
            os._exit(bool(problem))

    def poll(self) -> bool | None:
        """Whether all was well, once it has ended."""
        pid, status = os.waitpid(self._child, os.WNOHANG)
        if not pid and time.monotonic() < self._stuck_at:
            return None
        if not pid:
            os.kill(self._child, signal.SIGKILL)
            _, status = os.waitpid(self._child, 0)
        return self._tell(os.waitstatus_to_exitcode(status))

    def _tell(self, status: int) -> bool:
        count, size = _NOTE.unpack_from(self._note)
        with self._report as report:
            report.seek(0)
            problem = report.read().decode() or f"the process ended with {status}"
        if status == 0:
            print(f"{self._name}: {count} cases, all well", flush=True)
            return True
        case = self._note[_NOTE.size : _NOTE.size + size]
        file = Path(f"fuzz-{self._name}-{hashlib.sha256(case).hexdigest()[:8]}")
        file.write_bytes(case)
        again = f"scripts/fuzz --replay {file}"
        print(f"{self._name}: case {count} fails; {again}\n{problem}", flush=True)
        return False


def run_all(names: Iterable[str], seed: int, seconds: float) -> bool:
    """Fuzzes parsers, as many at once as there are cores."""
    waiting = list(reversed(list(names)))
    running: list[Run] = []
    results: list[bool] = []
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            running.append(Run(waiting.pop(), seed, seconds))
        still = []
        for run in running:
            result = run.poll()
            if result is None:
                still.append(run)
            else:
                results.append(result)
        running = still
        time.sleep(0.02)
    return all(results)


def replay(file: Path) -> bool:
    """Runs a case again that failed; its parser is in the file's name."""
    name = file.name.removeprefix("fuzz-").rpartition("-")[0]
    try:
        try_case(name, file.read_bytes())
    except BaseException:
        print(f"{name}: fails\n{traceback.format_exc()}")
        return False
    print(f"{name}: all well")
    return True


def main() -> int:
    options = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__.split("\n\n")[1])
    options.add_argument("--seconds", type=float, default=10, help="for each parser")
    options.add_argument("--seed", type=int, default=None, help="the same cases again")
    options.add_argument("--replay", type=Path, metavar="FILE", help="run one case that failed")
    options.add_argument("parsers", nargs="*", metavar="PARSER", help=", ".join(PARSERS))
    given = options.parse_args()
    if given.replay:
        return 0 if replay(given.replay) else 1
    if unknown := set(given.parsers) - PARSERS.keys():
        options.error(f"no such parser: {', '.join(sorted(unknown))}")
    seed = random.randrange(1 << 32) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    return 0 if run_all(given.parsers or PARSERS, seed, given.seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
