"""The CRI's server: gRPC behind a unix socket that only its owner and root can use.

It has the control API's three locks: a directory that is 0700, a socket that is 0600, and each
connection's peer is asked for. That, and the listener, is not gRPC's business: see `door`.
"""

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Sequence
from typing import Final

import grpc
import trio

from imgvol import limits
from imgvol.api.cri.bridge import Bridge
from imgvol.api.cri.calls import Calls
from imgvol.api.cri.door import Door
from imgvol.api.cri.handlers import Method
from imgvol.api.cri.tallies import CallCounts, CallTallies
from imgvol.api.keeping import Keeper
from imgvol.api.server import SocketPlace, claim_place, opened_listener
from imgvol.errors import LocalError
from imgvol.threads import run_cancellable

log = logging.getLogger(__name__)

_LAST_BYTES: Final = 0.5
# No bound on one connection's calls: gRPC refuses what is beyond as if the server were unavailable,
# also while it has not cleared away what has ended.
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", limits.CRI_REQUEST_SIZE),
    # Nobody else may listen beside us.
    ("grpc.so_reuseport", 0),
)


class CriServer:
    """Serves the CRI on one socket.

    Example:
        server = CriServer(config.cri_socket, Handlers(images).methods())
        await nursery.start(server.run)     # returns once clients can connect
        server.open()                       # from now on they are answered

    Until `open`, every call is answered with UNAVAILABLE; but clients of a process before, which
    may have been waiting for a while, are let in only then. Cancelling `run` refuses new calls,
    gives those in progress `limits.CRI_GRACE` seconds, ends them, and removes the socket, unless a
    keeper has it for the next process.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        methods: Sequence[Method],
        *,
        keeper: Keeper | None = None,
    ) -> None:
        self._path = os.fspath(path)
        self._keeper = keeper
        self._methods = {method.path: method for method in methods}
        self._tallies = CallTallies()
        self._is_open = False
        self._calls: Calls | None = None
        self._loop: _Loop | None = None

    def open(self) -> None:
        """Lets calls through: everything that they may need is there."""
        self._is_open = True
        if self._calls is not None:
            self._calls.closed = None
        if self._loop is not None:
            self._loop.let_in()

    def idle_seconds(self) -> float:
        """How long no call has been in progress; 0 while one is."""
        return self._tallies.idle_seconds()

    def statistics(self) -> CallCounts:
        """What has been asked; from memory."""
        return self._tallies.snapshot()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled.

        Raises:
            Conflict: A daemon listens there already.
            PermissionDenied: The directory is somebody else's, or open to others.
            InvalidArgument: Something that is no socket has that name.
            LocalError: The socket cannot be made.
        """
        async with opened_listener(self._path, self._keeper) as (listener, is_taken):
            with claim_place(_behind(self._path)) as place:
                await self._serve(listener, place, task_status, lets_in=not is_taken)

    async def _serve(
        self,
        listener: socket.socket,
        place: SocketPlace,
        task_status: trio.TaskStatus[None],
        *,
        lets_in: bool,
    ) -> None:
        async with trio.open_nursery() as nursery:
            ended = trio.Event()
            bridge = Bridge(await nursery.start(_hold_calls, ended))
            self._calls = Calls(self._methods, bridge, self._tallies)
            listening = trio.Event()
            self._loop = _Loop(listener, place, self._calls, bridge, listening)
            if lets_in:
                self._loop.let_in()
            if self._is_open:
                self.open()
            nursery.start_soon(_run_loop, self._loop, ended)
            await listening.wait()
            task_status.started()


def _behind(path: str) -> str:
    """Where gRPC listens for us alone."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.grpc")


async def _run_loop(loop: "_Loop", ended: trio.Event) -> None:
    try:
        await run_cancellable(loop.run, loop.stop, limiter=trio.CapacityLimiter(1))
    finally:
        ended.set()


async def _hold_calls(ended: trio.Event, *, task_status: trio.TaskStatus[trio.Nursery]) -> None:
    """Holds the work of calls. gRPC gives it time to end, so nobody else may cut that short."""
    with trio.CancelScope(shield=True):
        async with trio.open_nursery() as nursery:
            task_status.started(nursery)
            await ended.wait()


class _Loop:
    """The asyncio loop that serves gRPC, for a thread of its own."""

    def __init__(
        self,
        listener: socket.socket,
        place: SocketPlace,
        calls: Calls,
        bridge: Bridge,
        listening: trio.Event,
    ) -> None:
        self._listener = listener
        self._place = place
        self._calls = calls
        self._bridge = bridge
        self._listening = listening
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._letting_in = asyncio.Event()
        self._stopping = asyncio.Event()
        self._lets_in = False
        self._is_stopped = False

    def run(self) -> None:
        """Blocks until `stop`."""
        asyncio.run(self._serve())

    def let_in(self) -> None:
        """Accepts connections from now on; from any thread."""
        with self._lock:
            self._lets_in = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._letting_in.set)

    def stop(self) -> None:
        """Ends `run`, or lets it end as soon as it begins; from any thread."""
        with self._lock:
            self._is_stopped = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._stopping.set)

    async def _serve(self) -> None:
        server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=limits.CRI_CALLS)
        server.add_generic_rpc_handlers((self._calls,))
        try:
            server.add_insecure_port(f"unix:{self._place.address}")
        except RuntimeError as error:
            raise LocalError("gRPC cannot listen on its socket", reason=str(error)) from error
        self._place.publish()
        await server.start()
        async with asyncio.TaskGroup() as group:
            letting_in = group.create_task(self._let_clients_in())
            try:
                await self._wait_for_stop()
            finally:
                try:
                    await self._calls.end(limits.CRI_GRACE)
                finally:
                    # What is left then are clients that do not take their answers.
                    await server.stop(_LAST_BYTES)
                    letting_in.cancel()

    async def _let_clients_in(self) -> None:
        await self._letting_in.wait()
        await Door(self._listener, self._place.published).run()

    async def _wait_for_stop(self) -> None:
        try:
            with self._lock:
                self._loop = asyncio.get_running_loop()
                if self._lets_in:
                    self._letting_in.set()
                is_stopped = self._is_stopped
            self._bridge.notify(self._listening)
            if not is_stopped:
                await self._stopping.wait()
        finally:
            with self._lock:
                self._loop = None
