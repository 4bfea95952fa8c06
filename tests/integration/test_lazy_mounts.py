"""Images that are mounted before they are here: what that costs, and that nobody can tell."""

from itertools import pairwise

import pytest

from support.daemon import running_daemon
from support.images import sha256
from support.programs import require_fuse, wait_until

pytestmark = pytest.mark.servers

MIB = 1 << 20
# What the background asks for at once, and readers never do.
WINDOW = 4 * MIB
CRAWL = 20_000


def only(format_):
    """One format is enough where the engine is looked at."""
    return pytest.mark.parametrize("lazy_image", [format_], indirect=True)


@pytest.fixture
def steady(short_path):
    """A daemon whose kernel reads ahead as far over every line."""
    require_fuse()
    with running_daemon(short_path, READAHEAD_KIB=128) as imgvol:
        yield imgvol


def mount_held(daemon, proxy, image):
    """Mounts with a background that crawls through its first range until the fault is lifted.

    Files in `first/` are in that range.
    """
    held = proxy.throttle(CRAWL, at_least=WINDOW)
    target = daemon.target("mnt")
    daemon.run("mount", proxy.reference(image.name), target)
    wait_until(lambda: held.fired, what="the background to begin")
    return held, target


def check_together(agent, image, target, seed, *, count=200, readers=20, below=""):
    reads, wanted = zip(*image.random_reads(target, seed, count, below=below), strict=True)
    found = agent.ask("read_together", reads=reads, readers=readers, deadline=60)
    wrong = [(read, f) for read, w, f in zip(reads, wanted, found, strict=True) if f != w]
    assert wrong == []


def check_all(agent, image, target):
    for name, data in image.files.items():
        digest = agent.ask("digest", path=f"{target}/{name}")
        assert f"sha256:{digest}" == sha256(data), name


def wait_complete(image, daemon, seconds=20):
    wait_until(lambda: image.is_complete(daemon), seconds=seconds, what="the layer is complete")


def test_mount_does_not_wait_for_the_content(daemon, agent, proxy, lazy_image):
    crawl = proxy.throttle(100_000)
    target = daemon.target("mnt")
    daemon.run("mount", proxy.reference(lazy_image.name), target)
    # The table of contents, the config, and what the background has got meanwhile.
    assert crawl.fired > 0
    assert proxy.blob_bytes() < 400_000 < lazy_image.layer.size / 20
    assert not lazy_image.is_complete(daemon)
    # Names and attributes need nothing more.
    asked = len(proxy.seen)
    status = agent.ask("stat", path=f"{target}/usr/lib/large")
    assert status["st_size"] == len(lazy_image.files["usr/lib/large"])
    assert agent.ask("readlink", path=f"{target}/usr/lib/latest") == "m1.py"
    assert len(agent.ask("stat_tree", path=target)) > len(lazy_image.files)
    assert len(proxy.seen) == asked


@only("estargz")
def test_small_reads_fetch_a_fraction(daemon, agent, proxy, lazy_image):
    _, target = mount_held(daemon, proxy, lazy_image)
    before = len(proxy.seen)
    modules = [f"usr/lib/m{number}.py" for number in range(0, 150, 3)]
    for name in modules:
        got = agent.ask_bytes("content", path=f"{target}/{name}")
        assert got == lazy_image.files[name]
    fetched = proxy.blob_bytes(since=before)
    everything = sum(len(d) for n, d in lazy_image.files.items() if n.startswith("usr/lib/m"))
    assert fetched < everything + MIB < lazy_image.layer.size / 7
    assert len(proxy.ranges(since=before)) < len(modules) / 2, "neighbours come together"

    fd = agent.ask("open", path=f"{target}/usr/lib/large")
    got = agent.ask_bytes("pread", fd=fd, offset=3 * MIB, size=5000)
    assert got == lazy_image.files["usr/lib/large"][3 * MIB :][:5000]
    assert proxy.blob_bytes(since=before) - fetched < 2 * MIB
    agent.ask("close", fd=fd)
    assert not lazy_image.is_complete(daemon)


@only("zstd:chunked")
def test_readers_of_one_place_cause_one_request(daemon, agent, proxy, lazy_image):
    _, target = mount_held(daemon, proxy, lazy_image)
    slow = proxy.delay(0.2)  # long enough for all readers to meet
    before = len(proxy.seen)
    # Pages of one chunk, which the kernel asks for one by one.
    reads = [(f"{target}/usr/last", 12_288 * number, 4096) for number in range(20)]
    found = agent.ask("read_together", reads=reads, readers=20)
    data = lazy_image.files["usr/last"]
    assert [f"sha256:{f}" for f in found] == [sha256(data[o : o + n]) for _, o, n in reads]
    asked = sorted(e.range for e in proxy.ranges(since=before) if e.asked < WINDOW)
    assert asked
    overlaps = [(a, b) for a, b in pairwise(asked) if b[0] < a[1]]
    assert overlaps == [], "nothing is fetched twice"
    assert len(asked) <= 4
    assert slow.fired > 0


