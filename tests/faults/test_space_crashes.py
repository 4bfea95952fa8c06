"""A daemon that dies at any call while it gives back spans, and a disk that loses what was not
synced: the map never speaks of what is gone (F01, F29)."""

import os
import random
import shutil
import signal
import subprocess

import pytest

from imgvol.content.span_map import SpanMap
from imgvol.layers.lazy.open import open_span_table
from support import images
from support.agent import Agent
from support.crash import PUNCH, Crash, calls, has_fired, lose_unsynced, prelude
from support.daemon import Imgvol
from support.lazy_images import LazyImage
from support.programs import require_fuse, stop, wait_until
from support.stargz import TIME, Stargz

pytestmark = [pytest.mark.servers, pytest.mark.slow]

IS_WHOLE = os.environ.get("IMGVOL_EVERY_CALL") == "1"
# Of all calls of the first run, the latest first: other runs may make fewer of them.
SAMPLE = (0.5, 0.2, 0.05)
KINDS = (PUNCH, "name", "sync", "write")
# What the kernel says of a read that its daemon does not live to answer: nothing of the rest, too.
DEAD = {"ENOTCONN", "ECONNABORTED", "EIO", "ENOENT", "SHORT"}
LIMITS = {"FETCH_FLUSH": 0.03, "FETCH_QUIET": 0.02, "FETCH_LARGEST": 300_000, "USAGE_PERIOD": 0.5}
MB = 1_000_000


@pytest.fixture(scope="module")
def image(registry, tmp_path_factory) -> LazyImage:
    noise = random.Random(23)
    entries = [images.directory("usr", mtime_ns=TIME)]
    for number in range(8):
        entries.append(images.file(f"usr/{number}", noise.randbytes(MB), mtime_ns=TIME))
    layer = Stargz(entries, chunk=100_000).layer()
    name = "space/crashes:1"
    layout = images.write_layout(tmp_path_factory.mktemp("crashes"), {"x": images.Image([layer])})
    images.push(layout, "x", registry.reference(name))
    files = {entry.name: entry.content for entry in entries if entry.type == b"0"}
    return LazyImage(name, layer, files)


class World:
    """One store after another, each with a daemon that dies over it and one that comes after."""

    def __init__(self, base, registry, image: LazyImage, megabytes: int = 7) -> None:
        self.image, self.reference = image, registry.reference(image.name)
        self.quota = megabytes * MB
        options = ("--quota", f"{megabytes}M")
        self.imgvol = Imgvol(base, limits=dict(LIMITS), options=options, supervisor=False)
        self.log = base / "calls"
        self.target = self.imgvol.target("mnt")

    def run(self, crash: Crash) -> bool:
        """Mounts and reads until the call; whether the daemon has died there."""
        shutil.rmtree(self.imgvol.root, ignore_errors=True)
        self.log.unlink(missing_ok=True)
        self.imgvol.prelude = prelude(crash, self.log)
        try:
            self.imgvol.start()
        except AssertionError:
            assert has_fired(crash, self.log), self.imgvol.log_end()
            return True
        finally:
            self.imgvol.prelude = "pass"
        self.imgvol.run("mount", self.reference, self.target, check=False)
        self.use()
        self.imgvol.process.terminate()
        died = self.imgvol.process.wait(20) == -signal.SIGKILL
        assert died == has_fired(crash, self.log)
        return died

    def use(self) -> None:
        """What is done with the image before the daemon ends; it may die at any time."""
        self.read(3, 80)

    def read(self, seed: int, count: int) -> None:
        with Agent() as agent:
            reads, wanted = zip(*self.image.random_reads(self.target, seed, count), strict=True)
            found = agent.ask("read_together", reads=reads, readers=4, deadline=60)
        wrong = [f for f, w in zip(found, wanted, strict=True) if f not in {w, *DEAD}]
        assert wrong == [], "an error, or the truth"

    def check_store(self) -> None:
        """Whatever the map names is on the disk, as it is in the registry."""
        lazy = self.imgvol.root / "lazy" / self.image.hex
        if not (lazy / "table").exists():
            return
        table = open_span_table((lazy / "table").read_bytes())
        present = SpanMap(lazy / "spans", table.span_count)
        data, blob = (lazy / "data").read_bytes(), (lazy / "blob").read_bytes()
        for span in present:
            start, end = table.compressed_range(span)
            compressed = self.image.layer.blob[start:end]
            if present.is_kept(span):
                assert blob[start:end] == compressed, span
            for at, piece in table.decode(span, compressed):
                assert data[at : at + len(piece)] == piece, span

    def check_next(self) -> None:
        """The next daemon shows every byte, within its size."""
        self.imgvol.start()
        if not self.imgvol.json("ps"):
            self.imgvol.run("mount", self.reference, self.target)
        with Agent() as agent:
            reads, wanted = zip(*self.image.random_reads(self.target, 4, 40), strict=True)
            found = agent.ask("read_together", reads=reads, readers=4, deadline=60)
            assert list(found) == list(wanted)
        # What was written beside spans (the database's log) is counted by the next round.
        wait_until(
            lambda: self.imgvol.json("df")["space"]["used"] <= self.quota, what="the last round"
        )
        assert self.imgvol.json("fsck")["wrong"] == []
        self.imgvol.terminate()


