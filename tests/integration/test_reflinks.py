"""A second tag on a filesystem that shares blocks: what is the same takes its space once."""

import fcntl
import os
import random
import shutil

import pytest

from imgvol.content.copy_sources import Candidate
from support.copying import Machine, check_content, files_of, fill, noise, present_files
from support.daemon import running_daemon
from support.images import TIME, Image, directory, file, push, sha256, tar_bytes, write_layout
from support.lazy_images import lazy_layer
from support.metrics import scrape
from support.programs import require_fuse, wait_until
from support.reflink import shared_size, used, xfs

WHEN = TIME // 10**9 * 10**9
# Complete layers have files of their own for the large ones; lazy ones share the medium, too.
LARGE, MEDIUM, SMALL = (4, 2_500_000), (20, 150_000), (40, 4000)
LARGE_SIZE, MEDIUM_SIZE, SMALL_SIZE = (count * size for count, size in (LARGE, MEDIUM, SMALL))
SIZE = LARGE_SIZE + MEDIUM_SIZE + SMALL_SIZE
QUICK = {"FETCH_QUIET": 0.1, "FETCH_FLUSH": 0.1}


def content(release: int):
    """Between two releases a medium file differs, and everything lies elsewhere."""
    shared, own = random.Random(1), random.Random(100 + release)
    entries = [directory("a", mtime_ns=WHEN)]
    entries.append(file("a/release", own.randbytes(1000 + 700 * release), mtime_ns=WHEN))
    for number, (count, size) in enumerate((SMALL, MEDIUM, LARGE)):
        for place in range(count):
            data = shared.randbytes(size)
            if number == 1 and place == release:
                data = own.randbytes(size)
            entries.append(file(f"a/{number}-{place}", data, mtime_ns=WHEN))
    return entries


@pytest.fixture(scope="module")
def tag(registry, tmp_path_factory):
    """Pushes a release in a format: its name, its layer, its files."""
    made = {}

    def get(format_: str, release: int):
        if (format_, release) not in made:
            where = tmp_path_factory.mktemp("reflinks")
            entries = content(release)
            layer = lazy_layer(where, tar_bytes(entries), format_)
            name = f"reflinks/{format_.replace(':', '-')}:{release}"
            layout = write_layout(where / "image", {"x": Image([layer])})
            push(layout, "x", registry.reference(name))
            files = {entry.name: entry.content for entry in entries if entry.type == b"0"}
            made[format_, release] = name, layer, files
        return made[format_, release]

    return get


def mount(daemon, proxy, tag, target: str, state: str) -> int:
    """Mounts a tag, waits for a state of its layer, and returns what the store took for that."""
    before = used(daemon.root)
    path = daemon.target(target)
    daemon.run("mount", proxy.reference(tag[0]), path)

    def has_state():
        (layers,) = [view["layers"] for view in daemon.json("ps") if view["target"] == path]
        return [layer["state"] for layer in layers] == [state]

    wait_until(has_state, seconds=60, what=f"the layer is {state}")
    return used(daemon.root) - before


def check_all(agent, tag, target) -> None:
    for name, data in tag[2].items():
        digest = agent.ask("digest", path=f"{target}/{name}")
        assert f"sha256:{digest}" == sha256(data), name


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.parametrize(
    ("format_", "share"),
    # podman cuts files into small chunks, some below what is shared; of each the ends are written.
    [("estargz", 0.95), ("podman", 0.75), ("estargz", 0)],
)
def test_second_and_third_tag_take_the_space_of_what_is_new(
    short_path, agent, proxy, tag, format_, share
):
    require_fuse()
    with xfs(short_path, reflink=share > 0) as root:
        root.chmod(0o755)
        check_tags(root, agent, proxy, [tag(format_, n) for n in (1, 2, 3)], share)


