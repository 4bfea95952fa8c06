"""`scripts/soak [--minutes N] [--seed N]`: everything at once, over one daemon, for a long time.

Rounds of load: workers mount, read, unmount, pull, remove, hold leases and collect, while the
registry's line fails or the daemon is killed. After each round everything is taken away again and
looked for: a wrong byte, a mount, a lease, a file of an unfinished pull, descriptors and threads
that grow, damage in the store. In the first half the daemon is killed at times; in the second one
it lives on, and its memory must not grow.
"""

import argparse
import contextlib
import http.client
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from support import images, transports
from support.agent import Agent, AgentError
from support.daemon import Imgvol
from support.guards import mounts_below
from support.lazy_images import LazyImage
from support.programs import stop, wait_until
from support.proxy import Fault, Proxy, running_proxy
from support.registry import Registry, running_registry
from support.runtime import call
from support.stargz import TIME, Stargz

MIB = 1 << 20
WORKERS = 4
READS = 24
# Shorter waits than those of a daemon that people use, so that more happens in the same time.
LIMITS = {
    "FETCH_IDLE": 1.0,
    "FETCH_QUIET": 0.2,
    "FETCH_RETRY": 0.5,
    "FETCH_STALL": 1.0,
    "FETCH_FLUSH": 0.2,
    "HANDLER_DEADLINE": 5.0,
    "DATABASE_COPY_INTERVAL": 5.0,
    "COLLECTION_INTERVAL": 7.0,
}
# A calm round comes after each kind of fault: then nothing may fail.
TROUBLES = ("kill", "stall", "damage", "kill", "reset", "outage", "refuse", "truncate", "slow")
# What a request may be told at any time, because of what other workers do: the image has gone
# meanwhile, or the thing is in use.
USUAL = {"ok", "not-found", "conflict"}
# How an image is mounted: lazily, whole, or while it is pulled.
WAYS = [{}, {}, {"lazy": "off"}]
if transports.is_recent():
    WAYS += [{"verify": "stream"}, {"wait": "manifest"}]
# More than what threads that wait for work and the kernel's own reads keep.
FILES_SLACK = 16
THREADS = 120
MEMORY_SLACK = 40 * MIB
SETTLING = 30.0
# Nothing of what a test provokes is logged like this.
DEFECT = re.compile(r"^Traceback|a defect|event loop|everything stops|not stopped within")


