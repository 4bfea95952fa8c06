"""A line to a registry that fails on purpose: what the registry answers passes through, unless a
fault is in the way.

It speaks plain HTTP/1.1 over raw sockets, one thread per connection. Every fault counts how often
it has done its wrong (`fired`), so that a test can tell a fault that was survived from one that
never happened. Every exchange is kept with the number of body bytes that were sent.

    with running_proxy(registry.host) as proxy:
        resets = proxy.reset_after(50_000, times=3)
        daemon.run("mount", proxy.reference("name:tag"), target)
        assert resets.fired == 3
"""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, Self

PIECE = 16 * 1024
# Bytes that the kernel takes over are counted as sent: it shall take few.
SEND_BUFFER = 32 * 1024
TICK = 0.05
LONG = 120.0


@dataclass
class Exchange:
    """One request, and what became of it."""

    method: str
    path: str
    range: tuple[int, int] | None
    sent: int = 0
    damaged: bool = False

    @property
    def is_blob(self) -> bool:
        return self.method == "GET" and "/blobs/sha256:" in self.path

    @property
    def asked(self) -> int:
        """Bytes of the range that was asked for; 0 without one."""
        return self.range[1] - self.range[0] if self.range else 0


def any_range(exchange: Exchange) -> bool:
    return exchange.is_blob and exchange.range is not None


@dataclass(eq=False)
class Fault:
    """Something that goes wrong, a number of times or until it is lifted."""

    matches: Callable[[Exchange], bool]
    times: int | None = None
    fired: int = 0
    lifted: threading.Event = field(default_factory=threading.Event)

    def lift(self) -> None:
        """Ends it, also for answers that are on their way."""
        self.lifted.set()


@dataclass(eq=False)
class Refusal(Fault):
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(eq=False)
class IgnoredRange(Fault):
    """200 with the whole blob instead of 206."""


@dataclass(eq=False)
class ShiftedRange(Fault):
    """206 with the bytes one further on than was asked for, and a head that says so."""


@dataclass(eq=False)
class Damage(Fault):
    """One bit of the body is wrong."""


@dataclass(eq=False)
class Delay(Fault):
    seconds: float = 0


@dataclass(eq=False)
class Throttle(Fault):
    rate: float = 0
    is_shared: bool = False
    next_free: float = 0


@dataclass(eq=False)
class Stall(Fault):
    """Silence after a number of bytes, and a reset when it is over."""

    after: int = 0


@dataclass(eq=False)
class Reset(Fault):
    after: int = 0


@dataclass(eq=False)
class Truncation(Fault):
    """The end of the connection, in good order, before that of the body."""

    after: int = 0


class Gate(Protocol):
    """Stands before a registry: see `support.gates`."""

    def answer(self, exchange: "Exchange", head: list[str]) -> bytes | None:
        """An answer of its own, whole; None lets the request pass."""


class _Hangup(Exception):
    """Ends a connection."""


