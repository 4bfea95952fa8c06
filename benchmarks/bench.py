"""Measures imgvol against what one would do instead, in the same run on the same machine.

Each line is a task, the time of imgvol, the time of the other way, and how many times faster imgvol
is. Needs root, /dev/fuse, docker-registry, skopeo and umoci; containerd is compared with where it
is installed.
"""

import argparse
import contextlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from bundles import bench_bundles  # noqa: E402
from cri import bench_cri  # noqa: E402
from index import bench_index  # noqa: E402
from lazy import bench_lazy  # noqa: E402
from publish import bench_publish  # noqa: E402
from streams import bench_streams  # noqa: E402
from traces import bench_traces  # noqa: E402
from transport import bench_transport  # noqa: E402
from volumes import bench_volumes  # noqa: E402

from support import rootfs  # noqa: E402
from support.containerd import running_containerd  # noqa: E402
from support.daemon import Imgvol, running_daemon  # noqa: E402
from support.edge_cases import content  # noqa: E402
from support.images import Image, Layer, directory, file, push, write_layout  # noqa: E402
from support.programs import run  # noqa: E402
from support.registry import Registry, running_registry  # noqa: E402

MIB = 1 << 20
VOLUMES = 1000


@dataclass(frozen=True)
class Line:
    task: str
    ours: str
    other: str = ""
    theirs: str = ""
    ratio: float | None = None
    aim: str = ""


@dataclass
class Bench:
    """One run: its servers, its directories, and the lines so far."""

    work: Path
    daemon: Imgvol
    registry: Registry
    rounds: int
    lines: list[Line] = field(default_factory=list)

    def compare(self, task: str, ours: float, other: str, theirs: float, aim: str = "") -> None:
        line = Line(task, shown(ours), other, shown(theirs), theirs / ours, aim)
        self.lines.append(line)
        print(format_line(line), flush=True)

    def state(self, task: str, figure: str, aim: str = "") -> None:
        self.lines.append(line := Line(task, figure, aim=aim))
        print(format_line(line), flush=True)

    @contextlib.contextmanager
    def mounted(self, reference: str) -> Iterator[str]:
        target = tempfile.mkdtemp(dir=self.work)
        self.daemon.run("mount", reference, target)
        try:
            yield target
        finally:
            self.daemon.run("unmount", target)


