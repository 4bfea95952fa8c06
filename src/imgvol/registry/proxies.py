"""Which proxy to go through: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.

As Go reads them, since containerd, docker and podman on the same machine do: lower case wins,
loopback never goes through a proxy, `NO_PROXY` holds names, `.suffixes`, addresses, networks and
ports. Nothing else is taken from the environment; in particular no `.netrc`.
"""

from collections.abc import Callable, Mapping
from ipaddress import ip_network
from typing import Final, TypeAlias

import httpx

from imgvol.errors import InvalidArgument
from imgvol.registry.addresses import Reach, parse_address, reach_of
from imgvol.registry.redirects import Origin

ProxySelector: TypeAlias = Callable[[httpx.URL], httpx.URL | None]

_SCHEMES: Final = ("http", "https", "socks5", "socks5h")


def proxies_from(environ: Mapping[str, str]) -> ProxySelector:
    """Read the variables once.

    Raises:
        InvalidArgument: A proxy is not a URL that can be used.
    """
    everything = _variable(environ, "all_proxy")
    proxies = {
        scheme: _parse(name, _variable(environ, name) or everything)
        for scheme, name in (("http", "http_proxy"), ("https", "https_proxy"))
    }
    exempt = [entry.strip().lower() for entry in _variable(environ, "no_proxy").split(",")]

    def select(url: httpx.URL) -> httpx.URL | None:
        proxy = proxies.get(url.scheme)
        if proxy is None or _is_loopback(url.host):
            return None
        origin = Origin.of(url)
        return None if any(_matches(entry, origin) for entry in exempt if entry) else proxy

    return select


def _variable(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name) or environ.get(name.upper()) or ""


def _parse(name: str, text: str) -> httpx.URL | None:
    if not text:
        return None
    try:
        url = httpx.URL(text if "://" in text else f"http://{text}")
    except httpx.InvalidURL as error:
        raise InvalidArgument("the proxy is not a URL", variable=name) from error
    if url.scheme not in _SCHEMES or not url.host:
        raise InvalidArgument("this kind of proxy cannot be used", variable=name, scheme=url.scheme)
    return url


def _is_loopback(host: str) -> bool:
    address = parse_address(host)
    return host == "localhost" or (address is not None and reach_of(address) is Reach.LOOPBACK)


def _matches(entry: str, origin: Origin) -> bool:
    if entry == "*":
        return True
    address = parse_address(origin.host)
    if address is not None and "/" in entry:
        try:
            return address in ip_network(entry, strict=False)
        except ValueError:
            return False
    name, port = _split_port(entry)
    if port is not None and port != origin.port:
        return False
    if address is not None:
        return parse_address(name) == address
    return origin.host == name.lstrip("*.") or origin.host.endswith(f".{name.lstrip('*.')}")


def _split_port(entry: str) -> tuple[str, int | None]:
    name, colon, port = entry.rpartition(":")
    if colon and port.isdigit() and (":" not in name or name.endswith("]")):
        return name.strip("[]"), int(port)
    return entry.strip("[]"), None
