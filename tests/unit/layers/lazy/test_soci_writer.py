"""SOCI indexes as they are written, and compressed zTOCs as they are read."""

import json

import pytest
import zstandard

from imgvol.errors import ContentError, DigestMismatch, InvalidLayer, LimitExceeded
from imgvol.layers.lazy import soci_twin, zstd_frames
from imgvol.layers.lazy.soci_index import parse_soci_index, pinned_index
from imgvol.layers.lazy.soci_twin import compress_ztoc, expand_twin
from imgvol.layers.lazy.soci_writer import (
    ConvertedImage,
    IndexedLayer,
    annotate_manifest,
    write_image_index,
    write_soci_index,
)
from imgvol.oci import media_types
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import Index, Manifest, parse_manifest
from imgvol.oci.platform import Platform
from support.images import Image, Layer, file, to_json

LAYER, ZTOC, TWIN = (Digest.of(text) for text in (b"layer", b"ztoc" * 100, b"twin"))
INDEXED = IndexedLayer(
    layer=LAYER,
    media_type=media_types.OCI_LAYER_GZIP,
    span_size=4 << 20,
    ztoc=(ZTOC, 400),
    twin=(TWIN, 4),
)
FRAMED = IndexedLayer(
    layer=Digest.of(b"zstd"),
    media_type=media_types.OCI_LAYER_ZSTD,
    span_size=4 << 20,
    frames=(Digest.of(b"frames"), 6),
)
AMD64 = Platform(os="linux", architecture="amd64")


def manifest_of(docker: bool = False) -> Manifest:
    raw = Image([Layer([file("a", b"1")])]).manifest_bytes()
    if docker:
        document = json.loads(raw)
        document["mediaType"] = media_types.DOCKER_MANIFEST
        document["config"]["mediaType"] = media_types.DOCKER_CONFIG
        raw = to_json(document)
    manifest = parse_manifest(raw, media_type=None)
    assert isinstance(manifest, Manifest)
    return manifest


def test_version_2_names_ztocs_and_twins_and_nothing_else():
    written = write_soci_index([INDEXED], tool="imgvol 1")
    found = parse_soci_index(written.raw, expected=written.digest)
    assert found.version == 2
    assert found.layers[LAYER].ztoc.digest == ZTOC
    twin = found.layers[LAYER].twin
    assert twin is not None
    assert (twin.digest, twin.size, twin.media_type) == (TWIN, 4, soci_twin.MEDIA_TYPE)
    document = json.loads(written.raw)
    assert "subject" not in document
    assert document["annotations"] == {"com.amazon.soci.build-tool-identifier": "imgvol 1"}
    assert document["layers"][0]["annotations"] == {
        "com.amazon.soci.image-layer-digest": str(LAYER),
        "com.amazon.soci.image-layer-mediaType": media_types.OCI_LAYER_GZIP,
        "com.amazon.soci.span-size": "4194304",
    }


def test_a_zstd_layer_has_its_document_and_no_ztoc():
    written = write_soci_index([FRAMED, INDEXED], tool="x")
    found = parse_soci_index(written.raw, expected=written.digest)
    assert set(found.layers) == {LAYER}
    frames = found.frames[FRAMED.layer]
    assert (frames.digest, frames.size) == FRAMED.frames
    items = [item["mediaType"] for item in json.loads(written.raw)["layers"]]
    assert items == ["application/octet-stream", soci_twin.MEDIA_TYPE, zstd_frames.MEDIA_TYPE]


def test_snapshotters_that_know_neither_twins_nor_frames_see_only_ztocs():
    """What they look for: a media type, and the annotation with the layer's digest."""
    document = json.loads(write_soci_index([INDEXED, FRAMED], tool="x").raw)
    theirs = [
        item for item in document["layers"] if item["mediaType"] == "application/octet-stream"
    ]
    assert [item["digest"] for item in theirs] == [str(ZTOC)]
    named = [
        i for i in document["layers"] if "com.amazon.soci.image-layer-digest" in i["annotations"]
    ]
    assert named == theirs


def test_version_1_names_its_subject():
    manifest = manifest_of()
    written = write_soci_index([INDEXED], tool="x", subject=manifest)
    found = parse_soci_index(written.raw, expected=written.digest, subject=manifest.digest)
    assert found.version == 1
    assert found.manifest.subject == manifest.descriptor


def test_a_twin_of_another_ztoc_is_not_used():
    document = json.loads(write_soci_index([INDEXED], tool="x").raw)
    document["layers"][1]["annotations"][soci_twin.ZTOC_DIGEST] = str(LAYER)
    raw = to_json(document)
    found = parse_soci_index(raw, expected=Digest.of(raw))
    assert found.layers[LAYER].twin is None


