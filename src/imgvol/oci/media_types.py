"""The media types of images, and what follows from each.

Sources: image-spec `media-types.md`, the Docker registry's "schema 2", containerd `mediatypes.go`.
"""

from typing import Final, Literal, TypeAlias

from imgvol.errors import Unsupported

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = f"{OCI_LAYER}+gzip"
OCI_LAYER_ZSTD: Final = f"{OCI_LAYER}+zstd"
OCI_FOREIGN_LAYER: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"

DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP: Final = f"{DOCKER_LAYER}.gzip"
DOCKER_LAYER_ZSTD: Final = f"{DOCKER_LAYER}.zstd"
DOCKER_FOREIGN_LAYER: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar"
DOCKER_FOREIGN_LAYER_GZIP: Final = f"{DOCKER_FOREIGN_LAYER}.gzip"

DOCKER_SCHEMA1: Final = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA1_SIGNED: Final = "application/vnd.docker.distribution.manifest.v1+prettyjws"
IN_TOTO: Final = "application/vnd.in-toto+json"
EROFS_LAYER: Final = "application/vnd.erofs.layer.v1"

INDEXES: Final = (OCI_INDEX, DOCKER_INDEX)
MANIFESTS: Final = (OCI_MANIFEST, DOCKER_MANIFEST)
# Offered to registries, the preferred first.
ACCEPTED: Final = (OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST)

# As the suffixes of OCI's types; empty is uncompressed.
LayerCompression: TypeAlias = Literal["", "gzip", "zstd"]

# Old tools wrote the vague ones; moby still takes what has them for images.
_IMAGE_CONFIGS: Final = frozenset(
    (OCI_CONFIG, DOCKER_CONFIG, "application/octet-stream", "application/json", "text/html")
)
_SCHEMA1: Final = frozenset((DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED))
_OCI_LAYERS: Final = frozenset((OCI_LAYER, OCI_FOREIGN_LAYER))
# Docker's types without a suffix lie: real images carry gzip under them.
_DOCKER_LAYERS: Final[dict[str, LayerCompression | None]] = {
    DOCKER_LAYER: None,
    DOCKER_LAYER_GZIP: "gzip",
    DOCKER_LAYER_ZSTD: "zstd",
    DOCKER_FOREIGN_LAYER: None,
    DOCKER_FOREIGN_LAYER_GZIP: "gzip",
}


def is_index(media_type: str) -> bool:
    """Whether a document of this type lists manifests."""
    return media_type in INDEXES


def is_manifest(media_type: str) -> bool:
    """Whether a document of this type is one image's manifest."""
    return media_type in MANIFESTS


def is_schema1(media_type: str) -> bool:
    """Whether a document of this type is of the manifest format before digests named layers."""
    return media_type in _SCHEMA1


def is_image_config(media_type: str) -> bool:
    """Whether a config of this type makes its manifest an image's, and not an artifact's."""
    return media_type in _IMAGE_CONFIGS


def is_layer(media_type: str) -> bool:
    """Whether a blob of this type is a layer, be it one that imgvol cannot read."""
    base = media_type.partition("+")[0]
    return base in _OCI_LAYERS or base in _DOCKER_LAYERS or base == EROFS_LAYER


def layer_compression(media_type: str) -> LayerCompression | None:
    """How a layer of this type is compressed; None when only its first bytes tell.

    Raises:
        Unsupported: Not a layer, or one that imgvol cannot read.
    """
    base, *suffixes = media_type.split("+")
    if base == EROFS_LAYER:
        raise Unsupported("erofs layers cannot be read", media_type=media_type)
    if not is_layer(media_type):
        raise Unsupported("not a layer that imgvol can read", media_type=media_type)
    if "encrypted" in suffixes:
        raise Unsupported(
            "the layer is encrypted",
            hint="Decrypt the image first, for example with skopeo copy --decryption-key.",
            media_type=media_type,
        )
    match base, suffixes:
        case _, []:
            return _DOCKER_LAYERS.get(base, "")
        case _, ["gzip"] if base in _OCI_LAYERS:
            return "gzip"
        case _, ["zstd"] if base in _OCI_LAYERS:
            return "zstd"
        case _:
            raise Unsupported("unknown layer compression", media_type=media_type)
