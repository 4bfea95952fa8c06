"""A second tag of an image: what the node has already is copied, and not fetched again."""

import random
from dataclasses import dataclass

import pytest

from support.daemon import Imgvol, running_daemon
from support.images import (
    TIME,
    Entry,
    Image,
    Layer,
    directory,
    file,
    hardlink,
    push,
    sha256,
    symlink,
    tar_bytes,
    write_layout,
)
from support.lazy_images import lazy_layer
from support.programs import require_fuse, wait_until

pytestmark = pytest.mark.servers

WHEN = TIME // 10**9 * 10**9
FILES = 200
LARGE = 2_500_000
# Of the second tag may be fetched: a tenth is new.
MOST = 0.15
QUICK = {"FETCH_QUIET": 0.1, "FETCH_FLUSH": 0.1}
# Ten spans at a time, and a pause before each: there is time to do something meanwhile.
SLOWLY = (
    "import time, imgvol.content.copy_plan as m; copy = m.CopyPlan.copy; "
    "m.CopyPlan.copy = lambda plan, spans: (time.sleep(0.1), copy(plan, spans))[1]"
)


@dataclass(frozen=True)
class Tag:
    """An image of one layer in the registry, and what its files hold."""

    name: str
    layer: object
    files: dict[str, bytes]

    @property
    def hex(self) -> str:
        return self.layer.digest.partition(":")[2]


def content(release: int) -> list[Entry]:
    """Some 9 MB; between two releases a tenth of the bytes differ, and no layer is the same."""
    shared, own = random.Random(1), random.Random(100 + release)
    entries = [directory(name, mtime_ns=WHEN) for name in ("usr", "usr/lib", f"usr/v{release}")]
    for number in range(FILES):
        source = own if number % 10 == 3 else shared
        data = source.randbytes(shared.randrange(200, 50_000))
        entries.append(file(f"usr/lib/m{number}", data, mtime_ns=WHEN))
    entries += [
        file("usr/release", b"release %d" % release, mtime_ns=WHEN),
        file("usr/lib/empty", mtime_ns=WHEN),
        file("usr/lib/large", shared.randbytes(LARGE), mtime_ns=WHEN),
        hardlink("usr/lib/link", "usr/lib/large", mtime_ns=WHEN),
        symlink("usr/lib/latest", "m1", mtime_ns=WHEN),
        # The same files elsewhere: only a digest finds them.
        *(
            file(f"usr/v{release}/{number}", shared.randbytes(3000), mtime_ns=WHEN)
            for number in range(20)
        ),
    ]
    return entries


@pytest.fixture(scope="module")
def tags(registry, tmp_path_factory):
    """Makes releases of an image in a format."""
    made: dict[tuple[str, int], Tag] = {}

    def get(format_: str, release: int) -> Tag:
        if (format_, release) not in made:
            where = tmp_path_factory.mktemp("copies")
            entries = content(release)
            layer = lazy_layer(where, tar_bytes(entries), format_)
            layout = write_layout(where / "image", {"x": Image([layer])})
            name = f"copies/{format_.replace(':', '-')}:{release}"
            push(layout, "x", registry.reference(name))
            files = {entry.name: entry.content for entry in entries if entry.type == b"0"}
            files["usr/lib/link"] = files["usr/lib/large"]
            made[format_, release] = Tag(name, layer, files)
        return made[format_, release]

    return get


def layers_of(daemon, target: str):
    return next(v["layers"] for v in daemon.json("ps") if v["target"] == target)


def wait_state(daemon, target: str, state: str, seconds: float = 20) -> None:
    def has_state():
        return [layer["state"] for layer in layers_of(daemon, target)] == [state]

    wait_until(has_state, seconds=seconds, what=f"the layer is {state}")


def check_all(agent, tag: Tag, target: str) -> None:
    for name, data in tag.files.items():
        digest = agent.ask("digest", path=f"{target}/{name}")
        assert f"sha256:{digest}" == sha256(data), name


