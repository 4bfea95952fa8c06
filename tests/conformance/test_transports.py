"""What every transport owes the kernel, over real mounts. What views show is tried elsewhere, too:
the modules that are marked `transports.each`.

Most of it is tried over kernels that lack something, too: what the transport asks for in INIT saves
work, and nothing may come out otherwise without it.
"""

import hashlib
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from imgvol.fs.kernel.protocol import InitFlag
from support import transports
from support.agent import Agent
from support.daemon import running_daemon
from support.guards import mounts_below
from support.images import Image, Layer, directory, file, symlink, write_layout
from support.metrics import scrape
from support.programs import require_fuse

pytestmark = pytest.mark.fuse
each, each_kernel = transports.each_way, transports.each_kernel

NAMES = [f"name-{number:05}" for number in range(3000)]
LONG = "n" * 255
TARGET = "t" * 4095
MIB = 1 << 20
LARGE = random.Random(8).randbytes(3 * MIB + 12345)


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    entries = [
        directory("many"),
        *(file(f"many/{name}", name.encode()) for name in NAMES),
        directory("d", mode=0o750, uid=1234, gid=4321),
        file("d/file", b"content", xattrs={"user.one": b"1", "user.two": bytes(range(1, 200))}),
        file(f"d/{LONG}", b""),
        symlink("d/link", TARGET),
        directory("d/empty"),
        file("large", LARGE),
    ]
    image = Image([Layer(entries, "gzip")])
    return write_layout(tmp_path_factory.mktemp("transports"), {"x": image})


@pytest.fixture(scope="module")
def view(shared_daemon, layout):
    target = shared_daemon.target("view")
    shared_daemon.run("pull", f"oci:{layout}:x")
    shared_daemon.run("mount", f"oci:{layout}:x", target)
    yield target
    shared_daemon.run("unmount", target)


def names(agent, path):
    return [name for name, _ in agent.ask("list", path=path)]


@each_kernel
def test_it_is_mounted_so_that_set_user_id_means_nothing(shared_daemon, view):
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    (line,) = [line for line in lines if f" {shared_daemon.run_dir}/views " in line]
    before, _, after = line.partition(" - ")
    assert {"ro", "nosuid", "nodev", "noatime"} <= set(before.split()[5].split(","))
    kind, source, options = after.split()
    assert (kind, source) == ("fuse.imgvol", f"imgvol:{shared_daemon.run_dir}/views")
    assert {"default_permissions", "allow_other"} <= set(options.split(","))


@each_kernel
def test_what_its_kernel_lacks_is_not_agreed_on(shared_daemon, view, transport):
    lacking = {flag.name for flag in InitFlag if transports.lacks(transport, flag)}
    said = re.findall(r"FUSE 7\.\d+, <InitFlag(?:\.([\w|]+))?: \d+>", shared_daemon.log.read_text())
    if not lacking:
        assert not said, "that is told at level debug"
        return
    (agreed,) = (set(names.split("|")) - {""} for names in said)
    assert not agreed & lacking
    assert agreed or transport == "kernel without everything"


@each_kernel
def test_a_large_directory_is_listed_whole_every_time(agent, view):
    for _ in range(3):
        assert names(agent, f"{view}/many") == NAMES


@each_kernel
def test_every_name_of_a_listing_has_its_attributes(agent, view):
    found = agent.ask("stat_tree", path=f"{view}/many")
    assert found.keys() == set(NAMES)
    sizes = {name: attributes[5] for name, attributes in found.items()}
    assert sizes == {name: len(name) for name in NAMES}


@each_kernel
def test_a_large_file_is_read_in_every_way(agent, view, shared_daemon, transport):
    path = f"{view}/large"
    digest = hashlib.sha256(LARGE).hexdigest()
    for turn in range(2):  # asked for, then out of the page cache
        assert agent.ask("digest", path=path) == digest, turn
    ranges = [(0, 100), (MIB - 50, 100), (2 * MIB + 4095, 2), (3 * MIB, MIB)]
    fd, direct = (agent.ask("open", path=path, flags=flags) for flags in (0, os.O_DIRECT))
    for start, size in ranges:
        wanted = LARGE[start : start + size]
        assert agent.ask_bytes("pread", fd=fd, offset=start, size=size) == wanted
        assert agent.ask_bytes("mmap", fd=fd, offset=start, size=len(wanted)) == wanted
        assert agent.ask_bytes("sendfile", fd=fd, offset=start, size=len(wanted)) == wanted
    for start, size in [(0, MIB), (MIB, 2 * MIB)]:
        wanted = LARGE[start : start + size]
        assert agent.ask_bytes("mmap", fd=direct, offset=start, size=size) == wanted
    for handle in (fd, direct):
        agent.ask("close", fd=handle)
    metrics = scrape(shared_daemon.run_dir / "imgvol.sock")
    can = transport != "pyfuse3" and not transports.lacks(transport, InitFlag.PASSTHROUGH)
    passed = metrics["imgvol_filesystem_passed_opens_total"]
    assert bool(passed) == (can and transports.passes_through())


@each_kernel
def test_many_read_a_large_file_at_once(agent, view):
    reads = [[f"{view}/large", start, 300_000] for start in range(0, len(LARGE), 300_000)] * 4
    wanted = [hashlib.sha256(LARGE[start : start + 300_000]).hexdigest() for _, start, _ in reads]
    assert agent.ask("read_together", reads=reads, readers=16) == wanted


