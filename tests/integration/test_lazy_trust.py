"""Lazy images that turn out not to be what they had promised: shown once, and never again."""

import os

import pytest

from support import images
from support.images import Image, push, sha256, write_layout
from support.programs import wait_until
from support.stargz import TIME, Stargz

pytestmark = pytest.mark.servers

CONTENT = bytes(range(256)) * 1000


def stargz() -> Stargz:
    entries = [
        images.directory("etc", mtime_ns=TIME),
        images.file("etc/file", CONTENT, mode=0o600, mtime_ns=TIME),
    ]
    return Stargz(entries, chunk=50_000)


def publish(registry, directory, name, layer) -> str:
    reference = registry.reference(f"trust/{name}:1")
    push(write_layout(directory / name, {"x": Image([layer])}), "x", reference)
    return reference


def wait_until_bad(daemon):
    wait_until(lambda: "bad" in states(daemon), seconds=20, what="the layer to be found bad")


def states(daemon) -> list[str]:
    return [layer["state"] for volume in daemon.json("ps") for layer in volume["layers"]]


def assert_refused(daemon, reference, target, reason):
    done = daemon.run("mount", reference, target, check=False)
    assert done.returncode != 0
    assert reason in done.stderr
    assert not os.path.ismount(target)


def test_wrong_diff_id_is_shown_once_and_then_refused_until_a_good_pull(
    daemon, agent, registry, tmp_path
):
    daemon.expected_log += ["is bad, its readers get errors", "read: ", "cannot mount .* again"]
    layer = stargz().layer()
    layer.diff_id = sha256(b"claimed")
    reference = publish(registry, tmp_path, "diff-id", layer)
    target, second = daemon.target("mnt"), daemon.target("second")
    daemon.run("mount", reference, target)
    wait_until_bad(daemon)
    assert agent.errno_of("content", path=f"{target}/etc/file") == "EIO"
    why = "layer's content does not match its diff ID"
    assert_refused(daemon, reference, second, why)

    daemon.terminate()
    daemon.start()
    assert daemon.json("ps") == []
    assert_refused(daemon, reference, target, why)
    (shown,) = daemon.json("inspect", reference)["image"]["layers"]
    assert shown["fault"]["kind"] == "diff-id"
    assert "bad" in daemon.run("inspect", reference).stdout

    # Whoever asks for more gets the same answer from the registry's own bytes.
    for arguments in (["pull", reference], ["mount", "--verify=full", reference, target]):
        done = daemon.run(*arguments, check=False)
        assert done.returncode != 0
        assert why in done.stderr
    assert daemon.json("ps") == []
    assert_refused(daemon, reference, target, why)

    # Another image tells the truth about the same blob: with its pull the layer is good.
    layer.diff_id = sha256(layer.tar)
    honest = publish(registry, tmp_path, "honest", layer)
    daemon.run("mount", honest, target)
    assert agent.ask_bytes("content", path=f"{target}/etc/file") == CONTENT
    assert states(daemon) == ["complete"]


def test_table_of_contents_that_lied_is_followed_by_the_tar(daemon, agent, registry, tmp_path):
    daemon.expected_log += ["is bad, its readers get errors", "read: "]
    lying = stargz()
    lying.entry("etc/file")["mode"] = 0o4755
    reference = publish(registry, tmp_path, "toc", lying.layer())
    target, second = daemon.target("mnt"), daemon.target("second")
    daemon.run("mount", reference, target)
    wait_until_bad(daemon)

    # The deceived view is still mounted, and the kernel remembers its inodes.
    inode = agent.ask("stat", path=f"{target}/etc/file")["st_ino"]
    daemon.run("mount", reference, second)
    status = agent.ask("stat", path=f"{second}/etc/file")
    assert status["st_mode"] & 0o7777 == 0o600
    assert status["st_ino"] != inode
    assert agent.ask_bytes("content", path=f"{second}/etc/file") == CONTENT
    assert agent.errno_of("content", path=f"{target}/etc/file") == "EIO"
    assert sorted(states(daemon)) == ["bad", "complete"]

    daemon.run("unmount", target)
    daemon.terminate()
    daemon.start()
    assert agent.ask("stat", path=f"{second}/etc/file")["st_mode"] & 0o7777 == 0o600
    assert agent.ask_bytes("content", path=f"{second}/etc/file") == CONTENT
