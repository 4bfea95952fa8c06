"""What the daemon does not import: httpx's own command, and what that brings along."""

import subprocess
import sys

PROGRAM = """
import sys
import imgvol.daemon
import httpx
print([name for name in ("rich", "pygments") if name in sys.modules], callable(httpx.Client))
"""


def test_the_daemon_imports_no_command_of_httpx():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[] True"
