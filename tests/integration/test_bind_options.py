"""Volumes as the kernel shows them: what is bound, with which attributes, and to whom."""

import base64
import contextlib
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from imgvol.cli.client import Client
from imgvol.errors import ImgvolError
from imgvol.volumes.mountinfo import read_mountinfo
from support import transports
from support.agent import Agent
from support.daemon import Imgvol, running_daemon
from support.images import (
    Image,
    Layer,
    character_device,
    directory,
    file,
    symlink,
    write_layout,
)
from support.programs import require, require_fuse, run, wait_until
from support.swapping import swapping

pytestmark = pytest.mark.fuse

NOBODY = 65534
SCRIPT = b"#!/bin/sh\necho from the image\n"
IMAGE = Image(
    [
        Layer(
            [
                directory("etc"),
                file("etc/motd", b"hello"),
                directory("etc/empty"),
                directory("usr/bin"),
                file("usr/bin/greet", SCRIPT, mode=0o755),
                file("usr/bin/id", Path("/usr/bin/id").read_bytes(), mode=0o4755),
                symlink("bin", "/usr/bin"),
                symlink("motd", "etc/motd"),
                character_device("null", 1, 3, mode=0o666),
            ]
        )
    ]
)
ATTRIBUTES = {"ro", "nosuid", "nodev"}


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> str:
    return f"oci:{write_layout(tmp_path_factory.mktemp('bind'), {'x': IMAGE})}:x"


@pytest.fixture
def mounted(shared_daemon, image, tmp_path_factory):
    """Mounts the image with options, as often as one likes, each time at a new place."""
    targets = []

    def mount(*options, at: str | None = None) -> str:
        number = tmp_path_factory.mktemp("at").name
        target = at or shared_daemon.target(f"{number}-{len(targets)}")
        shared_daemon.run("mount", *options, image, target)
        targets.append(target)
        return target

    yield mount
    for target in targets:
        shared_daemon.run("unmount", "--detach", target, check=False)


def options_of(target: str) -> set[str]:
    (mount,) = [m for m in read_mountinfo() if m.mount_point == os.fsencode(target)]
    return set(mount.options)


