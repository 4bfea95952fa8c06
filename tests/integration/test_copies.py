"""A second tag of an image: what the node has already is copied, and not fetched again."""

import random
from dataclasses import dataclass

import pytest

from support.images import (
    TIME,
    Entry,
    Image,
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
from support.programs import wait_until

pytestmark = pytest.mark.servers

WHEN = TIME // 10**9 * 10**9
FILES = 200
LARGE = 2_500_000


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


@pytest.mark.parametrize("how", ["completed", "pulled"])
@pytest.mark.parametrize("format_", ["estargz", "zstd:chunked", "podman"])
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
    assert fetched <= 0.15 * second.layer.size, fetched / second.layer.size
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
