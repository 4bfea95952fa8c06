"""A TCP line to a server that breaks while something is sent over it."""

import contextlib
import select
import socket
import struct
import threading
from typing import Self


class Relay:
    """Passes bytes both ways; `cuts` are counts of bytes after which a connection is reset.

    The first connection over which as many bytes go to the server as the first number says is
    reset on both sides, then the second number counts, and so on.
    """

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self.cuts: list[int] = []
        self.fired = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._is_stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopping.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)

    def _start(self, target, *args) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with (
            client,
            socket.create_connection(self._upstream) as server,
            contextlib.suppress(OSError),
        ):
            sent = 0
            while not self._is_stopping.is_set():
                for source in select.select([client, server], [], [], 0.05)[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    (server if source is client else client).sendall(data)
                    sent += len(data) if source is client else 0
                    if self.cuts and sent >= self.cuts[0]:
                        del self.cuts[0]
                        self.fired += 1
                        for end in (client, server):
                            linger = struct.pack("ii", 1, 0)
                            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                        return
