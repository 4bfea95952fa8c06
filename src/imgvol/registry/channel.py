"""Channels: one httpx client each, for one operation at a time.

A pool hands out channels and takes them back, so that connections to the registry, its token
service and its object store are used again. That a channel has one user at a time is what makes it
simple: its deadline, its cancel button and its guard are those of that user.
"""

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import ip_address
from typing import Final, TypeAlias

import httpcore
import httpx

from imgvol import __version__, limits
from imgvol.registry.addresses import Guard, IPAddress
from imgvol.registry.bounds import Bounds
from imgvol.registry.network import Backend, Line
from imgvol.registry.operation import Operation
from imgvol.registry.proxies import ProxySelector

# identity: a blob's bytes are named by a digest; another encoding would only hide them.
_HEADERS: Final = {
    "User-Agent": f"imgvol/{__version__}",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
}
_IS_PROXIED: Final = "imgvol.is_proxied"

# How to check certificates; made when first needed, since it takes tens of milliseconds.
TLS: TypeAlias = Callable[[], ssl.SSLContext]


class Channel:
    """A way to send requests, for one thread at a time."""

    def __init__(self, tls: TLS, bounds: Bounds, proxies: ProxySelector) -> None:
        self.line = Line()
        self._timeout = httpx.Timeout(
            connect=bounds.connect_timeout,
            read=bounds.read_timeout,
            write=bounds.read_timeout,
            pool=bounds.connect_timeout,
        )
        self._http = httpx.Client(
            transport=_Transport(self.line, tls, proxies),
            headers=_HEADERS,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            timeout=self._timeout,
            trust_env=False,
            follow_redirects=False,
        )

    @property
    def operation(self) -> Operation:
        """What bounds the present user."""
        return self.line.operation

    def send(
        self,
        method: str,
        url: httpx.URL,
        *,
        headers: Mapping[str, str],
        form: Mapping[str, str] | None = None,
        content: Iterable[bytes] | None = None,
        patience: float | None = None,
        guard: Guard | None = None,
    ) -> httpx.Response:
        """Send one request, follow nothing; the answer's body is yet to be read, and to be closed.

        Args:
            method: GET, HEAD, POST, and to push PUT, PATCH and DELETE.
            url: Where to.
            headers: Beside our own few.
            form: A body to post.
            content: Another body, as long as `headers` say.
            patience: Seconds until the answer begins; None: as usual.
            guard: What checks the address; None to go wherever the name leads.
        """
        self.line.guard = guard
        request = self._http.build_request(
            method,
            url,
            headers=headers,
            data=form,
            content=content,
            timeout=self._timeout_for(patience),
        )
        return self._http.send(request, stream=True)

    def _timeout_for(self, patience: float | None) -> httpx.Timeout:
        if patience is None:
            return self._timeout
        usual = self._timeout
        return httpx.Timeout(
            connect=usual.connect, read=patience, write=usual.write, pool=usual.pool
        )

    def close(self) -> None:
        """Close every connection."""
        self._http.close()


class ChannelPool:
    """Lends channels. Safe to use from any thread."""

    def __init__(self, tls: TLS, bounds: Bounds, proxies: ProxySelector) -> None:
        self._tls = tls
        self._bounds = bounds
        self._proxies = proxies
        self._lock = threading.Lock()
        self._idle: list[Channel] = []
        self._operations: set[Operation] = set()
        self._is_closed = False

    @contextlib.contextmanager
    def lend(self, operation: Operation) -> Iterator[Channel]:
        """A channel for one operation; it comes back at the end, unless something went wrong."""
        channel = self._take(operation)
        is_sound = False
        try:
            with operation.using(channel.line.sockets):
                yield channel
            is_sound = not operation.is_cancelled
        finally:
            self._give_back(channel, operation, is_sound=is_sound)

    def close(self) -> None:
        """Cancel what is under way, and close every connection."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            operations = tuple(self._operations)
        for operation in operations:
            operation.cancel()
        for channel in idle:
            channel.close()

    def _take(self, operation: Operation) -> Channel:
        with self._lock:
            if self._is_closed:
                operation.cancel()
            self._operations.add(operation)
            channel = self._idle.pop() if self._idle else None
        channel = channel or Channel(self._tls, self._bounds, self._proxies)
        channel.line.operation = operation
        return channel

    def _give_back(self, channel: Channel, operation: Operation, *, is_sound: bool) -> None:
        with self._lock:
            self._operations.discard(operation)
            is_kept = is_sound and not self._is_closed
            if is_kept:
                channel.line.operation = Operation()
                self._idle.append(channel)
        if not is_kept:
            channel.close()


def peer_of(response: httpx.Response) -> IPAddress | None:
    """The address that an answer came from; None when a proxy hides it."""
    if response.extensions.get(_IS_PROXIED):
        return None
    stream = response.extensions["network_stream"]
    return ip_address(stream.get_extra_info("server_addr")[0].partition("%")[0])


class _Transport(httpx.BaseTransport):
    """httpx over httpcore, with our own network backend: a pool for direct, one for each proxy."""

    def __init__(self, line: Line, tls: TLS, proxies: ProxySelector) -> None:
        self._line = line
        self._tls = tls
        self._proxies = proxies
        self._pools: dict[tuple[str, httpx.URL | None], httpcore.ConnectionPool] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        proxy = self._proxies(request.url)
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        response = self._pool(request.url.scheme, proxy).handle_request(
            httpcore.Request(
                method=request.method,
                url=url,
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions={**response.extensions, _IS_PROXIED: proxy is not None},
        )

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()

    def _pool(self, scheme: str, proxy: httpx.URL | None) -> httpcore.ConnectionPool:
        key = (scheme, proxy)
        if key not in self._pools:
            self._pools[key] = httpcore.ConnectionPool(
                ssl_context=self._tls() if scheme == "https" else None,
                proxy=_proxy(proxy, self._tls) if proxy is not None else None,
                keepalive_expiry=limits.IDLE_CONNECTION,
                network_backend=Backend(self._line, is_guarded=proxy is None),
            )
        return self._pools[key]


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        yield from self._response.iter_stream()

    def close(self) -> None:
        self._response.close()


def _proxy(url: httpx.URL, tls: TLS) -> httpcore.Proxy:
    context = None
    if url.scheme == "https":
        context = tls()
        if context.verify_mode is ssl.CERT_NONE:
            # That a registry is not checked is no word on proxies.
            context = ssl.create_default_context()
    return httpcore.Proxy(
        url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=b"/"),
        auth=(url.username, url.password) if url.userinfo else None,
        ssl_context=context,
    )
