"""A daemon that dies at any call that changes its store while a lazily mounted image is read,
fetched and completed; and a disk that loses what was not synced (F01, F02, F08)."""

import hashlib
import os
import random
import shutil
import signal

import pytest

from imgvol.content.span_map import SpanMap
from imgvol.layers.lazy.open import open_span_table
from support import images
from support.agent import Agent
from support.crash import KINDS, Crash, calls, has_fired, lose_unsynced, prelude
from support.daemon import Imgvol
from support.lazy_images import LazyImage
from support.programs import require_fuse, stop, wait_until
from support.stargz import TIME, Stargz

pytestmark = [pytest.mark.servers, pytest.mark.slow]

# Every call, which takes about twenty minutes; otherwise some of each kind.
IS_WHOLE = os.environ.get("IMGVOL_EVERY_CALL") == "1"
# Where in the life of a layer: while it is read, while it is completed, and around its end.
SAMPLE = (0.2, 0.6, 0.93)

# Many small steps, and durable ones between them.
LIMITS = {
    "FETCH_QUIET": 0.02,
    "FETCH_FLUSH": 0.03,
    "FETCH_RETRY": 0.5,
    "FETCH_SMALLEST": 16_000,
    "FETCH_LARGEST": 200_000,
    "FETCH_GAP": 1000,
}
RATE = 1_500_000
LARGE = 1_200_000  # has a file of its own in the final form


@pytest.fixture(scope="module")
def image(registry, tmp_path_factory) -> LazyImage:
    noise = random.Random(17)
    entries = [images.directory("usr", mtime_ns=TIME)]
    for number in range(20):
        content = noise.randbytes(noise.randrange(100, 9000))
        entries.append(images.file(f"usr/{number}", content, mtime_ns=TIME))
    entries += [
        images.file("usr/large", noise.randbytes(LARGE), mtime_ns=TIME),
        images.hardlink("usr/link", "usr/large", mtime_ns=TIME),
        images.file("usr/empty", mtime_ns=TIME),
        images.file("last", noise.randbytes(150_000), mtime_ns=TIME),
    ]
    layer = Stargz(entries, chunk=60_000).layer()
    name = "lazy/crashes:1"
    layout = images.write_layout(tmp_path_factory.mktemp("crashes"), {"x": images.Image([layer])})
    images.push(layout, "x", registry.reference(name))
    files = {entry.name: entry.content for entry in entries if entry.type == b"0"}
    files["usr/link"] = files["usr/large"]
    return LazyImage(name, layer, files)


