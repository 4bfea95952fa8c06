"""Documents with other layers: what is not about them stays."""

import json

from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import parse_manifest
from imgvol.publish.rewriting import (
    rewrite_config,
    rewrite_index,
    rewrite_layer,
    rewrite_manifest,
)

D = "sha256:" + "0" * 64
DOCKER = "application/vnd.docker"


def test_a_config_keeps_what_nobody_knows():
    raw = json.dumps(
        {
            "os": "linux",
            "x-odd": {"a": [1, 2.5, None, "ü"]},
            "history": [{"empty_layer": True}],
            "rootfs": {"type": "layers", "diff_ids": [D], "more": 1},
        }
    ).encode()
    other = Digest.of(b"other")
    found = json.loads(rewrite_config(raw, [other]))
    expected = json.loads(raw)
    expected["rootfs"]["diff_ids"] = [str(other)]
    assert found == expected
    assert list(found) == list(expected)
    assert rewrite_config(raw, [Digest.parse(D)]) == raw


def test_a_docker_manifest_becomes_one_of_oci():
    raw = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": f"{DOCKER}.distribution.manifest.v2+json",
            "config": {
                "mediaType": f"{DOCKER}.container.image.v1+json",
                "digest": D,
                "size": 5,
                "data": "aGVsbG8=",
            },
            "layers": [],
            "annotations": {"com.amazon.soci.index-digest": D, "kept": "1"},
            "x-odd": 1,
        }
    ).encode()
    foreign = Descriptor(
        media_type=f"{DOCKER}.image.rootfs.foreign.diff.tar.gzip",
        digest=Digest.parse(D),
        size=1,
        urls=("https://example.com/x",),
    )
    found = rewrite_manifest(raw, b"config", [foreign])
    manifest = parse_manifest(found, media_type="application/vnd.oci.image.manifest.v1+json")
    assert manifest.config.media_type == "application/vnd.oci.image.config.v1+json"
    assert manifest.config.digest == Digest.of(b"config")
    assert manifest.config.data is None
    assert manifest.annotations == {"kept": "1"}
    (layer,) = manifest.layers
    assert layer.media_type.endswith("nondistributable.v1.tar+gzip")
    assert layer.urls == foreign.urls
    assert json.loads(found)["x-odd"] == 1


def test_a_layer_keeps_its_own_annotations_only():
    layer = Descriptor(
        media_type="x/y",
        digest=Digest.parse(D),
        size=1,
        annotations={
            "kept": "1",
            "containerd.io/snapshot/stargz/toc.digest": D,
            "io.github.containers.zstd-chunked.manifest-position": "1:2:3:1",
        },
    )
    new = Digest.of(b"new")
    found = rewrite_layer(layer, media_type="a/b", digest=new, size=3, more={"more": "2"})
    assert found == Descriptor(
        media_type="a/b", digest=new, size=3, annotations={"kept": "1", "more": "2"}
    )


def test_an_index_leaves_out_what_was_not_converted():
    first, second = Digest.of(b"1"), Digest.of(b"2")
    entries = [
        {"mediaType": f"{DOCKER}.distribution.manifest.v2+json", "digest": str(d), "size": 1}
        for d in (first, second)
    ]
    entries[0] |= {"platform": {"os": "linux", "architecture": "x"}, "x-odd": 1, "data": "MQ=="}
    raw = json.dumps({"schemaVersion": 2, "manifests": entries, "x-odd": 2}).encode()
    found = json.loads(rewrite_index(raw, {first: b"new"}))
    (entry,) = found["manifests"]
    assert entry == {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": str(Digest.of(b"new")),
        "size": 3,
        "platform": entries[0]["platform"],
        "x-odd": 1,
    }
    assert found["x-odd"] == 2
