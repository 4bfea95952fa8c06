"""A daemon without privilege: fusermount3 mounts, each target a filesystem of its own."""

import hashlib
import os
import random
import re
import signal
from pathlib import Path

import pytest

from support import images
from support.programs import run, wait_until
from support.transports import has_resend
from support.users import user as user

# Not marked `fuse`: where the interpreter is out of a user's reach, they are skipped.
pytestmark = pytest.mark.root

LARGE = bytes(range(256)) * 8192
DIGEST = hashlib.sha256(LARGE).hexdigest()


@pytest.fixture(scope="module")
def layout(our_roots, tmp_path_factory):
    base = images.Layer(
        [
            images.directory("etc"),
            images.file("etc/motd", b"hello"),
            images.directory("usr"),
            images.directory("usr/share"),
            images.file("usr/share/large", LARGE),
            images.file("tool", b"#!/bin/sh\necho it runs\n", mode=0o755),
        ]
    )
    directory = Path(our_roots[1]) / tmp_path_factory.mktemp("rootless").name
    directory.mkdir(mode=0o755)
    all_of_them = {
        "one": images.Image([base]),
        "two": images.Image([base, images.Layer([images.file("etc/motd", b"other")])]),
    }
    return images.write_layout(directory / "layout", all_of_them)


@pytest.fixture
def one(layout):
    return f"oci:{layout}:one"


@pytest.fixture
def two(layout):
    return f"oci:{layout}:two"


def test_a_user_mounts_a_view_of_their_own(user, one):
    view = user.imgvol("mount", one).stdout.strip()
    assert user.sh(f"cat {view}/etc/motd").stdout == "hello"
    assert "Read-only file system" in user.sh(f"touch {view}/new", check=False).stderr
    user.imgvol("unmount", view)
    assert user.json("ps") == []
    user.imgvol("stop")
    assert user.mounts() == {}


def test_two_images_at_two_directories_of_one_daemon(user, one, two):
    targets = [user.directory("one"), user.directory("two")]
    for reference, target in zip((one, two), targets, strict=True):
        assert user.imgvol("mount", reference, target).stdout.strip() == target
    assert [volume["path"] for volume in user.json("ps")] == targets
    assert [user.sh(f"cat {target}/etc/motd").stdout for target in targets] == ["hello", "other"]
    assert user.sh(f"{targets[0]}/tool").stdout == "it runs\n"
    for _ in range(2):
        assert user.sh(f"ls {targets[0]}").stdout.split() == ["etc", "tool", "usr"]
    for target in targets:
        assert user.sh(f"sha256sum <{target}/usr/share/large").stdout.split()[0] == DIGEST
    options = user.mounts()[targets[0]].split()[5]
    assert {"ro", "nosuid", "nodev", "noatime"} <= set(options.split(","))
    assert set(user.mounts()) == {*targets, str(user.views)}
    user.imgvol("unmount", *targets)
    assert user.json("ps") == []
    assert [user.sh(f"ls {target}").stdout for target in targets] == ["", ""]
    assert set(user.mounts()) == {str(user.views)}


@pytest.mark.servers
def test_an_image_is_read_while_it_is_pulled(user, registry, proxy, tmp_path):
    entries = [
        images.file("first", b"first"),
        images.file("large", random.Random(1).randbytes(3 << 20)),
        images.file("last", b"last"),
    ]
    made = images.Image([images.Layer(entries, "gzip")])
    layout = images.write_layout(tmp_path, {"v1": made})
    images.push(layout, "v1", registry.reference("rootless/stream:v1"))
    line = proxy.throttle(1 << 20, shared=True)
    target = user.directory("mnt")
    user.imgvol("mount", "--verify=stream", proxy.reference("rootless/stream:v1"), target)
    assert user.sh(f"cat {target}/first").stdout == "first"
    assert [layer["state"] for layer in user.json("ps")[0]["layers"]] == ["streaming"]
    assert line.fired
    # A listing waits for the whole image.
    assert user.sh(f"ls {target}").stdout.split() == ["first", "large", "last"]
    assert user.sh(f"cat {target}/last").stdout == "last"
    user.imgvol("unmount", target)
    assert user.json("ps") == []


