"""The CRI's door: gRPC on a unix socket that only its owner and root can use.

gRPC binds and accepts by itself, so the peer of a connection cannot be asked for as the control API
does. The other two locks are the same: a directory that is 0700, and a socket that is 0600.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Sequence
from typing import Final

import grpc
import trio

from imgvol import limits
from imgvol.api.cri.bridge import Bridge
from imgvol.api.cri.calls import Calls
from imgvol.api.cri.handlers import Method
from imgvol.api.cri.tallies import CallCounts, CallTallies
from imgvol.api.server import SocketPlace, claim_place
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

    Until `open`, every call is answered with UNAVAILABLE. Cancelling `run` refuses new calls, gives
    those in progress `limits.CRI_GRACE` seconds, ends them, and removes the socket.
    """

    def __init__(self, path: str | os.PathLike[str], methods: Sequence[Method]) -> None:
        self._path = os.fspath(path)
        self._methods = {method.path: method for method in methods}
        self._tallies = CallTallies()
        self._is_open = False
        self._calls: Calls | None = None

    def open(self) -> None:
        """Lets calls through: everything that they may need is there."""
        self._is_open = True
        if self._calls is not None:
            self._calls.closed = None

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
        with claim_place(self._path) as place:
            async with trio.open_nursery() as nursery:
                ended = trio.Event()
                bridge = Bridge(await nursery.start(_hold_calls, ended))
                self._calls = Calls(self._methods, bridge, self._tallies)
                if self._is_open:
                    self._calls.closed = None
                listening = trio.Event()
                loop = _Loop(place, self._calls, bridge, listening)
                nursery.start_soon(_run_loop, loop, ended)
                await listening.wait()
                place.publish()
                task_status.started()


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
        self, place: SocketPlace, calls: Calls, bridge: Bridge, listening: trio.Event
    ) -> None:
        self._place = place
        self._calls = calls
        self._bridge = bridge
        self._listening = listening
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._is_stopped = False

    def run(self) -> None:
        """Blocks until `stop`."""
        asyncio.run(self._serve())

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
        await server.start()
        try:
            with self._lock:
                self._loop = asyncio.get_running_loop()
                is_stopped = self._is_stopped
            self._bridge.notify(self._listening)
            if not is_stopped:
                await self._stopping.wait()
        finally:
            with self._lock:
                self._loop = None
            try:
                await self._calls.end(limits.CRI_GRACE)
            finally:
                # What is left then are clients that do not take their answers.
                await server.stop(_LAST_BYTES)