@dataclass
class Tally:
    """What was done, and what was found."""

    rounds: int = 0
    kills: int = 0
    fired: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failed_reads: Counter[str] = field(default_factory=Counter)
    slowest_start: float = 0.0
    memory: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def rows(self) -> Iterator[tuple[str, str]]:
        yield "rounds", str(self.rounds)
        yield "faults that struck", _counts(self.fired)
        yield "kills", f"{self.kills}, slowest start after one {self.slowest_start:.1f} s"
        yield "done", _counts(self.done)
        yield "refused", _counts(self.refused)
        yield "reads that failed", _counts(self.failed_reads)
        if self.memory:
            steps = [self.memory[len(self.memory) * quarter // 4] for quarter in range(4)]
            shown = ", ".join(f"{size / MIB:.0f}" for size in [*steps, self.memory[-1]])
            yield "memory, last life", f"MiB by quarters: {shown}; {len(self.memory)} rounds"
        yield "problems", str(len(self.problems))


class Soak:
    """One daemon, one registry behind a bad line, and what happens to them.

    Args:
        base: Directory for all of it.
        registry: Where images are pushed.
        proxy: The line to it.
        seed: Of all that is drawn.
        collects: Whether the daemon has Python's collector. Without, what is kept open by objects
            that have each other stays open, as it would in a daemon that has nothing to do.
    """

    def __init__(
        self, base: Path, registry: Registry, proxy: Proxy, seed: int, *, collects: bool = True
    ) -> None:
        self.tally = Tally()
        self._random = random.Random(seed)
        self._proxy = proxy
        prelude = "pass" if collects else "import gc; gc.disable()"
        self._imgvol = Imgvol(base, limits=dict(LIMITS), supervisor=False, prelude=prelude)
        self._images = make_images(base, registry, proxy)
        self._targets = [self._imgvol.target(f"mnt{number}") for number in range(WORKERS)]
        self._lock = threading.Lock()
        self._files = 0
        self._log_read = 0

    # --- rounds ---------------------------------------------------------------------------------

    def run(self, seconds: float, *, load: float) -> None:
        """Rounds of `load` seconds each, and what it takes to look after them."""
        began = time.monotonic()
        self._start()
        try:
            with contextlib.ExitStack() as stack:
                agents = [stack.enter_context(Agent()) for _ in range(WORKERS)]
                number = 0
                while (spent := time.monotonic() - began) < seconds and not self.tally.problems:
                    trouble = TROUBLES[number // 2 % len(TROUBLES)] if number % 2 else "calm"
                    if trouble == "kill" and spent > seconds / 2:
                        trouble = "stall"
                    self._round(trouble, agents, load)
                    number += 1
            self._check_memory()
            self._imgvol.terminate()
        finally:
            stop(self._imgvol.process)

    def _round(self, trouble: str, agents: list[Agent], load: float) -> None:
        is_over = threading.Event()
        seeds = [self._random.randrange(1 << 32) for _ in agents]
        workers = [
            threading.Thread(target=self._work, args=(n, agents[n], seeds[n], trouble, is_over))
            for n in range(WORKERS)
        ]
        for worker in workers:
            worker.start()
        try:
            with self._trouble(trouble):
                time.sleep(load / 2)
                if trouble == "kill":
                    self._kill()
                time.sleep(load / 2)
        finally:
            is_over.set()
            for worker in workers:
                worker.join()
        self._take_away(trouble)
        self._check(trouble)
        self.tally.rounds += 1

    @contextlib.contextmanager
    def _trouble(self, trouble: str) -> Iterator[None]:
        """What the line to the registry does inside the block."""
        proxy = self._proxy
        if trouble == "outage":
            proxy.down()
            try:
                yield
            finally:
                proxy.up()
            self.tally.fired[trouble] += 1
            return
        fault: Fault | None = {
            "stall": lambda: proxy.stall_after(5_000, times=8),
            "reset": lambda: proxy.reset_after(5_000, times=20),
            "truncate": lambda: proxy.truncate_after(5_000, times=20),
            "damage": lambda: proxy.damage(times=6),
            "refuse": lambda: proxy.refuse(503, times=40),
            "slow": lambda: proxy.throttle(2_000_000, shared=True),
        }.get(trouble, lambda: None)()
        try:
            yield
        finally:
            if fault is not None:
                fault.lift()
                self.tally.fired[trouble] += fault.fired

    def _start(self) -> None:
        began = time.monotonic()
        self._imgvol.start()
        self.tally.slowest_start = max(self.tally.slowest_start, time.monotonic() - began)
        self._files = 0
        self.tally.memory.clear()

    def _kill(self) -> None:
        time.sleep(self._random.uniform(0, 0.5))
        self._imgvol.process.send_signal(signal.SIGKILL)
        status = self._imgvol.process.wait(10)
        if status != -signal.SIGKILL:
            self._problem(f"the daemon had ended with {status} before it was killed")
        self.tally.kills += 1
        self._start()

    # --- load -----------------------------------------------------------------------------------

    def _work(
        self, number: int, agent: Agent, seed: int, trouble: str, is_over: threading.Event
    ) -> None:
        choice = random.Random(seed)
        steps = [self._mount, self._mount, self._mount, self._sandbox, self._sandbox]
        steps += [self._pull, self._remove, self._hold, self._collect]
        names = sorted(self._images)
        if trouble not in {"calm", "kill"}:
            # A bad line is met by who has something to fetch.
            names += 2 * [name for name in names if name.startswith(self._proxy.host)]
        while not is_over.is_set():
            name = choice.choice(names)
            try:
                choice.choice(steps)(number, agent, name, choice, trouble)
            except (OSError, http.client.HTTPException, ValueError, AgentError) as exc:
                if trouble != "kill":
                    self._problem(f"{trouble}: {type(exc).__name__}: {exc}")
                is_over.wait(0.05)
            except Exception as exc:
                self._problem(f"{trouble}: {type(exc).__name__}: {exc}")
                return

    def _mount(self, number, agent, name, choice, trouble) -> None:
        target = self._targets[number]
        wanted = {"image": name, "target": target, **choice.choice(WAYS)}
        if self._ask("mount", "POST", "/volumes", trouble, wanted):
            self._read(agent, name, target, choice, trouble)
            self._ask("unmount", "DELETE", f"/volumes?volume={quote(target)}", trouble)

    def _sandbox(self, number, agent, name, choice, trouble) -> None:
        sandbox = f"pod{number}"
        mounts = [{"container_path": "/d", "readonly": True, "image": name}]
        answer = self._ask(
            "sandbox", "POST", "/sandboxes/mounts", trouble, {"sandbox": sandbox, "mounts": mounts}
        )
        if answer:
            self._read(agent, name, answer["mounts"][0]["host_path"], choice, trouble)
        self._ask("end", "DELETE", f"/leases?lease={sandbox}&drain=1", trouble)

    def _pull(self, _number, _agent, name, _choice, trouble) -> None:
        self._ask("pull", "POST", "/images/pull", trouble, {"image": name})

    def _remove(self, _number, _agent, name, _choice, trouble) -> None:
        self._ask("remove", "DELETE", f"/images?image={quote(name)}", trouble)

    def _hold(self, number, _agent, name, choice, trouble) -> None:
        wanted = {"lease": f"held{number}", "images": [name], "expires": choice.uniform(0.2, 2)}
        self._ask("lease", "POST", "/leases", trouble, wanted)

    def _collect(self, _number, _agent, _name, _choice, trouble) -> None:
        self._ask("collect", "POST", "/gc", trouble)

    def _ask(self, what, method, path, trouble, body=None) -> dict | None:
        """The answer, if it is a good one; others are counted, and judged in calm rounds."""
        _, answer = call(self._imgvol, method, path, body)
        error = answer.get("error")
        code = error["code"] if error else "ok"
        with self._lock:
            self.tally.done[what] += 1
            if error:
                self.tally.refused[code] += 1
        cause = str(error)
        if code == "image-volume-mount-failed" and "failed to resolve image" in cause:
            code = "not-found"
        if (trouble == "calm" and code not in USUAL) or code == "internal-error":
            self._problem(f"{trouble}: {what} {path}: {cause}")
        return None if error else answer

    def _read(self, agent, name, target, choice, trouble) -> None:
        reads, wanted = zip(
            *self._images[name].random_reads(target, choice.randrange(1 << 32), READS), strict=True
        )
        found = agent.ask("read_together", reads=reads, readers=6, deadline=60)
        for read, right, seen in zip(reads, wanted, found, strict=True):
            with self._lock:
                self.tally.done["read"] += 1
            if seen == right:
                continue
            is_error = seen.startswith("E") or (seen == "SHORT" and trouble == "kill")
            if is_error and trouble != "calm":
                with self._lock:
                    self.tally.failed_reads[seen] += 1
            else:
                self._problem(f"{trouble}: {name} {read}: {seen} instead of {right}")

    # --- looking after it -----------------------------------------------------------------------

    def _take_away(self, trouble: str) -> None:
        """Ends what the round has left, and mends what its faults have spoilt."""
        imgvol = self._imgvol
        for volume in call(imgvol, "GET", "/volumes")[1]["volumes"]:
            call(imgvol, "DELETE", f"/volumes?volume={quote(volume['id'])}&detach=true")
        for lease in call(imgvol, "GET", "/leases")[1]["leases"]:
            if not lease["id"].startswith("pull:"):
                path = f"/leases?lease={quote(lease['id'])}&drain=2&detach=true"
                call(imgvol, "DELETE", path)
        # What is all here has nothing to fear of a bad line.
        is_fresh = trouble == "calm" or self._random.random() < 0.3
        for name in self._images:
            # What a failed pull has left is held for the next one: which this is.
            _, answer = call(imgvol, "POST", "/images/pull", {"image": name})
            if "error" in answer:
                self._problem(f"after {trouble}: pull {name}: {answer['error']}")
            if is_fresh:
                call(imgvol, "DELETE", f"/images?image={quote(name)}")
        call(imgvol, "POST", "/gc")

    def _check(self, trouble: str) -> None:
        imgvol = self._imgvol
        pid = imgvol.process.pid
        if imgvol.process.poll() is not None:
            self._problem(f"{trouble}: the daemon has ended: {imgvol.log_end()}")
            return
        # Whoever completed a layer in the background when its last view was closed may be ending.
        with contextlib.suppress(AssertionError):
            wait_until(
                lambda: not os.listdir(imgvol.root / "ingest"), seconds=SETTLING, what="ingest"
            )
        left = {
            "volumes": call(imgvol, "GET", "/volumes")[1]["volumes"],
            "leases": call(imgvol, "GET", "/leases")[1]["leases"],
            "damage": call(imgvol, "GET", "/check")[1]["wrong"],
            "ingest": os.listdir(imgvol.root / "ingest"),
            "mounts": sorted(mounts_below([str(imgvol.base)]) - {str(imgvol.run_dir / "views")}),
            "directories": [str(path) for path in (imgvol.run_dir / "volumes").glob("*")],
            "log": self._new_defects(),
        }
        for what, things in left.items():
            if things:
                self._problem(f"after {trouble}: {what} left: {things}")
        try:
            wait_until(lambda: not _gone_files(pid), seconds=SETTLING, what="files")
        except AssertionError:
            self._problem(f"after {trouble}: open though they have gone: {_gone_files(pid)}")
        self._files = self._files or _files(pid) + FILES_SLACK
        for what, count, most in (("files", _files, self._files), ("threads", _threads, THREADS)):
            try:
                wait_until(
                    lambda count=count, most=most: count(pid) <= most, seconds=SETTLING, what=what
                )
            except AssertionError:
                self._problem(f"after {trouble}: {count(pid)} {what}, more than {most}")
        self.tally.memory.append(_resident(pid))

    def _check_memory(self) -> None:
        """Of the last life: from its second quarter on it must not grow."""
        memory = self.tally.memory
        if len(memory) >= 8:
            quarter = len(memory) // 4
            before, after = max(memory[: 2 * quarter]), min(memory[-quarter:])
            if after > before + MEMORY_SLACK:
                self._problem(f"memory grows: {[size // MIB for size in memory]} MiB")

    def _new_defects(self) -> list[str]:
        text = self._imgvol.log.read_text(errors="replace")
        new, self._log_read = text[self._log_read :], len(text)
        return [line for line in new.splitlines() if DEFECT.search(line)]

    def _problem(self, text: str) -> None:
        with self._lock:
            self.tally.problems.append(text)


def make_images(base: Path, registry: Registry, proxy: Proxy) -> dict[str, LazyImage]:
    """By name: pulled ones of a layout and of the registry, and one that is read lazily."""
    noise = random.Random(88)
    found: dict[str, LazyImage] = {}
    plain = {}
    for number in range(3):
        entries = _entries(noise, 6 << 10, 200_000, 1_500_000)
        plain[f"p{number}"] = images.Image(
            [images.Layer(entries, ("gzip", "zstd", "none")[number])]
        )
        found[f"p{number}"] = LazyImage(
            f"p{number}", plain[f"p{number}"].layers[0], _files_of(entries)
        )
    layout = images.write_layout(base / "layout", plain)
    named = {f"oci:{layout}:{tag}": image for tag, image in found.items()}
    images.push(layout, "p0", registry.reference("soak:gzip"))
    named[proxy.reference("soak:gzip")] = found["p0"]
    for number in range(2):
        entries = _entries(noise, 9_000, 150_000, 2_500_000)
        layer = Stargz(entries, chunk=60_000).layer()
        lazy = images.write_layout(base / f"lazy{number}", {"x": images.Image([layer])})
        images.push(lazy, "x", registry.reference(f"soak:lazy{number}"))
        name = proxy.reference(f"soak:lazy{number}")
        named[name] = LazyImage(name, layer, _files_of(entries))
    return named


def _entries(noise: random.Random, *sizes: int) -> list[images.Entry]:
    entries = [images.directory("d", mtime_ns=TIME)]
    for number in range(30):
        size = noise.randrange(1, sizes[number % 2])
        entries.append(images.file(f"d/{number}", noise.randbytes(size), mtime_ns=TIME))
    entries.append(images.file("large", noise.randbytes(sizes[2]), mtime_ns=TIME))
    return entries


def _files_of(entries: list[images.Entry]) -> dict[str, bytes]:
    return {entry.name: entry.content for entry in entries if entry.type == b"0"}


def _files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _gone_files(pid: int) -> list[str]:
    """What a process has open though it was removed: its room on the disk is taken all the same."""
    links = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed in this moment
            links.append(os.readlink(f"/proc/{pid}/fd/{number}"))
    return [link for link in links if link.endswith(" (deleted)")]


def _threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def _resident(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.most_common()) or "none"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Everything at once.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="imgvol-soak-", dir="/tmp") as made:
        base = Path(made)
        base.chmod(0o755)
        (base / "registry").mkdir()
        with running_registry(base / "registry") as registry, running_proxy(registry.host) as proxy:
            soak = Soak(base, registry, proxy, arguments.seed)
            soak.run(arguments.minutes * 60, load=6.0)
    for name, value in soak.tally.rows():
        print(f"{name:20} {value}")
    for problem in soak.tally.problems:
        print(problem, file=sys.stderr)
    return 1 if soak.tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