def shared_with(target: str) -> str:
    """The optional fields of a mount's line: its peer group, if any."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    (line,) = [line for line in lines if line.split()[4] == target]
    return " ".join(line.split(" - ")[0].split()[6:])


# --- attributes -------------------------------------------------------------------------------


def test_a_volume_is_never_less_than_read_only_nosuid_and_nodev(mounted):
    assert options_of(mounted()) == {*ATTRIBUTES, "noatime"}
    assert options_of(mounted("--noexec")) == {*ATTRIBUTES, "noatime", "noexec"}
    assert options_of(mounted("--nosymfollow")) == {*ATTRIBUTES, "noatime", "nosymfollow"}


def test_programs_run_unless_that_was_refused(mounted, agent):
    plain, refusing = mounted(), mounted("--noexec")
    done = run(f"{plain}/usr/bin/greet")
    assert done.stdout == "from the image\n"
    assert agent.errno_of("exec", arguments=[f"{refusing}/usr/bin/greet"]) == "EACCES"
    assert agent.ask_bytes("content", path=f"{refusing}/usr/bin/greet") == SCRIPT


def test_links_are_read_and_not_followed_where_that_was_asked(mounted, agent):
    plain, refusing = mounted(), mounted("--nosymfollow")
    assert agent.ask_bytes("content", path=f"{plain}/motd") == b"hello"
    assert agent.errno_of("content", path=f"{refusing}/motd") == "ELOOP"
    assert agent.ask("readlink", path=f"{refusing}/motd") == "etc/motd"


def test_a_setuid_program_gains_nothing(mounted, short_path):
    beside = short_path / "id"
    shutil.copy("/usr/bin/id", beside)
    os.chmod(beside, 0o4755)
    target = mounted()
    assert stat.S_IMODE(os.stat(beside).st_mode) == 0o4755
    with Agent(user=NOBODY, python="/usr/bin/python3") as nobody:

        def runs_as(program):
            output = nobody.ask("exec", arguments=[str(program), "-u"])["output"]
            return int(base64.b64decode(output))

        assert nobody.ask("stat", path=f"{target}/usr/bin/id")["st_mode"] & 0o7777 == 0o4755
        ours, theirs = runs_as(f"{target}/usr/bin/id"), runs_as(beside)
    assert theirs == 0, "elsewhere the same program runs as its owner"
    assert ours == NOBODY


def test_a_device_cannot_be_opened(mounted, agent, short_path):
    beside = short_path / "null"
    os.mknod(beside, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    target = mounted()
    assert agent.ask("stat", path=f"{target}/null")["st_rdev"] == os.makedev(1, 3)
    assert agent.errno_of("open", path=str(beside)) == "OK"
    assert agent.errno_of("open", path=f"{target}/null") == "EACCES"


@pytest.mark.fault("F80")
@transports.each
def test_owners_are_mapped_or_the_mount_says_that_they_cannot_be(daemon, image, agent, transport):
    target = daemon.target("mapped")
    mapping = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"]
    done = daemon.run("mount", *mapping, image, target, check=False)
    if transport == "kernel" and transports.maps_owners():
        assert done.returncode == 0, done.stderr
        assert agent.ask("stat", path=f"{target}/etc")["st_uid"] == 100000
        daemon.run("unmount", target)
        return
    assert done.returncode == 1
    assert "does not map owners in a view" in done.stderr
    assert agent.ask("list", path=target) == []
    assert daemon.json("ps") == []
    daemon.run("mount", image, target)
    daemon.run("unmount", target)


@pytest.mark.parametrize("offer", ["mapping", "nothing"])
def test_owners_are_mapped_where_the_filesystem_offers_it(offer, short_path):
    """Not ours, which says it always or never: the kernel, and our way to ask it."""
    require_fuse()
    program = ["unshare", "--mount", sys.executable, "-m", "support.raw_fuse"]
    tests = Path(__file__).parents[1]
    said = run(*program, short_path, offer, cwd=tests, timeout=30).stdout
    if offer == "mapping" and transports.maps_owners():
        assert said == "100005 100005\n"
    else:
        assert said == "MachineLacks the kernel does not map owners in a view\n"


def test_options_of_a_bind_mount_need_one(shared_daemon, image):
    done = shared_daemon.run("mount", "--noexec", image, check=False)
    assert done.returncode == 1
    assert "need a directory" in done.stderr


# --- sub paths --------------------------------------------------------------------------------


def test_a_directory_or_a_file_of_an_image_is_a_volume(mounted, shared_daemon, agent, short_path):
    etc = mounted("--subpath", "etc")
    assert [name for name, _ in agent.ask("list", path=etc)] == ["empty", "motd"]
    motd = short_path / "file"
    motd.touch()
    mounted("--subpath", "/motd", at=str(motd))
    assert agent.ask_bytes("content", path=str(motd)) == b"hello"
    assert options_of(str(motd)) >= ATTRIBUTES
    through_link = mounted("--subpath", "bin", "--dirs-only")
    assert [name for name, _ in agent.ask("list", path=through_link)] == ["greet", "id"]
    assert agent.errno_of("list", path=f"{through_link}/../bin") == "ENOENT"

    volumes = {volume["path"]: volume for volume in shared_daemon.json("ps")}
    assert volumes[etc]["options"]["sub_path"] == "etc"
    assert all(volume["state"] == "mounted" for volume in volumes.values())
    shared_daemon.run("unmount", etc, motd, through_link)
    assert agent.ask("list", path=etc) == []
    assert agent.ask_bytes("content", path=str(motd)) == b""


def test_a_sub_path_that_cannot_be_mounted_leaves_nothing(shared_daemon, image, agent, short_path):
    target = shared_daemon.target("refused")
    (short_path / "file").touch()
    for arguments, text in [
        (["--subpath", "not-existing", image, target], "no such file or directory"),
        (["--subpath", "etc/motd", "--dirs-only", image, target], "only directory subpath"),
        (["--subpath", "etc/motd", image, target], "target is not a file"),
        (["--subpath", "etc", image, short_path / "file"], "target is not a directory"),
        (["--subpath", "null", image, target], "neither a directory nor a file"),
    ]:
        done = shared_daemon.run("mount", *arguments, check=False)
        assert done.returncode == 1
        assert text in done.stderr
    assert shared_daemon.json("ps") == []
    assert agent.ask("list", path=target) == []


def test_a_view_without_a_target_is_shown_from_the_sub_path_on(shared_daemon, image, agent):
    path = shared_daemon.run("mount", "--subpath", "bin", image).stdout.strip()
    assert path.endswith("/usr/bin")
    assert [name for name, _ in agent.ask("list", path=path)] == ["greet", "id"]
    shared_daemon.run("unmount", path)


def test_options_outlive_the_daemon(daemon, image, agent):
    target = daemon.target("t")
    daemon.run("mount", "--noexec", "--nosymfollow", "--subpath", "bin", image, target)
    before = options_of(target)
    daemon.kill()
    daemon.start()
    assert options_of(target) == before == {*ATTRIBUTES, "noatime", "noexec", "nosymfollow"}
    assert [name for name, _ in agent.ask("list", path=target)] == ["greet", "id"]
    daemon.run("unmount", target)


# --- sandboxes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pulled(shared_daemon, image):
    shared_daemon.run("pull", image)
    return image


def ask_sandbox(daemon, *mounts, **options):
    client = Client(str(daemon.run_dir / "imgvol.sock"))
    body = {"sandbox": "pod", "mounts": [{"readonly": True, **mount} for mount in mounts]}
    answer = client.call("POST", "/sandboxes/mounts", body={**body, **options})
    return [mount["host_path"] for mount in answer["mounts"]]


def test_containers_share_a_volume_and_get_the_parts_that_they_want(shared_daemon, pulled, agent):
    whole, etc, motd, relative = ask_sandbox(
        shared_daemon,
        {"image": pulled},
        {"image": pulled, "image_sub_path": "etc"},
        {"image": pulled, "image_sub_path": "motd"},
        {"image": pulled, "image_sub_path": "usr/bin/../../etc/empty"},
    )
    assert [etc, motd, relative] == [f"{whole}/{path}" for path in ("etc", "etc/motd", "etc/empty")]
    assert agent.ask_bytes("content", path=motd) == b"hello"
    ours = {m.mount_point for m in read_mountinfo() if b"/volumes/pod/" in m.mount_point}
    assert ours == {os.fsencode(whole)}
    assert ask_sandbox(shared_daemon, {"image": pulled, "image_sub_path": "etc"}) == [etc]
    shared_daemon.run("lease", "rm", "pod")
    assert not os.path.lexists(whole)


@pytest.mark.parametrize(
    ("path", "options", "text"),
    [
        ("not-existing", {}, "no such file or directory"),
        ("/etc", {}, "path escapes from parent"),
        ("etc/../../..", {}, "path escapes from parent"),
        ("bin/greet", {}, "path escapes from parent"),
        ("etc/motd", {"dirs_only": True}, "only directory subpath is supported"),
        ("null", {}, "neither a directory nor a file"),
    ],
)
def test_a_sub_path_that_a_kubelet_must_not_get_fails_the_whole_call(
    shared_daemon, pulled, path, options, text
):
    mounts = [{"image": pulled}, {"image": pulled, "image_sub_path": path}]
    with pytest.raises(ImgvolError) as refused:
        ask_sandbox(shared_daemon, *mounts, **options)
    assert refused.value.code == "image-volume-mount-failed"
    assert refused.value.message == f"ImageVolumeMountFailed: sub path: {text}"
    assert not any(b"/volumes/pod/" in m.mount_point for m in read_mountinfo())
    assert shared_daemon.json("ps") == []
    shared_daemon.run("lease", "rm", "pod")


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"propagation": "bidirectional"}, "a volume cannot have bidirectional propagation"),
        (
            {"uid_mappings": [{"host_id": 100000, "container_id": 0, "length": 65536}]},
            "user and group mappings come together",
        ),
    ],
    ids=["bidirectional", "users only"],
)
def test_what_a_volume_of_a_sandbox_cannot_be_is_told(shared_daemon, pulled, wrong, text):
    with pytest.raises(ImgvolError, match=text):
        ask_sandbox(shared_daemon, {"image": pulled, **wrong})
    assert shared_daemon.json("ps") == []
    shared_daemon.run("lease", "rm", "pod", check=False)


@transports.each
def test_a_volume_of_a_sandbox_has_mapped_owners_or_it_is_told(daemon, image, agent, transport):
    daemon.run("pull", image)
    mapping = [{"host_id": 100000, "container_id": 0, "length": 65536}]
    if transport == "kernel" and transports.maps_owners():
        (volume,) = ask_sandbox(
            daemon, {"image": image, "uid_mappings": mapping, "gid_mappings": mapping}
        )
        found = agent.ask("stat", path=f"{volume}/etc")
        assert (found["st_uid"], found["st_gid"]) == (100000, 100000)
        daemon.run("lease", "rm", "pod")
        return
    with pytest.raises(ImgvolError, match="the kernel does not map owners in a view"):
        ask_sandbox(daemon, {"image": image, "uid_mappings": mapping, "gid_mappings": mapping})
    assert daemon.json("ps") == []
    daemon.run("lease", "rm", "pod", check=False)


# --- propagation ------------------------------------------------------------------------------


@pytest.fixture
def shared_place(short_path):
    """A directory in a mount that tells its peers, as / does under systemd."""
    require_fuse()
    place = short_path / "shared"
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", place)
    run("mount", "--make-shared", place)
    yield place
    run("umount", "--lazy", place)


def test_what_is_mounted_beneath_a_volume_is_not_in_another(shared_place, image, agent):
    with running_daemon(shared_place) as daemon:
        one, other = daemon.target("one"), daemon.target("other")
        for target in (one, other):
            daemon.run("mount", image, target)
            assert shared_with(target) == ""
        (view,) = agent.ask("list", path=str(daemon.run_dir / "views"))
        run("mount", "-t", "tmpfs", "tmpfs", f"{one}/etc/empty")
        try:
            agent.ask("os", function="mkdir", arguments=[f"{one}/etc/empty/new"])
            for elsewhere in (other, f"{daemon.run_dir}/views/{view[0]}"):
                assert agent.ask("list", path=f"{elsewhere}/etc/empty") == []
        finally:
            run("umount", f"{one}/etc/empty")
        daemon.run("unmount", one, other)


def test_a_slave_of_a_volume_sees_what_is_mounted_beneath_it_if_that_was_asked(
    mounted, shared_daemon, agent
):
    expected = {"private": [], "rslave": ["new"]}
    for propagation, names in expected.items():
        volume = mounted("--propagation", propagation)
        container = shared_daemon.target(f"container-{propagation}")
        run("mount", "--bind", volume, container)
        run("mount", "--make-rslave", container)
        run("mount", "-t", "tmpfs", "tmpfs", f"{volume}/etc/empty")
        try:
            agent.ask("os", function="mkdir", arguments=[f"{volume}/etc/empty/new"])
            seen = [name for name, _ in agent.ask("list", path=f"{container}/etc/empty")]
            assert seen == names
        finally:
            run("umount", f"{volume}/etc/empty")
            run("umount", container)


def test_what_a_container_mounts_stays_there(shared_daemon, image):
    with pytest.raises(ImgvolError, match="bidirectional"):
        call(shared_daemon, "/volumes", {"image": image, "propagation": "rshared"})


def call(daemon, path, body):
    client = Client(str(daemon.run_dir / "imgvol.sock"))
    return list(client.iter_events("POST", path, body=body))


# --- no window --------------------------------------------------------------------------------


def test_a_mount_is_restricted_before_it_can_be_reached(daemon, image, short_path):
    """Every mount that is attached was cloned and restricted before, and through no path."""
    require("strace")
    trace = short_path / "trace"
    calls = "open_tree,mount_setattr,move_mount,openat2,mount"
    daemon.run("pull", image)
    with traced(daemon.worker_pid, trace, calls):
        for number, options in enumerate([[], ["--noexec"], ["--subpath", "etc"]]):
            daemon.run("mount", *options, image, daemon.target(f"t{number}"))
    for number in range(3):
        daemon.run("unmount", daemon.base / f"t{number}")
    attached = assert_no_window(trace.read_text())
    assert attached == 3


@contextlib.contextmanager
def traced(pid: int, trace: Path, calls: str):
    command = ["strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={calls}", "-p", str(pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    status = Path(f"/proc/{pid}/status")
    wait_until(lambda: "TracerPid:\t0\n" not in status.read_text(), what="strace is attached")
    try:
        yield
    finally:
        tracer.terminate()
        tracer.wait(10)


def assert_no_window(trace: str) -> int:
    """Goes through the calls in order; returns how many mounts were attached."""
    restricted: dict[str, set[str]] = {}
    places: set[str] = set()
    attached = 0
    for line in joined(trace):
        call = re.sub(r"^\d+ +", "", line)
        result = call.rpartition(" = ")[2].split()[0]
        if call.startswith("open_tree("):
            assert "OPEN_TREE_CLONE" in call
            restricted[result] = set()
        elif call.startswith("openat2(") and not result.startswith("-"):
            assert "RESOLVE_NO_MAGICLINKS|RESOLVE_NO_SYMLINKS" in call
            places.add(result)
        elif call.startswith("mount_setattr("):
            tree = call.split("(")[1].split(",")[0]
            found = re.search(r"attr_set=([A-Z_|]+)", call)
            if found:
                restricted[tree] |= set(found[1].split("|"))
        elif call.startswith("move_mount("):
            tree, _, target = re.match(r"move_mount\((\d+), (\"\"), (\d+)", call).groups()
            wanted = {"MOUNT_ATTR_RDONLY", "MOUNT_ATTR_NOSUID", "MOUNT_ATTR_NODEV"}
            assert restricted.pop(tree) >= wanted, call
            assert target in places, call
            assert result == "0"
            attached += 1
        else:
            raise AssertionError(f"a mount that is made otherwise: {call}")
    return attached


def joined(trace: str) -> list[str]:
    """Lines of calls; one that was interrupted by another thread's is put together again."""
    started: dict[str, str] = {}
    lines = []
    for line in trace.splitlines():
        pid = line.split()[0]
        if line.endswith("<unfinished ...>"):
            started[pid] = line.removesuffix("<unfinished ...>")
        elif " resumed>" in line:
            lines.append(started.pop(pid) + line.partition(" resumed>")[2])
        elif "+++" not in line and "---" not in line:
            lines.append(line)
    return lines


