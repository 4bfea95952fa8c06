"""Volumes in user namespaces: who sees which owners there, and may read what."""

import contextlib
import hashlib
import random
import subprocess
from pathlib import Path

import pytest

from support import bundle, transports
from support.agent import Agent
from support.images import Image, Layer, directory, file, write_layout
from support.metrics import scrape
from support.programs import require, require_fuse

pytestmark = pytest.mark.root
only_kernel = pytest.mark.parametrize("transport", ["kernel"], scope="module")
only_pyfuse3 = pytest.mark.parametrize("transport", ["pyfuse3"], scope="module")
needs_mapping = pytest.mark.skipif(
    not transports.maps_owners(), reason="the kernel maps owners in FUSE from Linux 6.12 on"
)

COUNT = 65_536
NOBODY = 65_534
USER = 1000
# What no process of such a namespace can have.
BEYOND = 70_000
SECRET = b"only for root\n"
LARGE = random.Random(12).randbytes(2 << 20)
IMAGE = Image(
    [
        Layer(
            [
                directory("etc"),
                file("etc/motd", b"hello\n"),
                file("etc/secret", SECRET, mode=0o600),
                file("etc/large", LARGE, mode=0o600),
                directory("home", mode=0o700, uid=USER, gid=USER),
                file("home/note", b"mine\n", mode=0o600, uid=USER, gid=USER),
                file("beyond", b"for all\n", mode=0o604, uid=BEYOND, gid=BEYOND),
            ],
            "gzip",
        )
    ]
)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return f"oci:{write_layout(tmp_path_factory.mktemp('userns'), {'x': IMAGE})}:x"


@pytest.fixture
def volume(daemon, image):
    """Mounts the image, with its owners moved so far or as they are; returns where."""
    daemon.run("pull", image)

    def mount(name, first=None):
        target = daemon.target(name)
        mapping = f"0:{first}:{COUNT}"
        options = [] if first is None else [f"--uidmap={mapping}", f"--gidmap={mapping}"]
        daemon.run("mount", *options, image, target)
        return target

    return mount


@contextlib.contextmanager
def pod(first, user=0):
    """A user of a user namespace whose IDs are those of the host from `first` on."""
    require_fuse()
    waiting = ["unshare", "--user", "sh", "-c", "echo; read -r end"]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"\n"
        for kind in ("uid", "gid"):
            Path(f"/proc/{holder.pid}/{kind}_map").write_text(f"0 {first} {COUNT}\n")
        inside = f"--user=/proc/{holder.pid}/ns/user"
        identity = [f"--setuid={user}", f"--setgid={user}"]
        # Not our own interpreter: what it is made of may be for its owner alone.
        with Agent(python="/usr/bin/python3", within=["nsenter", inside, *identity]) as agent:
            yield agent


def owner(agent, path):
    found = agent.ask("stat", path=path)
    return found["st_uid"], found["st_gid"]


@pytest.mark.fault("F80")
@transports.each
def test_without_a_mapping_root_of_a_pod_is_nobody_to_the_files(volume):
    target = volume("plain")
    with pod(100_000) as root:
        assert owner(root, f"{target}/etc/secret") == (NOBODY, NOBODY)
        assert root.ask_bytes("content", path=f"{target}/etc/motd") == b"hello\n"
        assert root.errno_of("content", path=f"{target}/etc/secret") == "EACCES"
        assert root.errno_of("list", path=f"{target}/home") == "EACCES"


@pytest.mark.fault("F80")
@needs_mapping
@only_kernel
def test_root_of_a_pod_owns_what_is_mapped_for_it(volume, agent):
    target = volume("mapped", 100_000)
    with pod(100_000) as root:
        assert owner(root, target) == owner(root, f"{target}/etc/secret") == (0, 0)
        assert root.ask_bytes("content", path=f"{target}/etc/secret") == SECRET
        assert owner(root, f"{target}/home") == (USER, USER)
        assert root.ask_bytes("content", path=f"{target}/home/note") == b"mine\n"
        assert root.errno_of("open", path=f"{target}/new", flags=0o101) == "EROFS"
    with pod(100_000, USER) as user:
        assert user.ask_bytes("content", path=f"{target}/home/note") == b"mine\n"
        assert user.errno_of("content", path=f"{target}/etc/secret") == "EACCES"
    # Outside the same files belong to whom the pod's root is there.
    assert owner(agent, f"{target}/etc/secret") == (100_000, 100_000)
    with Agent(user=100_000) as same, Agent(user=100_001) as other:
        assert same.ask_bytes("content", path=f"{target}/etc/secret") == SECRET
        assert other.errno_of("content", path=f"{target}/etc/secret") == "EACCES"