def mount_first(daemon, proxy, tag: Tag, how: str) -> None:
    """Brings the first tag here: completed in the background, or pulled plainly."""
    reference = proxy.reference(tag.name)
    if how == "pulled":
        daemon.run("pull", reference)
    else:
        target = daemon.target("first")
        daemon.run("mount", reference, target)
        wait_state(daemon, target, "complete")


@pytest.mark.parametrize(
    ("format_", "how"), [("estargz", "completed"), ("zstd:chunked", "pulled"), ("podman", "pulled")]
)
def test_second_tag_fetches_a_fraction_and_needs_no_network_then(
    daemon, agent, proxy, tags, format_, how
):
    first, second = tags(format_, 1), tags(format_, 2)
    mount_first(daemon, proxy, first, how)
    before = len(proxy.seen)
    reference, target = proxy.reference(second.name), daemon.target("second")
    daemon.run("mount", reference, target)
    wait_state(daemon, target, "here")
    fetched = proxy.blob_bytes(since=before)
    assert fetched <= MOST * second.layer.size, fetched / second.layer.size
    proxy.down()
    attributes = agent.ask("stat_tree", path=target)
    check_all(agent, second, target)
    (layer,) = layers_of(daemon, target)
    assert layer["present"] == layer["size"]
    assert layer["reason"] == ""
    saved = daemon.json("df")
    assert saved["copied_bytes"] >= 0.85 * second.layer.size
    assert saved["copied_spans"] > 150

    daemon.terminate()
    daemon.start()
    assert [layer["state"] for layer in layers_of(daemon, target)] == ["here"]
    assert agent.ask("stat_tree", path=target) == attributes
    check_all(agent, second, target)
    assert daemon.json("df")["copied_bytes"] == saved["copied_bytes"]
    assert daemon.json("scrub", reference)["faults"] == []


@pytest.fixture
def slow(short_path):
    """A daemon that copies slowly."""
    require_fuse()
    imgvol = Imgvol(short_path, limits={**QUICK, "COPY_BATCH_SPANS": 10}, prelude=SLOWLY)
    imgvol.start()
    yield imgvol
    imgvol.terminate()
    assert imgvol.unexpected_log() == []


@pytest.fixture
def daemon(short_path):
    require_fuse()
    with running_daemon(short_path, **QUICK) as imgvol:
        yield imgvol


def wait_copying(daemon, target: str) -> None:
    """Until a part has been copied; there is more."""
    wait_until(lambda: layers_of(daemon, target)[0]["present"] > 1_000_000, what="copies")
    assert layers_of(daemon, target)[0]["state"] == "lazy"


def test_reader_is_served_what_has_not_been_copied_yet(slow, agent, proxy, tags):
    first, second = tags("zstd:chunked", 1), tags("zstd:chunked", 2)
    mount_first(slow, proxy, first, "pulled")
    before, target = len(proxy.seen), slow.target("second")
    slow.run("mount", proxy.reference(second.name), target)
    # Each is read before its turn has come, and none is asked for elsewhere.
    check_all(agent, second, target)
    wait_state(slow, target, "here")
    assert proxy.blob_bytes(since=before) <= MOST * second.layer.size


def test_first_image_is_removed_while_it_is_copied_from(slow, agent, proxy, tags):
    first, second = tags("estargz", 1), tags("estargz", 2)
    mount_first(slow, proxy, first, "pulled")
    before, target = len(proxy.seen), slow.target("second")
    slow.run("mount", proxy.reference(second.name), target)
    wait_copying(slow, target)
    slow.run("rmi", proxy.reference(first.name))
    kept = slow.root / "layers" / first.hex
    plan = slow.json("gc", "--dry-run")
    (reasons,) = [thing["reasons"] for thing in plan if first.hex in thing["digest"]]
    assert [reason["kind"] for reason in reasons] == ["copy"]
    wait_state(slow, target, "here")
    assert proxy.blob_bytes(since=before) <= MOST * second.layer.size
    slow.run("gc")
    assert not kept.exists()
    proxy.down()
    check_all(agent, second, target)


