import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvol import limits
from imgvol.errors import (
    ContentError,
    DigestMismatch,
    InvalidDocument,
    LimitExceeded,
    Unsupported,
)
from imgvol.oci import media_types as types
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import Index, Manifest, parse_manifest, select_manifests
from imgvol.oci.platform import Platform, only


def descriptor(media_type: str, content: bytes = b"", **members) -> dict:
    digest = str(Digest.of(content))
    return {"mediaType": media_type, "digest": digest, "size": len(content), **members}


CONFIG = descriptor(types.OCI_CONFIG, b"config")
LAYER = descriptor(types.OCI_LAYER_GZIP, b"layer")
IMAGE = {"schemaVersion": 2, "config": CONFIG, "layers": [LAYER]}
INDEX = {"schemaVersion": 2, "manifests": [descriptor(types.OCI_MANIFEST, b"manifest")]}


def parse(document, media_type=None, **options):
    return parse_manifest(json.dumps(document).encode(), media_type=media_type, **options)


def test_image_manifest():
    raw = b'{ "schemaVersion": 2,' + json.dumps(IMAGE).encode()[1:].replace(
        b'"schemaVersion": 2,', b""
    )
    manifest = parse_manifest(raw, media_type=None)
    assert isinstance(manifest, Manifest)
    assert manifest.media_type == types.OCI_MANIFEST
    assert manifest.config.to_json() == CONFIG
    assert [layer.to_json() for layer in manifest.layers] == [LAYER]
    assert manifest.raw == raw
    assert manifest.digest == Digest.of(raw)
    assert manifest.descriptor.size == len(raw)
    assert manifest.descriptor.digest == manifest.digest
    assert "raw" not in repr(manifest)


def test_index():
    index = parse({**INDEX, "annotations": {"a": "b"}})
    assert isinstance(index, Index)
    assert index.media_type == index.descriptor.media_type == types.OCI_INDEX
    assert [item.to_json() for item in index.manifests] == INDEX["manifests"]
    assert index.annotations == {"a": "b"}


def test_artifact_members_are_kept():
    subject = descriptor(types.OCI_MANIFEST, b"subject")
    manifest = parse({**IMAGE, "artifactType": "application/x", "subject": subject})
    assert manifest.artifact_type == "application/x"
    assert manifest.subject.to_json() == subject


@pytest.mark.parametrize("document", [{**IMAGE, "layers": None}, {**IMAGE, "layers": []}])
def test_no_layers(document):
    assert parse(document).layers == ()


def test_unknown_members_and_missing_version_are_fine():
    del (document := {**IMAGE, "x-new": {"Layers": 1}})["schemaVersion"]
    assert isinstance(parse(document), Manifest)


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        (IMAGE, types.OCI_MANIFEST),
        (IMAGE, types.DOCKER_MANIFEST),
        (INDEX, types.OCI_INDEX),
        (INDEX, types.DOCKER_INDEX),
    ],
)
def test_type_comes_from_either_witness(document, kind):
    assert parse(document, kind).media_type == kind
    assert parse(document, f"{kind}; charset=utf-8").media_type == kind
    assert parse({**document, "mediaType": kind}).media_type == kind
    assert parse({**document, "mediaType": kind}, kind).media_type == kind
    assert parse({**document, "mediaType": kind}, "application/json").media_type == kind


@pytest.mark.parametrize("vague", ["", "application/json", "text/plain; charset=utf-8"])
def test_vague_content_type_leaves_it_to_the_document(vague):
    assert isinstance(parse(IMAGE, vague), Manifest)
    assert isinstance(parse(INDEX, vague), Index)


