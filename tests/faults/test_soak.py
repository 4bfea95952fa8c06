"""A short run of what `scripts/soak` does for as long as one wants (F88)."""

import pytest

from support.programs import require_fuse
from support.soak import Soak

pytestmark = [pytest.mark.fuse, pytest.mark.servers, pytest.mark.slow]

SECONDS = 24.0


@pytest.mark.fault("F88")
@pytest.mark.timeout(180)
def test_everything_at_once_leaves_nothing_and_breaks_nothing(short_path, registry, proxy):
    require_fuse()
    soak = Soak(short_path, registry, proxy, seed=88, collects=False)
    soak.run(SECONDS, load=2.0)
    tally = soak.tally
    assert tally.problems == []
    assert tally.kills >= 1
    assert tally.fired.total() >= 1, "the line has failed, too"
    assert tally.done["read"] > 1000
    assert {"mount", "sandbox", "pull", "remove", "lease", "collect"} <= set(tally.done)
