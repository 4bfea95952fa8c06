"""A pytest plugin that keeps tests honest.

* Where /dev/fuse is there, a skipped filesystem test makes the run fail: nobody notices tests that
  stopped running.
* A test, a module and the whole run each leave behind no mount and no process of theirs.
* A log line of WARNING or above that a test did not ask for makes it fail. A test that takes
  `caplog` looks at the log itself; `@pytest.mark.expects_log("regex")` allows the lines that match.
* A test that is marked `alone` says why. Tests that would run beside others have an ID each.
"""

import collections
import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

import pytest

RUN_VARIABLE = "IMGVOL_TEST_RUN"
SETTLE_SECONDS = 5.0
EXEC_SECONDS = 1.0
SKIPPED = pytest.StashKey[list[str]]()


def has_fuse() -> bool:
    """Whether the kernel's side of a FUSE mount can be had here."""
    return os.path.exists(os.environ.get("IMGVOL_TEST_FUSE_DEVICE", "/dev/fuse"))


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "expects_log(regex): log lines of WARNING or above that the test provokes on purpose",
    )
    config.stash[SKIPPED] = []
    # Every process that a test starts inherits this: so it is found wherever it has daemonised to.
    os.environ[RUN_VARIABLE] = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"


def pytest_report_header():
    return f"filesystem tests: {'must run' if has_fuse() else 'skipped, no /dev/fuse'}"


# --- tests beside each other ------------------------------------------------------------------


def pytest_collection_modifyitems(items):
    for item in items:
        if any(not mark.args for mark in item.iter_markers("alone")):
            raise pytest.UsageError(f"{item.nodeid} does not say why it is alone")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(ids):
    # Of tests that have one ID, --dist=loadfile would run one, and not tell.
    twice = [nodeid for nodeid, count in collections.Counter(ids).items() if count > 1]
    if twice:
        raise pytest.UsageError(f"more than one test is called {twice[0]}: mark them `alone`")


# --- skips ------------------------------------------------------------------------------------


class SkipGuard:
    """Counts skips that hide a filesystem test."""

    def __init__(self, config):
        self._skipped = config.stash[SKIPPED]

    def pytest_runtest_logreport(self, report):
        is_xfail = hasattr(report, "wasxfail")
        if report.skipped and not is_xfail and "fuse" in report.keywords and has_fuse():
            self._skipped.append(report.nodeid)

    def pytest_collectreport(self, report):
        # A module that skips itself does not tell which markers its tests would have had.
        if report.skipped and has_fuse():
            self._skipped.append(report.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session):
        if self._skipped and session.exitstatus in (
            pytest.ExitCode.OK,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return (yield)

    def pytest_terminal_summary(self, terminalreporter):
        if self._skipped:
            terminalreporter.section(
                "filesystem tests skipped although /dev/fuse is there", red=True
            )
            for nodeid in self._skipped:
                terminalreporter.line(f"MUST RUN {nodeid}")


def pytest_sessionstart(session):
    session.config.pluginmanager.register(SkipGuard(session.config), "imgvol-skip-guard")


# --- leaks ------------------------------------------------------------------------------------


# Servers that live until the end of the run, whichever test asked for them first.
shared_processes: set[int] = set()


def our_processes() -> dict[int, str]:
    """Process ids and command lines of what this test run started, itself excepted."""
    mark = f"{RUN_VARIABLE}={os.environ[RUN_VARIABLE]}".encode()
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if int(name) == os.getpid() or mark not in _environment(name).split(b"\0"):
                continue
            command = (
                Path(f"/proc/{name}/cmdline")
                .read_bytes()
                .replace(b"\0", b" ")
                .decode(errors="replace")
            )
            if command:  # else a zombie, which its parent will reap
                found[int(name)] = command.strip()
    return found


def _environment(pid: str) -> bytes:
    """The environment of a process; of a child of ours that is just starting, what it will be."""
    deadline = time.monotonic() + EXEC_SECONDS
    while True:
        found = Path(f"/proc/{pid}/environ").read_bytes()
        # `Popen` returns in the middle of execve: for a moment the child has no environment yet.
        state, parent = _state_and_parent(pid)
        is_starting = not found and state != b"Z" and parent == os.getpid()
        if not is_starting or time.monotonic() > deadline:
            return found
        time.sleep(0.001)


def parent_of(pid: int) -> int | None:
    """Its parent's process ID; None: it has gone."""
    try:
        return _state_and_parent(str(pid))[1]
    except OSError:
        return None


def _state_and_parent(pid: str) -> tuple[bytes, int]:
    state, parent = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:2]
    return state, int(parent)


