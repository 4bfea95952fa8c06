"""Numbers for people."""

import pytest

from imgvol.cli import units


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (34_500_000, "34.5 MB"),
        (1.5e12, "1.5 TB"),
        (5e21, "5000.0 EB"),
    ],
)
def test_size(count, shown):
    assert units.size(count) == shown


def test_progress_shares_its_unit():
    assert units.progress(4_500_000, 34_500_000) == "4.5/34.5 MB"
    assert units.progress(5, 0) == "5 B"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 us"),
        (0.000_34, "340 us"),
        (0.0123, "12 ms"),
        (0.9996, "1.0 s"),
        (3.44, "3.4 s"),
        (59.96, "1 min 0 s"),
        (125, "2 min 5 s"),
        (3725, "1 h 2 min"),
    ],
)
def test_duration(seconds, shown):
    assert units.duration(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-5, "just now"),
        (59, "59 s ago"),
        (3599, "59 min ago"),
        (86399, "23 h ago"),
        (86400, "1 day ago"),
        (200_000, "2 days ago"),
    ],
)
def test_age(seconds, shown):
    assert units.age(1_000_000 - seconds, now=1_000_000) == shown


def test_plural():
    shown = [units.plural(n, w) for n, w in [(1, "layer"), (2, "layer"), (3, "entry"), (2, "day")]]
    assert shown == ["1 layer", "2 layers", "3 entries", "2 days"]


def test_a_date_that_no_calendar_has():
    assert units.date(1e30).startswith("@")


def test_countdown():
    assert [units.countdown(s) for s in (5, 119, 120, 7200)] == ["5 s", "119 s", "2 min", "2 h"]