@only("zstd:chunked")
def test_random_reads_by_many_equal_the_tar_while_it_comes(daemon, agent, proxy, lazy_image):
    line = proxy.throttle(10_000_000)
    target = daemon.target("mnt")
    daemon.run("mount", proxy.reference(lazy_image.name), target)
    check_together(agent, lazy_image, target, seed=1)
    assert line.fired > 0
    line.lift()
    wait_complete(lazy_image, daemon)
    check_together(agent, lazy_image, target, seed=2)


@only("podman")
def test_complete_layer_needs_no_registry(daemon, agent, proxy, lazy_image):
    reference = proxy.reference(lazy_image.name)
    held, target = mount_held(daemon, proxy, lazy_image)
    attributes = agent.ask("stat_tree", path=target)
    fd = agent.ask("open", path=f"{target}/usr/lib/large")
    agent.ask("pread", fd=fd, offset=0, size=10)
    assert not lazy_image.is_complete(daemon)
    held.lift()
    wait_complete(lazy_image, daemon)
    proxy.down()
    check_all(agent, lazy_image, target)
    got = agent.ask_bytes("pread", fd=fd, offset=5 * MIB, size=100_000)
    assert got == lazy_image.files["usr/lib/large"][5 * MIB :][:100_000]
    agent.ask("close", fd=fd)
    assert agent.ask("stat_tree", path=target) == attributes
    assert daemon.json("inspect", reference)["manifest"]["layers"][0]["digest"]

    daemon.terminate()
    daemon.start()
    assert agent.ask("stat_tree", path=target) == attributes
    check_all(agent, lazy_image, target)


@only("estargz")
def test_mount_without_laziness_has_everything_when_it_returns(daemon, agent, proxy, lazy_image):
    target = daemon.target("mnt")
    daemon.run("mount", "--lazy=off", proxy.reference(lazy_image.name), target)
    assert lazy_image.is_complete(daemon)
    assert proxy.ranges() == []
    assert lazy_image.layer.size <= proxy.blob_bytes() < lazy_image.layer.size + 10_000
    proxy.down()
    check_all(agent, lazy_image, target)


def test_full_verification_precedes_the_mount(daemon, agent, proxy, lazy_image):
    reference, target = proxy.reference(lazy_image.name), daemon.target("mnt")
    daemon.run("mount", "--verify=full", reference, target)
    assert lazy_image.is_complete(daemon)
    proxy.down()
    check_all(agent, lazy_image, target)


@only("podman")
def test_full_verification_completes_what_is_mounted_lazily(daemon, agent, proxy, lazy_image):
    held, _ = mount_held(daemon, proxy, lazy_image)
    held.lift()
    second = daemon.target("second")
    daemon.run("mount", "--verify=full", proxy.reference(lazy_image.name), second)
    assert lazy_image.is_complete(daemon)
    (volume,) = [v for v in daemon.json("ps") if v["path"] == str(second)]
    assert [layer["state"] for layer in volume["layers"]] == ["complete"]


def test_attributes_do_not_depend_on_how_the_layer_came(short_path, agent, proxy, lazy_image):
    trees = {}
    for name in ("lazy", "whole"):
        base = short_path / name
        base.mkdir(mode=0o755)
        with running_daemon(base) as daemon:
            if name == "lazy":
                held, target = mount_held(daemon, proxy, lazy_image)
            else:
                held.lift()
                target = daemon.target("mnt")
                daemon.run("mount", "--lazy=off", proxy.reference(lazy_image.name), target)
            assert lazy_image.is_complete(daemon) == (name == "whole")
            trees[name] = agent.ask("stat_tree", path=target)
    assert trees["lazy"].keys() == trees["whole"].keys()
    for path, attributes in trees["whole"].items():
        assert trees["lazy"][path] == attributes, path


@only("podman")
def test_spans_that_are_here_serve_the_next_mount(steady, agent, proxy, lazy_image):
    _, target = mount_held(steady, proxy, lazy_image)
    reference = proxy.reference(lazy_image.name)
    # One reader: the kernel's readahead then asks for the same both times.
    check_together(agent, lazy_image, target, seed=4, below="usr/lib", readers=1)
    (volume,) = steady.json("ps")
    assert all(layer["needed"] for layer in volume["layers"])
    steady.run("unmount", target)
    steady.run("mount", reference, target)
    check_together(agent, lazy_image, target, seed=4, below="usr/lib", readers=1)
    # The background fetches the holes between; readers have waited for nothing.
    (volume,) = steady.json("ps")
    assert [layer["needed"] for layer in volume["layers"]] == [0]
    assert not lazy_image.is_complete(steady)


@only("estargz")
def test_whole_pull_of_a_lazy_image_completes_what_is_mounted(daemon, agent, proxy, lazy_image):
    _, target = mount_held(daemon, proxy, lazy_image)
    reference = proxy.reference(lazy_image.name)
    check_together(agent, lazy_image, target, seed=5, below="usr/lib", count=50)
    attributes = agent.ask("stat_tree", path=target)
    daemon.run("pull", reference)
    assert lazy_image.is_complete(daemon)
    proxy.down()
    check_all(agent, lazy_image, target)
    assert agent.ask("stat_tree", path=target) == attributes
