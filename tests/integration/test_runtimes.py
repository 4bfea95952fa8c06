"""Volumes in containers of real runtimes, each as its users would have it."""

import hashlib

import pytest

from support import bundle
from support.images import (
    Image,
    Layer,
    character_device,
    directory,
    file,
    symlink,
    write_layout,
)
from support.programs import SEARCH, require, run

pytestmark = [pytest.mark.fuse, pytest.mark.servers]

LARGE = bytes(range(256)) * 4096
LARGE_DIGEST = hashlib.sha256(LARGE).hexdigest()
IMAGE = Image(
    [
        Layer(
            [
                directory("etc"),
                file("etc/motd", b"hello\n"),
                file("etc/secret", b"only for root\n", mode=0o600),
                file("large", LARGE),
                file("run", b"#!/bin/sh\necho ran\n", mode=0o755),
                symlink("motd", "/etc/motd"),
                character_device("null", 1, 3, mode=0o666),
            ]
        )
    ]
)


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> str:
    return f"oci:{write_layout(tmp_path_factory.mktemp('runtimes'), {'x': IMAGE})}:x"


@pytest.fixture
def volume(shared_daemon, image, tmp_path_factory):
    """A volume of the image; gone again after the test."""
    target = shared_daemon.target(tmp_path_factory.mktemp("volume").name)
    shared_daemon.run("mount", image, target)
    yield target
    shared_daemon.run("unmount", "--detach", target, check=False)


@pytest.fixture(params=["runc", "crun"])
def runtime(request, short_path):
    require(request.param)
    return bundle.Runtime(request.param, short_path / "state")


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def test_a_container_reads_a_volume_and_cannot_change_it(runtime, volume, short_path):
    script = (
        "cat /data/etc/motd; /data/run; sha256sum < /data/large;"
        "touch /data/new 2>&1; rm /data/run 2>&1; mount -o remount,rw,bind /data 2>&1;"
        "echo x > /data/null"
    )
    made = bundle.write_bundle(short_path / "b", shell(script), [bundle.bind(volume, "/data")])
    done = runtime.run(made, "reader", check=False)
    read, ran, digest, *refused = done.stdout.splitlines()
    assert (read, ran) == ("hello", "ran")
    assert digest.split()[0] == LARGE_DIGEST
    assert [line.rpartition(": ")[2] for line in refused[:2]] == ["Read-only file system"] * 2
    assert "permission denied" in refused[2].lower()
    assert "/data/null" in done.stderr
    assert done.returncode != 0


def test_containers_of_a_sandbox_share_a_volume_that_goes_under_them(
    runtime, volume, short_path, shared_daemon, agent
):
    """Both see the same files; and what they have bound stays theirs when the volume goes."""
    mounts = [bundle.bind(volume, "/data")]
    script = "stat -c '%d %i' /data/etc/motd; read go; wc -c < /data/large; cat /data/etc/motd"
    bundles = [
        bundle.write_bundle(short_path / name, shell(script), mounts) for name in ("one", "two")
    ]
    with (
        runtime.running(bundles[0], "one") as one,
        runtime.running(bundles[1], "two") as two,
    ):
        seen = {container.stdout.readline() for container in (one, two)}
        assert len(seen) == 1
        shared_daemon.run("unmount", volume)
        assert agent.ask("list", path=volume) == []
        for container in (one, two):
            container.stdin.write("go\n")
            container.stdin.flush()
            assert container.stdout.read() == f"{len(LARGE)}\nhello\n"
            assert container.wait(20) == 0


@pytest.mark.fault("F80")
def test_a_container_in_a_user_namespace_reads_what_everybody_may(runtime, volume, short_path):
    script = "id -u; cat /data/etc/motd; stat -c %u /data/etc; cat /data/etc/secret"
    made = bundle.write_bundle(
        short_path / "b", shell(script), [bundle.bind(volume, "/data")], has_user_namespace=True
    )
    done = runtime.run(made, "mapped", check=False)
    # Not mapped, root's files are the overflow user's, and root of the container is nobody there.
    assert done.stdout.splitlines() == ["0", "hello", "65534"]
    assert "Permission denied" in done.stderr
    outside = bundle.write_bundle(short_path / "c", shell(script), [bundle.bind(volume, "/data")])
    assert runtime.run(outside, "unmapped").stdout.endswith("only for root\n")