@pytest.mark.fault("F73")
def test_whoever_swaps_the_target_gains_no_mount_elsewhere(daemon, image, short_path):
    """T21: a directory on the way is exchanged with a link to another one, all the time."""
    victim = short_path / "victim"
    (victim / "t").mkdir(parents=True)
    place = short_path / "place"
    (place / "t").mkdir(parents=True)
    link = short_path / "link"
    link.symlink_to(victim)
    daemon.run("pull", image)
    outcomes = set()
    with swapping(place, link):
        for _ in range(200):
            try:
                (*_, done) = call(daemon, "/volumes", {"image": image, "target": f"{place}/t"})
                outcomes.add("mounted")
                unmount(daemon, done["volume"]["id"])
            except ImgvolError as error:
                outcomes.add(error.message)
    mounts = {m.mount_point for m in read_mountinfo() if b"imgvol:" in m.source}
    below = {m for m in mounts if m.startswith(os.fsencode(short_path))}
    assert below == {os.fsencode(daemon.run_dir / "views")}
    assert daemon.json("ps") == []
    assert "mounted" in outcomes, "the attacker was too quick for any mount"
    assert len(outcomes) > 1, "the attacker was too slow for any mount"


def unmount(daemon, volume):
    client = Client(str(daemon.run_dir / "imgvol.sock"))
    return client.call("DELETE", "/volumes", {"volume": volume, "detach": True})


