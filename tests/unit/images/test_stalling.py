"""When a pull has stalled: only while it waits for a source, and only without a byte."""

import pytest
import trio
import trio.testing

from imgvol.errors import DigestMismatch, RegistryUnavailable
from imgvol.images import stalling
from imgvol.images.stalling import PullWatch


@pytest.fixture
def clock(monkeypatch):
    """The time that the watch sees."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(stalling, "time", clock)
    return clock


def test_silence_while_waiting_is_a_stall(clock):
    watch = PullWatch(10)
    with watch.waiting("blob b"), watch.waiting("blob a"):
        clock.now = 9.9
        assert watch.stalled() is None
        clock.now = 10
        stalled = watch.stalled()
    assert stalled.fields == {"waiting_for": "blob a", "others": 1}
    assert "no byte for 10 s" in stalled.message


def test_a_byte_for_any_of_them_is_progress(clock):
    watch = PullWatch(10)
    with watch.waiting("a"), watch.waiting("b"):
        clock.now = 9
        watch.note_bytes()
        clock.now = 18
        assert watch.stalled() is None
        clock.now = 19
        assert watch.stalled() is not None


def test_a_pull_that_asks_for_nothing_does_not_stall(clock):
    watch = PullWatch(10)
    clock.now = 1000
    assert watch.stalled() is None
    with watch.waiting("a"):
        clock.now = 1009
        assert watch.stalled() is None
    clock.now = 5000
    assert watch.stalled() is None
    with watch.waiting("a"):
        assert watch.stalled() is None


def test_without_a_timeout_it_never_stalls(clock):
    watch = PullWatch(None)
    with watch.waiting("a"):
        clock.now = 1e9
        assert watch.stalled() is None


async def test_a_pull_that_stalls_is_cancelled_and_told_why():
    watch = PullWatch(0.05)
    cancelled = []

    async def work():
        with watch.waiting("blob x"):
            try:
                await trio.sleep_forever()
            finally:
                cancelled.append(True)

    with pytest.raises(RegistryUnavailable, match=r"stalled.*blob x"):
        await watch.guard(work)
    assert cancelled == [True]


@pytest.mark.parametrize("timeout", [None, 10])
async def test_results_and_errors_pass(timeout):
    async def good():
        return 7

    async def bad():
        raise DigestMismatch("wrong")

    assert await PullWatch(timeout).guard(good) == 7
    with pytest.raises(DigestMismatch, match="wrong"):
        await PullWatch(timeout).guard(bad)


@pytest.mark.parametrize("timeout", [None, 10])
async def test_it_can_be_cancelled_from_outside(timeout):
    with trio.move_on_after(0.05) as scope:
        await PullWatch(timeout).guard(trio.sleep_forever)
    assert scope.cancelled_caught
