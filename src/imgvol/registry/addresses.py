"""How far a registry may send us: a guard against being used to reach what it cannot.

A registry names token services and redirect targets. One on the public Internet has no business
with 127.0.0.1, 10.0.0.0/8 or a cloud's metadata service, all of which we may be able to reach and
it may not. One inside a private network may name its neighbours. So every address has a reach, and
a server may send us only to addresses whose reach is no narrower than its own.

What counts is the address that is connected to, after resolution: decimal spellings, IPv4 inside
IPv6, and names that resolve differently the second time all come to an address in the end.
"""

import enum
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final, TypeAlias

from imgvol.errors import ProtocolError

IPAddress: TypeAlias = IPv4Address | IPv6Address

# RFC 6052 and RFC 8215: the last 32 bits are an IPv4 address.
_NAT64: Final = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))


class Reach(enum.IntEnum):
    """Who can connect to an address: fewer and fewer."""

    PUBLIC = 0
    PRIVATE = 1
    LOOPBACK = 2
    # Metadata services of clouds, multicast, reserved ranges: never somebody's token service.
    NOBODY = 3


def reach_of(address: IPAddress) -> Reach:
    """The reach of an address, seen through every way to write IPv4 in IPv6."""
    inner = _embedded(address)
    if inner is not None:
        return reach_of(inner)
    # Connecting to the unspecified address connects to this machine.
    if address.is_loopback or address.is_unspecified:
        return Reach.LOOPBACK
    if address.is_link_local or address.is_multicast or address.is_reserved:
        return Reach.NOBODY
    return Reach.PUBLIC if address.is_global else Reach.PRIVATE


@dataclass(frozen=True, slots=True)
class Guard:
    """Checks addresses that `registry` sends us to; None when its own is hidden by a proxy."""

    registry: IPAddress | None

    def check(self, address: IPAddress) -> None:
        """Refuse an address out of the registry's reach.

        Raises:
            ProtocolError: It is one.
        """
        if address == self.registry or reach_of(address) <= self._allowed():
            return
        raise ProtocolError(
            "refused to be sent to an address that the registry has no business with",
            hint="Is the registry, or the token service that it names, the right one?",
            address=address,
            registry_address=self.registry,
        )

    def _allowed(self) -> Reach:
        reach = Reach.PUBLIC if self.registry is None else reach_of(self.registry)
        return Reach.PRIVATE if reach is Reach.NOBODY else reach

    def check_host(self, host: str) -> None:
        """Refuse a host that is written as an address out of reach; names pass.

        Raises:
            ProtocolError: It is one.
        """
        address = parse_address(host)
        if address is not None:
            self.check(address)


def parse_address(host: str) -> IPAddress | None:
    """The address that a host is, in any spelling resolvers take (`0x7f.1`); None for a name."""
    try:
        return ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        pass
    # inet_aton reads no further than to a blank, and raises ValueError for a NUL.
    if not host.isascii() or any(character <= " " for character in host):
        return None
    try:
        return IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def _embedded(address: IPAddress) -> IPv4Address | None:
    if isinstance(address, IPv4Address):
        return None
    if any(address in network for network in _NAT64):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    if address.teredo is not None:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour
