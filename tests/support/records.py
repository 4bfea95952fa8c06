"""Records of layers and images that exist in a database only."""

from collections.abc import Sequence
from dataclasses import replace

from imgvol.content.records import ImageRecord, LayerRecord
from imgvol.oci.chain import chain_id
from imgvol.oci.digest import DiffID, Digest
from imgvol.oci.media_types import OCI_MANIFEST


def layer_record(name: str) -> LayerRecord:
    return LayerRecord(
        digest=Digest.of(b"blob " + name.encode()),
        diff_id=DiffID(Digest.of(b"diff " + name.encode())),
        media_type="application/vnd.oci.image.layer.v1.tar+gzip",
        size=10,
        unpacked_size=1024,
        entries=1,
    )


def record_of(digest: Digest, tar: bytes = b"") -> LayerRecord:
    """A layer that is what a digest names, and whose bytes are a tar's."""
    return replace(
        layer_record("any"), digest=digest, diff_id=DiffID(Digest.of(tar)), unpacked_size=len(tar)
    )


def image_record(layers: Sequence[LayerRecord], name: str = "image") -> ImageRecord:
    return ImageRecord(
        id=Digest.of(b"config " + name.encode()),
        manifest=Digest.of(b"manifest " + name.encode()),
        media_type=OCI_MANIFEST,
        platform="linux/amd64",
        chain_id=chain_id([layer.diff_id for layer in layers]),
        layers=tuple(layers),
        size=100,
        created=None,
        pulled_at=1.0,
    )
