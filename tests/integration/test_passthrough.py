"""Large files that the kernel reads in the store itself: right bytes, nothing leaked, no reader
fooled. What the table of open inodes does is in tests/unit/fs/test_kernel_backing.py."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from imgvol.view.trace import parse_trace
from support import transports
from support.caches import PAGES_AND_NAMES, drop_caches
from support.daemon import running_daemon
from support.edge_cases import MIB, content
from support.images import Image, Layer, directory, file, hardlink, sparse, write_layout
from support.metrics import scrape
from support.programs import require_fuse, require_root, wait_until
from support.recordings import recording

pytestmark = pytest.mark.fuse

only_kernel = pytest.mark.parametrize("transport", ["kernel"], scope="module")
both = pytest.mark.parametrize("transport", ["kernel", transports.CACHED], scope="module")

PIECE = MIB  # of which a scrub knows digests
HOLES = [(4096, content(600, 2)), (2 * MIB + 512, content(5000, 3)), (3 * MIB, b"")]
LARGE = content(9 * MIB + 12_345, 11)
OTHER = content(4 * MIB, 12)
SMALL = content(70_001, 8)


def holes() -> bytes:
    seen = bytearray(3 * MIB)
    for offset, data in HOLES:
        seen[offset : offset + len(data)] = data
    return bytes(seen)


def program() -> bytes:
    """Of more than 1 MiB: what follows an ELF file is nothing to the kernel."""
    return Path(os.path.realpath("/bin/sh")).read_bytes().ljust(2 * MIB, b"\0")


CONTENTS = {
    "d/large": LARGE,
    "d/other": OTHER,
    "d/small": SMALL,
    "d/holes": holes(),
    "d/same": LARGE,
    "d/program": program(),
    "above": content(MIB, 13),
}


def digest_of(name):
    return hashlib.sha256(CONTENTS[name]).hexdigest()


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    bottom = [
        directory("d"),
        file("d/large", LARGE),
        file("d/other", OTHER),
        file("d/small", SMALL),
        sparse("d/holes", 3 * MIB, HOLES),
        hardlink("d/same", "d/large"),
        file("d/program", CONTENTS["d/program"], mode=0o755),
    ]
    image = Image([Layer(bottom, "gzip"), Layer([file("above", CONTENTS["above"])], "none")])
    return write_layout(tmp_path_factory.mktemp("passed"), {"x": image})


@pytest.fixture
def view(daemon, layout):
    return mount(daemon, layout)


def mount(daemon, layout, *options, name="view"):
    target = daemon.target(name)
    daemon.run("pull", f"oci:{layout}:x")
    daemon.run("mount", *options, f"oci:{layout}:x", target)
    return target


def passed(daemon):
    return scrape(daemon.run_dir / "imgvol.sock")["imgvol_filesystem_passed_opens_total"]


def held(daemon):
    return scrape(daemon.run_dir / "imgvol.sock")["imgvol_filesystem_backing_files"]


def read_bytes(daemon):
    return scrape(daemon.run_dir / "imgvol.sock")["imgvol_filesystem_read_bytes_total"]


def wait_released(daemon):
    """The kernel tells of a file that is closed when it gets round to it."""
    wait_until(lambda: held(daemon) == 0, what="the kernel to let go of all files")


def forget():
    os.sync()
    drop_caches(PAGES_AND_NAMES)


def own_file(daemon, content_file):
    """The file of the store that has this content."""
    (found,) = {
        path
        for path in daemon.root.glob("layers/*/files/*")
        if path.stat().st_size == len(content_file) and path.read_bytes() == content_file
    }
    return found


def flip(path, offset):
    with path.open("r+b") as stored:
        stored.seek(offset)
        byte = stored.read(1)[0]
        stored.seek(offset)
        stored.write(bytes([byte ^ 1]))


@pytest.mark.alone("drops the kernel's caches")
@both
def test_bytes_are_right_and_only_large_files_are_passed_through(daemon, view, agent, transport):
    is_on = transport == "kernel" and transports.passes_through()
    for prepare in (forget, lambda: None):
        prepare()
        for name in CONTENTS:
            assert agent.ask("digest", path=f"{view}/{name}") == digest_of(name)
    assert passed(daemon) == (2 * (len(CONTENTS) - 1) if is_on else 0)
    if is_on:
        assert read_bytes(daemon) == len(SMALL), "the rest was not asked for"
    else:
        assert read_bytes(daemon) >= sum(map(len, CONTENTS.values())) - len(LARGE)
    wait_released(daemon)


@both
def test_many_read_at_once(daemon, view, agent):
    reads, expected = [], []
    for number in range(400):
        name = list(CONTENTS)[number % len(CONTENTS)]
        offset = number * 77_777 % len(CONTENTS[name])
        reads.append((f"{view}/{name}", offset, 50_000))
        part = CONTENTS[name][offset : offset + 50_000]
        expected.append(hashlib.sha256(part).hexdigest())
    assert agent.ask("read_together", reads=reads, readers=16) == expected
    wait_released(daemon)


@only_kernel
def test_no_backing_file_is_left_of_two_thousand_opens(daemon, view, agent):
    before = len(os.listdir(f"/proc/{daemon.worker_pid}/fd"))
    reads = [(f"{view}/{name}", 4096, 10) for name in ("d/large", "d/other")] * 1000
    found = agent.ask("read_together", reads=reads, readers=8)
    assert len(set(found)) == 2
    assert passed(daemon) == (2000 if transports.passes_through() else 0)
    wait_released(daemon)
    # The layer keeps the two files, and the metrics are asked over connections.
    assert len(os.listdir(f"/proc/{daemon.worker_pid}/fd")) <= before + 8


@only_kernel
def test_beyond_the_limit_files_are_read_as_ever(short_path, layout, agent, transport):
    require_fuse()
    options = transports.options(transport)
    with running_daemon(short_path, *options, FUSE_BACKING_FILES=2) as daemon:
        view = mount(daemon, layout)
        names = ("d/large", "d/other", "d/holes", "above")
        held_open = [agent.ask("open", path=f"{view}/{name}") for name in names]
        expected = 2 if transports.passes_through() else 0
        assert (passed(daemon), held(daemon)) == (expected, expected)
        for name in names:
            assert agent.ask("digest", path=f"{view}/{name}") == digest_of(name)
        for fd in held_open:
            agent.ask("close", fd=fd)
        wait_released(daemon)


@only_kernel
def test_a_recording_sees_what_is_opened_after_it_has_begun(daemon, view, agent):
    agent.ask("digest", path=f"{view}/d/large")
    before = agent.ask("open", path=f"{view}/d/other")
    wait_until(lambda: held(daemon) <= 1, what="the kernel to let go of the closed file")
    out = daemon.base / "trace.json"
    with recording(daemon, view, "-o", str(out)):
        fd = agent.ask("open", path=f"{view}/d/large")
        got = agent.ask_bytes("pread", fd=fd, size=5000, offset=4 * MIB)
        assert got == LARGE[4 * MIB :][:5000]
        # One that is passed through stays so, and is noted as open.
        again = agent.ask("open", path=f"{view}/d/other")
        assert agent.ask_bytes("pread", fd=again, size=10, offset=MIB) == OTHER[MIB:][:10]
    files = {each.path.decode(): each.ranges for each in parse_trace(out.read_bytes()).files}
    (only,) = files["d/large"]
    assert only.offset <= 4 * MIB <= 4 * MIB + 5000 <= only.end
    assert only.end - only.offset < 2 * MIB, "not the whole file"
    assert files["d/other"] == () or not transports.passes_through()
    for each in (before, again, fd):
        agent.ask("close", fd=each)
    wait_released(daemon)
    count = passed(daemon)
    agent.ask("digest", path=f"{view}/d/large")
    assert passed(daemon) == count + transports.passes_through(), "as before"


@only_kernel
@pytest.mark.fault("F27")
def test_a_file_that_is_found_damaged_is_opened_by_nobody_else(daemon, view, agent):
    daemon.expected_log += ["is damaged", "has changed since it was verified"]
    large, other = f"{view}/d/large", f"{view}/d/other"
    fd, whole = agent.ask("open", path=large), agent.ask("open", path=other)
    flip(own_file(daemon, LARGE), 3 * PIECE)
    assert daemon.run("scrub", check=False).returncode == 1
    if transports.passes_through():
        assert held(daemon) == 1, "the kernel has let go of the damaged file"
        assert agent.errno_of("open", path=large) == "EIO"
        # Nothing takes it from whoever has it: they read what the disk gives.
        assert agent.ask_bytes("pread", fd=fd, size=100, offset=0) == LARGE[:100]
        assert agent.ask("digest", path=other) == digest_of("d/other"), "it is not damaged"
    agent.ask("close", fd=fd)
    agent.ask("close", fd=whole)
    wait_released(daemon)
    # From now on the layer's files are read by us, who know which part is damaged.
    count = passed(daemon)
    fd = agent.ask("open", path=large)
    assert agent.ask_bytes("pread", fd=fd, size=100, offset=5 * PIECE) == LARGE[5 * PIECE :][:100]
    with pytest.raises(OSError, match="Input/output error"):
        agent.ask_bytes("pread", fd=fd, size=100, offset=3 * PIECE)
    agent.ask("close", fd=fd)
    assert agent.ask("digest", path=other) == digest_of("d/other")
    assert passed(daemon) == count

    assert daemon.json("scrub", "--repair")["faults"][0]["is_repaired"]
    assert agent.ask("digest", path=large) == digest_of("d/large")


@only_kernel
def test_one_that_was_repaired_meanwhile_is_not_opened_as_it_was(daemon, view, agent):
    """Whoever opened it then would join those who read the damaged one."""
    daemon.expected_log += ["is damaged", "has changed since it was verified"]
    large = f"{view}/d/large"
    fd = agent.ask("open", path=large)
    flip(own_file(daemon, LARGE), 3 * PIECE)
    assert daemon.json("scrub", "--repair", check=False)["faults"][0]["is_repaired"]
    if transports.passes_through():
        assert agent.errno_of("open", path=large) == "EIO"
    agent.ask("close", fd=fd)
    wait_released(daemon)
    wait_until(lambda: agent.errno_of("digest", path=large) == "OK", what="it to open again")
    assert agent.ask("digest", path=large) == digest_of("d/large")


@only_kernel
def test_no_file_of_a_layer_that_is_refused_as_a_whole_is_opened_again(daemon, view, agent):
    daemon.expected_log += ["is damaged", "has changed since it was verified"]
    large, other = f"{view}/d/large", f"{view}/d/other"
    fd, whole = agent.ask("open", path=large), agent.ask("open", path=other)
    flip(own_file(daemon, LARGE).parents[1] / "layer.json", 70)
    assert daemon.run("scrub", check=False).returncode == 1
    if transports.passes_through():
        assert held(daemon) == 0
        assert {agent.errno_of("open", path=path) for path in (large, other)} == {"EIO"}
        assert agent.ask("digest", path=f"{view}/above") == digest_of("above"), "another layer"
    agent.ask("close", fd=fd)
    agent.ask("close", fd=whole)
    wait_released(daemon)
    assert {agent.errno_of("digest", path=path) for path in (large, other)} == {"EIO"}


@both
def test_programs_run_out_of_a_view_and_map_its_files(daemon, view, agent):
    done = agent.ask("exec", arguments=[f"{view}/d/program", "-c", "exit 7"])
    assert done["status"] == 7
    fd = agent.ask("open", path=f"{view}/d/large")
    for offset in (0, 4096 * 7, 5 * MIB + 1, len(LARGE) - 100):
        assert agent.ask_bytes("mmap", fd=fd, size=100, offset=offset) == LARGE[offset:][:100]
    agent.ask("close", fd=fd)
    wait_released(daemon)


@both
def test_an_overlay_over_a_view_reads_and_copies_up(daemon, view, tmp_path):
    require_root()
    for name in ("upper", "work", "merged"):
        (tmp_path / name).mkdir()
    script = f"""
