"""Reading while it is pulled: how soon the first file of a plain image is read, over a slow line.

One gzip layer of random data, a small file at its beginning, behind a line of 10 MB/s.
"""

import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.daemon import running_daemon
from support.images import Image, Layer, directory, file, push, write_layout
from support.programs import run
from support.proxy import running_proxy
from support.registry import Registry

RATE = 10_000_000
PART = 16 << 20


def bench_streams(registry: Registry, work: Path, size: int) -> None:
    """Mounts an image of `size` bytes with --verify=stream and prints when what was there."""
    with _directory(work) as base:
        reference = _push(registry, base / "layout", size)
        with running_proxy(registry.host) as proxy:
            proxy.throttle(RATE, shared=True)
            with running_daemon(base, "--transport", "kernel") as daemon:
                target = daemon.target("mnt")
                began = time.monotonic()
                daemon.run("mount", "--verify=stream", proxy.reference(reference), target)
                mounted = time.monotonic() - began
                run("cat", f"{target}/first")
                read = time.monotonic() - began
                # It waits for the last byte of the last layer.
                run("ls", target, timeout=10 * size / RATE + 60)
                listed = time.monotonic() - began
                daemon.run("unmount", target)
    print(
        f"{size / 1e6:.0f} MB of gzip at {RATE / 1e6:.0f} MB/s: mounted {mounted:.2f} s,"
        f" first file {read:.2f} s, all of it and the listing {listed:.2f} s"
    )


def _push(registry: Registry, layout: Path, size: int) -> str:
    source = random.Random(size)
    parts = [file(f"parts/{at}", source.randbytes(PART)) for at in range(0, size, PART)]
    layer = Layer([file("first", b"hello"), directory("parts"), *parts], "gzip")
    push(write_layout(layout, {"v1": Image([layer])}), "v1", registry.reference("bench-streams:v1"))
    return "bench-streams:v1"


@contextmanager
def _directory(work: Path) -> Iterator[Path]:
    base = Path(tempfile.mkdtemp(prefix="streams-", dir=work))
    try:
        yield base
    finally:
        shutil.rmtree(base)
