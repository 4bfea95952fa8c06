"""Test configuration shared by every level. What it enforces is in support/guards.py."""

import os

from hypothesis import settings

pytest_plugins = ["support.guards", "support.fixtures", "support.faults"]

settings.register_profile("ci", max_examples=60, deadline=None, derandomize=False, print_blob=True)
settings.register_profile("quick", parent=settings.get_profile("ci"), max_examples=10)
settings.register_profile("nightly", parent=settings.get_profile("ci"), max_examples=3000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