@pytest.mark.fault("F01")
def test_daemon_killed_while_it_copies_goes_on_where_it_was(slow, agent, proxy, tags):
    first, second = tags("zstd:chunked", 1), tags("zstd:chunked", 2)
    mount_first(slow, proxy, first, "pulled")
    before, target = len(proxy.seen), slow.target("second")
    slow.run("mount", proxy.reference(second.name), target)
    wait_copying(slow, target)
    slow.kill()
    slow.start()
    wait_state(slow, target, "here")
    assert proxy.blob_bytes(since=before) <= MOST * second.layer.size
    proxy.down()
    check_all(agent, second, target)
    assert slow.json("fsck")["wrong"] == []
    assert slow.json("scrub")["faults"] == []


@pytest.mark.fault("F27")
def test_damaged_bytes_are_not_copied_and_told(daemon, agent, proxy, tags):
    first, second = tags("estargz", 1), tags("estargz", 2)
    mount_first(daemon, proxy, first, "completed")
    data = daemon.root / "layers" / first.hex / "data"
    data.write_bytes(bytes(byte ^ 0x55 for byte in data.read_bytes()))
    daemon.expected_log.append(f"layer sha256:{first.hex} is damaged")
    target = daemon.target("second")
    daemon.run("mount", proxy.reference(second.name), target)
    check_all(agent, second, target)
    wait_state(daemon, target, "here")
    check_all(agent, second, target)
    # What has a file of its own was whole.
    assert LARGE <= daemon.json("df")["copied_bytes"] < 1.2 * LARGE
    assert daemon.unexpected_log() == []
    assert "is damaged" in daemon.log_end()


def test_pull_proves_what_was_copied(daemon, agent, proxy, tags):
    first, second = tags("podman", 1), tags("podman", 2)
    mount_first(daemon, proxy, first, "pulled")
    reference, target = proxy.reference(second.name), daemon.target("second")
    daemon.run("mount", reference, target)
    wait_state(daemon, target, "here")
    attributes = agent.ask("stat_tree", path=target)
    before = len(proxy.seen)
    daemon.run("pull", reference)
    assert proxy.blob_bytes(since=before) >= second.layer.size
    assert [layer["state"] for layer in layers_of(daemon, target)] == ["complete"]
    proxy.down()
    assert agent.ask("stat_tree", path=target) == attributes
    check_all(agent, second, target)


def test_same_tar_in_another_compression_is_not_fetched(daemon, agent, proxy, registry, tmp_path):
    entries = content(1)
    one, two = (
        Image([Layer(entries, "gzip")]),
        Image([Layer(entries, "zstd")], config={"User": "x"}),
    )
    layout = write_layout(tmp_path / "layout", {"gzip": one, "zstd": two})
    for tag in ("gzip", "zstd"):
        push(layout, tag, registry.reference(f"copies/twins:{tag}"))
    daemon.run("pull", proxy.reference("copies/twins:gzip"))
    before, target = len(proxy.seen), daemon.target("mnt")
    daemon.run("mount", "--verify=full", proxy.reference("copies/twins:zstd"), target)
    assert proxy.blob_bytes(since=before) == len(two.config_bytes())
    daemon.run("rmi", proxy.reference("copies/twins:gzip"))
    daemon.run("gc")
    proxy.down()
    files = {entry.name: entry.content for entry in entries if entry.type == b"0"}
    check_all(agent, Tag("", two.layers[0], files), target)
    assert daemon.json("df")["shared_bytes"] == two.layers[0].size
    daemon.terminate()
    daemon.start()
    check_all(agent, Tag("", two.layers[0], files), target)
