"""SOCI indexes: which zTOC is whose, and who says so."""

import json

import pytest

from imgvol import limits
from imgvol.errors import DigestMismatch, InvalidDocument, LimitExceeded, Unsupported
from imgvol.layers.lazy import zstd_frames
from imgvol.layers.lazy.soci import SpanRange
from imgvol.layers.lazy.soci_index import (
    INDEX_V1,
    INDEX_V2,
    PREFETCH,
    ZTOC,
    parse_prefetch,
    parse_soci_index,
    pinned_index,
)
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import Manifest, parse_manifest
from imgvol.oci.media_types import OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST

LAYERS = [Digest.of(bytes([number])) for number in range(3)]
IMAGE = Digest.of(b"image")


def descriptor(media_type: str, content: bytes = b"x", **more) -> dict:
    return {
        "mediaType": media_type,
        "digest": str(Digest.of(content)),
        "size": len(content),
        **more,
    }


def item(layer: Digest | str, content: bytes = b"zTOC", media_type: str = ZTOC) -> dict:
    annotations = {"com.amazon.soci.image-layer-digest": str(layer)}
    return descriptor(media_type, content, annotations=annotations)


def document(*items: dict, kind: str = INDEX_V2, subject: Digest | None = None, **more) -> bytes:
    found = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(kind, b"{}"),
        "layers": list(items),
        **more,
    }
    if subject:
        found["subject"] = {**descriptor(OCI_MANIFEST), "digest": str(subject)}
    return json.dumps(found).encode()


def parse(raw: bytes, subject: Digest | None = None):
    return parse_soci_index(raw, expected=Digest.of(raw), subject=subject)


def image(annotations: dict | None = None) -> Manifest:
    raw = json.dumps(
        {
            "schemaVersion": 2,
            "config": descriptor(OCI_CONFIG),
            "layers": [descriptor(OCI_LAYER_GZIP)],
            "annotations": annotations or {},
        }
    ).encode()
    manifest = parse_manifest(raw, media_type=OCI_MANIFEST)
    assert isinstance(manifest, Manifest)
    return manifest


def test_layers_find_their_ztocs():
    index = parse(
        document(
            item(LAYERS[0], b"zero"),
            item(LAYERS[1], b"one"),
            item(LAYERS[1], b"first", PREFETCH),
        )
    )
    assert index.version == 2
    assert set(index.layers) == set(LAYERS[:2])
    assert index.layers[LAYERS[0]].ztoc.digest == Digest.of(b"zero")
    assert index.layers[LAYERS[0]].prefetch is None
    assert index.layers[LAYERS[1]].prefetch.digest == Digest.of(b"first")


def frames(layer: Digest | str, content: bytes = b"frames") -> dict:
    annotations = {"vnd.imgvol.zstd-frames.layer-digest": str(layer)}
    return descriptor(zstd_frames.MEDIA_TYPE, content, annotations=annotations)


def test_zstd_layers_have_documents_of_their_own():
    index = parse(document(item(LAYERS[0]), frames(LAYERS[1]), frames(LAYERS[1])))
    assert set(index.layers) == {LAYERS[0]}
    assert {layer: found.digest for layer, found in index.frames.items()} == {
        LAYERS[1]: Digest.of(b"frames")
    }
    # With SOCI's annotation it is nothing that anybody knows.
    assert not parse(document(item(LAYERS[0], b"x", zstd_frames.MEDIA_TYPE))).frames


def test_two_answers_for_one_zstd_layer_are_refused():
    for raw in (
        document(frames(LAYERS[0], b"a"), frames(LAYERS[0], b"b")),
        document(item(LAYERS[0]), frames(LAYERS[0])),
    ):
        with pytest.raises(InvalidDocument, match="two answers"):
            parse(raw)
    with pytest.raises(InvalidDocument, match="malformed"):
        parse(document(frames("sha256:7")))


def test_sparse_index_leaves_layers_out():
    assert dict(parse(document()).layers) == {}
    assert set(parse(document(item(LAYERS[2]), item(LAYERS[0], b"p", PREFETCH))).layers) == {
        LAYERS[2]
    }


