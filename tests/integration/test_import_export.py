"""Archives that real programs write, packed by real programs; and what they make of ours."""

import contextlib
import json
import os
import re
import signal
import subprocess
import tarfile
import time

import pytest

from support import images
from support.bundles import Bundle
from support.comparison import assert_same_tree
from support.daemon import ENVIRONMENT
from support.images import Image, Layer, directory, file, hardlink, symlink, whiteout
from support.programs import require, run, wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.servers]

LARGE = bytes(range(256)) * 8192
BASE = Layer(
    [
        directory("etc"),
        file("etc/motd", b"hello", xattrs={"user.note": b"x"}),
        hardlink("etc/issue", "etc/motd"),
        file("large", LARGE, uid=7, gid=8),
        symlink("link", "large"),
        file("gone", b"g"),
    ],
    "gzip",
)
ONE = Image([BASE, Layer([whiteout("gone"), file("etc/one", b"1")], "gzip")])
TWO = Image([BASE, Layer([file("etc/two", b"2")], "gzip")], config={"Env": ["A=2"]})
NAMES = ("example.com/app:v1", "example.com/app:v2")


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    return images.write_layout(tmp_path_factory.mktemp("layout"), {"v1": ONE, "v2": TWO})


@pytest.fixture(scope="module")
def saved(layout, tmp_path_factory):
    require("skopeo")
    path = tmp_path_factory.mktemp("saved") / "image.tar"
    skopeo(f"oci:{layout}:v1", f"docker-archive:{path}:{NAMES[0]}")
    return path


def skopeo(source, destination):
    run("skopeo", "--insecure-policy", "copy", "--quiet", source, destination)


class Podman:
    """Podman with a store of its own."""

    def __init__(self, base, program="podman"):
        self.root, self.runroot = base / "root", base / "runroot"
        self.options = ("--root", self.root, "--runroot", self.runroot, "--storage-driver", "vfs")

    def __call__(self, *arguments, program="podman", **options):
        return run(program, *self.options, *arguments, **options).stdout.strip()

    def fill(self, layout):
        for tag, name in zip(("v1", "v2"), NAMES, strict=True):
            place = f"[vfs@{self.root}+{self.runroot}]{name}"
            skopeo(f"oci:{layout}:{tag}", f"containers-storage:{place}")

    def image_id(self, name):
        return "sha256:" + self("inspect", "--type", "image", "--format", "{{.Id}}", name)


def ids_of(daemon):
    return {name: image["id"] for image in daemon.json("images") for name in image["names"]}


def check_view(daemon, agent, name, number=1):
    target = daemon.target(f"mnt-{number}-{time.monotonic_ns()}")
    daemon.run("mount", name, target)
    assert agent.ask_bytes("content", path=f"{target}/large") == LARGE
    assert agent.ask_bytes("content", path=f"{target}/etc/motd") == b"hello"
    daemon.run("unmount", target)


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_what_skopeo_writes(daemon, agent, layout, short_path, kind):
    require("skopeo")
    path = short_path / "image.tar"
    skopeo(f"oci:{layout}:v1", f"{kind}:{path}:{NAMES[0]}")
    assert daemon.run("import", path).stdout == f"{NAMES[0]}\n"
    assert ids_of(daemon) == {NAMES[0]: images.sha256(ONE.config_bytes())}
    path.unlink()
    check_view(daemon, agent, NAMES[0])


def test_what_podman_saves(daemon, agent, layout, short_path):
    require("podman", "skopeo")
    podman = Podman(short_path)
    podman.fill(layout)
    single, several = short_path / "single.tar", short_path / "several.tar"
    podman("save", "--quiet", "-o", single, NAMES[0])
    podman("save", "--quiet", "--multi-image-archive", "-o", several, *NAMES)
    daemon.run("import", single)
    assert ids_of(daemon) == {NAMES[0]: podman.image_id(NAMES[0])}
    assert daemon.run("import", several).stdout.split() == [*NAMES]
    assert ids_of(daemon) == {name: podman.image_id(name) for name in NAMES}
    for name in NAMES:
        check_view(daemon, agent, name)


