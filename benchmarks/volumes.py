"""The volumes task: many volumes mounted and unmounted, through the daemon's API."""

import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from imgvol.cli.client import Client
from support.daemon import Imgvol
from support.images import Image, Layer, directory, write_layout

CLIENTS = 8
# What one would do by hand: never more than read-only, and not from the first moment.
BY_HAND = """
set -e
for target in "$@"; do
    mount --bind "$SOURCE" "$target"
    mount -o remount,bind,ro,nosuid,nodev "$target"
done
umount "$@"
"""


def bench_volumes(
    daemon: Imgvol, work: Path, count: int, compare: Callable[[str, float, str, float], None]
) -> None:
    """Mounts and unmounts so many volumes of one image.

    Args:
        compare: Told the task, our seconds, the other way, and its seconds.
    """
    place = Path(tempfile.mkdtemp(dir=work))
    layout = write_layout(place / "layout", {"x": Image([Layer([directory("etc")])])})
    image = f"oci:{layout}:x"
    daemon.run("pull", image)
    targets = [str(place / str(number)) for number in range(count)]
    for target in targets:
        Path(target).mkdir()
    started = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(partial(_mount, daemon, image), targets))
        list(pool.map(partial(_unmount, daemon), targets))
    ours = time.monotonic() - started
    started = time.monotonic()
    command = ["sh", "-c", BY_HAND, "sh", *targets]
    subprocess.run(command, check=True, env={"SOURCE": str(layout), "PATH": "/usr/bin:/bin"})
    compare(
        f"mount and unmount {count:,} volumes",
        ours,
        "mount --bind, remount, umount",
        time.monotonic() - started,
    )


def _client(daemon: Imgvol) -> Client:
    return Client(str(daemon.run_dir / "imgvol.sock"))


def _mount(daemon: Imgvol, image: str, target: str) -> None:
    body = {"image": image, "target": target, "pull": "never"}
    for event in _client(daemon).iter_events("POST", "/volumes", body=body):
        if event["event"] == "done":
            return
    raise AssertionError("no answer")


def _unmount(daemon: Imgvol, target: str) -> None:
    _client(daemon).call("DELETE", "/volumes", {"volume": target})
