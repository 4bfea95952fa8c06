"""Traces: recorded from real mounts, shown, kept, and followed by later mounts."""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from imgvol.view.trace import parse_trace
from support.images import Image, push, sha256, write_layout
from support.lazy_images import lazy_layer
from support.programs import require_fuse, wait_until

pytestmark = [pytest.mark.servers, pytest.mark.fuse]

MIB = 1 << 20
WANTED = [f"usr/lib/m{number}.py" for number in (140, 3, 77, 12, 99)]


def only(format_):
    return pytest.mark.parametrize("lazy_image", [format_], indirect=True)


def recorded(daemon, agent, target, output, reads):
    """Records what the agent reads of a mounted volume."""
    command = [*daemon.command, "trace", "record", "--volume", target, "--for", "60s"]
    process = subprocess.Popen([*command, "-o", output, "--json"], stdout=subprocess.PIPE)
    try:
        wait_until(lambda: recordings(daemon) == 1, what="the recording to begin")
        reads()
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    return json.loads(said), parse_trace(output.read_bytes())