@pytest.mark.parametrize(
    ("document", "media_type"),
    [
        # Both at once.
        ({**IMAGE, **INDEX}, None),
        ({**IMAGE, **INDEX}, types.OCI_MANIFEST),
        ({**IMAGE, **INDEX}, types.OCI_INDEX),
        ({**INDEX, "layers": [LAYER]}, None),
        ({**INDEX, "layers": []}, None),
        ({**INDEX, "layers": None}, None),
        ({**INDEX, "config": CONFIG}, None),
        ({**INDEX, "blobs": []}, None),
        ({**IMAGE, "manifests": []}, None),
        ({**IMAGE, "manifests": None}, None),
        # Neither.
        ({}, None),
        ({"schemaVersion": 2}, types.OCI_MANIFEST),
        # The shape is not what the type says.
        (IMAGE, types.OCI_INDEX),
        (IMAGE, types.DOCKER_INDEX),
        (INDEX, types.OCI_MANIFEST),
        ({**INDEX, "mediaType": types.OCI_MANIFEST}, None),
        ({**IMAGE, "mediaType": types.OCI_INDEX}, None),
        # The two types differ.
        ({**IMAGE, "mediaType": types.OCI_MANIFEST}, types.DOCKER_MANIFEST),
        ({**IMAGE, "mediaType": types.OCI_MANIFEST}, types.OCI_INDEX),
        ({**INDEX, "mediaType": types.DOCKER_INDEX}, types.OCI_INDEX),
        # Other readers would take these for the fields.
        ({**IMAGE, "Config": CONFIG}, None),
        ({**IMAGE, "LAYERS": [LAYER]}, None),
        ({**IMAGE, "Manifests": []}, None),
        ({**INDEX, "Layers": []}, None),
        ({**IMAGE, "MediaType": types.OCI_INDEX}, None),
        ({**IMAGE, "SchemaVersion": 1}, None),
        # Simply malformed.
        ([], None),
        ({**IMAGE, "schemaVersion": 3}, None),
        ({**IMAGE, "schemaVersion": "2"}, None),
        ({**IMAGE, "mediaType": 1}, None),
        ({**IMAGE, "config": None}, None),
        ({"schemaVersion": 2, "layers": []}, None),
        ({**IMAGE, "layers": {}}, None),
        ({**INDEX, "manifests": {}}, None),
    ],
    ids=lambda v: str(v)[-60:],
)
def test_documents_of_more_than_one_meaning_or_none_are_refused(document, media_type):
    with pytest.raises(InvalidDocument):
        parse(document, media_type)


def test_duplicate_keys_are_refused():
    raw = json.dumps(IMAGE).encode()[:-1] + b', "layers": []}'
    with pytest.raises(InvalidDocument, match="duplicate"):
        parse_manifest(raw, media_type=None)


def test_the_error_has_the_place():
    broken = descriptor(types.OCI_MANIFEST, platform={"os": 7})
    with pytest.raises(InvalidDocument) as caught:
        parse({**INDEX, "manifests": [*INDEX["manifests"], broken]})
    assert caught.value.fields["path"] == "manifests[1].platform.os"


@pytest.mark.parametrize(
    ("document", "media_type"),
    [
        ({"schemaVersion": 1, "fsLayers": [], "history": []}, None),
        ({"schemaVersion": 1, "fsLayers": [], "signatures": []}, types.DOCKER_SCHEMA1_SIGNED),
        ({"fsLayers": [{"blobSum": "x"}]}, None),
        ({**IMAGE, "mediaType": types.DOCKER_SCHEMA1}, None),
        ({"schemaVersion": 2}, "application/vnd.oci.artifact.manifest.v1+json"),
        ({**IMAGE, "mediaType": "application/vnd.example+json"}, None),
        (IMAGE, "text/html"),
    ],
)
def test_other_formats_are_named_unsupported(document, media_type):
    with pytest.raises(Unsupported):
        parse(document, media_type)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_expected_digest_is_verified_and_kept(algorithm):
    raw = json.dumps(IMAGE).encode()
    expected = Digest.of(raw, algorithm)
    assert parse_manifest(raw, media_type=None, expected=expected).digest == expected
    with pytest.raises(DigestMismatch):
        parse_manifest(raw + b" ", media_type=None, expected=expected)


