"""Counting: buckets as Prometheus has them, and nothing lost however a thing ends."""

import pytest

from imgvol.tallies import REQUEST_BOUNDS, Histogram, RequestTallies, Result, WaitTally


def test_bucket_includes_its_upper_bound():
    histogram = Histogram((1.0, 2.0))
    for seconds in (0.5, 1.0, 1.1, 2.0, 2.1, 100.0):
        histogram.observe(seconds)
    seen = histogram.snapshot()
    assert seen.counts == (2, 2, 2)
    assert seen.total == pytest.approx(106.7)


def test_snapshot_does_not_change():
    histogram = Histogram((1.0,))
    before = histogram.snapshot()
    histogram.observe(0.5)
    assert before.counts == (0, 0)
    assert histogram.snapshot().counts == (1, 0)


def test_request_is_in_progress_until_it_ends():
    tallies = RequestTallies()
    tally = tallies.of("read")
    began = tally.begin()
    assert tallies.snapshot().operations[0].in_progress == 1
    tally.end(began, Result.LATE)
    (counts,) = tallies.snapshot().operations
    assert counts.operation == "read"
    assert counts.in_progress == 0
    assert counts.results[Result.LATE] == sum(counts.results) == 1
    assert sum(counts.seconds.counts) == 1
    assert len(counts.seconds.counts) == len(REQUEST_BOUNDS) + 1
    assert counts.seconds.total > 0


def test_oldest_wait_is_that_of_the_first_that_still_waits():
    tally = WaitTally()
    assert tally.snapshot().oldest == 0
    with tally.waiting():
        with tally.waiting():
            both = tally.snapshot()
        one = tally.snapshot()
    assert both.waiting == 2
    assert one.waiting == 1
    assert one.oldest > both.oldest > 0
    assert tally.snapshot().waiting == 0
    assert sum(tally.snapshot().seconds.counts) == 2


def test_wait_that_fails_is_counted_too():
    tally = WaitTally()
    with pytest.raises(OSError, match="gone"), tally.waiting():
        raise OSError("gone")
    assert tally.snapshot().waiting == 0
    assert sum(tally.snapshot().seconds.counts) == 1
