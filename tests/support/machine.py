"""A daemon with an image mounted, for tests in which its surroundings fail."""

import contextlib
import hashlib
import random
import resource
from collections.abc import Iterator
from pathlib import Path

from support import images
from support.daemon import Imgvol
from support.failing import Failing
from support.programs import require_fuse

MIB = 1 << 20
NOISE = random.Random(12)
LARGE = NOISE.randbytes(40 * MIB)
SMALL = {f"d/{number}": NOISE.randbytes(3000) for number in range(100)}
IMAGE = images.Image(
    [
        images.Layer([images.file("large", LARGE)], "none"),
        images.Layer([images.file(name, content) for name, content in SMALL.items()], "gzip"),
    ]
)
OTHER = images.Image([images.Layer([images.file("other", b"other")], "gzip")])
DIGEST = hashlib.sha256(LARGE).hexdigest()


class Machine:
    """A daemon with an image mounted, and another to pull.

    Attributes:
        failing: What is to fail.
        other: The image that can be pulled.
        target: Where the first one is mounted.
        pid: The process that serves, before it is followed by another.
    """

    def __init__(self, base, supervisor):
        self.imgvol = Imgvol(base, supervisor=supervisor)
        self.failing = Failing(base, self.imgvol.root)
        self.imgvol.prelude = self.failing.prelude
        layout = images.write_layout(base / "layout", {"image": IMAGE, "other": OTHER})
        self.other = f"oci:{layout}:other"
        self.imgvol.start()
        self.pid = self.imgvol.worker_pid
        self.target = self.imgvol.target("mnt")
        self.imgvol.run("mount", f"oci:{layout}:image", self.target)

    def check(self, agent):
        """Everything is as it should be, and what was not done before can be done."""
        assert agent.ask("digest", path=f"{self.target}/large") == DIGEST
        for name, content in SMALL.items():
            assert agent.ask_bytes("content", path=f"{self.target}/{name}") == content
        self.imgvol.run("pull", self.other)
        assert self.imgvol.run("cat", self.other, "/other").stdout == "other"


@contextlib.contextmanager
def running_machine(base: Path, *, supervisor: bool = True) -> Iterator[Machine]:
    """Inside the block, a machine; in the end all that it has logged must have been expected."""
    require_fuse()
    machine = Machine(base, supervisor)
    yield machine
    if machine.imgvol.process.poll() is None:
        machine.imgvol.terminate()
    assert machine.imgvol.unexpected_log() == []


def resident(pid):
    """Bytes of memory that a process has."""
    with open(f"/proc/{pid}/statm") as numbers:
        return int(numbers.read().split()[1]) * resource.getpagesize()