@needs_mapping
@only_kernel
def test_an_owner_beyond_the_mapping_is_nobody_and_owns_nothing(volume):
    target = volume("mapped", 100_000)
    with pod(100_000) as root:
        assert owner(root, f"{target}/beyond") == (NOBODY, NOBODY)
        assert root.ask_bytes("content", path=f"{target}/beyond") == b"for all\n"


@needs_mapping
@only_kernel
def test_a_large_file_of_root_alone_is_passed_through_to_the_pods_root(volume, daemon):
    """The store has it for root of the host, who opens it there: the view alone decides."""
    target = volume("mapped", 100_000)
    with pod(100_000) as root:
        digest = root.ask("digest", path=f"{target}/etc/large")
    assert digest == hashlib.sha256(LARGE).hexdigest()
    metrics = scrape(daemon.run_dir / "imgvol.sock")
    assert metrics["imgvol_filesystem_passed_opens_total"] == 1


@needs_mapping
@only_kernel
def test_pods_with_ids_of_their_own_each_see_their_own(volume, agent):
    """One view, and one set of pages, bound three times."""
    targets = {first: volume(f"pod-{first}", first) for first in (100_000, 300_000)}
    plain = volume("plain")
    for first, target in targets.items():
        with pod(first) as root:
            assert root.ask_bytes("content", path=f"{target}/etc/secret") == SECRET
            (foreign,) = targets.keys() - {first}
            assert owner(root, f"{targets[foreign]}/etc/secret") == (NOBODY, NOBODY)
            assert root.errno_of("content", path=f"{targets[foreign]}/etc/secret") == "EACCES"
    assert owner(agent, f"{plain}/etc/secret") == (0, 0)
    inodes = {agent.ask("stat", path=f"{t}/etc/motd")["st_ino"] for t in (*targets.values(), plain)}
    assert len(inodes) == 1


# --- containers -------------------------------------------------------------------------------

# Its root has no capabilities: it reads as the owner, or not at all.
LOOK = "id -u; stat -c %u:%g /data/etc/secret /data/home; cat /data/etc/secret /data/home/note"
SEEN = ["0", "0:0", f"{USER}:{USER}", "only for root"]
REFUSED = "/data/home/note: Permission denied"


def run_container(short_path, runtime, mount):
    require(runtime)
    command = ["/bin/sh", "-c", LOOK]
    made = bundle.write_bundle(short_path / "b", command, [mount], has_user_namespace=True)
    return bundle.Runtime(runtime, short_path / "state").run(made, "pod", check=False)


@pytest.mark.fault("F80")
@needs_mapping
@only_kernel
@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_container_in_a_user_namespace_owns_what_is_mapped_for_it(volume, short_path, runtime):
    target = volume("mapped", bundle.HOST_ID)
    done = run_container(short_path, runtime, bundle.bind(target, "/data"))
    assert done.stdout.splitlines() == SEEN, done.stderr
    assert REFUSED in done.stderr


@pytest.mark.fault("F80")
@needs_mapping
@only_kernel
def test_a_runtime_can_map_a_plain_volume_by_itself(volume, short_path):
    """crun's own option; runc has it from 1.2 on."""
    done = run_container(short_path, "crun", bundle.bind(volume("plain"), "/data", "idmap"))
    assert done.stdout.splitlines() == SEEN, done.stderr
    assert REFUSED in done.stderr


@pytest.mark.fault("F80")
@only_pyfuse3
def test_a_runtime_that_cannot_map_a_volume_starts_no_container(volume, short_path):
    done = run_container(short_path, "crun", bundle.bind(volume("plain"), "/data", "idmap"))
    assert done.returncode != 0
    assert done.stdout == ""
    assert "mount_setattr" in done.stderr
