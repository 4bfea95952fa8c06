"""Locks by key: one at a time for each, in order, and nothing left."""

import trio
import trio.testing

from imgvol.content.turns import Turns


async def test_who_waits_can_be_cancelled_and_locks_nobody_wants_are_gone():
    turns, order = Turns[str](), []
    scopes = [trio.CancelScope() for _ in range(4)]
    async with trio.open_nursery() as nursery:

        async def take(number):
            with scopes[number]:
                async with turns.turn("a"):
                    order.append(number)
                    await trio.lowlevel.checkpoint()

        async with turns.turn("a"):
            for number in range(4):
                nursery.start_soon(take, number)
                await trio.testing.wait_all_tasks_blocked()
            scopes[1].cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert scopes[1].cancelled_caught
            # Another key is nobody's business here.
            async with turns.turn("b"):
                assert len(turns) == 2
            assert len(turns) == 1
    assert order == [0, 2, 3]
    assert len(turns) == 0
