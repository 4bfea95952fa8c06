"""Test configuration shared by every level. What it enforces is in support/guards.py."""

import os
import signal

from hypothesis import settings

pytest_plugins = ["support.guards", "support.fixtures", "support.faults"]

# Everyone's run draws other examples; what lands is judged by the same ones each time, so that a
# failure there is of the change itself.
settings.register_profile("drawn", max_examples=60, deadline=None, print_blob=True)
settings.register_profile("ci", parent=settings.get_profile("drawn"), derandomize=True)
settings.register_profile("quick", parent=settings.get_profile("drawn"), max_examples=10)
settings.register_profile("nightly", parent=settings.get_profile("drawn"), max_examples=3000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "drawn"))

# A shell that starts tests in the background lets them, and all that they start, ignore what Ctrl-C
# sends: tests of Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