# --- only ours --------------------------------------------------------------------------------


def test_a_volume_whose_directory_was_renamed_is_unmounted_where_it_is(mounted, shared_daemon):
    parent = shared_daemon.base / "before"
    (parent / "t").mkdir(parents=True)
    target = mounted(at=str(parent / "t"))
    parent.rename(shared_daemon.base / "after")
    (volume,) = shared_daemon.json("ps")
    assert volume["state"] == "lost"
    shared_daemon.run("unmount", target)
    after = os.fsencode(shared_daemon.base / "after/t")
    assert after not in {mount.mount_point for mount in read_mountinfo()}


# Before Linux 6.8 there are no numbers of mounts that last.
OLD_KERNEL = "from imgvol.volumes import syscalls; syscalls._STATX_MNT_ID_UNIQUE = 0"


@pytest.mark.fault("F73")
@pytest.mark.parametrize("prelude", ["pass", OLD_KERNEL], ids=["new kernel", "old kernel"])
def test_what_others_mount_over_a_volume_or_in_its_place_stays(short_path, image, agent, prelude):
    daemon = Imgvol(short_path, prelude=prelude)
    daemon.start()
    target = daemon.target("t")
    daemon.run("mount", "--subpath", "etc", image, target)
    run("mount", "-t", "tmpfs", "over", target)
    try:
        refused = daemon.run("unmount", "--detach", target, check=False)
        assert "something else is mounted over the volume" in refused.stderr
        run("umount", target)
        assert agent.ask_bytes("content", path=f"{target}/motd") == b"hello"
        run("umount", target)
        run("mount", "-t", "tmpfs", "instead", target)
        (volume,) = daemon.json("ps")
        assert volume["state"] == "lost"
        daemon.run("unmount", target)
        sources = {m.source for m in read_mountinfo() if m.mount_point == os.fsencode(target)}
        assert sources == {b"instead"}
        assert daemon.json("ps") == []
        run("umount", target)
        daemon.run("mount", image, target)
        daemon.run("unmount", target)
        assert agent.ask("list", path=target) == []
    finally:
        daemon.terminate()
        run("umount", "--quiet", target, check=False)
    assert not daemon.unexpected_log()


@pytest.mark.fault("F71")
@pytest.mark.slow
def test_a_thousand_volumes_come_and_go(daemon, image):
    """In about four seconds on two cores; what is quadratic takes more than this."""
    count = 1000
    daemon.run("pull", image)
    targets = [daemon.target(f"t{number}") for number in range(count)]
    started = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        bodies = ({"image": image, "target": target, "pull": "never"} for target in targets)
        done = list(pool.map(lambda body: call(daemon, "/volumes", body)[-1], bodies))
        assert {event["volume"]["path"] for event in done} == set(targets)
        volumes = daemon.json("ps")
        assert [volume["state"] for volume in volumes] == ["mounted"] * count
        list(pool.map(partial(unmount, daemon), targets))
    assert time.monotonic() - started < 40
    ours = [m for m in read_mountinfo() if m.mount_point.startswith(os.fsencode(daemon.base))]
    assert [mount.mount_point for mount in ours] == [os.fsencode(daemon.run_dir / "views")]
