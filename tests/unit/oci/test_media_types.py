import pytest

from imgvol.errors import Unsupported
from imgvol.oci import media_types as types

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"


@pytest.mark.parametrize(
    ("media_type", "compression"),
    [
        (OCI_LAYER, ""),
        (f"{OCI_LAYER}+gzip", "gzip"),
        (f"{OCI_LAYER}+zstd", "zstd"),
        (OCI_FOREIGN, ""),
        (f"{OCI_FOREIGN}+gzip", "gzip"),
        (f"{OCI_FOREIGN}+zstd", "zstd"),
        (DOCKER_LAYER, None),
        (f"{DOCKER_LAYER}.gzip", "gzip"),
        (f"{DOCKER_LAYER}.zstd", "zstd"),
        (DOCKER_FOREIGN, None),
        (f"{DOCKER_FOREIGN}.gzip", "gzip"),
    ],
)
def test_layers_and_their_compression(media_type, compression):
    assert types.is_layer(media_type)
    assert types.layer_compression(media_type) == compression


@pytest.mark.parametrize(
    ("media_type", "message"),
    [
        (f"{OCI_LAYER}+invalid", "unknown layer compression"),
        (f"{OCI_LAYER}+gzip+gzip", "unknown layer compression"),
        (f"{DOCKER_LAYER}.gzip+zstd", "unknown layer compression"),
        (f"{OCI_LAYER}+encrypted", "encrypted"),
        (f"{OCI_LAYER}+gzip+encrypted", "encrypted"),
        (f"{OCI_LAYER}+zstd+encrypted", "encrypted"),
        ("application/vnd.erofs.layer.v1", "erofs"),
    ],
)
def test_layers_that_cannot_be_read(media_type, message):
    assert types.is_layer(media_type)
    with pytest.raises(Unsupported, match=message):
        types.layer_compression(media_type)


@pytest.mark.parametrize(
    "media_type",
    ["application/json", "application/gzip", "", types.OCI_CONFIG, types.OCI_EMPTY, types.IN_TOTO],
)
def test_not_layers(media_type):
    assert not types.is_layer(media_type)
    with pytest.raises(Unsupported, match="not a layer"):
        types.layer_compression(media_type)


def test_documents_are_one_kind_each():
    kinds = (types.is_index, types.is_manifest, types.is_schema1)
    for media_type in (*types.ACCEPTED, types.DOCKER_SCHEMA1):
        assert sum(kind(media_type) for kind in kinds) == 1
    for media_type in (types.OCI_CONFIG, types.DOCKER_CONFIG):
        assert not any(kind(media_type) for kind in kinds)