def test_nobody_else_sees_what_a_user_has_mounted(user, one):
    target = user.directory("mnt")
    user.imgvol("mount", one, target)
    as_root = ["nsenter", f"--mount=/proc/{user.keeper}/ns/mnt", "cat", f"{target}/etc/motd"]
    with pytest.raises(AssertionError, match="Permission denied"):
        run(*as_root)


@pytest.mark.parametrize(("path", "content"), [("etc", "motd"), ("etc/motd", "")])
def test_a_part_of_an_image(user, two, path, content):
    target = user.directory("mnt")
    if not content:
        os.rmdir(target)
        user.sh(f"touch {target}")
    user.imgvol("mount", "--subpath", path, two, target)
    assert user.sh(f"cat {target}/{content}".rstrip("/")).stdout == "other"
    user.imgvol("unmount", target)
    assert user.json("ps") == []


def test_what_is_in_use_is_detached_only_if_asked_for_and_can_be_read_to_its_end(user, one, two):
    target = user.directory("mnt")
    user.imgvol("mount", one, target)
    with user.using(f"{target}/usr/share/large") as reader:
        refused = user.imgvol("unmount", target, check=False)
        assert (refused.returncode, "in use" in refused.stderr) == (1, True)
        user.imgvol("unmount", "--detach", target)
        assert user.json("ps") == []
        # Another one in its place is another filesystem.
        user.imgvol("mount", two, target)
        said, _ = reader.communicate("\n", timeout=30)
        assert said.split()[0] == DIGEST
        assert user.sh(f"cat {target}/etc/motd").stdout == "other"


@pytest.mark.fault("F04")
def test_after_a_kill_every_target_is_mounted_again(user, one, two):
    user.environment["IMGVOL_SUPERVISOR"] = "0"
    targets = [user.directory("one"), user.directory("two")]
    user.imgvol("mount", one, targets[0])
    user.imgvol("mount", "--subpath", "etc", two, targets[1])
    user.imgvol("mount", two)
    before = user.sh(f"stat -c %i {targets[0]}/etc/motd {targets[1]}/motd").stdout
    os.kill(user.json("version")["daemon"]["pid"], signal.SIGKILL)
    for target in targets:
        # The second one while the kernel ends the connection.
        told = user.sh(f"ls {target}", check=False).stderr
        assert re.search("not connected|connection abort", told)
    assert "left behind" in user.imgvol("doctor", check=False).stdout
    assert {volume["state"] for volume in user.json("ps")} == {"mounted"}
    after = user.sh(f"stat -c %i {targets[0]}/etc/motd {targets[1]}/motd").stdout
    assert after == before
    assert user.sh(f"cat {targets[1]}/motd").stdout == "other"
    assert set(user.mounts()) == {*targets, str(user.views)}
    assert user.imgvol("doctor", check=False).stdout.count("fail") == 0


def test_what_the_user_has_unmounted_or_aborted_is_told(user, one, two):
    targets = [user.directory("one"), user.directory("two")]
    user.imgvol("mount", one, targets[0])
    user.imgvol("mount", two, targets[1])
    user.sh(f"fusermount3 -u {targets[0]}")
    minor = user.mounts()[targets[1]].split()[2].split(":")[1]
    Path(f"/sys/fs/fuse/connections/{minor}/abort").write_text("1")

    def reasons():
        return [volume["reason"] for volume in user.json("ps")]

    wait_until(lambda: reasons() == ["somebody has unmounted it", "its connection was aborted"])
    assert "not connected" in user.sh(f"ls {targets[1]}", check=False).stderr
    user.imgvol("unmount", *targets)
    assert set(user.mounts()) == {str(user.views)}
    user.imgvol("mount", one, targets[1])
    assert user.sh(f"cat {targets[1]}/etc/motd").stdout == "hello"


