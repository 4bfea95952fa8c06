"""A disk that is full, fails, lies or is read-only; files of the store that are not what they were;
a database that is cut or locked (F20 to F26, F28, F30, F32)."""

import os
import random
import shutil
import subprocess

import pytest

from imgvol.content.card import CARD_NAME
from support import images
from support.daemon import Imgvol
from support.failing import SHORT, WRITES, Failing

pytestmark = pytest.mark.fuse

NOISE = random.Random(11)
LARGE = NOISE.randbytes(3 << 20)  # has a file of its own
SMALL = NOISE.randbytes(200_000)
KEPT = images.Image(
    [images.Layer([images.file("large", LARGE), images.file("small", SMALL)], "gzip")]
)
OTHER = images.Image(
    [
        images.Layer([images.file("other", SMALL[::-1]), images.file("own", LARGE[::-1])], "zstd"),
        images.Layer([images.file("more", b"more")], "none"),
    ]
)


class Machine:
    """A daemon with one image that is mounted, and another to pull."""

    def __init__(self, base):
        self.imgvol = Imgvol(base)
        self.failing = Failing(base, self.imgvol.root)
        self.imgvol.prelude = self.failing.prelude
        layout = images.write_layout(base / "layout", {"kept": KEPT, "other": OTHER})
        self.kept, self.other = f"oci:{layout}:kept", f"oci:{layout}:other"
        self.imgvol.start()
        self.imgvol.run("pull", self.kept)
        self.manifest = self.imgvol.json("images")[0]["manifest"]
        self.target = self.imgvol.target("mnt")
        self.imgvol.run("mount", self.kept, self.target)

    def files(self):
        """Everything in the store but the database."""
        return sorted(
            os.path.join(directory, name)
            for directory, _, names in os.walk(self.imgvol.root)
            for name in names
            if not name.startswith("imgvol.db")
        )

    def pull_fails(self, text):
        done = self.imgvol.run("pull", self.other, check=False, timeout=60)
        assert done.returncode == 1
        assert text in done.stderr, done.stderr

    def check_other(self):
        """The other image can be pulled, and is right."""
        self.imgvol.run("pull", self.other)
        command = [*self.imgvol.command, "cat", self.other, "/own"]
        done = subprocess.run(command, capture_output=True, check=True, timeout=60)
        assert done.stdout == LARGE[::-1]
        assert self.imgvol.json("fsck")["wrong"] == []
        assert self.imgvol.json("scrub")["faults"] == []


@pytest.fixture
def machine(short_path):
    made = Machine(short_path)
    yield made
    if made.imgvol.process.poll() is None:
        made.imgvol.terminate()
    assert made.imgvol.unexpected_log() == []


@pytest.mark.fault("F20")
@pytest.mark.parametrize(
    "error", ["ENOSPC", pytest.param("EDQUOT", marks=pytest.mark.fault("F22"))]
)
@pytest.mark.parametrize("call", [call for call in WRITES if call != "link"])
def test_no_room_for_any_step_of_a_pull(machine, agent, call, error):
    if call == "transaction":
        machine.imgvol.expected_log.append("nothing can be collected|cannot be ended")
        error = "ENOSPC"
    before = machine.files()
    with machine.failing.of(call, error=error):
        machine.pull_fails("no room")
        assert machine.failing.fired
        assert agent.ask_bytes("content", path=f"{machine.target}/small") == SMALL
    assert machine.failing.fired
    assert len(machine.imgvol.json("images")) == 1
    machine.imgvol.run("gc")
    assert machine.files() == before
    machine.check_other()


@pytest.mark.fault("F20")
def test_without_room_for_a_link_large_files_are_simply_not_shared(machine):
    with machine.failing.of("link", error="ENOSPC"):
        machine.imgvol.run("pull", machine.other)
    assert machine.failing.fired
    machine.check_other()


@pytest.mark.fault("F22")
def test_a_limit_on_the_size_of_files_is_no_room(machine, agent):
    with machine.failing.of("pwrite", error="EFBIG"):
        machine.pull_fails("no room")
    assert machine.failing.fired
    machine.check_other()