def test_what_is_not_known_is_passed_over():
    raw = document(item(LAYERS[0], media_type="application/x.later"), descriptor(ZTOC))
    assert dict(parse(raw).layers) == {}


def test_layer_that_the_image_has_twice_may_be_told_twice():
    assert len(parse(document(item(LAYERS[0]), item(LAYERS[0]))).layers) == 1


@pytest.mark.parametrize("media_type", [ZTOC, PREFETCH])
def test_two_answers_for_one_layer_are_refused(media_type):
    raw = document(item(LAYERS[0], b"a", media_type), item(LAYERS[0], b"b", media_type))
    with pytest.raises(InvalidDocument, match="two answers"):
        parse(raw)


@pytest.mark.parametrize("text", ["", "sha256:abc", "x" * 500])
def test_malformed_layer_digest_is_refused(text):
    with pytest.raises(InvalidDocument) as caught:
        parse(document(item(text)))
    assert caught.value.fields["path"].startswith("layers[0].annotations")


def test_index_that_is_not_the_pinned_one_is_refused():
    with pytest.raises(DigestMismatch):
        parse_soci_index(document(), expected=Digest.of(b"other"))


def test_first_version_must_name_the_image():
    raw = document(item(LAYERS[0]), kind=INDEX_V1, subject=IMAGE)
    assert parse(raw, IMAGE).version == 1
    with pytest.raises(InvalidDocument, match="another image"):
        parse(raw, Digest.of(b"other"))
    with pytest.raises(InvalidDocument, match="another image"):
        parse(document(kind=INDEX_V1), IMAGE)


def test_neither_version_is_taken_for_the_other():
    with pytest.raises(Unsupported):
        parse(document(kind=INDEX_V1, subject=IMAGE))
    with pytest.raises(Unsupported):
        parse(document(kind=INDEX_V2, subject=IMAGE), IMAGE)
    with pytest.raises(Unsupported):
        parse(document(kind=OCI_CONFIG))


def test_image_index_is_no_soci_index():
    raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
    with pytest.raises(InvalidDocument):
        parse(raw)


def test_image_names_its_index():
    digest = Digest.of(b"index")
    assert pinned_index(image()) is None
    assert pinned_index(image({"com.amazon.soci.index-digest": str(digest)})) == digest
    with pytest.raises(InvalidDocument):
        pinned_index(image({"com.amazon.soci.index-digest": "latest"}))


def prefetch(*spans: dict, version: str = "1.0") -> bytes:
    return json.dumps({"version": version, "prefetch_spans": list(spans)}).encode()


def ranges(raw: bytes) -> tuple[SpanRange, ...]:
    return parse_prefetch(raw, expected=Digest.of(raw))


def test_spans_to_prefetch_come_by_priority():
    raw = prefetch(
        {"start_span": 10, "end_span": 15, "priority": 2},
        {"start_span": 1, "end_span": 1},
        {"start_span": 5, "end_span": 6, "priority": 0},
        {"start_span": 7, "end_span": 7, "priority": -1},
    )
    assert ranges(raw) == ((7, 7), (1, 1), (5, 6), (10, 15))
    assert ranges(b'{"version":"1.0"}') == ()


@pytest.mark.parametrize(
    "span",
    [
        {},
        {"start_span": 1},
        {"start_span": 2, "end_span": 1},
        {"start_span": -1, "end_span": 1},
        {"start_span": 0, "end_span": 1 << 31},
        {"start_span": 0, "end_span": 1, "priority": "high"},
        {"start_span": 0.5, "end_span": 1},
    ],
)
def test_malformed_ranges_are_refused(span):
    with pytest.raises(InvalidDocument):
        ranges(prefetch(span))


def test_other_prefetch_artifacts_are_refused():
    with pytest.raises(Unsupported):
        ranges(prefetch(version="2.0"))
    with pytest.raises(DigestMismatch):
        parse_prefetch(prefetch(), expected=Digest.of(b""))
    with pytest.raises(InvalidDocument):
        ranges(b"[]")
    with pytest.raises(LimitExceeded):
        ranges(b" " * (limits.PREFETCH_SIZE + 1))