def test_targets_that_cannot_be(user, one):
    sticky = user.base / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    others = user.base / "others"
    others.mkdir(mode=0o755)
    for target in (sticky, others):
        refused = user.imgvol("mount", one, str(target), check=False)
        assert refused.returncode == 1
        assert "you may not mount there" in refused.stderr
        assert "directory of your own" in refused.stderr
    target = user.directory("mnt")
    refused = user.imgvol("mount", "--subpath", "etc/motd", one, target, check=False)
    assert "not a file" in refused.stderr
    refused = user.imgvol("mount", "--nosymfollow", one, target, check=False)
    assert "takes root" in refused.stderr
    assert user.json("ps") == []
    assert set(user.mounts()) == {str(user.views)}


def test_as_many_filesystems_as_the_machine_allows(user, one):
    targets = [user.directory("one"), user.directory("two")]
    user.imgvol("mount", one, targets[0])
    # Root's count, too: fusermount3 counts the lines of the whole table.
    table = Path(f"/proc/{user.keeper}/mountinfo").read_text()
    count = table.count(" - fuse.")
    user.fuse_conf.write_text(f"mount_max = {count}\n")
    refused = user.imgvol("mount", one, targets[1], check=False)
    assert refused.returncode == 1
    assert "mount_max in /etc/fuse.conf" in refused.stderr
    assert [volume["path"] for volume in user.json("ps")] == [targets[0]]


def test_without_fusermount3(user, one):
    user.environment["PATH"] = "/nowhere"
    refused = user.imgvol("mount", one, user.directory("mnt"), check=False)
    assert refused.returncode == 1
    assert "fusermount3 is not installed" in refused.stderr
    assert "apt-get install fuse3" in refused.stderr
    assert user.imgvol("ls", one, "/etc").stdout == "motd\n"
    assert user.mounts() == {}


def test_over_libfuse_there_is_only_one_filesystem(user, one):
    user.environment["IMGVOL_TRANSPORT"] = "pyfuse3"
    refused = user.imgvol("mount", one, user.directory("mnt"), check=False)
    assert refused.returncode == 1
    assert "libfuse has one session in a process" in refused.stderr
    view = user.imgvol("mount", one).stdout.strip()
    assert user.sh(f"cat {view}/etc/motd").stdout == "hello"


def test_what_is_found_damaged_is_read_nowhere(user, one):
    """The kernel has a cache for each session, and all of them are to forget it."""
    targets = [user.directory("one"), user.directory("two")]
    for target in targets:
        user.imgvol("mount", "--wait", one, target)
        assert user.sh(f"sha256sum <{target}/usr/share/large").stdout.split()[0] == DIGEST
    (stored,) = [
        path
        for path in (user.home / ".local/share/imgvol/layers").glob("*/files/*")
        if path.stat().st_size == len(LARGE)
    ]
    with open(stored, "r+b") as file:
        file.write(b"x")
    assert user.imgvol("scrub", check=False).returncode == 1

    def is_refused(target):
        said = user.sh(f"cat {target}/usr/share/large", check=False).stderr
        return "Input/output error" in said

    for target in targets:
        wait_until(lambda target=target: is_refused(target))


@pytest.mark.skipif(not has_resend(), reason="takes Linux 6.9")
def test_a_supervised_daemon_goes_on_and_mounts_its_targets_again(user, one):
    target = user.directory("mnt")
    user.imgvol("mount", one, target)
    view = user.imgvol("mount", one).stdout.strip()
    with user.using(f"{view}/usr/share/large") as reader:
        os.kill(user.json("version")["daemon"]["pid"], signal.SIGKILL)
        assert {volume["state"] for volume in user.json("ps")} == {"mounted"}
        assert "1 restart" in user.imgvol("doctor", check=False).stdout
        assert user.sh(f"cat {target}/etc/motd").stdout == "hello"
        # What is no target is kept by the supervisor, and goes on.
        said, _ = reader.communicate("\n", timeout=30)
        assert said.split()[0] == DIGEST
