"""Keeps httpx from importing a command of its own. Import it before httpx.

httpx imports that command if it can, and with it rich and pygments: five megabytes, and a tenth of
the daemon's start, for nothing. Without it httpx offers one that says what is missing.
"""

import sys

sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type] # None: not to be found