@pytest.mark.parametrize("docker", [False, True])
def test_a_manifest_names_its_index_and_is_otherwise_the_same(docker):
    before = manifest_of(docker=docker)
    written = annotate_manifest(before, ZTOC)
    after = parse_manifest(written.raw, media_type=media_types.OCI_MANIFEST)
    assert isinstance(after, Manifest)
    assert pinned_index(after) == ZTOC
    assert after.layers == before.layers
    assert after.config.digest == before.config.digest
    assert after.config.media_type == media_types.OCI_CONFIG
    assert pinned_index(parse_manifest(annotate_manifest(after, None).raw, media_type=None)) is None


def test_an_image_without_an_index_gets_one():
    manifest, index = manifest_of(), write_soci_index([INDEXED], tool="x")
    annotated = annotate_manifest(manifest, index.digest)
    image = ConvertedImage(
        manifest=manifest.digest, annotated=annotated, index=index, platform=AMD64
    )
    written = write_image_index([image])
    found = parse_manifest(written.raw, media_type=media_types.OCI_INDEX)
    assert isinstance(found, Index)
    first, second = found.manifests
    assert (first.digest, first.platform) == (annotated.digest, AMD64)
    assert (second.digest, second.platform) == (index.digest, AMD64)
    assert second.artifact_type == "application/vnd.amazon.soci.index.v2+json"
    assert second.annotations == {"com.amazon.soci.image-manifest-digest": str(annotated.digest)}


def test_other_entries_stay_and_old_soci_indexes_go():
    manifest, index = manifest_of(), write_soci_index([INDEXED], tool="x")
    other = {
        "mediaType": media_types.OCI_MANIFEST,
        "digest": str(Digest.of(b"other")),
        "size": 5,
        "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"},
    }
    stale = other | {
        "digest": str(Digest.of(b"stale")),
        "artifactType": "application/vnd.amazon.soci.index.v2+json",
    }
    entry = {**manifest.descriptor.to_json(), "platform": {"os": "linux", "architecture": "amd64"}}
    original = to_json(
        {
            "schemaVersion": 2,
            "mediaType": media_types.DOCKER_INDEX,
            "manifests": [entry, other, stale],
            "annotations": {"a": "b"},
        }
    )
    image = ConvertedImage(
        manifest=manifest.digest,
        annotated=annotate_manifest(manifest, index.digest),
        index=index,
        platform=AMD64,
    )
    written = write_image_index([image], original=original)
    found = parse_manifest(written.raw, media_type=media_types.OCI_INDEX)
    assert isinstance(found, Index)
    assert [str(item.digest) for item in found.manifests] == [
        str(image.annotated.digest),
        other["digest"],
        str(index.digest),
    ]
    assert found.annotations == {"a": "b"}


# --- twins ----------------------------------------------------------------------------------------


def described(data: bytes) -> Descriptor:
    return Descriptor(media_type="a/b", digest=Digest.of(data), size=len(data))


@pytest.mark.parametrize("data", [b"", b"x", bytes(3_000_000), bytes(range(256)) * 1000])
def test_a_twin_expands_to_its_ztoc(data):
    assert expand_twin(compress_ztoc(data), described(data)) == data


def test_any_other_encoding_of_it_will_do():
    data = b"zTOC" * 1000
    halves = zstandard.compress(data[:999], 1) + zstandard.compress(data[999:], 19)
    assert expand_twin(halves, described(data)) == data


GOOD = compress_ztoc(b"zTOC" * 1000)


@pytest.mark.parametrize(
    ("twin", "kind"),
    [
        (b"", InvalidLayer),
        (GOOD[:-1], InvalidLayer),
        (GOOD[:30] + b"\xff\xff" + GOOD[32:], ContentError),
        (b"plain bytes", InvalidLayer),
        (compress_ztoc(b"zTOX" * 1000), DigestMismatch),
        (compress_ztoc(b"zTOC" * 999), InvalidLayer),
        (compress_ztoc(b"zTOC" * 1001), LimitExceeded),
        (compress_ztoc(bytes(200_000_000)), LimitExceeded),
    ],
    ids=["empty", "cut off", "damaged", "no zstd", "another", "short", "long", "bomb"],
)
def test_a_twin_that_is_not_its_ztoc_is_refused(twin, kind):
    with pytest.raises(kind):
        expand_twin(twin, described(b"zTOC" * 1000))
