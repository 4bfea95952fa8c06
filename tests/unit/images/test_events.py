"""Events: nobody who publishes waits, and whoever is too slow is told what it has lost."""

import pytest
import trio
import trio.testing

from imgvol import limits
from imgvol.errors import Conflict
from imgvol.images.events import IMAGE_CREATED, IMAGE_REMOVED, Event, Events, Lost


def event(number, kind=IMAGE_CREATED):
    return Event(kind=kind, at=float(number), image=f"image:{number}", id=None, data={})


async def test_every_follower_gets_what_happens_from_then_on():
    events = Events()
    events.publish(event(1))
    async with events.subscribe() as one, events.subscribe() as other:
        events.publish(event(2))
        events.publish(event(3))
        assert [await one.receive(), await one.receive()] == [event(2), event(3)]
        assert [await other.receive(), await other.receive()] == [event(2), event(3)]
    events.publish(event(4))  # for nobody


async def test_a_follower_waits_for_what_comes():
    events = Events()
    async with events.subscribe() as subscription, trio.open_nursery() as nursery:
        got = []

        async def follow():
            got.append(await subscription.receive())

        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        assert got == []
        events.publish(event(1))
    assert got == [event(1)]


async def test_only_wanted_kinds_are_queued():
    events = Events()
    async with events.subscribe({IMAGE_REMOVED}) as subscription:
        events.publish(event(1))
        events.publish(event(2, IMAGE_REMOVED))
        assert await subscription.receive() == event(2, IMAGE_REMOVED)


async def test_a_slow_follower_is_told_how_many_it_lost_and_disturbs_nobody(monkeypatch):
    monkeypatch.setattr(limits, "EVENT_QUEUE", 3)
    events = Events()
    async with events.subscribe() as slow, events.subscribe() as quick:
        for number in range(10):
            events.publish(event(number))
            assert await quick.receive() == event(number)
        assert await slow.receive() == Lost(7)
        assert [await slow.receive() for _ in range(3)] == [event(7), event(8), event(9)]
        events.publish(event(10))
        assert await slow.receive() == event(10)


async def test_followers_are_bounded_in_number(monkeypatch):
    monkeypatch.setattr(limits, "EVENT_SUBSCRIBERS", 1)
    events = Events()
    async with events.subscribe():
        with pytest.raises(Conflict, match="too many"):
            async with events.subscribe():
                raise AssertionError
    async with events.subscribe():
        pass  # there is room again


async def test_at_the_end_followers_get_what_is_left_and_are_waited_for(autojump_clock):
    events = Events()
    got = []

    async def follow():
        async with events.subscribe() as subscription:
            while (one := await subscription.receive()) is not None:
                got.append(one)
                await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        async with events.closing():
            nursery.start_soon(follow)
            await trio.testing.wait_all_tasks_blocked()
            for number in range(3):
                events.publish(event(number))
        assert got == [event(0), event(1), event(2)]
    async with events.subscribe() as late:
        assert await late.receive() is None


async def test_a_follower_that_does_not_go_does_not_keep_the_daemon(autojump_clock):
    events = Events()
    async with events.subscribe():
        async with events.closing():
            pass
        assert trio.current_time() < 2