@each_kernel
def test_many_list_it_at_once(view):
    command = [sys.executable, "-c", f"import os; print(len(os.listdir({view + '/many'!r})))"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(8)]
    assert [int(each.communicate(timeout=30)[0]) for each in started] == [len(NAMES)] * 8


@each_kernel
def test_attributes_are_those_of_the_image(agent, view):
    found = agent.ask("stat", path=f"{view}/d")
    assert (found["st_mode"] & 0o7777, found["st_uid"], found["st_gid"]) == (0o750, 1234, 4321)
    found = agent.ask("stat", path=f"{view}/d/file")
    assert (found["st_size"], found["st_nlink"]) == (7, 1)


@each_kernel
def test_names_and_targets_may_be_as_long_as_linux_allows(agent, view):
    assert agent.ask("stat", path=f"{view}/d/{LONG}")["st_size"] == 0
    for _ in range(2):
        assert agent.ask("readlink", path=f"{view}/d/link") == TARGET


@each_kernel
def test_what_is_not_there_is_not_there_twice(agent, view):
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            agent.ask("stat", path=f"{view}/d/absent")


@each_kernel
def test_extended_attributes(agent, view):
    path = f"{view}/d/file"
    assert agent.ask("xattrs", path=path).keys() == {"user.one", "user.two"}
    with pytest.raises(OSError, match="No data available"):
        agent.ask("os", function="getxattr", arguments=[path, "user.none"])


@each_kernel
def test_permissions_are_checked_by_the_kernel(view):
    with Agent(user=65534) as nobody:
        assert nobody.ask("stat", path=f"{view}/d")["st_uid"] == 1234
        with pytest.raises(PermissionError):
            nobody.ask("stat", path=f"{view}/d/file")


@each
def test_the_root_shows_what_is_mounted_and_nothing_else(agent, shared_daemon, view, tmp_path):
    """Views come and go, and the kernel must not keep what it saw."""
    other = write_layout(tmp_path / "other", {"x": Image([Layer([file("other", b"")])])})
    views = f"{shared_daemon.run_dir}/views"

    def shown():
        return set(names(agent, views))

    def time():
        return agent.ask("stat", path=views)["st_mtime_ns"]

    first = shown()
    assert len(first) == 1
    for turn in range(3):
        target = shared_daemon.target(f"coming-{turn}-{os.path.basename(tmp_path)}")
        before = time()
        shared_daemon.run("mount", f"oci:{other}:x", target)
        assert time() > before
        (name,) = shown() - first
        agent.ask("stat", path=f"{views}/{name}/other")
        shared_daemon.run("unmount", target)
        assert shown() == first
        with pytest.raises(FileNotFoundError):
            agent.ask("stat", path=f"{views}/{name}/other")


@each_kernel
def test_the_size_of_the_filesystem(agent, view):
    found = agent.ask("statfs", path=view)
    assert found["f_bfree"] == 0
    assert found["f_namemax"] == 255
    assert found["f_files"] > len(NAMES)


@each_kernel
def test_owners_are_mapped_where_the_transport_can_say_so(agent, shared_daemon, layout, transport):
    target = shared_daemon.target("mapped")
    mapping = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"]
    done = shared_daemon.run("mount", *mapping, f"oci:{layout}:x", target, check=False)
    can = transport != "pyfuse3" and not transports.lacks(transport, InitFlag.ALLOW_IDMAP)
    assert (done.returncode == 0) == (can and transports.maps_owners())
    if done.returncode == 0:
        found = agent.ask("stat", path=f"{target}/d")
        assert (found["st_uid"], found["st_gid"]) == (101234, 104321)
        shared_daemon.run("unmount", target)


@each
def test_what_is_open_is_read_after_a_lazy_unmount(agent, shared_daemon, layout):
    target = shared_daemon.target("lazy")
    shared_daemon.run("mount", f"oci:{layout}:x", target)
    fd = agent.ask("open", path=f"{target}/many/{NAMES[7]}")
    shared_daemon.run("unmount", target, "--detach")
    assert agent.ask_bytes("read", fd=fd, size=100) == NAMES[7].encode()
    agent.ask("close", fd=fd)


@each
def test_it_ends_in_good_order_while_it_is_used(daemon, layout, agent):
    target = daemon.target("used")
    daemon.run("mount", f"oci:{layout}:x", target)
    agent.ask("open", path=f"{target}/d/file")
    daemon.terminate()
    assert not mounts_below([str(daemon.base)])
    daemon.start()


@pytest.mark.alone("others' mount namespaces keep a copy of what is unmounted")
@each
def test_a_daemon_leaves_when_its_filesystem_is_unmounted_by_somebody(short_path, transport):
    require_fuse()
    options, prelude = transports.options(transport), transports.prelude(transport)
    with running_daemon(short_path, *options, prelude=prelude, supervisor=False) as daemon:
        daemon.expected_log += ["filesystem"]
        subprocess.run(["umount", f"{daemon.run_dir}/views"], check=True, timeout=20)
        assert daemon.process.wait(20) != 0
        daemon.start()


@each_kernel
def test_descriptors_are_not_inherited_and_not_leaked(shared_daemon, view, agent):
    directory = f"/proc/{shared_daemon.worker_pid}/fd"

    def devices():
        links = [os.path.join(directory, name) for name in os.listdir(directory)]
        return [link for link in links if os.path.realpath(link) == "/dev/fuse"]

    (link,) = devices()
    info = Path(link.replace("/fd/", "/fdinfo/")).read_text()
    flags = int(info.split("flags:")[1].split()[0], 8)
    assert flags & os.O_CLOEXEC
    names(agent, view)
    assert devices() == [link]