def test_what_buildah_pushes(daemon, agent, short_path):
    require("buildah")
    store = Podman(short_path)
    (short_path / "large").write_bytes(LARGE)
    (short_path / "motd").write_bytes(b"hello")
    container = store("from", "scratch", program="buildah")
    for name, place in (("large", "/large"), ("motd", "/etc/motd")):
        store("add", container, short_path / name, place, program="buildah")
    store("commit", "--quiet", container, NAMES[0], program="buildah")
    path = short_path / "image.tar"
    store("push", "--quiet", NAMES[0], f"oci-archive:{path}:{NAMES[0]}", program="buildah")
    daemon.run("import", path)
    assert set(ids_of(daemon)) == {NAMES[0]}
    check_view(daemon, agent, NAMES[0])


PACKERS = {
    "gzip": (["gzip", "-c"], ".tar.gz"),
    "zstd": (["zstd", "-q", "-c"], ".tar.zst"),
    "lz4": (["lz4", "-q", "-c"], ".tar.lz4"),
    "lz4-blocks": (["lz4", "-q", "-c", "-B4", "-BD", "--content-size"], ".TAR.LZ4"),
    "bzip2": (["bzip2", "-c"], ".tar.bz2"),
    "xz": (["xz", "-c"], ".tar.xz"),
    "xz-blocks": (["xz", "-c", "-9", "-T2", "--block-size=100KiB"], ".txz"),
}


def packed(path, packer, target):
    with open(path, "rb") as source, open(target, "wb") as sink:
        subprocess.run(packer, stdin=source, stdout=sink, check=True, timeout=60)
    return target


@pytest.mark.parametrize("packing", PACKERS)
def test_archives_packed_by_real_programs(daemon, saved, short_path, packing):
    packer, suffix = PACKERS[packing]
    require(packer[0])
    path = packed(saved, packer, short_path / f"image{suffix}")
    assert daemon.run("import", path).stdout == f"{NAMES[0]}\n"
    assert ids_of(daemon) == {NAMES[0]: images.sha256(ONE.config_bytes())}
    assert os.listdir(daemon.root / "ingest") == []


def test_bytes_decide_and_not_the_name(daemon, saved, short_path):
    require("bzip2")
    path = packed(saved, ["bzip2", "-c"], short_path / "image.tar.gz")
    assert daemon.run("import", path).stdout == f"{NAMES[0]}\n"
    path.write_bytes(b"no tar at all, but long enough " * 100)
    refusal = daemon.run("import", path, check=False)
    assert refusal.returncode == 1
    assert "Its name says gzip, its first bytes say not compressed" in refusal.stderr


def test_a_long_window_is_refused_with_a_way_out(daemon, saved, short_path):
    require("zstd")
    path = packed(saved, ["zstd", "-q", "-c", "--long=27"], short_path / "image.tar.zst")
    refusal = daemon.run("import", path, check=False)
    assert refusal.returncode == 1
    assert "too much memory" in refusal.stderr
    assert "without --ultra and --long" in refusal.stderr
    assert daemon.json("images") == []


def test_a_pipe_is_as_good_as_a_file(daemon, agent, saved, short_path):
    require("gzip")
    for command in (["cat", saved], ["gzip", "-c", saved]):
        source = subprocess.Popen(command, stdout=subprocess.PIPE)
        done = feed(daemon, source.stdout, "import", "-")
        source.stdout.close()
        assert source.wait(10) == 0
        assert (done.returncode, done.stdout) == (0, f"{NAMES[0]}\n"), done.stderr
        daemon.run("rmi", NAMES[0])
    with open(saved, "rb") as archive:
        # A file that was redirected has a place: it can be linked to.
        assert feed(daemon, archive, "import", "--link", "-").returncode == 0
    check_view(daemon, agent, NAMES[0])
    source = subprocess.Popen(["cat", saved], stdout=subprocess.PIPE)
    done = feed(daemon, source.stdout, "import", "--link", "-")
    source.stdout.close()
    source.wait(10)
    assert done.returncode == 1
    assert "it is a pipe" in done.stderr
    fifo = short_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(["sh", "-c", f"cat {saved} > {fifo}"]):
        assert daemon.run("import", fifo).stdout == f"{NAMES[0]}\n"


