"""Transports side by side, and against the kernel's own overlayfs over the unpacked image.

One image: the real root file system, pandas, 5,000 small files and a large one; a daemon with a
store of its own for each transport. Every task is done by turns, so that all meet the same machine;
cold is after all caches were dropped, the store's files and the unpacked tree's alike. RATIO is how
many times as long as overlayfs it takes; CPU the seconds of processors, the reader's and the
daemon's together, which tell more than time does on a machine with other work.
"""

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lazy import packages_tar

from support import rootfs
from support.daemon import Imgvol, running_daemon
from support.edge_cases import content
from support.images import Image, Layer, directory, file, write_layout
from support.programs import run

SMALL_FILES = 5000
READERS = 100
PAGE_READS = 20_000
TRANSPORTS = {
    "pyfuse3": ("--transport", "pyfuse3"),
    "kernel": ("--transport", "kernel", "--no-passthrough"),
    "passthrough": ("--transport", "kernel", "--passthrough"),
}
OVERLAY = "overlayfs"
SIDES = (*TRANSPORTS, OVERLAY)

FIND = 'find "$D" -xdev -printf "%p %s %m %U\\n"'
CAT = 'cat "$D"/bench/d*/*'
SEQUENTIAL = 'dd if="$D/bench/large" of=/dev/null bs=1M status=none'
PACKAGES = (
    "numpy==2.2.6", "pandas==2.3.3", "python-dateutil==2.9.0.post0", "pytz==2025.2", "six==1.17.0",
)  # fmt: skip
IMPORT = 'chroot "$D" /usr/bin/python3 -c "import pandas"'
# Both print how long the reads alone took.
PAGES = """
import os, random, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY)
size, choice = os.fstat(fd).st_size, random.Random(1)
offsets = [choice.randrange(size // 4096) * 4096 for _ in range(int(sys.argv[2]))]
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
began = time.perf_counter()
for offset in offsets:
    assert len(os.pread(fd, 4096, offset)) == 4096
print(time.perf_counter() - began)
"""
TOGETHER = """
import os, sys, time
from concurrent.futures import ThreadPoolExecutor
readers = int(sys.argv[2])
part = os.stat(sys.argv[1]).st_size // readers
def read(number):
    fd, at, end = os.open(sys.argv[1], os.O_RDONLY), number * part, (number + 1) * part
    buffer = memoryview(bytearray(1 << 20))
    while at < end:
        count = os.preadv(fd, [buffer[: end - at]], at)
        assert count
        at += count
    os.close(fd)
with ThreadPoolExecutor(readers) as pool:
    began = time.perf_counter()
    list(pool.map(read, range(readers)))
print(time.perf_counter() - began)
"""


