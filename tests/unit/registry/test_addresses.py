"""Whom a registry may send us to."""

from ipaddress import ip_address

import pytest

from imgvol.errors import ProtocolError
from imgvol.registry.addresses import Guard, Reach, parse_address, reach_of

PUBLIC, PRIVATE, LOOPBACK, METADATA = "93.184.216.34", "10.0.0.5", "127.0.0.1", "169.254.169.254"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (PUBLIC, Reach.PUBLIC),
        ("2606:2800:220:1::1", Reach.PUBLIC),
        ("10.0.0.1", Reach.PRIVATE),
        ("172.16.0.1", Reach.PRIVATE),
        ("192.168.1.1", Reach.PRIVATE),
        ("100.64.0.1", Reach.PRIVATE),
        ("fd00::1", Reach.PRIVATE),
        (LOOPBACK, Reach.LOOPBACK),
        ("127.8.9.10", Reach.LOOPBACK),
        ("0.0.0.0", Reach.LOOPBACK),
        ("::", Reach.LOOPBACK),
        ("::1", Reach.LOOPBACK),
        (METADATA, Reach.NOBODY),
        ("fe80::1", Reach.NOBODY),
        ("224.0.0.1", Reach.NOBODY),
        ("255.255.255.255", Reach.NOBODY),
        ("240.0.0.1", Reach.NOBODY),
        ("::ffff:127.0.0.1", Reach.LOOPBACK),
        ("::ffff:169.254.169.254", Reach.NOBODY),
        ("::ffff:10.0.0.1", Reach.PRIVATE),
        ("2002:7f00:1::", Reach.LOOPBACK),
        ("64:ff9b::7f00:1", Reach.LOOPBACK),
        ("64:ff9b::a9fe:a9fe", Reach.NOBODY),
        ("64:ff9b:1::a00:1", Reach.PRIVATE),
        # Teredo: the client's IPv4 address, inverted, at the end.
        ("2001:0:102:304:0:ffff:80ff:fffe", Reach.LOOPBACK),
    ],
)
def test_reach_of_an_address(address, expected):
    assert reach_of(ip_address(address)) is expected


@pytest.mark.parametrize(
    ("registry", "allowed", "refused"),
    [
        (PUBLIC, [PUBLIC, "1.1.1.1"], [PRIVATE, LOOPBACK, METADATA]),
        (PRIVATE, [PUBLIC, PRIVATE, "192.168.0.1"], [LOOPBACK, METADATA]),
        (LOOPBACK, [PUBLIC, PRIVATE, LOOPBACK, "127.0.0.2", "::1"], [METADATA]),
        (METADATA, [PUBLIC, PRIVATE, METADATA], [LOOPBACK, "169.254.0.1"]),
        (None, [PUBLIC], [PRIVATE, LOOPBACK, METADATA]),
    ],
)
def test_nobody_sends_us_further_inside_than_itself(registry, allowed, refused):
    guard = Guard(ip_address(registry) if registry else None)
    for address in allowed:
        guard.check(ip_address(address))
    for address in refused:
        with pytest.raises(ProtocolError):
            guard.check(ip_address(address))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("::1", "::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("registry.example.com", None),
        ("127.0.0.1.example.com", None),
        ("127.0.0.1 example.com", None),
        ("127.0.0.1\texample.com", None),
        ("127.0.0.1\0example.com", None),
        ("", None),
        ("ü", None),
    ],
)
def test_every_spelling_of_an_address_is_recognised(host, expected):
    assert parse_address(host) == (expected and ip_address(expected))


def test_names_pass_until_they_are_resolved():
    Guard(None).check_host("localhost.example.com")
    with pytest.raises(ProtocolError):
        Guard(None).check_host("0x7f.1")