set -e
cd {tmp_path}
mount -t overlay overlay -o lowerdir={view},upperdir=upper,workdir=work merged
sha256sum merged/d/large merged/d/small
merged/d/program -c 'echo ran'
echo more >> merged/d/other
head -c {len(OTHER)} merged/d/other | sha256sum
umount merged
"""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words == [
        *(digest_of("d/large"), "merged/d/large", digest_of("d/small"), "merged/d/small"),
        *("ran", digest_of("d/other"), "-"),
    ]
    shutil.rmtree(tmp_path / "work")
    wait_released(daemon)


@only_kernel
def test_files_of_volumes_with_mapped_owners_are_passed_through(daemon, layout, agent):
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 12):
        return  # test_transports.py shows that such a mount is refused
    mapping = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"]
    target = mount(daemon, layout, *mapping)
    assert agent.ask("digest", path=f"{target}/d/large") == digest_of("d/large")
    assert passed(daemon) == 1


@only_kernel
@pytest.mark.fault("F04")
def test_open_files_outlive_the_daemon_where_it_is_not_asked(daemon, view, agent):
    fd = agent.ask("open", path=f"{view}/d/large")
    small = agent.ask("open", path=f"{view}/d/small")
    daemon.kill()
    if transports.passes_through():
        part = agent.ask_bytes("pread", fd=fd, size=4096, offset=5 * MIB)
        assert part == LARGE[5 * MIB :][:4096]
    with pytest.raises(OSError, match=r"not connected|aborted"):
        agent.ask_bytes("pread", fd=small, size=10, offset=0)
    assert agent.errno_of("open", path=f"{view}/d/large") in {"ENOTCONN", "ECONNABORTED"}
    for each in (fd, small):
        agent.ask("close", fd=each)
    daemon.start()
    assert agent.ask("digest", path=f"{view}/d/large") == digest_of("d/large")


@only_kernel
def test_a_daemon_ends_in_good_order_while_files_are_open(daemon, view, agent):
    fd = agent.ask("open", path=f"{view}/d/large")
    daemon.terminate()
    agent.ask("close", fd=fd)
    daemon.start()
