"""Mounts of archives whose layers stay where they are: right bytes, no copy, EIO on a change."""

import os
import subprocess

import pytest

from support import images

pytestmark = pytest.mark.fuse

LARGE = os.urandom(1 << 20) * 6
IMAGE = images.Image(
    [
        images.Layer(
            [
                images.directory("etc"),
                images.file("etc/motd", b"hello"),
                images.file("large", LARGE),
                images.file("second", LARGE[::-1]),
                images.sparse("sparse", 5_000_000, [(4096, b"x" * 600), (3_000_000, b"y" * 9)]),
            ],
            "none",
        ),
        images.Layer([images.file("etc/more", b"more"), images.whiteout("etc/motd")], "none"),
    ]
)
OTHER = images.Image(
    [
        images.Layer(
            [
                images.directory("etc"),
                images.file("etc/motd", b"HELLO"),
                images.file("large", bytes(len(LARGE))),
                images.file("second", bytes(len(LARGE))),
            ],
            "none",
        )
    ]
)
WRITERS = {
    "docker-archive": lambda path, image: images.write_docker_archive(path, image, "app:v1"),
    "oci-archive": lambda path, image: images.write_oci_archive(path, {"v1": image}),
}


@pytest.fixture(params=WRITERS)
def kind(request):
    return request.param


@pytest.fixture
def archive(kind, short_path):
    return WRITERS[kind](short_path / "image.tar", IMAGE)


def stored_bytes(daemon) -> int:
    done = subprocess.run(["du", "-sk", daemon.root], capture_output=True, check=True, text=True)
    return int(done.stdout.split()[0]) * 1024


def layers_of(daemon, target):
    (volume,) = [v for v in daemon.json("ps") if v["target"] == target]
    return volume["layers"]


def check_content(agent, target):
    for name, content in (("large", LARGE), ("second", LARGE[::-1])):
        digest = agent.ask("digest", path=f"{target}/{name}")
        assert f"sha256:{digest}" == images.sha256(content)
    sparse = agent.ask_bytes("content", path=f"{target}/sparse")
    assert (len(sparse), sparse[4096:4696], sparse[3_000_000:3_000_009], sum(sparse)) == (
        5_000_000,
        b"x" * 600,
        b"y" * 9,
        600 * ord("x") + 9 * ord("y"),
    )
    assert agent.ask_bytes("content", path=f"{target}/etc/more") == b"more"
    assert agent.errno_of("stat", path=f"{target}/etc/motd") == "ENOENT"


def test_an_archive_is_mounted_without_a_copy_and_found_again_by_the_next_daemon(
    daemon, agent, kind, archive
):
    target = daemon.target("mnt")
    daemon.run("mount", f"{kind}:{archive}", target)
    check_content(agent, target)
    assert stored_bytes(daemon) < 1_000_000
    assert daemon.json("df")["layers_size"] < 100_000
    assert [(r["format"], r["state"]) for r in layers_of(daemon, target)] == [
        ("in place", "complete")
    ] * 2
    assert "in place" in daemon.run("inspect", f"{kind}:{archive}").stdout
    daemon.terminate()
    daemon.start()
    check_content(agent, target)
    daemon.run("unmount", target)
    before = archive.read_bytes()
    daemon.run("rmi", f"{kind}:{archive}")
    assert archive.read_bytes() == before
    assert daemon.json("images") == []
    assert os.listdir(daemon.root / "places") == []


def test_wait_copies_what_was_in_place(daemon, agent, kind, archive):
    target, second = daemon.target("mnt"), daemon.target("second")
    daemon.run("mount", f"{kind}:{archive}", target)
    assert stored_bytes(daemon) < 1_000_000
    daemon.run("mount", "--wait", f"{kind}:{archive}", second)
    assert stored_bytes(daemon) > 2 * len(LARGE)
    daemon.run("unmount", target)
    daemon.run("unmount", second)
    archive.unlink()
    daemon.run("mount", f"{kind}:{archive}", target)
    assert [r["format"] for r in layers_of(daemon, target)] == ["tar"] * 2
    check_content(agent, target)
    daemon.run("unmount", target)


def test_an_archive_rewritten_under_its_readers_gives_errors_and_never_other_bytes(
    daemon, agent, kind, archive
):
    daemon.expected_log += ["has changed since the layer was verified"]
    target, again = daemon.target("mnt"), daemon.target("again")
    name = f"{kind}:{archive}"
    daemon.run("mount", name, target)
    handle = agent.ask("open", path=f"{target}/large")
    assert agent.ask_bytes("pread", fd=handle, size=100, offset=500) == LARGE[500:600]

    other = WRITERS[kind](archive.with_name("other.tar"), OTHER)
    archive.write_bytes(other.read_bytes())  # the same inode
    status = other.stat()
    os.utime(archive, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert agent.errno_of("pread", fd=handle, size=100, offset=len(LARGE) - 5000) == "EIO"
    assert agent.errno_of("digest", path=f"{target}/second") == "EIO"
    agent.ask("close", fd=handle)
    states = {r["state"] for r in layers_of(daemon, target)}
    reasons = [r["reason"] for r in layers_of(daemon, target) if r["state"] == "bad"]
    assert "bad" in states
    assert all("has changed" in reason and str(archive) in reason for reason in reasons)
    assert "has changed since the layer was verified" in daemon.log_end()

    # The name is asked again: it means another image now.
    daemon.run("mount", name, again)
    assert agent.ask_bytes("content", path=f"{again}/etc/motd") == b"HELLO"
    assert agent.errno_of("digest", path=f"{target}/second") == "EIO"
    daemon.run("unmount", target)
    daemon.run("unmount", again)


def test_an_archive_replaced_by_another_is_served_while_open_and_refused_afterwards(
    daemon, agent, kind, archive
):
    daemon.expected_log += ["cannot mount .* again"]
    target = daemon.target("mnt")
    daemon.run("mount", f"{kind}:{archive}", target)
    os.replace(WRITERS[kind](archive.with_name("other.tar"), OTHER), archive)
    check_content(agent, target)
    daemon.terminate()
    daemon.start()
    assert daemon.json("ps") == []
    assert agent.ask("list", path=target) == []
    assert "has changed since the layer was verified" in daemon.log_end()
    failed = daemon.run("mount", "--pull=never", f"{kind}:{archive}", target, check=False)
    assert failed.returncode != 0
    assert "has changed since the layer was verified" in failed.stderr
    assert "imgvol pull" in failed.stderr
    daemon.run("mount", f"{kind}:{archive}", target)
    assert agent.ask_bytes("content", path=f"{target}/etc/motd") == b"HELLO"
    daemon.run("unmount", target)


def test_an_archive_with_another_mode_is_hashed_again_and_served(daemon, agent, kind, archive):
    target = daemon.target("mnt")
    daemon.run("mount", f"{kind}:{archive}", target)
    archive.chmod(0o600)
    check_content(agent, target)
    assert {r["state"] for r in layers_of(daemon, target)} == {"complete"}
    daemon.run("unmount", target)
