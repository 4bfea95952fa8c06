import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol.errors import ContentError, DigestMismatch, InvalidDocument
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.json import Node
from imgvol.oci.platform import Platform

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
SHA = "sha256:" + "f" * 64
MINIMAL = {"mediaType": LAYER, "digest": SHA, "size": 3}


def parse(members) -> Descriptor:
    raw = json.dumps(members).encode()
    return Descriptor.parse(Node.parse(raw, what="descriptor", max_size=1 << 20))


def test_minimal_descriptor():
    descriptor = parse(MINIMAL)
    assert descriptor == Descriptor(media_type=LAYER, digest=Digest.parse(SHA), size=3)
    assert descriptor.to_json() == MINIMAL
    assert descriptor.platform is None
    assert len({descriptor, parse(MINIMAL)}) == 1


def test_full_descriptor_survives():
    members = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": str(Digest.of(b"abc")),
        "size": 3,
        "urls": ["https://example.com/x"],
        "annotations": {"org.opencontainers.image.ref.name": "v1", "Key": "a", "key": "b"},
        "data": "YWJj",
        "platform": {
            "architecture": "amd64",
            "os": "windows",
            "os.version": "10.0.17763",
            "os.features": ["win32k"],
            "variant": "v2",
        },
        "artifactType": "application/vnd.example",
        "futureField": {"Size": 1},
    }
    descriptor = parse(members)
    assert descriptor.data == b"abc"
    assert descriptor.platform == Platform("windows", "amd64", "v2", "10.0.17763", ("win32k",))
    del members["futureField"]
    assert descriptor.to_json() == members
    assert parse(descriptor.to_json()) == descriptor


def test_null_members_are_absent():
    assert parse({**MINIMAL, "urls": None, "annotations": None, "platform": None}) == parse(MINIMAL)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"mediaType": None}, "mediaType"),
        ({"mediaType": ""}, "mediaType"),
        ({"mediaType": "layer"}, "mediaType"),
        ({"mediaType": "a/b\r\nX-Evil: 1"}, "mediaType"),
        ({"mediaType": "a/b; c=d"}, "mediaType"),
        ({"digest": None}, "digest"),
        ({"digest": "sha256:../../x"}, "digest"),
        ({"digest": "sha256:" + "F" * 64}, "digest"),
        ({"digest": "md5:" + "0" * 32}, "digest"),
        ({"digest": "sha256:" + "f" * (1 << 18)}, "digest"),
        ({"size": None}, "size"),
        ({"size": -1}, "size"),
        ({"size": "3"}, "size"),
        ({"size": 3.0}, "size"),
        ({"size": True}, "size"),
        ({"size": 1 << 63}, "size"),
        ({"urls": "https://example.com"}, "urls"),
        ({"urls": [1]}, "urls[0]"),
        ({"annotations": {"a": 1}}, "annotations.a"),
        ({"annotations": {"a.b": None}}, 'annotations["a.b"]'),
        ({"platform": []}, "platform"),
        ({"platform": {"os": 1}}, "platform.os"),
        ({"platform": {"os.features": [None]}}, 'platform["os.features"][0]'),
        ({"platform": {"OS": "linux"}}, "platform.OS"),
        ({"data": "YWJ"}, "data"),
        ({"data": "YW\u00e4j"}, "data"),
        ({"Digest": SHA}, "Digest"),
        ({"Size": 3}, "Size"),
        ({"mediatype": LAYER}, "mediatype"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_malformed_descriptors_are_refused_with_the_place(change, path):
    with pytest.raises(InvalidDocument) as caught:
        parse({**MINIMAL, **change})
    assert caught.value.fields["path"] == path
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("change", [{"digest": SHA}, {"size": 4}])
def test_embedded_data_must_be_what_the_digest_names(change):
    good = {**MINIMAL, "digest": str(Digest.of(b"abc")), "data": "YWJj"}
    assert parse(good).data == b"abc"
    with pytest.raises(DigestMismatch):
        parse({**good, **change})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(SHA) | st.just(LAYER),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["os", "os.features", "a"]), inner, max_size=3)
    ),
    max_leaves=5,
)
MEMBERS = st.sampled_from(
    ["mediaType", "digest", "size", "urls", "annotations", "platform", "artifactType", "data"]
)


@given(st.dictionaries(MEMBERS, VALUES, max_size=5))
def test_no_other_exception_on_any_object(members):
    try:
        descriptor = parse({**MINIMAL, **members})
    except ContentError:
        return
    assert parse(descriptor.to_json()) == descriptor
