"""Pulls that are shared: who joins whom, who ends what, who is told of failures."""

import pytest
import trio
import trio.testing

from imgvol.errors import DaemonUnavailable, InternalError, RegistryUnavailable
from imgvol.images.pull import PullProgress
from imgvol.images.sharing import open_shared_pulls


class Work:
    """A pull that waits to be told how to end."""

    def __init__(self):
        self.begun = self.cancelled = 0
        self.end = trio.Event()
        self.error = None

    async def __call__(self, progress):
        self.begun += 1
        progress.stage = "pulling"
        progress.stats["bytes"] = 7
        try:
            await self.end.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return "record"


async def test_equal_requests_are_one_pull_whose_progress_all_see():
    work, results = Work(), []
    progresses = [PullProgress() for _ in range(5)]
    async with open_shared_pulls() as shared, trio.open_nursery() as nursery:

        async def ask(progress):
            results.append(await shared.join("key", progress, work))

        for progress in progresses:
            nursery.start_soon(ask, progress)
        await trio.testing.wait_all_tasks_blocked()
        assert [p.stage for p in progresses] == ["pulling"] * 5
        assert all(p.stats == {"bytes": 7} for p in progresses)
        assert len(shared) == 1
        work.end.set()
    assert results == ["record"] * 5
    assert work.begun == 1
    assert len(shared) == 0


async def test_who_leaves_does_not_disturb_the_others_and_the_last_one_ends_it():
    work = Work()
    async with open_shared_pulls() as shared, trio.open_nursery() as nursery:
        scopes = [trio.CancelScope() for _ in range(3)]

        async def ask(scope):
            with scope:
                await shared.join("key", PullProgress(), work)

        for scope in scopes:
            nursery.start_soon(ask, scope)
        await trio.testing.wait_all_tasks_blocked()
        for scope in scopes[:2]:
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert work.cancelled == 0
            assert len(shared) == 1
        scopes[2].cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert work.cancelled == 1
        assert len(shared) == 0
        assert all(scope.cancelled_caught for scope in scopes)


async def test_nobody_joins_a_pull_that_is_being_ended():
    """The last one has gone and waits until it has let go: who comes now begins anew."""
    ended = trio.Event()
    begun = []

    async def stubborn(_progress):
        begun.append(1)
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await ended.wait()

    async def quick(_progress):
        return "second"

    async with open_shared_pulls() as shared, trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        has_returned = trio.Event()

        async def ask():
            with scope:
                await shared.join("key", PullProgress(), stubborn)
            has_returned.set()

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert not has_returned.is_set()
        assert await shared.join("key", PullProgress(), quick) == "second"
        ended.set()
    assert begun == [1]
    assert has_returned.is_set()


async def test_a_failure_is_everybodys_each_with_an_error_of_their_own():
    work, errors = Work(), []
    work.error = RegistryUnavailable("it fails", hint="Try again.", url="http://there")
    async with open_shared_pulls() as shared, trio.open_nursery() as nursery:

        async def ask():
            with pytest.raises(RegistryUnavailable) as raised:
                await shared.join("key", PullProgress(), work)
            errors.append(raised.value)

        for _ in range(3):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        work.end.set()
    assert len({id(error) for error in errors}) == 3
    assert {str(error) for error in errors} == {"it fails (url http://there)"}
    assert {error.hint for error in errors} == {"Try again."}
    assert len({id(error.__traceback__) for error in errors}) == 3
    assert all(error.__cause__ is work.error for error in errors)


@pytest.mark.expects_log("a defect of imgvol")
async def test_a_defect_in_one_pull_is_an_error_of_that_pull():
    async def broken(_progress):
        raise ZeroDivisionError

    async def good(_progress):
        return "record"

    async with open_shared_pulls() as shared:
        with pytest.raises(InternalError):
            await shared.join("a", PullProgress(), broken)
        assert await shared.join("b", PullProgress(), good) == "record"


async def test_requests_that_differ_are_pulls_of_their_own():
    works = {key: Work() for key in "ab"}
    async with open_shared_pulls() as shared, trio.open_nursery() as nursery:
        for key, work in works.items():
            nursery.start_soon(shared.join, key, PullProgress(), work)
        await trio.testing.wait_all_tasks_blocked()
        assert [work.begun for work in works.values()] == [1, 1]
        for work in works.values():
            work.end.set()


async def test_who_waits_when_the_daemon_stops_is_told():
    async with trio.open_nursery() as nursery:
        errors = []

        async def ask(shared):
            with pytest.raises(DaemonUnavailable) as raised:
                await shared.join("key", PullProgress(), Work())
            errors.append(raised.value)

        async with open_shared_pulls() as shared:
            nursery.start_soon(ask, shared)
            await trio.testing.wait_all_tasks_blocked()
    assert len(errors) == 1
