"""Images that are mounted and read while they are pulled, over a slow line."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.daemon import Imgvol, running_daemon
from support.images import (
    Image,
    Layer,
    directory,
    file,
    opaque,
    push,
    sha256,
    whiteout,
    write_layout,
)
from support.programs import require_fuse, stop, wait_until

pytestmark = [pytest.mark.servers, pytest.mark.fuse]

MIB = 1 << 20
KERNEL = ("--transport", "kernel")
RATE = 1 * MIB
# The registry's client gives up sooner.
IMPATIENT = {"RETRIES": 1, "CONNECT_RETRIES": 0, "RETRY_FIRST_DELAY": 0.1, "RETRY_DELAY": 0.2}


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


BIG = noise(3 * MIB)
LAYERS = {
    "base": [
        directory("etc"),
        file("etc/early", b"below"),
        file("etc/hidden", b"hidden"),
        directory("gone"),
        file("gone/file", b"gone"),
        file("filler", noise(MIB, 1)),
        file("etc/late", b"late"),
    ],
    "top": [
        directory("etc"),
        file("etc/first", b"first"),
        directory("data"),
        file("data/big", BIG),
        whiteout("etc/hidden"),
        directory("gone"),
        opaque("gone"),
        file("gone/new", b"new"),
        file("etc/last", b"last"),
    ],
}


@pytest.fixture(scope="module")
def image(registry, tmp_path_factory):
    """Two layers, the upper one of which takes three seconds at RATE."""
    made = Image([Layer(LAYERS["base"], "gzip"), Layer(LAYERS["top"], "gzip")])
    layout = write_layout(tmp_path_factory.mktemp("streams"), {"v1": made})
    push(layout, "v1", registry.reference("streams:v1"))
    return made


@pytest.fixture
def daemon(short_path):
    require_fuse()
    with running_daemon(short_path, *KERNEL) as running:
        yield running


def mount(daemon, proxy, target, *options):
    return daemon.run("mount", "--verify=stream", *options, proxy.reference("streams:v1"), target)


def layers_of(daemon):
    (volume,) = daemon.json("ps")
    return [layer["state"] for layer in volume["layers"]]


def wait_whole(daemon):
    """Until the image is here, and the volume is recorded as one of it, which comes after."""

    def is_whole():
        (volume,) = daemon.json("ps")
        states = [layer["state"] for layer in volume["layers"]]
        return states == ["complete"] * 2 and volume["image_id"]

    wait_until(is_whole, seconds=60, what="the image to be here")


def mount_at_once(daemon, proxy, target):
    return daemon.run("mount", "--wait=manifest", proxy.reference("streams:v1"), target)


def names(agent, path):
    return sorted(name for name, _ in agent.ask("list", path=path, deadline=60))


def ingested(daemon):
    return [path for path in (daemon.root / "ingest").rglob("*") if path.is_file()]


def stored(daemon):
    return list((daemon.root / "layers").iterdir())


@contextlib.contextmanager
def asking(path, how="os.lstat"):
    """A process that asks for a name, or for a listing, and exits when it has an answer."""
    program = f"import os, sys; {how}(sys.argv[1])"
    process = subprocess.Popen(
        [sys.executable, "-c", program, path], cwd="/", stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: "request_wait" in wchan(process.pid), what="it to wait")
        yield process
    finally:
        stop(process)


def wchan(pid):
    return Path(f"/proc/{pid}/wchan").read_text()


def test_a_file_early_in_its_layer_is_read_long_before_the_pull_is_done(
    daemon, proxy, image, agent
):
    line = proxy.throttle(RATE, shared=True)
    target = daemon.target("mnt")
    began = time.monotonic()
    mount(daemon, proxy, target)
    assert agent.ask_bytes("content", path=f"{target}/etc/first") == b"first"
    early = time.monotonic() - began
    assert "streaming" in layers_of(daemon)
    assert line.fired
    inode = agent.ask("stat", path=f"{target}/etc/first")["st_ino"]
    assert agent.ask_bytes("content", path=f"{target}/data/big") == BIG
    assert names(agent, f"{target}/etc") == ["early", "first", "last", "late"]
    wait_whole(daemon)
    assert early < (time.monotonic() - began) / 2
    assert agent.ask("stat", path=f"{target}/etc/first")["st_ino"] == inode
    assert names(agent, f"{target}/gone") == ["new"]
    assert agent.errno_of("stat", path=f"{target}/etc/hidden") == "ENOENT"
    assert agent.ask_bytes("content", path=f"{target}/etc/early") == b"below"
    (shown,) = daemon.json("ps")
    assert shown["state"] == "mounted"
    assert shown["image_id"]
    daemon.run("unmount", target)


def test_names_of_lower_layers_wait_for_those_above(daemon, proxy, image, agent):
    """One of them is hidden, by a whiteout that comes behind all else."""
    line = proxy.stall_blob_after(image.layers[1].digest, 2 * MIB)
    target = daemon.target("mnt")
    mount(daemon, proxy, target)
    assert agent.ask_bytes("content", path=f"{target}/etc/first") == b"first"
    with (
        asking(f"{target}/etc/hidden") as hidden,
        asking(f"{target}/etc/early") as early,
        asking(f"{target}/etc", "os.listdir") as listing,
    ):
        wait_until(lambda: line.fired, what="the line to stall")
        assert [process.poll() for process in (hidden, early, listing)] == [None] * 3
        line.lift()
        assert early.wait(60) == listing.wait(60) == 0
        assert hidden.wait(60) == 1, "there is no such file"
    wait_whole(daemon)
    daemon.run("unmount", target)


def test_what_an_upper_layer_makes_opaque_is_listed_while_the_lower_one_comes(
    daemon, proxy, image, agent
):
    line = proxy.stall_blob_after(image.layers[0].digest, MIB // 2)
    target = daemon.target("mnt")
    mount(daemon, proxy, target)
    assert names(agent, f"{target}/gone") == ["new"]
    assert agent.ask_bytes("content", path=f"{target}/gone/new") == b"new"
    with asking(f"{target}/etc", "os.listdir") as listing:
        wait_until(lambda: line.fired, what="the line to stall")
        assert listing.poll() is None
        line.lift()
        assert listing.wait(60) == 0
    wait_whole(daemon)
    assert names(agent, f"{target}/gone") == ["new"]
    daemon.run("unmount", target)


def test_of_an_image_that_is_not_trusted_whole_layers_are_shown_as_they_come(
    daemon, proxy, image, agent
):
    """`early` has come when the line stalls, and nobody is told before its layer is verified."""
    line = proxy.stall_blob_after(image.layers[0].digest, MIB // 2)
    target = daemon.target("mnt")
    mount_at_once(daemon, proxy, target)
    assert agent.ask_bytes("content", path=f"{target}/data/big") == BIG
    assert agent.ask_bytes("content", path=f"{target}/etc/first") == b"first"
    assert names(agent, f"{target}/gone") == ["new"]
    inode = agent.ask("stat", path=f"{target}/etc/first")["st_ino"]
    with asking(f"{target}/etc/early") as early:
        wait_until(lambda: line.fired, what="the line to stall")
        wait_until(lambda: "request_wait" in wchan(early.pid), what="it to wait")
        time.sleep(1)  # the file's bytes are in the ingest directory by now
        assert early.poll() is None
        line.lift()
        assert early.wait(60) == 0
    wait_whole(daemon)
    assert agent.ask_bytes("content", path=f"{target}/etc/early") == b"below"
    assert agent.ask("stat", path=f"{target}/etc/first")["st_ino"] == inode
    daemon.run("unmount", target)


def test_who_wants_the_whole_index_gets_it_before_anything_is_shown(daemon, proxy, image):
    line = proxy.throttle(RATE, shared=True)
    target = daemon.target("mnt")
    mount(daemon, proxy, target, "--wait=index")
    assert line.fired
    assert layers_of(daemon) == ["complete"] * 2
    assert daemon.json("images")
    daemon.run("unmount", target)


@pytest.mark.fault("F81")
def test_who_waits_for_a_name_or_a_listing_can_be_killed(daemon, proxy, image):
    line = proxy.stall_blob_after(image.layers[1].digest, MIB)
    target = daemon.target("mnt")
    mount(daemon, proxy, target)
    wait_until(lambda: line.fired, what="the line to stall")
    with asking(f"{target}/etc/early") as name, asking(f"{target}/etc", "os.listdir") as listing:
        for process in (name, listing):
            process.kill()
            assert process.wait(5) == -signal.SIGKILL
    line.lift()
    wait_whole(daemon)
    daemon.run("unmount", target)


def test_another_mount_while_it_is_pulled_shows_nothing_unverified(daemon, proxy, image, agent):
    line = proxy.stall_blob_after(image.layers[1].digest, MIB)
    first, second = daemon.target("first"), daemon.target("second")
    mount(daemon, proxy, first)
    wait_until(lambda: line.fired, what="the line to stall")
    command = [*daemon.command, "mount", proxy.reference("streams:v1"), second]
    other = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        assert agent.ask_bytes("content", path=f"{first}/etc/first") == b"first"
        assert other.poll() is None
        line.lift()
        assert other.wait(60) == 0
    finally:
        stop(other)
    one, two = (agent.ask("stat", path=f"{path}/etc/first") for path in (first, second))
    assert one["st_ino"] != two["st_ino"]
    daemon.run("unmount", first)
    daemon.run("unmount", second)


def test_an_unmounted_volume_ends_its_pull(daemon, proxy, image):
    line = proxy.stall_blob_after(image.layers[1].digest, MIB)
    target = daemon.target("mnt")
    mount(daemon, proxy, target)
    wait_until(lambda: line.fired, what="the line to stall")
    daemon.run("unmount", target)
    wait_until(lambda: not ingested(daemon), what="the pull to end")
    assert daemon.json("images") == []


@pytest.mark.parametrize("spoiled", ["blob", "diff ID"])
def test_a_digest_that_is_wrong_in_the_end_poisons_the_view(
    short_path, registry, proxy, agent, tmp_path, spoiled
):
    require_fuse()
    layer = Layer([file("first", b"first"), file("big", noise(2 * MIB, spoiled))], "none")
    if spoiled == "diff ID":
        layer.diff_id = sha256(b"another")
    name = f"streams-{spoiled.replace(' ', '-').lower()}:v1"
    push(write_layout(tmp_path, {"v1": Image([layer])}), "v1", registry.reference(name))
    if spoiled == "blob":
        path = registry.blob_path(layer.digest)
        path.write_bytes(layer.blob[:-2000] + b"\1" + layer.blob[-1999:])
    line = proxy.stall_blob_after(layer.digest, MIB)
    with running_daemon(short_path, *KERNEL) as daemon:
        daemon.expected_log = ["has not come as a whole", "does not match"]
        target = daemon.target("mnt")
        daemon.run("mount", "--verify=stream", proxy.reference(name), target)
        held = agent.ask("open", path=f"{target}/first")
        assert agent.ask_bytes("pread", fd=held, size=10, offset=0) == b"first"
        wait_until(lambda: line.fired, what="the line to stall")
        line.lift()
        wait_until(lambda: daemon.json("ps")[0]["reason"], seconds=60, what="the view to fail")
        (volume,) = daemon.json("ps")
        assert "does not match" in volume["reason"]
        assert [each["state"] for each in volume["layers"]] == ["bad"]
        assert agent.errno_of("content", path=f"{target}/first") == "EIO"
        assert agent.errno_of("list", path=target) == "EIO"
        assert agent.errno_of("pread", fd=held, size=10, offset=0) == "EIO"
        agent.ask("close", fd=held)
        assert daemon.json("images") == []
        assert ingested(daemon) == stored(daemon) == []
        daemon.run("unmount", target)


def test_of_an_image_that_is_not_trusted_nothing_bad_is_ever_shown(
    short_path, registry, proxy, agent, tmp_path
):
    require_fuse()
    layer = Layer([file("first", b"first"), file("big", noise(2 * MIB, 8))], "none")
    push(write_layout(tmp_path, {"v1": Image([layer])}), "v1", registry.reference("bad:v1"))
    path = registry.blob_path(layer.digest)
    path.write_bytes(layer.blob[:-2000] + b"\1" + layer.blob[-1999:])
    line = proxy.stall_blob_after(layer.digest, MIB)
    with running_daemon(short_path, *KERNEL) as daemon:
        daemon.expected_log = ["has not come as a whole", "does not match"]
        target = daemon.target("mnt")
        daemon.run("mount", "--wait=manifest", proxy.reference("bad:v1"), target)
        with asking(f"{target}/first") as first:
            wait_until(lambda: line.fired, what="the line to stall")
            assert first.poll() is None
            line.lift()
            assert first.wait(60) == 1, "an error, not the file"
        assert agent.errno_of("content", path=f"{target}/first") == "EIO"
        assert "does not match" in daemon.json("ps")[0]["reason"]
        daemon.run("unmount", target)


def test_an_archive_that_has_a_name_twice_poisons_the_view_of_whoever_saw_the_first(
    short_path, registry, proxy, agent, tmp_path
):
    require_fuse()
    entries = [file("name", b"first"), file("big", noise(2 * MIB, 9)), file("name", b"the second")]
    layer = Layer(entries, "gzip")
    push(write_layout(tmp_path, {"v1": Image([layer])}), "v1", registry.reference("twice:v1"))
    line = proxy.stall_blob_after(layer.digest, MIB)
    with running_daemon(short_path, *KERNEL) as daemon:
        daemon.expected_log = ["says something else"]
        target = daemon.target("mnt")
        daemon.run("mount", "--verify=stream", proxy.reference("twice:v1"), target)
        assert agent.ask_bytes("content", path=f"{target}/name") == b"first"
        wait_until(lambda: line.fired, what="the line to stall")
        line.lift()
        wait_until(lambda: daemon.json("ps")[0]["reason"], seconds=60, what="the view to fail")
        assert "says something else" in daemon.json("ps")[0]["reason"]
        assert agent.errno_of("content", path=f"{target}/name") == "EIO"
        daemon.run("unmount", target)
        daemon.run("mount", proxy.reference("twice:v1"), target)
        assert agent.ask_bytes("content", path=f"{target}/name") == b"the second"
        daemon.run("unmount", target)


def test_a_registry_that_dies_in_the_middle_fails_those_who_wait(short_path, proxy, image, agent):
    require_fuse()
    line = proxy.stall_blob_after(image.layers[1].digest, MIB)
    with running_daemon(short_path, *KERNEL, **IMPATIENT) as daemon:
        daemon.expected_log = ["has not come as a whole"]
        target = daemon.target("mnt")
        mount(daemon, proxy, target)
        wait_until(lambda: line.fired, what="the line to stall")
        with asking(f"{target}/etc/last") as waiting:
            proxy.down()
            assert waiting.wait(60) == 1
        assert agent.errno_of("stat", path=f"{target}/etc/last") == "EIO"
        wait_until(lambda: daemon.json("ps")[0]["reason"], what="ps to say so")
        daemon.run("unmount", target)
        proxy.up()
        line.lift()
        mount(daemon, proxy, target)
        assert agent.ask_bytes("content", path=f"{target}/etc/last") == b"last"
        daemon.run("unmount", target)


def test_a_layer_that_the_registry_has_lost_is_no_missing_name(daemon, proxy, image, agent):
    daemon.expected_log = ["has not come as a whole"]
    line = proxy.stall_blob_after(image.layers[1].digest, 0)
    lost = proxy.refuse_blob(image.layers[0].digest, 404)
    target = daemon.target("mnt")
    mount(daemon, proxy, target)
    wait_until(lambda: daemon.json("ps")[0]["reason"], what="ps to say so")
    assert lost.fired
    assert agent.errno_of("stat", path=f"{target}/etc/last") == "EIO"
    daemon.run("unmount", target)
    line.lift()


@pytest.mark.fault("F01")
@pytest.mark.parametrize("is_whole", [False, True], ids=["pulled in part", "whole"])
def test_a_daemon_that_was_killed_forgets_what_had_not_come(
    short_path, proxy, image, agent, is_whole
):
    require_fuse()
    line = None if is_whole else proxy.stall_blob_after(image.layers[1].digest, MIB)
    daemon = Imgvol(short_path, options=KERNEL, supervisor=False)
    daemon.start()
    try:
        target = daemon.target("mnt")
        mount(daemon, proxy, target)
        if line is None:
            wait_whole(daemon)
        else:
            wait_until(lambda: line.fired, what="the line to stall")
        daemon.process.kill()
        daemon.process.wait(10)
        if line is not None:
            line.lift()
        daemon.start()
        volumes = daemon.json("ps")
        if is_whole:
            assert [volume["state"] for volume in volumes] == ["mounted"]
        else:
            assert volumes == []
            assert ingested(daemon) == []
            assert agent.ask("list", path=target) == []
            mount(daemon, proxy, target)
        assert agent.ask_bytes("content", path=f"{target}/etc/last") == b"last"
        assert names(agent, f"{target}/gone") == ["new"]
        wait_whole(daemon)
        daemon.run("unmount", target)
    except BaseException:
        stop(daemon.process)
        raise
    daemon.terminate()


@pytest.mark.parametrize("lazy_image", ["estargz"], indirect=True)
def test_lazy_layers_stay_lazy(daemon, proxy, lazy_image, agent):
    background = proxy.throttle(20_000, at_least=4 * MIB)
    target = daemon.target("mnt")
    daemon.run("mount", "--verify=stream", proxy.reference(lazy_image.name), target)
    assert layers_of(daemon) == ["lazy"]
    for name, data in lazy_image.files.items():
        if len(data) < MIB:
            digest = agent.ask("digest", path=f"{target}/{name}")
            assert f"sha256:{digest}" == sha256(data), name
    background.lift()
    wait_until(lambda: layers_of(daemon) == ["complete"], seconds=60, what="the layer to be here")
    for name, data in lazy_image.files.items():
        digest = agent.ask("digest", path=f"{target}/{name}")
        assert f"sha256:{digest}" == sha256(data), name
    daemon.run("unmount", target)


def test_what_is_to_be_in_the_store_first_is_not_shown_before(daemon, proxy, image):
    done = daemon.run(
        *("mount", "--verify=stream", "--wait", proxy.reference("streams:v1")), check=False
    )
    assert done.returncode != 0
    assert "not in the store first" in done.stderr
    assert daemon.json("images") == []


def test_with_the_other_transport_it_is_refused(short_path, proxy, image):
    require_fuse()
    with running_daemon(short_path, "--transport", "pyfuse3") as daemon:
        done = daemon.run(
            *("mount", "--verify=stream", proxy.reference("streams:v1"), daemon.target("mnt")),
            check=False,
        )
    assert done.returncode != 0
    assert "kernel transport" in done.stderr


@pytest.mark.fault("F17")
@pytest.mark.parametrize("is_whole", [False, True], ids=["pulled in part", "whole"])
def test_a_worker_that_follows_has_no_half_of_an_image(short_path, proxy, image, agent, is_whole):
    """The kernel still knows the inodes of a view that nobody can open again."""
    require_fuse()
    line = None if is_whole else proxy.stall_blob_after(image.layers[1].digest, MIB)
    options = (*KERNEL, "--supervisor")
    daemon = Imgvol(short_path, options=options, expected_log=["imgvol.supervisor"])
    daemon.start()
    try:
        target = daemon.target("mnt")
        mount(daemon, proxy, target)
        held = agent.ask("open", path=f"{target}/etc/first")
        before = daemon.json("ps")[0]["view"]
        if line is None:
            wait_whole(daemon)
            kill_worker(daemon)
        else:
            with asking(f"{target}/etc/last") as waiting:
                kill_worker(daemon)
                assert waiting.wait(60) == 1
            line.lift()
        wait_until(lambda: restarts_of(daemon) == 1, seconds=30, what="the next worker")
        volumes = daemon.json("ps")
        assert [volume["state"] for volume in volumes] == ["mounted"] * is_whole
        assert before not in [volume["view"] for volume in volumes]
        assert agent.errno_of("pread", fd=held, size=1, offset=MIB) == "ESTALE"
        agent.ask("close", fd=held)
        if not is_whole:
            assert agent.ask("list", path=target) == []
            mount(daemon, proxy, target)
        assert agent.ask_bytes("content", path=f"{target}/etc/last") == b"last"
        daemon.run("unmount", target)
    except BaseException:
        stop(daemon.process)
        raise
    daemon.terminate()


def supervisor_of(daemon):
    return json.loads((daemon.run_dir / "supervisor.json").read_text())


def kill_worker(daemon):
    os.kill(supervisor_of(daemon)["worker"], signal.SIGKILL)


def restarts_of(daemon):
    found = supervisor_of(daemon)
    return found["restarts"] if found["state"] == "ready" else None