@pytest.mark.parametrize(
    ("document", "limit"),
    [
        ({**IMAGE, "layers": [LAYER] * (limits.LAYERS + 1)}, "LAYERS"),
        (
            {**INDEX, "manifests": INDEX["manifests"] * (limits.INDEX_MANIFESTS + 1)},
            "INDEX_MANIFESTS",
        ),
        ({**IMAGE, "annotations": {"a": "x" * limits.MANIFEST_SIZE}}, "MANIFEST_SIZE"),
        ({**IMAGE, "annotations": {str(n): "" for n in range(limits.JSON_VALUES)}}, "JSON_VALUES"),
    ],
    ids=["layers", "manifests", "size", "annotations"],
)
def test_limits_are_named(document, limit):
    with pytest.raises(LimitExceeded) as caught:
        parse(document)
    assert caught.value.fields["limit"] == limit


def test_as_many_layers_as_the_limit_allows():
    assert len(parse({**IMAGE, "layers": [LAYER] * limits.LAYERS}).layers) == limits.LAYERS


# --- selection ----------------------------------------------------------------------------------


def index_of(*items: tuple[str, str | None]) -> Index:
    manifests = []
    for media_type, platform in items:
        item = descriptor(media_type, f"{media_type} {platform}".encode())
        if platform is not None:
            os, architecture, *variant = platform.split("/")
            item["platform"] = {"os": os, "architecture": architecture}
            item["platform"] |= {"variant": variant[0]} if variant else {}
        manifests.append(item)
    return parse({**INDEX, "manifests": manifests})


def selected(index: Index, platform: str) -> list[str]:
    found = select_manifests(index, only(Platform.parse(platform)))
    return [str(item.platform) if item.platform else item.media_type[-20:] for item in found]


def test_best_manifest_first_then_those_of_no_platform():
    index = index_of(
        (types.OCI_MANIFEST, None),
        (types.OCI_MANIFEST, "unknown/unknown"),
        (types.OCI_MANIFEST, "linux/386"),
        (types.OCI_MANIFEST, "linux/arm64/v8"),
        (types.OCI_MANIFEST, "linux/amd64"),
        (types.OCI_MANIFEST, "windows/amd64"),
        (types.OCI_INDEX, None),
        (types.IN_TOTO, None),
        (types.OCI_LAYER, "linux/amd64"),
    )
    rest = [types.OCI_MANIFEST[-20:], types.OCI_INDEX[-20:]]
    assert selected(index, "linux/amd64") == ["linux/amd64", "linux/386", *rest]
    assert selected(index, "linux/arm64") == ["linux/arm64/v8", *rest]
    assert selected(index, "linux/s390x") == rest


def test_equally_good_manifests_keep_their_order():
    index = index_of((types.OCI_MANIFEST, "linux/arm64/v8"), (types.DOCKER_MANIFEST, "linux/arm64"))
    assert selected(index, "linux/arm64") == ["linux/arm64/v8", "linux/arm64"]


def test_nothing_matches():
    index = index_of((types.OCI_MANIFEST, "linux/s390x"))
    assert selected(index, "linux/amd64") == []


# --- any input ----------------------------------------------------------------------------------

KEYS = st.sampled_from(
    [
        "schemaVersion",
        "mediaType",
        "config",
        "layers",
        "manifests",
        "subject",
        "annotations",
        "Config",
    ]
)
VALUES = st.recursive(
    st.none() | st.integers(-1, 3) | st.sampled_from(["", *types.ACCEPTED]) | st.just(CONFIG),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=5,
)


@given(
    st.sampled_from([IMAGE, INDEX, {}]),
    st.dictionaries(KEYS, VALUES, max_size=4),
    st.none() | st.text(max_size=10) | st.sampled_from(types.ACCEPTED),
)
def test_no_other_exception_and_never_two_meanings(base, members, media_type):
    document = {**base, **members}
    with suppress(ContentError):
        parsed = parse(document, media_type)
        assert isinstance(parsed, Index) == ("manifests" in document)
        assert isinstance(parsed, Manifest) == ("config" in document)


@given(st.binary(max_size=50))
def test_no_other_exception_on_any_bytes(raw):
    with pytest.raises(ContentError):
        parse_manifest(raw, media_type=None)
