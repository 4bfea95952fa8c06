"""Components that start one after the other, are watched while they run, and stop backwards.

Theory of operation. Each component is a task of its own: a context manager that is held open, or a
function that runs until it is cancelled. So each can be stopped alone, with a limit of its own, and
whatever goes wrong has a name.

Rule 1: the first failure is the cause. It ends the start or the run, and is what `run` raises; what
fails after it, mostly for want of what has gone, is logged.
Rule 2: every component is critical. One that ends before it was told to has failed.
Rule 3: stopping never waits for ever: for a component as long as it said, then it is cancelled and
the next one has its turn; for all of them `STOP_DEADLINE`, then the process is left as a crash
would leave it, which every start repairs.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import trio

from imgvol import limits
from imgvol.api.problems import as_imgvol_error
from imgvol.errors import ImgvolError, InternalError

log = logging.getLogger(__name__)

T = TypeVar("T")
Run = Callable[[], Awaitable[None]]
_Errors = type[ImgvolError] | tuple[type[ImgvolError], ...]


@dataclass(eq=False, slots=True)
class _Component:
    """One part of the daemon.

    Attributes:
        stop_within: Seconds that it may take to stop.
        is_told: Set when it is to stop; one that is held open waits for it.
        gone: Set when it has stopped.
        ends_when_told: Whether it stops by itself then; others are cancelled.
    """

    name: str
    stop_within: float
    ends_when_told: bool
    has_started: bool = False
    is_told: trio.Event = field(default_factory=trio.Event)
    gone: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def tell_to_stop(self) -> None:
        self.is_told.set()
        if not self.ends_when_told:
            self.scope.cancel()


@dataclass(frozen=True, slots=True)
class _Status:
    """A task status that tells somebody else, too."""

    status: trio.TaskStatus[Any]
    on_started: Callable[[], None]

    def started(self, value: Any = None) -> None:
        self.on_started()
        self.status.started(value)


class Lifecycle:
    """The components of one daemon.

    Example:
        lifecycle = Lifecycle(announce=print, abandon=leave)

        async def start() -> None:
            store = await lifecycle.open("store", open_store(root))
            await lifecycle.start("server", Server(store).run)
            lifecycle.start_soon("collection", collector.run)

        await lifecycle.run(start)      # until `stop` is called or a component fails

    Args:
        announce: Told what is being started or stopped.
        abandon: Called when stopping has taken too long; ends the process.
    """

    def __init__(self, *, announce: Callable[[str], None], abandon: Callable[[], object]) -> None:
        self._announce = announce
        self._abandon = abandon
        self._components: list[_Component] = []
        self._stopping = trio.Event()
        self._starting = trio.CancelScope()
        self._failure: ImgvolError | None = None
        self._nursery: trio.Nursery | None = None

    # --- running --------------------------------------------------------------------------------

    async def run(self, start: Callable[[], Awaitable[None]]) -> None:
        """Starts everything, waits until it is to stop, and stops everything.

        Args:
            start: Starts the components, in order; it is cancelled if the daemon is to stop before
                it has done so.

        Raises:
            ImgvolError: The first failure; its fields name the `stage` of the start or the
                `component`, its cause is what was raised there.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._limit_stop)
            try:
                with self._starting:
                    await self._attempt(start)
                await self._stopping.wait()
            finally:
                self.stop()
                with trio.CancelScope(shield=True):
                    await self._stop_components()
                nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    @property
    def is_stopping(self) -> bool:
        """Whether it has been told to stop, or has failed."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Has everything stopped; returns at once. Again, or when that is under way: no matter."""
        self._stopping.set()
        self._starting.cancel()

    def fail(self, component: str, exception: Exception) -> None:
        """A component cannot go on: everything stops."""
        if self._failure is None:
            log.error("%s failed, so everything stops: %s", component, _told(exception))
        self._note(exception, component=component)
        self.stop()

    # --- starting -------------------------------------------------------------------------------

    async def open(
        self,
        name: str,
        manager: AbstractAsyncContextManager[T],
        *,
        stop_within: float = limits.STOP_COMPONENT,
        may_fail: _Errors = (),
    ) -> T:
        """Enters a context manager, in a task of its own; it is left when its turn to stop comes.

        Args:
            may_fail: What is no failure of the start, as the caller can do without.

        Raises:
            Exception: What entering raises; `run` names the stage.
        """
        component = _Component(name=name, stop_within=stop_within, ends_when_told=True)

        async def hold(*, task_status: trio.TaskStatus[T]) -> None:
            async with manager as value:
                task_status.started(value)
                await component.is_told.wait()

        opened: T = await self._start(component, hold, may_fail)
        return opened

    async def start(
        self, name: str, run: Callable[..., Awaitable[None]], *, stop_within: float | None = None
    ) -> Any:
        """Starts what runs until it is cancelled, and returns what it tells by `task_status`.

        Raises:
            Exception: What it raises before that; `run` names the stage.
        """
        return await self._start(self._task(name, stop_within), run)

    def start_soon(self, name: str, run: Run, *, stop_within: float | None = None) -> None:
        """Starts what runs until it is cancelled and cannot fail to start."""
        component = self._task(name, stop_within)
        self._add(component)
        assert self._nursery is not None
        self._nursery.start_soon(self._watch, component, run, name=name)

    @contextmanager
    def stage(self, name: str, may_fail: _Errors = ()) -> Iterator[None]:
        """A part of the start: what is raised inside is a failure of this stage."""
        self._announce(f"starting: {name}")
        try:
            yield
        except may_fail:
            raise
        except Exception as exc:
            if self._failure is None:
                self._note(exc, stage=name)
            raise

    def _task(self, name: str, stop_within: float | None) -> _Component:
        limit = limits.STOP_COMPONENT if stop_within is None else stop_within
        return _Component(name=name, stop_within=limit, ends_when_told=False)

    async def _attempt(self, start: Callable[[], Awaitable[None]]) -> None:
        try:
            await start()
        except Exception as exc:  # noqa: BLE001 - kept, and raised by `run`
            if self._failure is None:
                self._note(exc)
            self._stopping.set()

    async def _start(
        self,
        component: _Component,
        run: Callable[..., Awaitable[None]],
        may_fail: _Errors = (),
    ) -> Any:
        assert self._nursery is not None
        with self.stage(component.name, may_fail):
            return await self._nursery.start(self._watch_start, component, run, name=component.name)

    # --- watching -------------------------------------------------------------------------------

    async def _watch_start(
        self,
        component: _Component,
        run: Callable[..., Awaitable[None]],
        *,
        task_status: trio.TaskStatus[Any],
    ) -> None:
        # At this very moment: whoever starts it may be cancelled before it knows.
        status = _Status(task_status, lambda: self._add(component))

        async def work() -> None:
            await run(task_status=status)

        await self._watch(component, work)

    def _add(self, component: _Component) -> None:
        component.has_started = True
        self._components.append(component)

    async def _watch(self, component: _Component, run: Run) -> None:
        try:
            with component.scope:
                await run()
                if not component.is_told.is_set():
                    raise InternalError("it ended by itself")
        except Exception as exc:
            if not component.has_started:
                raise  # to whoever starts it
            self.fail(component.name, exc)
        finally:
            component.gone.set()

    def _note(self, exception: Exception, **place: str) -> None:
        error = as_imgvol_error(exception)
        error.fields = {**error.fields, **place}
        if error is not exception and error.__cause__ is None:
            error.__cause__ = exception
        if self._failure is None:
            self._failure = error
        else:
            log.error("after the first failure: %s", error, exc_info=_if_defect(error))

    # --- stopping -------------------------------------------------------------------------------

    async def _stop_components(self) -> None:
        stopped = []
        while self._components:
            component = self._components.pop()
            stopped.append(component)
            self._announce(f"stopping: {component.name}")
            await _stop(component)
        for component in stopped:
            await component.gone.wait()

    async def _limit_stop(self) -> None:
        await self._stopping.wait()
        await trio.sleep(limits.STOP_DEADLINE)
        log.error("not stopped within %g s: leaving as a crash would", limits.STOP_DEADLINE)
        self._abandon()


async def _stop(component: _Component) -> None:
    """Stops one, or gives up waiting for it."""
    component.tell_to_stop()
    if not await _has_gone(component, component.stop_within):
        log.error("%s: not stopped within %g s", component.name, component.stop_within)
        component.scope.cancel()
        if not await _has_gone(component, limits.STOP_CANCELLED):
            log.error("%s: does not stop", component.name)


async def _has_gone(component: _Component, seconds: float) -> bool:
    with trio.move_on_after(seconds):
        await component.gone.wait()
    return component.gone.is_set()


def _told(exception: BaseException) -> str:
    """What went wrong, in one line: a nursery's group says nothing of what its tasks raised."""
    if isinstance(exception, BaseExceptionGroup):
        return "; ".join(map(_told, exception.exceptions))
    if isinstance(exception, ImgvolError):
        return str(exception)
    return f"{type(exception).__name__}: {exception}"


def _if_defect(error: ImgvolError) -> ImgvolError | None:
    return error if isinstance(error, InternalError) else None
