"""Lists of referrers: the tag, the entries, the way to the next page."""

import json

import httpx
import pytest

from imgvol import limits
from imgvol.errors import InvalidDocument, LimitExceeded, ProtocolError
from imgvol.oci.digest import Digest
from imgvol.oci.media_types import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from imgvol.registry.referrers import next_page, parse_referrers, referrers_tag

WANTED = "application/x.wanted"


def test_tag_is_the_specified_one():
    digest = Digest.of(b"x")
    assert referrers_tag(digest) == f"sha256-{digest.hex}"
    assert len(referrers_tag(Digest.of(b"x", "sha512"))) == len("sha512-") + 64


def entry(content: bytes, **more) -> dict:
    digest = str(Digest.of(content))
    return {"mediaType": OCI_MANIFEST, "digest": digest, "size": len(content), **more}


def listing(*entries: dict) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()


@pytest.mark.parametrize("media_type", [OCI_INDEX, "application/json", None])
def test_those_of_the_wanted_type_stay_in_order(media_type):
    raw = listing(
        entry(b"signature", artifactType="application/x.signature"),
        entry(b"two", artifactType=WANTED),
        entry(b"none"),
        entry(b"one", artifactType=WANTED),
    )
    found = parse_referrers(raw, media_type=media_type, artifact_type=WANTED)
    assert [item.digest for item in found] == [Digest.of(b"two"), Digest.of(b"one")]


def test_what_is_no_list_is_refused():
    manifest = {"schemaVersion": 2, "config": entry(b"{}", mediaType=OCI_CONFIG), "layers": []}
    for raw in (json.dumps(manifest).encode(), b"{}", b"[]", b"<html>"):
        with pytest.raises(InvalidDocument):
            parse_referrers(raw, media_type=None, artifact_type=WANTED)


def test_list_is_bounded():
    raw = listing(*[entry(b"x")] * (limits.INDEX_MANIFESTS + 1))
    with pytest.raises(LimitExceeded):
        parse_referrers(raw, media_type=OCI_INDEX, artifact_type=WANTED)


def answer(*links: str) -> httpx.Response:
    request = httpx.Request("GET", "https://registry.example.com/v2/a/referrers/sha256:0?n=1")
    return httpx.Response(200, headers=[("Link", link) for link in links], request=request)


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        ([], None),
        (['</v2/a/b>; rel="prev"'], None),
        (['</v2/a/b?last=x%2By>; rel="next"'], "https://registry.example.com/v2/a/b?last=x%2By"),
        (["<?n=2>; rel=next"], "https://registry.example.com/v2/a/referrers/sha256:0?n=2"),
        (
            ['</first>; rel="first", </second>; rel="next"'],
            "https://registry.example.com/second",
        ),
        (
            ["<https://registry.example.com:443/x>; rel=next"],
            "https://registry.example.com/x",
        ),
    ],
)
def test_next_page(links, expected):
    found = next_page(answer(*links))
    assert (found and str(found)) == expected


@pytest.mark.parametrize(
    "link",
    [
        "<https://elsewhere.example.com/x>; rel=next",
        "<https://registry.example.com:8443/x>; rel=next",
        "<http://registry.example.com/x>; rel=next",
        "<//jane:secret@registry.example.com/x>; rel=next",
        "<file:///etc/passwd>; rel=next",
        "<>; rel=next",
        f"<{'x' * (limits.LOCATION_LENGTH + 1)}>; rel=next",
    ],
)
def test_next_page_elsewhere_is_refused(link):
    with pytest.raises(ProtocolError) as raised:
        next_page(answer(link))
    assert "secret" not in str(raised.value)
