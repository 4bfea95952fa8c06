"""Components: in order, named, and never for ever."""

from contextlib import asynccontextmanager

import pytest
import trio

from imgvol import limits
from imgvol.errors import InternalError, LocalError, MachineLacks, StoreLocked
from imgvol.lifecycle import Lifecycle


class World:
    """A lifecycle whose components write down what becomes of them."""

    def __init__(self):
        self.seen = []
        self.announced = []
        self.abandoned = trio.Event()
        self.lifecycle = Lifecycle(announce=self.announced.append, abandon=self.abandoned.set)

    @asynccontextmanager
    async def held(self, name, *, entering=None, leaving=None, slow=0.0, shielded=0.0):
        if entering is not None:
            raise entering
        self.seen.append(f"+{name}")
        try:
            yield name.upper()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(shielded)
            await trio.sleep(slow)
            self.seen.append(f"-{name}")
            if leaving is not None:
                raise leaving

    async def task(self, name, *, task_status=trio.TASK_STATUS_IGNORED):
        self.seen.append(f"+{name}")
        task_status.started(name.upper())
        try:
            await trio.sleep_forever()
        finally:
            self.seen.append(f"-{name}")


@pytest.fixture
def world():
    return World()


async def test_components_stop_in_the_opposite_order(world, autojump_clock):
    async def start():
        assert await world.lifecycle.open("store", world.held("store")) == "STORE"

        async def serve(*, task_status):
            await world.task("server", task_status=task_status)

        assert await world.lifecycle.start("server", serve) == "SERVER"
        world.lifecycle.start_soon("work", lambda: world.task("work"))
        await trio.sleep(1)
        world.lifecycle.stop()
        world.lifecycle.stop()  # twice is once

    await world.lifecycle.run(start)
    assert world.seen == ["+store", "+server", "+work", "-work", "-server", "-store"]
    assert world.announced == [
        *("starting: store", "starting: server"),
        *("stopping: work", "stopping: server", "stopping: store"),
    ]
    world.lifecycle.stop()  # nor does it matter when all is over


async def test_a_stage_that_fails_is_named_and_what_had_started_stops(world):
    cause = StoreLocked("it is locked", hint="wait", path="/x")

    async def start():
        await world.lifecycle.open("store", world.held("store"))
        await world.lifecycle.open("views", world.held("views", entering=cause))
        raise AssertionError

    with pytest.raises(StoreLocked) as caught:
        await world.lifecycle.run(start)
    assert caught.value is cause
    assert str(cause) == "it is locked (path /x, stage views)"
    assert world.seen == ["+store", "-store"]


async def test_a_defect_at_the_start_keeps_its_cause(world):
    async def start():
        with world.lifecycle.stage("recovery"):
            raise ValueError("oops")

    with pytest.raises(InternalError) as caught:
        await world.lifecycle.run(start)
    assert caught.value.fields == {"kind": "ValueError", "stage": "recovery"}
    assert isinstance(caught.value.__cause__, ValueError)


async def test_what_the_daemon_can_do_without_is_no_failure(world):
    async def start():
        with pytest.raises(MachineLacks):
            await world.lifecycle.open(
                "views",
                world.held("views", entering=MachineLacks("-")),
                may_fail=MachineLacks,
            )
        world.lifecycle.stop()

    await world.lifecycle.run(start)


@pytest.mark.expects_log("work failed, so everything stops: it cannot go on")
async def test_the_first_component_that_fails_ends_everything_in_order(world, autojump_clock):
    async def work():
        await trio.sleep(1)
        raise LocalError("it cannot go on")

    async def start():
        await world.lifecycle.open("store", world.held("store"))
        world.lifecycle.start_soon("work", work)
        world.lifecycle.start_soon("other", lambda: world.task("other"))

    with pytest.raises(LocalError, match=r"it cannot go on \(component work\)"):
        await world.lifecycle.run(start)
    assert world.seen == ["+store", "+other", "-other", "-store"]


@pytest.mark.expects_log("work failed, so everything stops: it ended by itself")
async def test_a_component_that_just_ends_has_failed(world):
    async def work():
        await trio.lowlevel.checkpoint()

    async def start():
        world.lifecycle.start_soon("work", work)

    with pytest.raises(InternalError) as caught:
        await world.lifecycle.run(start)
    assert caught.value.fields["component"] == "work"


