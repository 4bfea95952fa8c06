"""Traces, as a user records them."""

import json
import os
import select
import signal
import subprocess
from contextlib import contextmanager

from support.daemon import ENVIRONMENT


@contextmanager
def recording(daemon, volume, *options):
    """Records a volume inside the block, ended as Ctrl-C does; then `said` is what was printed."""
    process = subprocess.Popen(
        [*daemon.command, "trace", "record", "--volume", volume, "--json", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **ENVIRONMENT},
    )
    said: dict = {}
    try:
        readable, _, _ = select.select([process.stderr], [], [], 30)
        assert readable, "the recording does not begin"
        assert b"Recording" in process.stderr.readline()
        yield said
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        said.update(json.loads(out))
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