def check_tags(root, agent, proxy, tags, share: float) -> None:
    first, second, third = tags
    with running_daemon(root, **QUICK) as daemon:
        mount(daemon, proxy, first, "first", "complete")
        # From a complete layer: its large files.
        taken = mount(daemon, proxy, second, "second", "here")
        cloned = daemon.json("df")["cloned_bytes"]
        data = daemon.root / "lazy" / second[1].digest.partition(":")[2] / "data"
        if share:
            assert share * LARGE_SIZE < cloned < SIZE
            assert shared_size(data) == cloned
            assert taken < SIZE - share * LARGE_SIZE + 0.1 * SIZE
        else:
            assert (cloned, shared_size(data)) == (0, 0)
            assert taken > 0.95 * SIZE
        # From a lazy one: the medium ones, too.
        taken = mount(daemon, proxy, third, "third", "here")
        more = daemon.json("df")["cloned_bytes"] - cloned
        data = daemon.root / "lazy" / third[1].digest.partition(":")[2] / "data"
        if share:
            assert share * (SIZE - SMALL_SIZE - 2 * MEDIUM[1]) * 0.98 < more < SIZE
            assert shared_size(data) >= more
            assert taken < (1 - share) * SIZE + 0.1 * SIZE
        else:
            assert (more, shared_size(data)) == (0, 0)
            assert taken > 0.95 * SIZE
        scraped = scrape(daemon.run_dir / "imgvol.sock")
        assert scraped["imgvol_cloned_bytes_total"] == cloned + more
        proxy.down()
        for which, target in ((first, "first"), (second, "second"), (third, "third")):
            check_all(agent, which, daemon.base / target)
        assert daemon.json("scrub")["faults"] == []
        # The others keep what they share with those that go.
        daemon.run("unmount", daemon.base / "first")
        daemon.run("rmi", proxy.reference(first[0]))
        daemon.run("gc")
        daemon.terminate()
        daemon.start()
        for which, target in ((second, "second"), (third, "third")):
            check_all(agent, which, daemon.base / target)
        assert daemon.json("df")["cloned_bytes"] == cloned + more


# --- what happens between the look and the copy --------------------------------------------------

OLD = [file("a", noise(0, 3000)), file("medium", noise(10_000, 150_000))]
OLD.append(file("large", noise(200_000, 1_300_000)))
NEW = [file("before", noise(50, 777)), *OLD]


@pytest.fixture
def machine(short_path):
    with xfs(short_path) as root:
        yield Machine(root)


def own_file(machine, source):
    (path,) = (machine.layout.layer(source.record.digest) / "files").iterdir()
    return path


@pytest.mark.root
def test_source_changed_between_plan_and_clone_is_refused(machine):
    source = machine.store("old", OLD)
    layer = machine.lazy("new", NEW)
    plan = machine.plan(layer, source)
    path = own_file(machine, source)
    changed = bytearray(path.read_bytes())
    changed[600_000:600_001] = bytes([changed[600_000] ^ 1])
    path.write_bytes(changed)
    counts = plan.copy(plan.spans)
    assert counts.unlike == 1
    assert counts.cloned > 1_000_000
    node = dict(files_of(layer.index))[b"large"]
    assert layer.has(node, 0, 600_000)
    assert not layer.has(node, 600_000, 1)
    check_content(layer, NEW)
    fill(layer, NEW, is_kept=False)
    assert len(present_files(layer)) == len(NEW)
    check_content(layer, NEW)
    assert path.read_bytes() == changed, "what was fetched is written beside it"


@pytest.mark.root
def test_source_changed_in_the_moment_of_the_clone_is_refused(machine, monkeypatch):
    source = machine.store("old", OLD)
    layer = machine.lazy("new", NEW)
    plan = machine.plan(layer, source)
    path, ioctl = own_file(machine, source), fcntl.ioctl

    def late(*arguments):
        with open(path, "r+b") as stream:
            stream.write(bytes(1_300_000))
        return ioctl(*arguments)

    monkeypatch.setattr(fcntl, "ioctl", late)
    counts = plan.copy(plan.spans)
    assert counts.unlike
    assert "large" not in present_files(layer)
    check_content(layer, NEW)


@pytest.mark.root
def test_each_side_may_change_afterwards_and_the_other_does_not(machine):
    old = machine.lazy("old", OLD)
    fill(old, OLD, is_kept=False)
    layer = machine.lazy("new", NEW)
    plan = machine.plan(layer, Candidate(old.record, None, old))
    assert plan.copy(plan.spans).cloned > 1_000_000
    ours, theirs = layer.directory / "data", old.directory / "data"
    content = ours.read_bytes(), theirs.read_bytes()
    # What is fetched meanwhile shares the blocks at the ends.
    fill(layer, NEW, is_kept=False)
    assert theirs.read_bytes() == content[1]
    theirs.write_bytes(bytes(len(content[1])))
    check_content(layer, NEW)
    assert len(present_files(layer)) == len(NEW)
    layer.reclaimer.give_back([window for window, _, _ in layer.reclaimer.windows()])
    assert not present_files(layer)


@pytest.mark.root
def test_between_two_filesystems_it_is_written(machine, tmp_path):
    source = machine.store("old", OLD)
    files = machine.layout.layer(source.record.digest) / "files"
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(files, elsewhere)
    shutil.rmtree(files)
    files.symlink_to(elsewhere)
    assert os.stat(elsewhere).st_dev != os.stat(machine.layout.root).st_dev
    layer = machine.lazy("new", NEW)
    plan = machine.plan(layer, source)
    assert plan.copy(plan.spans).cloned == 0
    assert "large" in present_files(layer)
    check_content(layer, NEW)