@pytest.fixture
def world(short_path, registry, image):
    require_fuse()
    made = World(short_path, registry, image)
    yield made
    if made.imgvol.process is not None:
        stop(made.imgvol.process)


@pytest.mark.fault("F01")
@pytest.mark.fault("F29")
def test_killed_at_any_call_while_spans_are_given_back(world):
    assert not world.run(Crash(PUNCH, 0))
    counted = calls(world.log)
    assert counted[PUNCH] > 3, "there is something to be killed at"
    check_every_end(world, counted)


def check_every_end(world: World, counted) -> None:
    """Whichever call is the last one, what is there is right, and the next daemon goes on."""
    world.check_store()
    world.check_next()
    for kind in KINDS if IS_WHOLE else KINDS[:3]:
        total = counted[kind]
        numbers = range(1, total) if IS_WHOLE else [max(1, int(s * total)) for s in SAMPLE]
        died = 0
        for number in numbers:
            if world.run(Crash(kind, number)):
                died += 1
                lose_unsynced(world.imgvol.root, world.log)
            world.check_store()
            world.check_next()
            if died and not IS_WHOLE:
                break
        assert died, f"no {kind} was the last call"


class ProvenWorld(World):
    """The layer is proven while it is mounted, gives back its blob and spans, and closes."""

    def use(self) -> None:
        self.read(5, 20)
        proof = self.imgvol.root / "lazy" / self.image.hex / "proof"
        wait_until(lambda: proof.exists() or self.has_died(), seconds=30, what="the proof")
        for size in ("4200k", "2M"):  # its compressed bytes, then half of the rest
            self.run_if_alive("gc", "--to", size)
            self.read(6, 20)
        self.run_if_alive("unmount", self.target)

    def run_if_alive(self, *arguments: str) -> None:
        """Otherwise the command would start another daemon."""
        if not self.has_died():
            self.imgvol.run(*arguments, check=False)

    def has_died(self) -> bool:
        try:
            self.imgvol.process.wait(0.2)
        except subprocess.TimeoutExpired:
            return False
        return True


@pytest.mark.fault("F01")
@pytest.mark.fault("F29")
def test_killed_at_any_call_while_a_complete_layer_gives_back_parts(short_path, registry, tmp_path):
    require_fuse()
    noise = random.Random(29)
    entries = [images.directory("usr", mtime_ns=TIME)]
    for number in range(4):
        text = images.compressible(noise, MB)
        entries.append(images.file(f"usr/{number}", text, mtime_ns=TIME))
    layer = Stargz(entries, chunk=100_000).layer()
    name = "space/proven:1"
    images.push(
        images.write_layout(tmp_path, {"x": images.Image([layer])}), "x", registry.reference(name)
    )
    files = {entry.name: entry.content for entry in entries if entry.type == b"0"}
    world = ProvenWorld(short_path, registry, LazyImage(name, layer, files), 9)
    try:
        assert not world.run(Crash(PUNCH, 0))
        counted = calls(world.log)
        assert counted[PUNCH] > 3, "there is something to be killed at"
        directory = world.imgvol.root / "lazy" / world.image.hex
        table = open_span_table((directory / "table").read_bytes())
        assert SpanMap(directory / "spans", table.span_count).unkept_count, "the blob has gone"
        check_every_end(world, counted)
    finally:
        if world.imgvol.process is not None:
            stop(world.imgvol.process)