def feed(daemon, stdin, *arguments):
    return subprocess.run(
        [*daemon.command, *arguments],
        stdin=stdin,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
        env={**os.environ, **ENVIRONMENT},
    )


def test_a_command_that_goes_away_ends_its_import(daemon):
    reading, writing = os.pipe()
    command = subprocess.Popen(
        [*daemon.command, "import", "-"], stdin=reading, stderr=subprocess.PIPE
    )
    os.close(reading)
    os.write(writing, bytes(100))
    pipe = os.readlink(f"/proc/self/fd/{writing}")
    wait_until(lambda: has_open(daemon, pipe), what="the daemon to have the pipe")
    command.send_signal(signal.SIGKILL)
    command.wait(10)
    command.stderr.close()
    wait_until(lambda: not has_open(daemon, pipe), what="the daemon to let go of the pipe")
    os.close(writing)
    assert os.listdir(daemon.root / "ingest") == []


def has_open(daemon, target):
    directory = f"/proc/{daemon.worker_pid}/fd"
    found = []
    for descriptor in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"{directory}/{descriptor}"))
    return target in found


def test_linked_archives_are_not_copied(daemon, agent, saved, short_path):
    require("gzip")
    daemon.run("import", "--link", saved)
    assert daemon.json("df")["layers_size"] < 100_000
    check_view(daemon, agent, NAMES[0])
    assert {layer["format"] for layer in daemon.json("images")[0]["layers"]} == {"in place"}
    path = packed(saved, ["gzip", "-c"], short_path / "image.tgz")
    refusal = daemon.run("import", "--link", path, check=False)
    assert refusal.returncode == 1
    assert "it is compressed with gzip" in refusal.stderr


def test_what_did_not_come_in_is_told_and_is_the_exit_status(daemon, short_path):
    bundle = Bundle()
    bundle.list(bundle.manifest(ONE), NAMES[0])
    bundle.list(bundle.manifest(TWO), tag="v2")
    path = bundle.write(short_path / "image.tar")
    done = daemon.run("import", path, check=False)
    assert (done.returncode, done.stdout) == (1, f"{NAMES[0]}\n")
    assert "Not imported: v2: it has no name with a repository" in done.stderr
    done = daemon.run("import", "--name", "example.com/app", path)
    assert done.stdout.split() == [*NAMES]
    report = daemon.json("import", path, check=False)
    assert [one["is_whole"] for one in report["passed_over"]] == [True]
    assert [image["names"] for image in report["images"]] == [[NAMES[0]]]


# --- export ---------------------------------------------------------------------------------------


@pytest.fixture
def exported(daemon, layout, short_path):
    """An archive of both images, out of a store that has never seen plain layers."""
    bundle = Bundle()
    bundle.list(bundle.manifest(ONE), NAMES[0])
    bundle.list(bundle.manifest(TWO), NAMES[1])
    daemon.run("import", bundle.write(short_path / "source.tar"))
    path = short_path / "exported.tar"
    daemon.run("export", *NAMES, "-o", path)
    assert sorted(os.listdir(short_path / "store" / "ingest")) == []
    return path


