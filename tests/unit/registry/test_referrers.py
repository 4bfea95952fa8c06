"""Lists of referrers: the tag, the entries, the way to the next page."""

import json

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol import limits
from imgvol.errors import InvalidDocument, LimitExceeded, ProtocolError
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import Index, parse_manifest
from imgvol.oci.media_types import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from imgvol.registry.referrers import (
    next_page,
    parse_referrers,
    referrers_tag,
    with_referrer,
    without_referrer,
)

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


# --- lists that are changed -----------------------------------------------------------------------


def known(*entries: dict, **more) -> Index:
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries, **more}
    parsed = parse_manifest(json.dumps(document).encode(), media_type=OCI_INDEX)
    assert isinstance(parsed, Index)
    return parsed


def descriptor(content: bytes, **more) -> Descriptor:
    digest = Digest.of(content)
    return Descriptor(media_type=OCI_MANIFEST, digest=digest, size=len(content), **more)


def test_the_first_referrer_makes_the_list():
    raw = with_referrer(None, descriptor(b"a", artifact_type=WANTED, annotations={"k": "v"}))
    assert json.loads(raw) == {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [entry(b"a", artifactType=WANTED, annotations={"k": "v"})],
    }


def test_an_entry_comes_last_and_only_once():
    index = known(entry(b"a"), entry(b"b"))
    raw = with_referrer(index, descriptor(b"c"))
    assert json.loads(raw)["manifests"] == [entry(b"a"), entry(b"b"), entry(b"c")]
    assert with_referrer(parse_manifest(raw, media_type=OCI_INDEX), descriptor(b"c")) is None
    # What is said of it may have changed.
    raw = with_referrer(index, descriptor(b"a", artifact_type=WANTED))
    assert json.loads(raw)["manifests"] == [entry(b"b"), entry(b"a", artifactType=WANTED)]


def test_a_list_has_an_end():
    full = [entry(str(n).encode()) for n in range(limits.INDEX_MANIFESTS)]
    with pytest.raises(LimitExceeded, match="too much refers"):
        with_referrer(known(*full), descriptor(b"one more"))
    assert with_referrer(known(*full[1:]), descriptor(b"one more")) is not None


def test_an_entry_is_taken_out():
    index = known(entry(b"a"), entry(b"b"), subject=entry(b"s"))
    document = json.loads(without_referrer(index, Digest.of(b"a")))
    assert document["manifests"] == [entry(b"b")]
    assert document["subject"] == entry(b"s")
    assert without_referrer(index, Digest.of(b"c")) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values),
    max_leaves=8,
)


@given(
    st.lists(st.binary(max_size=2), unique=True, max_size=5),
    st.dictionaries(st.text(max_size=8).map("x-{}".format), json_values, max_size=3),
    st.binary(max_size=2),
)
def test_all_else_of_a_list_stays(contents, more, added):
    index = known(*(entry(each, **more) for each in contents), **more)
    raw = with_referrer(index, descriptor(added, artifact_type=WANTED))
    again = parse_manifest(raw, media_type=OCI_INDEX)
    assert again.manifests[-1].digest == Digest.of(added)
    kept = [
        each
        for each in json.loads(index.raw)["manifests"]
        if each["digest"] != str(Digest.of(added))
    ]
    assert json.loads(raw)["manifests"][:-1] == kept
    document = json.loads(without_referrer(again, Digest.of(added)))
    assert document["manifests"] == kept
    assert {key: document[key] for key in more} == more
