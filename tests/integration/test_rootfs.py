"""A real root file system: pulled, mounted, compared, run, and mounted again without a registry."""

import pytest

from support.comparison import assert_same_tree
from support.images import push, umoci_unpack
from support.programs import require, run
from support.registry import running_registry
from support.rootfs import TAG, read_image

pytestmark = [pytest.mark.fuse, pytest.mark.servers]


@pytest.fixture(scope="module")
def rootfs_tree(rootfs_layout, tmp_path_factory):
    require("umoci")
    return umoci_unpack(read_image(rootfs_layout), tmp_path_factory.mktemp("rootfs-umoci"))


@pytest.fixture(scope="module")
def rootfs_reference(rootfs_layout, registry):
    reference = registry.reference("debian:rootfs")
    push(rootfs_layout, TAG, reference)
    return reference


@pytest.fixture(scope="module")
def rootfs_view(shared_daemon, rootfs_reference):
    target = shared_daemon.target("rootfs")
    shared_daemon.run("mount", rootfs_reference, target)
    yield target
    shared_daemon.run("unmount", target)


@pytest.mark.fault("F77")
def test_view_equals_what_umoci_unpacks(rootfs_view, rootfs_tree):
    # mmdebstrap packs the mount points of its own machine; every other directory has a time.
    assert_same_tree(rootfs_view, rootfs_tree)


def test_python_runs_out_of_the_view(rootfs_view):
    program = "import ssl, json, sys; print(json.dumps({'prefix': sys.prefix}))"
    done = run("chroot", rootfs_view, "/usr/bin/python3", "-c", program)
    assert done.stdout == '{"prefix": "/usr"}\n'
    assert (
        "hello from /usr/bin/python3" in run("chroot", rootfs_view, "/usr/local/bin/greet").stdout
    )


def test_upper_layers_hide_and_bring_back(rootfs_view, agent):
    def content(path):
        return agent.ask_bytes("content", path=f"{rootfs_view}/{path}")

    assert content("etc/issue") == b"Back in the fourth layer.\n"
    assert content("usr/share/doc") == b"not a directory any more\n"
    assert [name for name, _ in agent.ask("list", path=f"{rootfs_view}/srv/data")] == ["result"]
    assert agent.errno_of("stat", path=f"{rootfs_view}/usr/share/man") == "ENOENT"


def test_second_mount_needs_no_registry(daemon, rootfs_layout, tmp_path):
    with running_registry(tmp_path) as registry:
        reference = registry.reference("debian:rootfs")
        push(rootfs_layout, TAG, reference)
        daemon.run("pull", reference)
        sent = registry.blob_bytes_sent()
    layers = read_image(rootfs_layout).layers
    # Every layer once, and the config.
    assert sum(layer.size for layer in layers) <= sent <= sum(layer.size for layer in layers) + 4096
    daemon.terminate()
    daemon.start()
    target = daemon.target("t")
    daemon.run("mount", reference, target, timeout=10)
    assert "imgvol" in run("cat", f"{target}/etc/hostname", timeout=20).stdout
    daemon.run("unmount", target)


def test_looking_into_an_image_needs_no_mount(shared_daemon, rootfs_reference, rootfs_tree):
    listed = shared_daemon.run("ls", rootfs_reference, "/usr/local/bin").stdout.split()
    assert listed == ["greet", "hello", "hello-again"]
    motd = shared_daemon.run("cat", rootfs_reference, "/etc/motd").stdout
    assert motd == "Welcome to the third layer.\n"
    found = shared_daemon.run("find", rootfs_reference, "/", "-type", "f", "-0").stdout
    expected = run("find", ".", "-type", "f", "-print0", cwd=rootfs_tree).stdout
    assert sorted(found.split("\0")) == sorted(expected.replace("./", "/").split("\0"))


@pytest.mark.fault("F86")
def test_usual_tools_read_a_whole_image(rootfs_view, rootfs_tree, tmp_path):
    entries = sum(1 for _ in rootfs_tree.rglob("*"))
    listed = run("find", rootfs_view, "-xdev", "-printf", "x\\n").stdout
    assert len(listed.split()) == entries + 1
    run("cp", "--archive", "--reflink=auto", rootfs_view, tmp_path / "copy")
    assert_same_tree(tmp_path / "copy", rootfs_tree)
    run("tar", "--create", "--file", tmp_path / "all.tar", "--directory", rootfs_view, ".")
    assert run("tar", "--diff", "--file", tmp_path / "all.tar", "-C", rootfs_view).stdout == ""
    assert int(run("du", "--summarize", "--bytes", rootfs_view).stdout.split()[0]) > 0