def shown(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def format_line(line: Line) -> str:
    ratio = f"{line.ratio:.1f}x" if line.ratio is not None else ""
    return (
        f"{line.task:<46} {line.ours:>12}  {line.other:<32} {line.theirs:>9} {ratio:>7}  {line.aim}"
    )


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def median(
    rounds: int, action: Callable[[], object], prepare: Callable[[], object] = lambda: None
) -> float:
    times = []
    for _ in range(rounds):
        prepare()
        times.append(timed(action))
    return statistics.median(times)


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def shell(command: str, **environment: str) -> None:
    subprocess.run(
        ["sh", "-c", command],
        check=True,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
    )


# --- pulling ---------------------------------------------------------------------------------


def bench_pull(bench: Bench) -> None:
    """The same image of gzip layers, which everybody reads, from the same registry."""
    layout = gzip_rootfs()
    reference = bench.registry.reference("bench:rootfs")
    push(layout, rootfs.TAG, reference)

    def forget():
        bench.daemon.run("rmi", reference, check=False)
        drop_caches()
        bench.daemon.run("version")  # the command itself is warm, for either side

    ours = median(bench.rounds, lambda: bench.daemon.run("pull", reference), forget)

    def forget_copies():
        drop_caches()
        run("skopeo", "--version")
        run("umoci", "--version")

    def with_umoci():
        copied = Path(tempfile.mkdtemp(dir=bench.work))
        run(
            "skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false",
            f"docker://{reference}", f"oci:{copied}/layout:x", timeout=300,
        )  # fmt: skip
        run(
            "umoci",
            "raw",
            "unpack",
            "--image",
            f"{copied}/layout:x",
            copied / "rootfs",
            timeout=300,
        )

    task = "pull, verify, index (4 gzip layers)"
    bench.compare(
        task, ours, "skopeo copy + umoci unpack", median(bench.rounds, with_umoci, forget_copies)
    )
    if shutil.which("containerd"):
        with running_containerd(bench.work / "containerd") as ctr:

            def forget_there():
                subprocess.run(
                    [*ctr, "images", "rm", "--sync", reference], check=False, capture_output=True
                )
                drop_caches()
                run(*ctr, "version")

            pull = [*ctr, "images", "pull", "--plain-http", reference]
            theirs = median(bench.rounds, lambda: run(*pull, timeout=300), forget_there)
        bench.compare(task, ours, "ctr images pull", theirs, "aim: 4x")
    else:
        print(f"{'':<46} containerd is not installed")


def gzip_rootfs() -> Path:
    layout = rootfs.cache_directory() / f"rootfs-gzip-{rootfs.VERSION}"
    if not layout.is_dir():
        image = rootfs.read_image(rootfs.ensure_layout()).recompressed("gzip")
        write_layout(layout.with_suffix(".new"), {rootfs.TAG: image}).rename(layout)
    return layout


# --- reading ---------------------------------------------------------------------------------


def bench_tree(bench: Bench) -> None:
    """Walking and packing a real root file system, from caches as cold as after a mount."""
    image = rootfs.read_image(rootfs.ensure_layout())
    layout, tree = local_image(bench, "tree", image)
    with bench.mounted(f"oci:{layout}:x") as view:
        for task, command in (
            ("find (10,000 entries), cold", 'find "$D" -xdev -printf "%p %s %m %U\\n"'),
            ("tar of all of it (227 MB), cold", 'tar -C "$D" -cf - . | cat'),
        ):
            ours = median(bench.rounds, lambda c=command: shell(c, D=view), drop_caches)
            theirs = median(bench.rounds, lambda c=command: shell(c, D=str(tree)), drop_caches)
            bench.compare(task, ours, "the same on the unpacked tree", theirs)
        warm = 'find "$D" -xdev -printf "%p %s %m %U\\n"'
        ours = median(bench.rounds, lambda: shell(warm, D=view))
        theirs = median(bench.rounds, lambda: shell(warm, D=str(tree)))
        bench.compare("find again, warm", ours, "the same on the unpacked tree", theirs)


def local_image(bench: Bench, name: str, image: Image) -> tuple[Path, Path]:
    """An image as a layout, and unpacked by umoci."""
    layout = write_layout(bench.work / name, {"x": image, "plain": image.recompressed("none")})
    tree = bench.work / f"{name}-unpacked"
    run("umoci", "raw", "unpack", "--image", f"{layout}:plain", tree, timeout=600)
    return layout, tree


def bench_sequential(bench: Bench, size: int) -> None:
    image = Image([Layer([file("large", content(size))], "none")])
    layout, tree = local_image(bench, "large", image)
    amount = f"{size / (1 << 30):.2g} GiB"
    command = 'dd if="$D/large" of=/dev/null bs=1M status=none'
    bench.daemon.run("pull", f"oci:{layout}:x")
    stored = max(
        (p for p in bench.daemon.root.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )

    def warm_store():
        drop_caches()
        shell(f'cat "{stored}"')

    def warm_tree():
        drop_caches()
        shell(command, D=str(tree))

    with bench.mounted(f"oci:{layout}:x") as view:
        ours = median(bench.rounds, lambda: shell(command, D=view), warm_store)
        theirs = median(bench.rounds, lambda: shell(command, D=str(tree)), warm_tree)
        bench.compare(f"read {amount}, its bytes in memory", ours, "the unpacked file", theirs)
        bench.state("the same, as a rate", f"{size / ours / 1e9:.2f} GB/s", "aim: 1 GB/s")
        ours = median(bench.rounds, lambda: shell(command, D=view), drop_caches)
        theirs = median(bench.rounds, lambda: shell(command, D=str(tree)), drop_caches)
        bench.compare(f"read {amount}, from disk", ours, "the unpacked file", theirs)


def bench_small_files(bench: Bench, count: int) -> None:
    entries = [directory(f"d{n}") for n in range(50)]
    entries += [file(f"d{n % 50}/{n}", content(1000 + n % 3000, n)) for n in range(count)]
    layout, tree = local_image(bench, "small", Image([Layer(entries)]))
    command = 'cat "$D"/d*/*'
    with bench.mounted(f"oci:{layout}:x") as view:
        ours = median(bench.rounds, lambda: shell(command, D=view), drop_caches)
        theirs = median(bench.rounds, lambda: shell(command, D=str(tree)), drop_caches)
        bench.compare(f"read {count:,} small files, cold", ours, "the unpacked files", theirs)


# --- mounting and memory ---------------------------------------------------------------------


def bench_entries(bench: Bench, count: int) -> None:
    """Mount and memory of images of many entries. The daemon is a new one for each size."""
    for entries in (count, 2 * count):
        image = Image([many_entries(entries)])
        layout = write_layout(bench.work / f"entries-{entries}", {"x": image})
        base = Path(tempfile.mkdtemp(dir=bench.work))
        with running_daemon(base) as daemon:
            daemon.run("pull", f"oci:{layout}:x", timeout=600)
            daemon.terminate()
            daemon.start()
            idle = resident(daemon)
            target = daemon.target("t")
            mount = partial(daemon.run, "mount", f"oci:{layout}:x", target)
            unmount = partial(daemon.run, "unmount", target)
            first = timed(mount)
            if entries == count:
                again = median(bench.rounds, mount, unmount)
                compare_mounts(bench, layout, f"mount, pulled, {entries:,} entries", first, again)
            shell('find "$D" -printf "%s"', D=target)
            used = resident(daemon)
            unmount()
        growth = f"{used - idle:.0f} MB + {idle:.0f} MB idle"
        bench.state(f"memory, find of {entries:,} entries", growth, "aim: 150 MB, linear")


def compare_mounts(bench: Bench, layout: Path, task: str, first: float, again: float) -> None:
    tree = layout.with_name("entries-unpacked")
    unpack = ("umoci", "raw", "unpack", "--image", f"{layout}:x", tree)
    theirs = timed(partial(run, *unpack, timeout=900))
    bench.compare(f"{task}, first", first, "umoci unpack", theirs)
    bench.compare(f"{task}, again", again, "umoci unpack", theirs, "aim: 100 ms")


def many_entries(count: int) -> Layer:
    entries = [directory(f"d{n:04}", mtime_ns=10**18) for n in range(count // 100)]
    each = [
        file(f"d{n // 100:04}/some-file-name-{n}", mtime_ns=10**18)
        for n in range(count - len(entries))
    ]
    return Layer([*entries, *each])


def resident(daemon: Imgvol) -> float:
    """Megabytes."""
    for line in Path(f"/proc/{daemon.worker_pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1000
    raise AssertionError("no VmRSS")


def bench_all(
    bench: Bench,
    tasks: Sequence[str],
    size: int,
    entries: int,
    lines: Sequence[str],
    against: Path | None,
) -> None:
    actions = {
        "pull": partial(bench_pull, bench),
        "tree": partial(bench_tree, bench),
        "sequential": partial(bench_sequential, bench, size),
        "small": partial(bench_small_files, bench, 5000),
        "entries": partial(bench_entries, bench, entries),
        "import": partial(
            bench_bundles,
            bench.daemon,
            bench.work,
            size=size,
            entries=partial(many_entries, entries),
            median=partial(median, bench.rounds),
            drop_caches=drop_caches,
            compare=bench.compare,
            state=bench.state,
        ),
        "volumes": partial(bench_volumes, bench.daemon, bench.work, VOLUMES, bench.compare),
        "cri": partial(bench_cri, bench.registry, bench.work, size, bench.state),
        "lazy": partial(bench_lazy, bench.registry, bench.work, lines),
        "traces": partial(bench_traces, bench.registry, bench.work, lines),
        "publish": partial(bench_publish, bench.registry, bench.work),
        "index": partial(bench_index, bench.rounds, against),
        "streams": partial(bench_streams, bench.registry, bench.work, size),
        "transport": partial(
            bench_transport, bench.work, size=size, rounds=bench.rounds, drop_caches=drop_caches
        ),
    }
    assert actions.keys() == set(TASKS)
    for task in tasks or USUAL:
        actions[task]()


USUAL = ("pull", "tree", "sequential", "small", "entries", "import", "volumes")
# cri takes three minutes, lazy and traces ten, and other people's programs (scripts/setup-peers),
# publish fifteen; index takes one, transport five, streams a second for each 10 MB of --size.
TASKS = (*USUAL, "cri", "lazy", "traces", "publish", "index", "transport", "streams")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)} ({', '.join(USUAL)})"
    )
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many (3)")
    parser.add_argument(
        "--size", type=int, default=1024, metavar="MIB", help="of the large file (1024)"
    )
    parser.add_argument(
        "--entries", type=int, default=100_000, help="of the image of many (100,000)"
    )
    parser.add_argument(
        "--line", action="append", default=[], help="of lazy and traces: loopback, '10 ms', … (all)"
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="DIR",
        help="of index: src/ of another tree, to compare with",
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.tasks) - set(TASKS):
        parser.error(f"no such task: {', '.join(sorted(unknown))}")
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        parser.error("needs root and /dev/fuse")
    print(machine())
    print(
        format_line(
            Line(
                "TASK", "IMGVOL", "INSTEAD", "TIME", aim="RATIO is how many times faster imgvol is"
            )
        )
    )
    with contextlib.ExitStack() as stack:
        work = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="imgvol-bench-", ignore_cleanup_errors=True)
            )
        )
        (work / "registry").mkdir()
        registry = stack.enter_context(running_registry(work / "registry"))
        daemon = stack.enter_context(running_daemon(work))
        bench = Bench(work, daemon, registry, options.rounds)
        size = options.size * MIB
        bench_all(bench, options.tasks, size, options.entries, options.line, options.against)
    return 0


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.machine()
    system = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} x {model}, {system}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
