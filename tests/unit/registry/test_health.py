"""Who failed lately is asked last, and then in turn again."""

import httpx
import pytest

from imgvol import limits
from imgvol.registry.health import Health
from imgvol.registry.hosts import Endpoint

A, B, C = (Endpoint(base=httpx.URL(f"https://{name}.test/v2")) for name in "abc")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def health(clock):
    return Health(clock)


def test_who_has_failed_is_last_until_it_has_rested(health, clock):
    assert health.order([A, B, C]) == (A, B, C)
    health.note_failure(A)
    assert health.order([A, B, C]) == (B, C, A)
    clock.now += limits.ENDPOINT_REST - 1
    assert health.order([A, B, C]) == (B, C, A)
    clock.now += 1
    assert health.order([A, B, C]) == (A, B, C)


def test_those_that_have_failed_keep_their_order(health):
    health.note_failure(B)
    health.note_failure(A)
    assert health.order([A, B, C]) == (C, A, B)


def test_an_answer_ends_the_rest(health):
    health.note_failure(A)
    health.note_answer(A)
    assert not health.rests(A)


def test_each_failure_after_a_rest_makes_it_longer_up_to_a_limit(health, clock):
    rests = []
    for _ in range(8):
        health.note_failure(A)
        health.note_failure(A)  # another reader, at the same time
        began = clock.now
        while health.rests(A):
            clock.now += limits.ENDPOINT_REST
        rests.append(clock.now - began)
    assert rests[:3] == [30, 60, 120]
    assert rests[-1] == limits.ENDPOINT_LONGEST_REST
    health.note_answer(A)
    health.note_failure(A)
    clock.now += limits.ENDPOINT_REST
    assert not health.rests(A)


def test_few_are_remembered_the_latest_ones(health, monkeypatch):
    monkeypatch.setattr(limits, "ENDPOINTS_KNOWN", 2)
    for endpoint in (A, B, C):
        health.note_failure(endpoint)
    assert [health.rests(endpoint) for endpoint in (A, B, C)] == [False, True, True]