class Proxy:
    """See the module. `host` stays the same while the line is down."""

    def __init__(self, upstream: str) -> None:
        address, _, port = upstream.rpartition(":")
        self._upstream = address, int(port)
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self._port = 0
        self.seen: list[Exchange] = []
        self.gates: list[Gate] = []
        self.up()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._port}"

    def reference(self, name: str) -> str:
        return f"{self.host}/{name}"

    # --- what was asked and sent ------------------------------------------------------------------

    def ranges(self, since: int = 0) -> list[Exchange]:
        """The range requests for blobs, from the `since`th exchange on."""
        return [exchange for exchange in self.seen[since:] if any_range(exchange)]

    def blob_bytes(self, since: int = 0) -> int:
        """Bytes of blobs that were sent."""
        return sum(exchange.sent for exchange in self.seen[since:] if exchange.is_blob)

    # --- what goes wrong ------------------------------------------------------------------------

    def refuse(self, status: int, *, times: int, **headers: str) -> Fault:
        """Answers the next range requests with an error."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._add(Refusal(any_range, times, status=status, headers=named))

    def ignore_range(self, *, times: int) -> Fault:
        """Answers the next range requests with everything."""
        return self._add(IgnoredRange(any_range, times))

    def delay(self, seconds: float) -> Fault:
        """Adds to every round trip."""
        return self._add(Delay(lambda _: True, seconds=seconds))

    def throttle(self, rate: float, *, at_least: int = 0, shared: bool = False) -> Fault:
        """Sends blobs at so many bytes a second, if at least so many were asked for.

        On each connection, or `shared` by all of them, as on a real line.
        """
        chosen = Throttle(lambda e: e.is_blob and e.asked >= at_least, rate=rate, is_shared=shared)
        return self._add(chosen)

    def reserve(self, throttle: Throttle, size: int) -> float:
        """Seconds to wait for one's turn on a shared line."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, throttle.next_free)
            throttle.next_free = turn + size / throttle.rate
            return turn - now

    def reset_after(self, size: int, *, times: int) -> Fault:
        """Breaks the next connections after so many bytes of a range that is longer."""
        return self._add(Reset(lambda e: any_range(e) and e.asked > size, times, after=size))

    def stall_after(self, size: int, *, times: int) -> Fault:
        """Sends no more after so many bytes of a range that is longer."""
        return self._add(Stall(lambda e: any_range(e) and e.asked > size, times, after=size))

    def stall_blob_after(self, digest: str, size: int) -> Fault:
        """Sends no more after so many bytes of a blob."""
        matches = f"/blobs/{digest}"
        return self._add(Stall(lambda e: e.is_blob and e.path.endswith(matches), 1, after=size))

    def refuse_blob(self, digest: str, status: int) -> Fault:
        """Answers for a blob with an error, until that is lifted."""
        matches = f"/blobs/{digest}"
        return self._add(
            Refusal(lambda e: e.is_blob and e.path.endswith(matches), 1000, status=status)
        )

    def truncate_after(self, size: int, *, times: int) -> Fault:
        """Closes the next connections after so many bytes of a range that is longer."""
        return self._add(Truncation(lambda e: any_range(e) and e.asked > size, times, after=size))

    def shift_range(self, *, times: int) -> Fault:
        """Answers the next range requests with other ranges."""
        return self._add(ShiftedRange(lambda e: any_range(e) and e.asked > 1, times))

    def damage(self, *, times: int) -> Fault:
        """Changes a bit in the middle of the next ranges."""
        return self._add(Damage(any_range, times))

    def down(self) -> None:
        """Cuts every connection and lets nobody connect: refused, as by a stopped server."""
        assert self._listener is not None
        # Closing does not wake the thread that accepts.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._listener = None
        with self._lock:
            for opened in self._open:
                _cut(opened)

    def up(self) -> None:
        """Ends `down`."""
        self._listener = socket.create_server(("127.0.0.1", self._port), backlog=64)
        self._port = self._listener.getsockname()[1]
        self._start(self._accept, self._listener)

    def close(self) -> None:
        for fault in self._faults:
            fault.lift()
        if self._listener is not None:
            self.down()
        for thread in self._threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in self._threads)

    def _add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def _faults_of(self, exchange: Exchange) -> list[Fault]:
        """Those that hit this exchange; of the ones with a number of times, one at a time."""
        chosen: list[Fault] = []
        with self._lock:
            for fault in self._faults:
                if fault.lifted.is_set() or fault.times == 0 or not fault.matches(exchange):
                    continue
                if fault.times is not None:
                    if any(other.times is not None for other in chosen):
                        continue
                    fault.times -= 1
                chosen.append(fault)
        return chosen

    def _note(self, fault: Fault) -> None:
        with self._lock:
            fault.fired += 1

    # --- connections --------------------------------------------------------------------------

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self._open.add(client)
        try:
            with client, contextlib.suppress(_Hangup, OSError):
                while True:
                    self._answer(client)
        finally:
            with self._lock:
                self._open.discard(client)

    def _answer(self, client: socket.socket) -> None:
        head, _ = _read_head(client)
        exchange = _exchange(head)
        self.seen.append(exchange)
        for gate in self.gates:
            refusal = gate.answer(exchange, head)
            if refusal is not None:
                client.sendall(refusal)
                return
        faults = self._faults_of(exchange)
        try:
            self._answer_with(faults, client, exchange, head)
        finally:
            self._give_back(faults, exchange)

    def _give_back(self, faults: list[Fault], exchange: Exchange) -> None:
        """Whoever hangs up early has not met what was wrong further on: the next one shall."""
        with self._lock:
            for fault in faults:
                if isinstance(fault, Damage) and fault.times is not None and not exchange.damaged:
                    fault.times += 1

    def _answer_with(self, faults: list[Fault], client, exchange: Exchange, head) -> None:
        for fault in faults:
            if isinstance(fault, Delay):
                self._note(fault)
                fault.lifted.wait(fault.seconds)
            if isinstance(fault, Refusal):
                self._note(fault)
                client.sendall(_refusal(fault))
                return
        ignored = next((f for f in faults if isinstance(f, IgnoredRange)), None)
        shifted = next((f for f in faults if isinstance(f, ShiftedRange)), None)
        if ignored or shifted:
            head = [line for line in head if not line.lower().startswith("range:")]
        if shifted:
            assert exchange.range is not None
            head.append(f"Range: bytes={exchange.range[0] + 1}-{exchange.range[1] - 1}")
            self._note(shifted)
        with socket.create_connection(self._upstream, timeout=LONG) as upstream:
            upstream.sendall(_encode([*_without_connection(head), "Connection: close"]))
            answer, rest = _read_head(upstream)
            if ignored:
                assert " 200 " in answer[0], answer
                self._note(ignored)
            self._forward(client, upstream, exchange, faults, _Answer(answer, rest))

    def _forward(self, client, upstream, exchange, faults, answer) -> None:
        length = answer.length
        headers = _without_connection(answer.head)
        client.sendall(_encode(headers if length is not None else [*headers, "Connection: close"]))
        if exchange.method == "HEAD":
            return
        line = _Line(self, client, exchange, faults)
        data = answer.rest
        while True:
            line.send(data)
            if length is not None and exchange.sent >= length:
                return
            data = upstream.recv(PIECE)
            if not data:
                raise _Hangup

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class _Answer:
    head: list[str]
    rest: bytes

    @property
    def length(self) -> int | None:
        for line in self.head:
            name, _, value = line.partition(":")
            if name.lower() == "content-length":
                return int(value)
        return None


