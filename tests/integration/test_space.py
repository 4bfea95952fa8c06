"""A store that is smaller than what is read from it: every byte is right, nothing hangs, and it
stays within its size. And images that nobody uses go, and come again."""

import random
import threading
import time

import pytest

from imgvol.content.inventory import tree_usage
from support import images
from support.caches import drop_caches
from support.daemon import running_daemon
from support.lazy_images import LazyImage, put_soci_image
from support.metrics import scrape
from support.programs import require_fuse, wait_until
from support.stargz import TIME, Stargz

pytestmark = [pytest.mark.servers, pytest.mark.fuse]

MB = 1_000_000
QUOTA = 30 * MB
# The database and its log, documents, and blocks that are not full.
SLACK = 6 * MB
FILE = 4 * MB
FILES = 25


def content(seed):
    noise = random.Random(seed)
    entries = [images.directory("data", mtime_ns=TIME)]
    for number in range(FILES):
        entries.append(images.file(f"data/{number}", noise.randbytes(FILE), mtime_ns=TIME))
    for number in range(200):
        small = noise.randbytes(noise.randrange(100, 9000))
        entries.append(images.file(f"data/small{number}", small, mtime_ns=TIME))
    return entries


@pytest.fixture(scope="module", params=["estargz", "soci"])
def large_image(request, registry, tmp_path_factory):
    """100 MB that hardly compress."""
    entries = content(5)
    name = f"space/{request.param}"
    if request.param == "soci":
        layer = images.Layer(entries, "gzip")
        put_soci_image(registry, name, layer, 1 << 20)
    else:
        layer = Stargz(entries, chunk=256 * 1024).layer()
        layout = images.write_layout(tmp_path_factory.mktemp("space"), {"x": images.Image([layer])})
        images.push(layout, "x", registry.reference(f"{name}:1"))
    files = {entry.name: entry.content for entry in entries if entry.type == b"0"}
    return LazyImage(f"{name}:1", layer, files)


class Watch:
    """Looks all the time at how much the store takes, and lets the kernel forget what was read."""

    def __init__(self, root):
        self.most = 0
        self._root, self._stop = root, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self):
        while not self._stop.is_set():
            for _ in range(20):
                self.most = max(self.most, tree_usage(self._root))
                time.sleep(0.01)
            drop_caches()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@pytest.mark.alone("drops the kernel's caches")
def test_a_cache_smaller_than_the_working_set(short_path, agent, registry, large_image):
    require_fuse()
    with running_daemon(short_path, "--quota", "30M", FETCH_QUIET=0.05) as daemon:
        # The background may begin in a pause of the readers, who then take the room that it saw.
        daemon.expected_log = ["no room to fetch a layer ahead of its readers"]
        target = daemon.target("mnt")
        daemon.run("mount", registry.reference(large_image.name), target)
        chance = random.Random(1)
        reads, wanted = [], []
        for _ in range(2):
            ranges = [(name, 0, len(data)) for name, data in large_image.files.items()]
            chance.shuffle(ranges)
            reads += [(f"{target}/{name}", offset, size) for name, offset, size in ranges]
            wanted += [images.sha256(large_image.files[n][o : o + s]) for n, o, s in ranges]
        with Watch(daemon.root) as watch:
            found = agent.ask("read_together", reads=reads, readers=6, deadline=110)
        wrong = [
            (read, got)
            for read, got, right in zip(reads, found, wanted, strict=True)
            if f"sha256:{got}" != right
        ]
        assert wrong == []
        assert watch.most > QUOTA // 2, "it is a cache, too"
        assert watch.most <= QUOTA + SLACK
        given_back = scrape(daemon.run_dir / "imgvol.sock")[
            "imgvol_evicted_bytes_total", "what=spans"
        ]
        assert given_back > 2 * (sum(map(len, large_image.files.values())) - QUOTA)
        # The last round may still be under way.
        wait_until(
            lambda: daemon.json("df")["space"]["used"] <= QUOTA, seconds=20, what="the last round"
        )
        space = daemon.json("df")["space"]
        assert space["seconds_above"] > 0
        # What was given back is asked for again, and the rest is not fetched for its own sake.
        drop_caches()
        name = "data/3"
        digest = agent.ask("digest", path=f"{target}/{name}")
        assert f"sha256:{digest}" == images.sha256(large_image.files[name])
        assert not large_image.is_complete(daemon)
        assert daemon.json("fsck")["wrong"] == []
        assert daemon.json("scrub")["faults"] == []


@pytest.fixture(scope="module", params=["estargz", "soci"])
def two_images(request, registry, tmp_path_factory):
    """20 MB each, and 3 MB compressed."""
    found = []
    for seed in (31, 32):
        noise, name = random.Random(seed), f"space/two-{request.param}-{seed}"
        entries = [images.directory("data", mtime_ns=TIME)]
        for number in range(5):
            data = images.compressible(noise, FILE)
            entries.append(images.file(f"data/{number}", data, mtime_ns=TIME))
        if request.param == "soci":
            layer = images.Layer(entries, "gzip")
            put_soci_image(registry, name, layer, 1 << 20)
        else:
            layer = Stargz(entries, chunk=256 * 1024).layer()
            layout = images.write_layout(
                tmp_path_factory.mktemp(name.replace("/", "-")), {"x": images.Image([layer])}
            )
            images.push(layout, "x", registry.reference(f"{name}:1"))
        files = {entry.name: entry.content for entry in entries if entry.type == b"0"}
        found.append(LazyImage(f"{name}:1", layer, files))
    return found