def test_skopeo_reads_both_sides_of_an_export(exported, short_path):
    require("skopeo", "umoci")
    for kind, image in ((("docker-archive"), ONE), ("docker-archive", TWO), ("oci-archive", ONE)):
        name = NAMES[image is TWO]
        target = short_path / f"{kind}-{name[-2:]}"
        selector = name if kind == "docker-archive" else "v1"
        skopeo(f"{kind}:{exported}:{selector}", f"oci:{target}:x")
        config = json.loads(run("skopeo", "inspect", "--config", "--raw", f"oci:{target}:x").stdout)
        assert config == json.loads(image.config_bytes())
        run("umoci", "raw", "unpack", "--image", f"{target}:x", f"{target}-rootfs")
        assert (short_path / f"{target}-rootfs" / "large").read_bytes() == LARGE


def test_the_image_id_stays_and_what_is_unpacked_is_what_is_seen(daemon, exported, short_path):
    require("skopeo", "umoci")
    skopeo(f"docker-archive:{exported}:{NAMES[0]}", f"oci:{short_path}/copy:x")
    run("umoci", "raw", "unpack", "--image", f"{short_path}/copy:x", short_path / "rootfs")
    target = daemon.target("mnt")
    daemon.run("mount", NAMES[0], target)
    assert_same_tree(target, short_path / "rootfs", untimed=["."])
    daemon.run("unmount", target)
    before = ids_of(daemon)
    daemon.run("rmi", *NAMES)
    daemon.run("import", "--link", exported)
    assert ids_of(daemon) == before


def test_podman_loads_an_export(daemon, exported, short_path):
    require("podman")
    podman = Podman(short_path / "podman")
    podman("load", "--quiet", "-i", exported)
    assert {name: podman.image_id(name) for name in NAMES} == ids_of(daemon)


def test_an_export_into_a_pipe_is_the_same(daemon, exported, short_path):
    piped = subprocess.run(
        [*daemon.command, "export", *NAMES, "-o", "-"],
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    ).stdout
    assert piped == exported.read_bytes()
    # A reader that leaves ends it, and nothing else.
    writer = subprocess.Popen(
        [*daemon.command, "export", *NAMES, "-o", "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout.read(1)
    writer.stdout.close()
    stderr = writer.stderr.read()
    writer.stderr.close()
    assert writer.wait(10) == 1
    assert "Broken pipe" in stderr
    assert daemon.json("images")


def test_an_image_named_by_id_has_no_name_and_unfinished_files_go(daemon, exported, short_path):
    path = short_path / "by-id.tar"
    daemon.run("export", ids_of(daemon)[NAMES[0]], "-o", path)
    with tarfile.open(path) as archive:
        (item,) = json.load(archive.extractfile("manifest.json"))
        (entry,) = json.load(archive.extractfile("index.json"))["manifests"]
    assert item["RepoTags"] is None
    assert "annotations" not in entry
    before = path.read_bytes()
    refusal = daemon.run("export", NAMES[0], "nothing:1", "-o", path, check=False)
    assert refusal.returncode == 1
    assert path.read_bytes() == before
    assert not [name for name in os.listdir(short_path) if "partial" in name]


def test_a_file_that_was_not_kept_makes_another_id_and_that_is_said(daemon, short_path, agent):
    hidden = Layer([file("a", b"h" * (2 << 20)), file("a", b"seen"), file("b", LARGE)], "gzip")
    bundle = Bundle()
    bundle.list(bundle.manifest(Image([hidden])), NAMES[0])
    daemon.run("import", bundle.write(short_path / "source.tar"))
    path = short_path / "exported.tar"
    done = daemon.run("export", NAMES[0], "-o", path)
    (told,) = re.findall(r"has the ID (sha256:[0-9a-f]{64})", done.stderr)
    before = ids_of(daemon)[NAMES[0]]
    assert told != before
    daemon.run("rmi", NAMES[0])
    daemon.run("import", path)
    assert ids_of(daemon)[NAMES[0]] == told
    target = daemon.target("mnt")
    daemon.run("mount", NAMES[0], target)
    assert agent.ask_bytes("content", path=f"{target}/a") == b"seen"
    assert agent.ask_bytes("content", path=f"{target}/b") == LARGE
    daemon.run("unmount", target)