def test_a_sub_path_is_all_that_a_container_gets(runtime, shared_daemon, image, short_path):
    target, motd = shared_daemon.target(f"sub-{runtime.name}"), short_path / "motd"
    motd.touch()
    shared_daemon.run("mount", "--subpath", "etc", image, target)
    shared_daemon.run("mount", "--subpath", "motd", image, motd)
    made = bundle.write_bundle(
        short_path / "b",
        shell("ls /data /data/..; cat /etc/motd"),
        [bundle.bind(target, "/data"), bundle.bind(motd, "/etc/motd")],
    )
    done = runtime.run(made, "sub")
    shared_daemon.run("unmount", target, motd)
    assert done.stdout.startswith("/data:\nmotd\nsecret\n\n/data/..:\n")
    assert done.stdout.endswith("\nhello\n")


def test_noexec_refuses_in_a_container(runtime, volume, short_path):
    made = bundle.write_bundle(
        short_path / "b", ["/data/run"], [bundle.bind(volume, "/data", "noexec")]
    )
    done = runtime.run(made, "noexec", check=False)
    assert done.returncode != 0
    assert "permission denied" in done.stderr.lower()


def test_podman_run_with_a_volume(volume, short_path):
    require("podman", "crun")
    rootfs = bundle.make_rootfs(short_path / "rootfs")
    places = {name: short_path / name for name in ("root", "runroot", "tmpdir")}
    command = [*bundle.APART, "podman", *(f"--{name}={path}" for name, path in places.items())]
    command += ["--storage-driver=vfs", "--runtime=crun", "--cgroup-manager=cgroupfs"]
    command += ["--events-backend=none", "run", "--rm", "--network=none", "--cgroups=disabled"]
    # Not more than what whoever runs the tests may have.
    command += ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "--log-driver=none"]
    command += ["-v", "/usr:/usr:ro", "-v", f"{volume}:/data:ro", "--rootfs", str(rootfs)]
    script = "cat /data/etc/motd; touch /data/new"
    environment = {"PATH": SEARCH, "HOME": str(short_path)}
    done = run(*command, *shell(script), env=environment, check=False)
    assert done.stdout == "hello\n", done.stderr
    assert "Read-only file system" in done.stderr
    assert done.returncode == 1


def test_a_view_is_a_root_directory(shared_daemon, rootfs_layout, agent):
    target = shared_daemon.target("chroot")
    shared_daemon.run("mount", f"oci:{rootfs_layout}:rootfs", target)
    done = run("chroot", target, "/bin/sh", "-c", "cat /etc/hostname; pwd; : > /new", check=False)
    shared_daemon.run("unmount", target)
    assert done.stdout.endswith("/\n")
    assert "Read-only file system" in done.stderr


@pytest.mark.fault("F85")
def test_overlayfs_over_a_volume(volume, short_path, agent):
    """The way to a root file system that can be written: the volume below, changes above."""
    directories = {name: short_path / name for name in ("upper", "work", "merged")}
    for path in directories.values():
        path.mkdir()
    options = f"lowerdir={volume},upperdir={directories['upper']},workdir={directories['work']}"
    merged = directories["merged"]
    run("mount", "-t", "overlay", "overlay", "-o", options, merged)
    try:
        assert agent.ask("digest", path=f"{merged}/large") == LARGE_DIGEST
        run("sh", "-c", f"echo changed >> {merged}/etc/motd; rm {merged}/large")
        assert agent.ask_bytes("content", path=f"{merged}/etc/motd") == b"hello\nchanged\n"
        assert agent.errno_of("stat", path=f"{merged}/large") == "ENOENT"
        assert agent.ask_bytes("content", path=f"{volume}/etc/motd") == b"hello\n"
        assert agent.ask("digest", path=f"{volume}/large") == LARGE_DIGEST
    finally:
        run("umount", merged)
