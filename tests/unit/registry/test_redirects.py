"""Redirect targets: which are followed, and what origin means."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol.errors import ProtocolError
from imgvol.registry.redirects import Origin, next_hop, url_problem

HERE = httpx.URL("https://registry.example.com:5000/v2/a/blobs/b?x=1")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/other", "https://registry.example.com:5000/other"),
        ("c", "https://registry.example.com:5000/v2/a/blobs/c"),
        ("?y=2", "https://registry.example.com:5000/v2/a/blobs/b?y=2"),
        ("//cdn.example.com/x", "https://cdn.example.com/x"),
        ("https://cdn.example.com/x?sig=a%2Fb#f", "https://cdn.example.com/x?sig=a%2Fb"),
        ("HTTPS://CDN.example.com/x", "https://cdn.example.com/x"),
    ],
)
def test_targets_that_are_followed(location, expected):
    assert str(next_hop(HERE, location)) == expected


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        (None, "without a target"),
        ("", "without a target"),
        ("http://cdn.example.com/x", "from https to http"),
        ("//user@cdn.example.com/x", "with a user or password"),
        ("https://user:pass@cdn.example.com/x", "with a user or password"),
        ("ftp://cdn.example.com/x", "neither http nor https"),
        ("file:///etc/passwd", "neither http nor https"),
        ("data:,x", "neither http nor https"),
        ("https://[/", "without a host"),
        ("https://[::%\xb2]/", "without a host"),
        ("https://a b/", "without a host"),
        ("https://cdn.example.com:0/", "port"),
        ("https://cdn.example.com:65536/", "port"),
        ("https://[::1", "not a URL"),
        ("https://cdn.example.com/\0", "not a URL"),
        ("x" * 20_000, "too long"),
    ],
)
def test_targets_that_are_refused(location, problem):
    with pytest.raises(ProtocolError, match=problem) as raised:
        next_hop(HERE, location)
    assert "pass@" not in str(raised.value)


def test_http_may_become_https():
    plain = httpx.URL("http://127.0.0.1:5000/v2/")
    assert next_hop(plain, "https://127.0.0.1/x").scheme == "https"


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("https://a.example.com/", "https://A.EXAMPLE.COM:443/x", True),
        ("http://a.example.com/", "http://a.example.com:80", True),
        ("http://a.example.com/", "https://a.example.com/", False),
        ("https://a.example.com/", "https://a.example.com:444/", False),
        ("https://a.example.com/", "https://b.example.com/", False),
        ("https://a.example.com/", "https://a.example.com./", False),
    ],
)
def test_origin_is_scheme_host_and_port(one, other, is_same):
    assert (Origin.of(httpx.URL(one)) == Origin.of(httpx.URL(other))) is is_same


@given(st.text(max_size=60))
def test_any_location_is_followed_or_refused(location):
    try:
        target = next_hop(HERE, location)
    except ProtocolError:
        return
    assert url_problem(target) == ""
    assert target.scheme == "https"
