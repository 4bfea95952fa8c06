"""When to ask again: counts, delays, budget, Retry-After."""

from datetime import UTC, datetime
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol.errors import RegistryUnavailable
from imgvol.registry.bounds import Bounds
from imgvol.registry.retry import Attempts, Failure, Kind, RetryBudget, parse_retry_after

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
BOUNDS = Bounds(retries=4, connect_retries=2, stall_retries=1)


def failure(kind=Kind.TRANSIENT, retry_after=None):
    return Failure(RegistryUnavailable("no"), kind, retry_after)


def attempts(bounds=BOUNDS, budget=1000):
    return Attempts(bounds, RetryBudget(budget), Random(1))


def retries(of, kind):
    count = 0
    while True:
        try:
            of.delay_after(failure(kind), remaining=1e9)
        except RegistryUnavailable:
            return count
        count += 1


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(Kind.PERMANENT, 0), (Kind.STALL, 1), (Kind.CONNECT, 2), (Kind.TRANSIENT, 4)],
)
def test_each_kind_has_its_number_of_retries(kind, expected):
    assert retries(attempts(), kind) == expected


def test_kinds_share_one_count():
    several = attempts()
    several.delay_after(failure(Kind.TRANSIENT), remaining=1e9)
    with pytest.raises(RegistryUnavailable):
        several.delay_after(failure(Kind.STALL), remaining=1e9)


def test_progress_forgets_failures():
    several = attempts()
    assert retries(several, Kind.TRANSIENT) == 4
    several.progressed()
    assert retries(several, Kind.TRANSIENT) == 4


def test_delays_grow_up_to_a_limit():
    bounds = Bounds(retries=10, retry_first_delay=1, retry_delay=5)
    several = attempts(bounds)
    for number in range(10):
        ceiling = min(5, 2**number)
        assert ceiling / 2 <= several.delay_after(failure(), remaining=1e9) <= ceiling


def test_delay_beyond_the_deadline_is_not_waited_for():
    with pytest.raises(RegistryUnavailable):
        attempts().delay_after(failure(), remaining=0.01)


def test_retry_after_is_the_least_wait():
    delay = attempts().delay_after(failure(retry_after=7.0), remaining=1e9)
    assert 7 <= delay <= 7 + BOUNDS.retry_first_delay


def test_retry_after_beyond_the_limit_is_not_waited_for():
    with pytest.raises(RegistryUnavailable):
        attempts().delay_after(failure(retry_after=BOUNDS.retry_after + 1), remaining=1e9)


def test_budget_is_shared_and_refunded():
    budget = RetryBudget(3)
    first, second = (Attempts(BOUNDS, budget, Random(1)) for _ in range(2))
    assert retries(first, Kind.TRANSIENT) == 3
    assert retries(second, Kind.TRANSIENT) == 0
    for _ in range(11):
        budget.refund()
    assert retries(Attempts(BOUNDS, budget, Random(1)), Kind.TRANSIENT) == 1


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        ("0", 0),
        (" 120 ", 120),
        ("9" * 40, 999_999_999),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("soon", None),
        ("Sun, 01 Mar 2026 12:00:30 GMT", 30),
        ("Sun, 01 Mar 2026 12:00:30 -0000", 30),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0),
        ("Sun, 99 Mar 2026 12:00:30 GMT", None),
    ],
)
def test_retry_after_in_seconds_or_as_a_date(header, expected):
    assert parse_retry_after(header, now=NOW) == expected


@given(st.text(max_size=40))
def test_any_retry_after_is_a_number_or_nothing(header):
    wait = parse_retry_after(header, now=NOW)
    assert wait is None or wait >= 0