class World:
    """One store after another, each with a daemon that dies over it and one that comes after."""

    def __init__(self, base, proxy, image: LazyImage) -> None:
        self.base, self.proxy, self.image = base, proxy, image
        self.imgvol = Imgvol(base, limits=dict(LIMITS), supervisor=False)
        self.log = base / "calls"
        self.target = self.imgvol.target("mnt")

    def run(self, crash: Crash) -> bool:
        """Mounts, reads and completes until the call; whether the daemon has died there."""
        shutil.rmtree(self.imgvol.root, ignore_errors=True)
        self.log.unlink(missing_ok=True)
        self.imgvol.prelude = prelude(crash, self.log)
        line = self.proxy.throttle(RATE, shared=True)
        try:
            self.imgvol.start()
        except AssertionError:
            assert has_fired(crash, self.log), self.imgvol.log_end()  # before it was ready
            return True
        finally:
            self.imgvol.prelude = "pass"
        reference = self.proxy.reference(self.image.name)
        self.imgvol.run("mount", reference, self.target, check=False)
        with Agent() as agent:
            reads, wanted = zip(*self.image.random_reads(self.target, 3, 60), strict=True)
            found = agent.ask("read_together", reads=reads, readers=10, deadline=60)
        line.lift()
        wait_until(
            lambda: self.has_ended() or self.image.is_complete(self.imgvol),
            seconds=30,
            what="the end of the daemon or of its work",
        )
        if crash.number == 0:
            assert list(found) == list(wanted)
            return False
        # Its end has calls, too. No command of ours may follow: it would start another daemon.
        self.imgvol.process.terminate()
        wrong = [f for f, w in zip(found, wanted, strict=True) if f not in {w, *DEAD}]
        assert wrong == [], "an error, or the truth"
        died = self.imgvol.process.wait(20) == -signal.SIGKILL
        assert died == has_fired(crash, self.log)
        return died

    def die_again(self, number: int) -> bool:
        """The next daemon dies while it recovers, if it gets as far as that call."""
        crash = Crash("name", 8 + number % 8)
        self.log.unlink()
        self.imgvol.prelude = prelude(crash, self.log)
        try:
            self.imgvol.start()
        except AssertionError:
            assert has_fired(crash, self.log), self.imgvol.log_end()
            lose_unsynced(self.imgvol.root, self.log)
            return True
        finally:
            self.imgvol.prelude = "pass"
        self.imgvol.process.terminate()
        self.imgvol.process.wait(20)
        return False

    def has_ended(self) -> bool:
        return self.imgvol.process.poll() is not None

    def check_store(self) -> None:
        """Whatever the map names is on the disk, as it is in the registry."""
        lazy = self.imgvol.root / "lazy" / self.image.hex
        if not (lazy / "table").exists():
            return
        table = open_span_table((lazy / "table").read_bytes())
        present = SpanMap(lazy / "spans", table.span_count)
        data, blob = (lazy / "data").read_bytes(), (lazy / "blob").read_bytes()
        for span in range(table.span_count):
            if span in present:
                start, end = table.compressed_range(span)
                assert blob[start:end] == self.image.layer.blob[start:end], span
                for at, piece in table.decode(span, blob[start:end]):
                    assert data[at : at + len(piece)] == piece, span

    def check_next(self) -> None:
        """The next daemon shows every byte, completes the layer, and leaves nothing over."""
        self.imgvol.start()
        volumes = self.imgvol.json("ps")
        if not volumes:
            self.imgvol.run("mount", self.proxy.reference(self.image.name), self.target)
        with Agent() as agent:
            reads, wanted = zip(*self.image.random_reads(self.target, 4, 30), strict=True)
            found = agent.ask("read_together", reads=reads, readers=10, deadline=60)
            assert list(found) == list(wanted)
            self.check_files(agent)
            wait_until(
                lambda: self.image.is_complete(self.imgvol), seconds=30, what="the layer's end"
            )
            for name in self.image.files:
                agent.ask("forget", path=f"{self.target}/{name}")
            self.check_files(agent)
        assert os.listdir(self.imgvol.root / "ingest") == []
        (volume,) = self.imgvol.json("ps")
        assert [layer["state"] for layer in volume["layers"]] == ["complete"]
        self.imgvol.run("unmount", self.target)
        self.imgvol.terminate()

    def check_files(self, agent: Agent) -> None:
        for name, content in self.image.files.items():
            digest = agent.ask("digest", path=f"{self.target}/{name}")
            assert digest == hashlib.sha256(content).hexdigest(), name


# What the kernel says of a read that its daemon does not live to answer: nothing of the rest, too.
DEAD = ("ENOTCONN", "ECONNABORTED", "ENOENT", "EIO", "SHORT")


@pytest.fixture
def world(short_path, proxy, image):
    require_fuse()
    made = World(short_path, proxy, image)
    yield made
    if made.imgvol.process is not None:
        stop(made.imgvol.process)
    assert made.imgvol.unexpected_log() == []


def numbers(total: int) -> list[int]:
    """All, and as many again for the case that this run has more; or some from everywhere."""
    if IS_WHOLE:
        return list(range(1, 2 * total))
    return [max(1, int(total * place)) for place in SAMPLE]


@pytest.mark.fault("F01", "F02", "F08", "F29")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(3600 if IS_WHOLE else 240)
def test_killed_at_any_call_nothing_wrong_is_ever_read(world, kind):
    assert not world.run(Crash(kind, 0))
    world.imgvol.run("unmount", world.target)
    world.imgvol.terminate()
    total = calls(world.log)[kind]
    assert total >= 2 * len(SAMPLE)
    deaths = lost = again = 0
    for number in numbers(total):
        crash = Crash(kind, number)
        has_died = world.run(crash)
        if not has_died:
            # No two runs make the same calls; but only the last ones may be missing.
            assert number > total * 3 // 4, "the fault was never injected"
            break
        deaths += 1
        lost += lose_unsynced(world.imgvol.root, world.log)
        world.check_store()
        again += world.die_again(number)
        world.check_next()
    assert again, "no daemon died while it recovered"
    assert deaths >= len(SAMPLE) - 1
    # What the call itself has written of its half, at least.
    assert lost or kind != "write"
