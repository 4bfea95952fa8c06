"""containerd, with nothing but its image store."""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from support.programs import stop, wait_until

CONFIG = 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'


@contextlib.contextmanager
def running_containerd(directory: Path) -> Iterator[Sequence[str]]:
    """Runs one in a new directory with a short path; gives the `ctr` command that asks it."""
    directory.mkdir()
    address = f"{directory}/socket"
    (directory / "config.toml").write_text(CONFIG)
    command = ["containerd", "--config", f"{directory}/config.toml", "--address", address]
    command += ["--root", f"{directory}/root", "--state", f"{directory}/state"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: os.path.exists(address), what="containerd")
        yield ("ctr", "--address", address)
    finally:
        stop(process)