def mounts_below(roots: list[str]) -> set[str]:
    """Mount points below the given directories, and of FUSE sources that name them."""
    found = set()
    mountinfo = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        mount_point, source = before.split()[4], after.split()[1]
        if any(mount_point.startswith(f"{root}/") or f"{root}/" in source for root in roots):
            found.add(mount_point)
    return found


class LeakGuard:
    """Remembers mounts and processes, and later names and removes those that are new."""

    def __init__(self, roots: list[str]):
        self._roots = roots
        self._mounts = mounts_below(roots)
        self._processes = set(our_processes())

    def leaks(self) -> list[str]:
        """What is new, after a moment for what is just going away."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while (new := self._new()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return new

    def _new(self) -> list[str]:
        mounts = mounts_below(self._roots) - self._mounts
        return [f"mount {m}" for m in sorted(mounts)] + [
            f"process {p}: {c}" for p, c in self._new_processes().items()
        ]

    def _new_processes(self) -> dict[int, str]:
        known = self._processes | shared_processes
        found = our_processes()
        # A supervisor that was there starts workers whenever it likes, and ends them.
        supervisors = {pid for pid in known if " imgvol.supervisor " in found.get(pid, "")}
        new = {pid: command for pid, command in found.items() if pid not in known}
        return {pid: command for pid, command in new.items() if parent_of(pid) not in supervisors}

    def clean(self) -> None:
        """Removes what leaked, so that one test's leak is not the next one's failure."""
        for pid in self._new_processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for mount_point in sorted(mounts_below(self._roots) - self._mounts, reverse=True):
            subprocess.run(["umount", "--lazy", mount_point], check=False, timeout=20)


@contextlib.contextmanager
def leak_guard(roots: list[str]):
    guard = LeakGuard(roots)
    yield
    if leaks := guard.leaks():
        guard.clean()
        pytest.fail("left behind: " + "; ".join(leaks), pytrace=False)


@pytest.fixture(scope="session")
def our_roots(tmp_path_factory):
    """Where tests mount. The second directory is short, for sockets, and open to other users."""
    short = tempfile.mkdtemp(prefix="imgvol-t-")
    os.chmod(short, 0o755)
    yield [str(tmp_path_factory.getbasetemp()), short]
    shutil.rmtree(short, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _session_leaks(our_roots):
    with leak_guard(our_roots):
        yield


@pytest.fixture(scope="module", autouse=True)
def _module_leaks(our_roots):
    with leak_guard(our_roots):
        yield


@pytest.fixture(autouse=True)
def _test_leaks(request, our_roots):
    if not any(request.node.get_closest_marker(m) for m in ("fuse", "root", "servers")):
        yield
        return
    with leak_guard(our_roots):
        yield


@pytest.fixture
def short_path(our_roots):
    """An empty directory with a path short enough for a unix socket, readable by every user."""
    path = tempfile.mkdtemp(dir=our_roots[1])
    os.chmod(path, 0o755)
    yield Path(path)
    shutil.rmtree(path, ignore_errors=True)


# --- log lines -----------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    if "caplog" in getattr(item, "fixturenames", ()):
        return (yield)
    allowed = [re.compile(m.args[0]) for m in item.iter_markers("expects_log")]
    with unexpected_lines(allowed) as lines:
        result = yield
    if lines:
        pytest.fail("unexpected log lines:\n" + "\n".join(lines), pytrace=False)
    return result


@contextlib.contextmanager
def unexpected_lines(allowed: list[re.Pattern[str]]):
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record):
            line = f"{record.levelname} {record.name}: {record.getMessage()}"
            if not any(pattern.search(line) for pattern in allowed):
                lines.append(line)

    handler = Handler(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger().removeHandler(handler)
