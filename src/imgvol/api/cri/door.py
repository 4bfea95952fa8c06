"""Who comes to the CRI's socket is let in here, and carried to gRPC.

gRPC binds and accepts by itself: it cannot be given a listener, nor does it say who its clients
are. So the listener that clients know is ours, and can outlive the process; gRPC listens beside it,
under a name that only we use. A connection is two sockets here, and bytes that are passed on as
they come.
"""

import asyncio
import contextlib
import logging
import os
import socket

from imgvol import limits
from imgvol.api.server import ACCEPT_PAUSE, GONE, OUT_OF_RESOURCES, peer_uid
from imgvol.errors import InternalError

log = logging.getLogger(__name__)


class Door:
    """Accepts connections, each of which becomes one to gRPC; in asyncio.

    Args:
        listener: Listens, and does not block; its owner closes it.
        address: Where gRPC listens.
    """

    def __init__(self, listener: socket.socket, address: str) -> None:
        self._listener = listener
        self._address = address

    async def run(self) -> None:
        """Lets clients in until cancelled, which ends all connections.

        Raises:
            InternalError: Nobody can be let in any more.
        """
        # Who comes beyond that waits in the listener's backlog.
        room = asyncio.Semaphore(limits.CRI_CONNECTIONS)
        async with asyncio.TaskGroup() as connections:
            while True:
                await room.acquire()
                client = await self._accept()
                serving = connections.create_task(self._serve(client))
                serving.add_done_callback(lambda _: room.release())

    async def _accept(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                if error.errno in OUT_OF_RESOURCES:
                    log.warning("cannot accept a connection: %s", error.strerror)
                    await asyncio.sleep(ACCEPT_PAUSE)
                elif error.errno not in GONE:
                    raise InternalError("the CRI's socket is broken", errno=error.errno) from error
            else:
                return client

    async def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):  # either side has gone
            client.setblocking(False)
            peer = peer_uid(client)
            if peer not in {0, os.getuid()}:
                log.warning("refused a connection of uid %d to the CRI", peer)
                return
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
                server.setblocking(False)
                await asyncio.get_running_loop().sock_connect(server, self._address)
                await _carry_both_ways(client, server)


async def _carry_both_ways(client: socket.socket, server: socket.socket) -> None:
    """Until one of them has said all: HTTP/2 has no use for half of a connection."""
    async with asyncio.TaskGroup() as group:
        ways = [
            group.create_task(_carry(source, sink))
            for source, sink in ((client, server), (server, client))
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()


async def _carry(source: socket.socket, sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):  # either side has gone
        while data := await loop.sock_recv(source, limits.CRI_PIECE):
            await loop.sock_sendall(sink, data)