# In the order in which trio has them run, which is any.
@pytest.mark.expects_log("stops: (KeyError: 'x'; a disk is full|a disk is full; KeyError: 'x')$")
async def test_a_component_whose_tasks_fail_is_told_of_with_what_they_raised(world):
    async def fail(error):
        raise error

    async def work():
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(trio.sleep_forever)
            inner.start_soon(fail, KeyError("x"))
            inner.start_soon(fail, LocalError("a disk is full"))

    async def start():
        world.lifecycle.start_soon("work", work)

    with pytest.raises(InternalError):
        await world.lifecycle.run(start)


@pytest.mark.expects_log("work failed|after the first failure: disk gone .component store")
async def test_the_first_failure_is_the_cause_and_later_ones_are_logged(world, caplog):
    async def work():
        raise LocalError("first")

    async def start():
        await world.lifecycle.open("store", world.held("store", leaving=LocalError("disk gone")))
        world.lifecycle.start_soon("work", work)

    with pytest.raises(LocalError, match="first"):
        await world.lifecycle.run(start)
    assert "after the first failure: disk gone (component store)" in caplog.text


@pytest.mark.expects_log("store failed, so everything stops: disk gone")
async def test_a_failure_to_stop_is_a_failure(world):
    async def start():
        await world.lifecycle.open("store", world.held("store", leaving=LocalError("disk gone")))
        world.lifecycle.stop()

    with pytest.raises(LocalError, match=r"disk gone \(component store\)"):
        await world.lifecycle.run(start)


@pytest.mark.expects_log("views: not stopped within 2 s")
async def test_a_component_that_stops_too_slowly_is_told_and_cancelled(
    world, autojump_clock, caplog
):
    async def start():
        await world.lifecycle.open("store", world.held("store"))
        await world.lifecycle.open("views", world.held("views", slow=1000), stop_within=2)
        world.lifecycle.stop()

    began = trio.current_time()
    await world.lifecycle.run(start)
    assert trio.current_time() - began == 2
    assert world.seen == ["+store", "+views", "-store"]
    assert "views: not stopped within 2 s" in caplog.text


@pytest.mark.expects_log("not stopped within|does not stop|leaving as a crash would")
async def test_one_that_cannot_be_cancelled_does_not_keep_the_others_nor_the_process(
    world, autojump_clock
):
    until = limits.STOP_DEADLINE + 10

    async def start():
        await world.lifecycle.open("store", world.held("store"))
        await world.lifecycle.open("views", world.held("views", shielded=until), stop_within=2)
        world.lifecycle.stop()

    left_at = []

    async def watch():
        await world.abandoned.wait()
        left_at.append(trio.current_time() - began)

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await world.lifecycle.run(start)
    assert left_at == [limits.STOP_DEADLINE]
    assert world.seen == ["+store", "+views", "-store"]


async def test_a_daemon_that_is_told_to_stop_while_it_starts_stops(world, autojump_clock):
    async def start():
        await world.lifecycle.open("store", world.held("store"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 1000)
            world.lifecycle.stop()
        raise AssertionError

    await world.lifecycle.run(start)
    assert world.seen == ["+store", "-store"]


async def test_a_component_that_is_interrupted_while_it_starts_leaves_nothing(
    world, autojump_clock
):
    @asynccontextmanager
    async def slow():
        world.seen.append("+slow")
        try:
            await trio.sleep(1000)
            yield
        finally:
            world.seen.append("-slow")

    async def start():
        world.lifecycle.start_soon("stopper", stopper)
        await world.lifecycle.open("slow", slow())

    async def stopper():
        await trio.sleep(1)
        world.lifecycle.stop()
        await trio.sleep_forever()

    await world.lifecycle.run(start)
    assert world.seen == ["+slow", "-slow"]
    assert trio.current_time() < 10


def test_all_limits_together_are_below_those_of_who_waits():
    assert limits.STOP_COMPONENT < limits.STOP_VOLUMES < limits.STOP_DEADLINE < 30
