"""Where uploads go on, and from which byte."""

import contextlib

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol import limits
from imgvol.errors import ProtocolError
from imgvol.oci.digest import Digest
from imgvol.registry.redirects import Origin
from imgvol.registry.upload_places import (
    parse_kept,
    parse_smallest_piece,
    upload_location,
    with_digest,
)

ASKED = httpx.URL("https://example.com:5000/v2/a/blobs/uploads/")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/v2/a/blobs/uploads/1?_state=x%3D", "https://example.com:5000/v2/a/blobs/uploads/1?_state=x%3D"),
        ("2", "https://example.com:5000/v2/a/blobs/uploads/2"),
        ("https://storage.example/u", "https://storage.example/u"),
        # A registry behind a proxy that ends TLS does not know that there is TLS.
        ("http://example.com:5000/u", "https://example.com:5000/u"),
        ("http://example.com/u", "https://example.com:5000/u"),
    ],
)  # fmt: skip
def test_location_is_relative_absolute_or_without_the_tls_that_a_proxy_ends(location, expected):
    assert str(upload_location(ASKED, location)) == expected


@pytest.mark.parametrize(
    "location",
    [
        None,
        "",
        "http://storage.example/u",
        "http://example.com:5001/u",
        "ftp://example.com/u",
        "https://user:password@example.com/u",
        "http://user:password@example.com:5000/u",
        "http://[",
        f"/{'x' * limits.LOCATION_LENGTH}",
    ],
)
def test_location_that_leads_where_we_do_not_go(location):
    with pytest.raises(ProtocolError, match="refused an upload") as raised:
        upload_location(ASKED, location)
    assert "password" not in str(raised.value).replace("user or password", "")


@given(st.text())
def test_whatever_a_registry_says_an_upload_keeps_its_tls(text):
    with contextlib.suppress(ProtocolError):
        assert Origin.of(upload_location(ASKED, text)).scheme == "https"


@pytest.mark.parametrize("query", ["", "?_state=a%3D%2Fb&x", "?a=b%20c"])
def test_digest_is_appended_to_what_the_registry_has_signed(query):
    digest = Digest.of(b"x")
    url = with_digest(httpx.URL(f"https://h/u{query}"), digest)
    assert str(url) == f"https://h/u{query}{'&' if query else '?'}digest={digest}"


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        (None, None),
        ("", None),
        ("0-0", 0),
        ("0-9", 10),
        ("bytes=0-9", 10),
        ("bytes 0-9", 10),
        (" 0-1048575 ", 1 << 20),
    ],
)
def test_what_a_registry_has(header, kept):
    assert parse_kept(header) == kept


@pytest.mark.parametrize(
    "header", ["1-9", "0-", "0--1", "-", "0-9/10", "0-9,20-29", "0-" + "9" * 19]
)
def test_what_a_registry_cannot_have(header):
    with pytest.raises(ProtocolError, match="which bytes"):
        parse_kept(header)


@pytest.mark.parametrize(
    ("header", "size"),
    [
        (None, 0),
        ("5242880", 5242880),
        ("-1", 0),
        ("lots", 0),
        ("9" * 18, limits.PUSH_CHUNK_LARGEST),
        ("9" * 40, 0),
    ],
)
def test_smallest_piece(header, size):
    assert parse_smallest_piece(header) == size
