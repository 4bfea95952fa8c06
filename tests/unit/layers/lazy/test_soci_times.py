"""Times as zTOCs write them."""

import pytest

from imgvol.layers.lazy.rfc3339 import parse_rfc3339

SECOND = 10**9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"1970-01-01T00:00:00Z", 0),
        (b"1970-01-01T00:00:01.5Z", 1_500_000_000),
        (b"1970-01-01T00:00:00.000000001Z", 1),
        (b"1969-12-31T23:59:59Z", -SECOND),
        (b"1969-12-31T23:59:59.25Z", -750_000_000),
        (b"2024-02-29T12:00:00Z", 1_709_208_000 * SECOND),
        (b"2024-02-29T12:00:00+02:00", 1_709_200_800 * SECOND),
        (b"2024-02-29T12:00:00-00:30", 1_709_209_800 * SECOND),
        (b"2024-02-29T12:00:00+14:00", 1_709_157_600 * SECOND),
        (b"9999-12-31T23:59:59Z", 253_402_300_799 * SECOND),
        (b"", 0),
    ],
)
def test_time_is_exact(text, expected):
    assert parse_rfc3339(text) == expected


@pytest.mark.parametrize("text", [b"0001-01-01T00:00:00Z", b"0000-02-29T00:00:00Z"])
def test_times_that_go_writes_for_none_are_before_the_epoch(text):
    assert parse_rfc3339(text) < 0


@pytest.mark.parametrize(
    "text",
    [
        b"now",
        b"2024-01-01",
        b"2024-01-01 00:00:00Z",
        b"2024-01-01T00:00:00z",
        b"2024-01-01T00:00:60Z",
        b"2024-01-01T00:60:00Z",
        b"2024-01-01T24:00:00Z",
        b"2023-02-29T00:00:00Z",
        b"2024-00-01T00:00:00Z",
        b"2024-01-01T00:00:00.Z",
        b"2024-01-01T00:00:00.1234567890Z",
        b"2024-01-01T00:00:00+1:00",
        b"2024-01-01T00:00:00+00:60",
        b"2024-01-01T00:00:00Z\n",
        "٢٠٢٤-01-01T00:00:00Z".encode(),
    ],
)
def test_other_text_is_no_time(text):
    assert parse_rfc3339(text) is None