@dataclass(frozen=True)
class Side:
    """One way to the image's files.

    Attributes:
        tree: The image as a directory.
        stored: The file that holds the large one's bytes.
        daemon: The process that serves it, if there is one.
    """

    tree: str
    stored: Path
    daemon: int | None = None

    def processor(self) -> float:
        """Seconds that the daemon and the readers that have ended have worked until now."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        worked = children.ru_utime + children.ru_stime
        if self.daemon is not None:
            fields = Path(f"/proc/{self.daemon}/stat").read_text().rpartition(")")[2].split()
            # utime, stime: proc(5)
            worked += sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
        return worked


class Figures(NamedTuple):
    """Seconds: on the clock, and of processors."""

    elapsed: float
    worked: float


class Task(NamedTuple):
    """What is measured: `measure` gives seconds. An aim is a ratio to overlayfs."""

    name: str
    prepare: Callable[[Side], object]
    measure: Callable[[Side], float]
    aim: float | None = None


def bench_transport(
    work: Path, *, size: int, rounds: int, drop_caches: Callable[[], object]
) -> None:
    """Prints one table.

    Args:
        work: A directory.
        size: Bytes of the large file.
        rounds: The median of so many.
    """
    layout = _write_image(work, size)
    columns = "".join(f"{name:>12}{'RATIO':>7}{'CPU':>7}" for name in TRANSPORTS)
    print(f"\n{'TASK':<34}{columns}{OVERLAY:>12}{'CPU':>7}   AIM")
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(_served(work, layout, name, size)) for name in TRANSPORTS
        }
        sides[OVERLAY] = stack.enter_context(_overlay(work, layout))
        for task in _tasks(size, drop_caches):
            print(_row(task, _by_turns(task, sides, rounds)), flush=True)


def _tasks(size: int, drop_caches: Callable[[], object]) -> list[Task]:
    amount = f"{size >> 20:,} MiB"

    def cold(_side: Side) -> None:
        drop_caches()

    def resident(side: Side) -> None:
        """The bytes are in memory, and nobody has read them through the view."""
        drop_caches()
        _shell(f'cat "{side.stored}"', side)

    def warm(command: str) -> Callable[[Side], object]:
        return partial(_shell, command)

    program = partial(_program, PAGES, PAGE_READS)
    together = partial(_program, TOGETHER, READERS)
    return [
        Task("find, cold", cold, partial(_timed, FIND)),
        Task("find, warm", warm(FIND), partial(_timed, FIND), 1.1),
        Task(f"{SMALL_FILES:,} small files, cold", cold, partial(_timed, CAT), 3.0),
        Task(f"{SMALL_FILES:,} small files, warm", warm(CAT), partial(_timed, CAT), 1.1),
        Task(f"{amount}, resident, first", resident, partial(_timed, SEQUENTIAL), 1.1),
        Task(f"{amount}, second", warm(SEQUENTIAL), partial(_timed, SEQUENTIAL), 1.1),
        Task(f"{PAGE_READS:,} of 4 KiB, resident, first", resident, program, 1.1),
        Task(f"{PAGE_READS:,} of 4 KiB, second", warm(SEQUENTIAL), program, 1.1),
        Task(f"{READERS} readers, resident, first", resident, together, 1.1),
        Task(f"{READERS} readers, second", warm(SEQUENTIAL), together, 1.1),
        Task("import pandas, cold", cold, partial(_timed, IMPORT)),
        Task("import pandas, warm", warm(IMPORT), partial(_timed, IMPORT), 1.1),
    ]


def _by_turns(task: Task, sides: dict[str, Side], rounds: int) -> dict[str, Figures]:
    """The median of each; who comes first changes."""
    times: dict[str, list[Figures]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            side = sides[name]
            task.prepare(side)
            before = side.processor()
            elapsed = task.measure(side)
            times[name].append(Figures(elapsed, side.processor() - before))
    return {
        name: Figures(*map(statistics.median, zip(*found, strict=True)))
        for name, found in times.items()
    }


def _row(task: Task, figures: dict[str, Figures]) -> str:
    native, work = figures[OVERLAY]
    row = f"{task.name:<34}"
    for name in TRANSPORTS:
        elapsed, worked = figures[name]
        row += f"{_shown(elapsed):>12}{elapsed / native:>7.2f}{worked:>7.2f}"
    row += f"{_shown(native):>12}{work:>7.2f}"
    if task.aim is not None:
        met = [name for name in TRANSPORTS if figures[name].elapsed <= task.aim * native]
        row += f"   {task.aim:g}: {', '.join(met) or 'missed by all'}"
    return row


def _shown(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


# --- the sides -----------------------------------------------------------------------------------


def _write_image(work: Path, size: int) -> Path:
    image = rootfs.read_image(rootfs.ensure_layout()).recompressed("none")
    entries = [directory("bench"), *(directory(f"bench/d{number}") for number in range(50))]
    entries += [
        file(f"bench/d{number % 50}/{number}", content(1000 + number % 3000, number))
        for number in range(SMALL_FILES)
    ]
    entries.append(file("bench/large", content(size)))
    pandas = Layer(packages_tar("pandas", PACKAGES, is_compiled=True), "none")
    more = Image([*image.layers, pandas, Layer(entries, "none")])
    return write_layout(work / "transport", {"x": more})


@contextmanager
def _served(work: Path, layout: Path, name: str, size: int) -> Iterator[Side]:
    base = work / f"transport-{name}"
    base.mkdir()
    with running_daemon(base, *TRANSPORTS[name]) as daemon:
        target = daemon.target("view")
        daemon.run("pull", f"oci:{layout}:x", timeout=600)
        daemon.run("mount", f"oci:{layout}:x", target)
        try:
            yield Side(target, _own_file(daemon, size), daemon.worker_pid)
        finally:
            daemon.run("unmount", target)


def _own_file(daemon: Imgvol, size: int) -> Path:
    (found,) = {
        path for path in daemon.root.glob("layers/*/files/*") if path.stat().st_size == size
    }
    return found


@contextmanager
def _overlay(work: Path, layout: Path) -> Iterator[Side]:
    tree, empty, merged = (work / f"transport-{name}" for name in ("tree", "empty", "merged"))
    run("umoci", "raw", "unpack", "--image", f"{layout}:x", tree, timeout=600)
    empty.mkdir()
    merged.mkdir()
    # Two are the least that overlayfs takes without an upper one.
    run("mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={tree}:{empty}", merged)
    try:
        yield Side(str(merged), tree / "bench/large")
    finally:
        run("umount", merged)


# --- what is done --------------------------------------------------------------------------------


def _shell(command: str, side: Side) -> None:
    subprocess.run(
        ["sh", "-c", command],
        check=True,
        env={**os.environ, "D": side.tree},
        stdout=subprocess.DEVNULL,
    )


def _timed(command: str, side: Side) -> float:
    began = time.perf_counter()
    _shell(command, side)
    return time.perf_counter() - began


def _program(source: str, argument: int, side: Side) -> float:
    command = [sys.executable, "-c", source, f"{side.tree}/bench/large", str(argument)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)