class _Line:
    """Sends the body of one answer, with what goes wrong on the way."""

    def __init__(self, proxy: Proxy, client: socket.socket, exchange: Exchange, faults) -> None:
        self._proxy = proxy
        self._client = client
        self._exchange = exchange
        self._faults = faults
        self._throttle = next((f for f in faults if isinstance(f, Throttle)), None)
        self._is_noted = False

    def send(self, data: bytes) -> None:
        for fault in self._faults:
            if isinstance(fault, Damage):
                data = self._damaged(fault, data)
            if isinstance(fault, Reset | Stall | Truncation) and not fault.lifted.is_set():
                left = fault.after - self._exchange.sent
                if len(data) > left:
                    self._pass(data[:left])
                    self._break(fault)
        self._pass(data)

    def _damaged(self, fault: Damage, data: bytes) -> bytes:
        at = self._exchange.asked // 2 - self._exchange.sent
        if not 0 <= at < len(data):
            return data
        self._proxy._note(fault)
        self._exchange.damaged = True
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    def _break(self, fault: Reset | Stall | Truncation) -> None:
        self._proxy._note(fault)
        if isinstance(fault, Truncation):
            raise _Hangup
        if isinstance(fault, Stall):
            deadline = time.monotonic() + LONG
            while not fault.lifted.wait(TICK) and time.monotonic() < deadline:
                if self._client.fileno() < 0 or _has_gone(self._client):
                    break
        else:
            # What was sent shall arrive: a reset drops what the peer has not read yet.
            time.sleep(TICK)
        _cut(self._client)
        raise _Hangup

    def _pass(self, data: bytes) -> None:
        while data:
            size = len(data)
            if self._throttle and not self._throttle.lifted.is_set():
                if not self._is_noted:
                    self._proxy._note(self._throttle)
                    self._is_noted = True
                if self._throttle.is_shared:
                    size = min(size, PIECE)
                    self._throttle.lifted.wait(self._proxy.reserve(self._throttle, size))
                else:
                    size = min(size, max(1, int(self._throttle.rate * TICK)))
                    self._throttle.lifted.wait(size / self._throttle.rate)
            self._client.sendall(data[:size])
            self._exchange.sent += len(data[:size])
            data = data[size:]


@contextlib.contextmanager
def running_proxy(upstream: str) -> Iterator[Proxy]:
    with Proxy(upstream) as proxy:
        yield proxy


def _cut(opened: socket.socket) -> None:
    """Makes the end of a connection a RST, whoever closes it, and wakes who waits for it."""
    with contextlib.suppress(OSError):
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        opened.shutdown(socket.SHUT_RD)


def _has_gone(client: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        return not client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return False


def _read_head(opened: socket.socket) -> tuple[list[str], bytes]:
    buffer = b""
    while b"\r\n\r\n" not in buffer:
        data = opened.recv(PIECE)
        if not data:
            raise _Hangup
        buffer += data
    head, _, rest = buffer.partition(b"\r\n\r\n")
    return head.decode("latin-1").split("\r\n"), rest


def _exchange(head: list[str]) -> Exchange:
    method, path, _ = head[0].split(" ")
    for line in head[1:]:
        name, _, value = line.partition(":")
        if name.lower() == "range":
            first, last = value.strip().removeprefix("bytes=").split("-")
            return Exchange(method, path, (int(first), int(last) + 1))
    return Exchange(method, path, None)


def _without_connection(head: list[str]) -> list[str]:
    return [line for line in head if not line.lower().startswith("connection:")]


def _encode(head: list[str]) -> bytes:
    return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1")


def _refusal(fault: Refusal) -> bytes:
    lines = [f"HTTP/1.1 {fault.status} No", "Content-Length: 0"]
    return _encode([*lines, *(f"{name}: {value}" for name, value in fault.headers.items())])