@pytest.mark.alone("drops the kernel's caches")
def test_layers_that_are_complete_and_mounted_give_back_parts(
    short_path, agent, registry, two_images
):
    """Each image fits, both do not. They are read whole, in turns."""
    require_fuse()
    # One fits below the high line, compressed bytes included: there the background stops.
    quota = 34 * MB
    with running_daemon(short_path, "--quota", "34M", FETCH_QUIET=0.05) as daemon:
        daemon.expected_log = ["no room to fetch a layer ahead of its readers"]
        targets = [daemon.target(f"mnt{number}") for number in range(2)]
        proof = daemon.root / "lazy" / two_images[0].hex / "proof"

        def given_back():
            return scrape(daemon.run_dir / "imgvol.sock")[
                "imgvol_evicted_bytes_total", "what=spans"
            ]

        def read_whole(image, target):
            for name, data in image.files.items():
                found = agent.ask("digest", path=f"{target}/{name}")
                assert f"sha256:{found}" == images.sha256(data)
            drop_caches()

        with Watch(daemon.root) as watch:
            daemon.run("mount", registry.reference(two_images[0].name), targets[0])
            read_whole(two_images[0], targets[0])
            wait_until(proof.exists, seconds=30, what="the proof")
            assert given_back() == 0
            assert "complete" in daemon.run("ps", "--layers").stdout
            daemon.run("mount", registry.reference(two_images[1].name), targets[1])
            for _ in range(2):
                for image, target in zip(two_images, targets, strict=True):
                    read_whole(image, target)
        assert given_back() > 20 * MB
        assert watch.most <= quota + SLACK
        assert daemon.json("fsck")["wrong"] == []
        assert daemon.json("scrub")["faults"] == []

        # What has gone is not believed to be here by the next daemon.
        daemon.json("gc", "--to", "20M")
        assert "they are fetched when they are read" in daemon.run("ps", "--layers").stdout
        daemon.terminate()
        daemon.start()
        assert proof.exists()
        for image, target in zip(two_images, targets, strict=True):
            read_whole(image, target)
        assert daemon.json("fsck")["wrong"] == []


# --- whole images --------------------------------------------------------------------------------


def plain_image(registry, base, name, seed, size=3 * MB):
    """A reference to an image of one file."""
    noise = random.Random(seed)
    image = images.Image([images.Layer([images.file("data", noise.randbytes(size))], "gzip")])
    layout = images.write_layout(base / name.replace("/", "-"), {"x": image})
    images.push(layout, "x", registry.reference(f"{name}:1"))
    return registry.reference(f"{name}:1")


def listed(daemon):
    return {name for image in daemon.json("images") for name in image["names"]}


def line_of(daemon, name):
    return next(line for line in daemon.run("images").stdout.splitlines() if name in line)


def test_unused_images_go_the_oldest_first_and_come_again(short_path, agent, registry, tmp_path):
    require_fuse()
    names = [plain_image(registry, tmp_path, f"space/plain{number}", number) for number in range(6)]
    layout = images.write_layout(
        tmp_path / "local",
        {"x": images.Image([images.Layer([images.file("data", b"x" * 3 * MB)], "gzip")])},
    )
    local = f"oci:{layout}:x"
    with running_daemon(short_path, "--quota", "20M") as daemon:
        daemon.run("pull", local)
        daemon.run("pull", names[0])
        daemon.run("pin", names[0])
        target = daemon.target("mnt")
        daemon.run("mount", names[1], target)
        daemon.run("pull", names[2])
        daemon.run("pull", names[3])
        daemon.run("ls", names[2], "/")  # now the third is the oldest
        plan = daemon.json("gc", "--dry-run", "--to", "13M")
        assert len(plan["evicted"]) == 1
        assert listed(daemon) >= {*names[:4], local}, "a plan changes nothing"
        report = daemon.json("gc", "--to", "13M")
        assert [each["manifest"] for each in report["evicted"]] == [
            each["manifest"] for each in plan["evicted"]
        ]
        assert report["freed"] >= 3 * MB
        assert listed(daemon) == {*names[:3], local}
        assert "evicted" in line_of(daemon, "plain3")
        assert daemon.json("fsck")["wrong"] == []

        # What cannot be fetched again, is pinned or mounted stays, whatever is asked for.
        daemon.run("gc", "--to", "1k")
        assert listed(daemon) == {names[0], names[1], local}
        assert agent.ask("digest", path=f"{target}/data")
        kept = daemon.json("df")["space"]["kept"]
        assert set(kept) == {"pinned", "mounted", "not from a registry"}

        again = daemon.target("again")
        assert (
            "not in the store"
            in daemon.run("mount", "--pull=never", names[2], again, check=False).stderr
        )
        daemon.run("mount", names[2], again)
        assert agent.ask("digest", path=f"{again}/data")
        assert "evicted" not in line_of(daemon, "plain2")
        daemon.run("unmount", again)

        # By itself, when there is not room for more, and names of what has gone can be removed.
        for name in names[3:]:
            daemon.run("pull", name)
        assert daemon.json("df")["space"]["used"] <= 20 * MB
        assert names[2] not in listed(daemon)
        daemon.run("rmi", names[2])
        assert "plain2" not in daemon.run("images").stdout
        daemon.terminate()
        daemon.start()
        assert listed(daemon) >= {names[0], names[1], names[5], local}
        assert daemon.json("fsck")["wrong"] == []


def test_an_image_that_does_not_fit_is_refused_and_leaves_nothing(short_path, registry, tmp_path):
    require_fuse()
    name = plain_image(registry, tmp_path, "space/huge", 50, size=25 * MB)
    with running_daemon(short_path, "--quota", "20M", SPACE_WAIT=1.0) as daemon:
        done = daemon.run("pull", name, check=False)
        assert done.returncode == 1
        assert "within the size that it may have" in done.stderr
        assert daemon.json("images") == []
        assert tree_usage(daemon.root) < 2 * MB