@pytest.mark.fault("F24")
def test_what_cannot_be_made_durable_is_thrown_away_and_not_tried_again(machine):
    before = machine.files()
    with machine.failing.of("fsync", error="EIO"):
        machine.pull_fails("Input/output error")
    failed = machine.failing.fired
    assert failed
    assert len(failed) == len(set(failed)), "a second fsync of the same file would lie"
    machine.imgvol.run("gc")
    assert machine.files() == before
    machine.check_other()


@pytest.mark.fault("F25")
def test_a_store_that_is_read_only_serves_what_it_has(machine, agent):
    machine.imgvol.expected_log.append("Read-only|read-only|EROFS")
    with machine.failing.of(*WRITES, error="EROFS"):
        machine.pull_fails("readonly")
        agent.ask("forget", path=f"{machine.target}/small")
        assert agent.ask_bytes("content", path=f"{machine.target}/small") == SMALL
        assert machine.imgvol.json("images")
    machine.check_other()


@pytest.mark.fault("F26")
def test_short_writes_are_gone_on_with(machine):
    with machine.failing.of("pwrite", error=SHORT):
        machine.imgvol.run("pull", machine.other)
    assert len(machine.failing.fired) > 10
    machine.check_other()


@pytest.mark.fault("F23")
def test_what_the_disk_cannot_read_is_an_error_of_that_read(machine, agent):
    machine.imgvol.expected_log.append("cannot be read|Input/output error")
    agent.ask("forget", path=f"{machine.target}/small")
    with machine.failing.of("pread", error="EIO"):
        assert agent.errno_of("content", path=f"{machine.target}/small") == "EIO"
        assert agent.errno_of("stat", path=f"{machine.target}/small") == "OK"
    assert machine.failing.fired
    assert agent.ask_bytes("content", path=f"{machine.target}/small") == SMALL


# --- files that are something else ----------------------------------------------------------------


def put_link(path):
    shutil.move(path, f"{path}.real")
    os.symlink(f"{path}.real", path)


def put_fifo(path):
    os.unlink(path)
    os.mkfifo(path)


def put_directory(path):
    os.unlink(path)
    os.mkdir(path)


# What is gone or cut is in tests/unit/content/test_check.py.
REPLACED = [
    *((what, put_fifo) for what in ("data", "index", "files", "card", "document")),
    *((what, put) for what in ("data", "document") for put in (put_link, put_directory)),
]


@pytest.mark.fault("F28")
@pytest.mark.slow
@pytest.mark.parametrize(("what", "replace"), REPLACED)
def test_a_file_that_is_something_else_is_damage_and_nobody_waits_for_it(
    machine, agent, what, replace
):
    imgvol = machine.imgvol
    imgvol.run("unmount", machine.target)
    imgvol.terminate()
    imgvol.expected_log.append(".")
    (layer,) = (imgvol.root / "layers").iterdir()
    if what == "files":
        (path,) = (layer / "files").iterdir()
    elif what == "document":
        path = imgvol.root / "blobs" / "sha256" / machine.manifest.partition(":")[2]
    else:
        path = layer / (CARD_NAME if what == "card" else what)
    replace(str(path))
    imgvol.start()
    done = imgvol.run(
        "mount", machine.kept, machine.target, "--pull=never", check=False, timeout=30
    )
    if done.returncode == 0:
        for name, content in (("small", SMALL), ("large", LARGE)):
            assert agent.errno_of("content", path=f"{machine.target}/{name}") in {"OK", "EIO"}
            if agent.errno_of("content", path=f"{machine.target}/{name}") == "OK":
                assert agent.ask_bytes("content", path=f"{machine.target}/{name}") == content
        imgvol.run("unmount", machine.target)
    imgvol.terminate()
    # Mended, as far as it can be, and then whatever is missing is pulled.
    fsck = imgvol.run("fsck", "--repair", check=False, timeout=60)
    assert fsck.returncode in {0, 1}, fsck.stderr
    imgvol.start()
    imgvol.run("pull", machine.kept)
    imgvol.run("mount", machine.kept, machine.target)
    assert agent.ask_bytes("content", path=f"{machine.target}/small") == SMALL
    assert agent.ask_bytes("content", path=f"{machine.target}/large") == LARGE
    imgvol.run("unmount", machine.target)
