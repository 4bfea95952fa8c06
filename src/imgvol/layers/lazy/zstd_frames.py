"""imgvol's own document for a zstd layer of several frames, in the place of a zTOC.

SOCI's zTOC has no zstd. So a SOCI index has, for such a layer, a document of a media type and with
an annotation of our own, which soci-snapshotter passes over: the layer is one that the index leaves
out, to it, and all others are as they were.

Inside it is a zTOC but for two things: the compression is a number that SOCI's schema does not
have, and where that has checkpoints there is the table of runs (`frames`). It is compressed with
zstd, as twins are (`soci_twin`); there is no plain form, for nobody else would read it. The index
pins the document as it is fetched.
"""

from typing import Final

from imgvol import limits
from imgvol.errors import DigestMismatch, InvalidLayer, LimitExceeded
from imgvol.layers.lazy.frames import FrameTable
from imgvol.layers.lazy.soci import index_members
from imgvol.layers.lazy.soci_twin import compress_ztoc, iter_expanded
from imgvol.layers.lazy.spans import LazyLayer
from imgvol.layers.lazy.ztoc import Algorithm, parse_ztoc
from imgvol.layers.lazy.ztoc_writer import ZtocParts, write_ztoc
from imgvol.layers.tar import TarMember
from imgvol.oci.digest import Digest

MEDIA_TYPE: Final = "application/vnd.imgvol.zstd-frames.v1+zstd"
LAYER_DIGEST: Final = "vnd.imgvol.zstd-frames.layer-digest"


def write_frames(parts: ZtocParts) -> bytes:
    """Write a document.

    Args:
        parts: As of a zTOC, with ZSTD_FRAMES for the algorithm, and packed runs for checkpoints.

    Raises:
        LimitExceeded: It would be larger than readers accept.
    """
    return compress_ztoc(write_ztoc(parts))


def open_frames(document: bytes, *, expected: Digest, blob_size: int) -> LazyLayer:
    """Make a lazy layer from its document.

    Args:
        document: As fetched.
        expected: The digest that the SOCI index pins for it.
        blob_size: Bytes of the layer's blob, as the image manifest says.

    Raises:
        DigestMismatch: The document is not what was pinned.
        InvalidLayer: It is damaged, contradicts itself, or belongs to another blob.
        LimitExceeded: It, or something that it describes, is too large.
        Unsupported: Another version, spans without digests, or sparse files.
    """
    if not expected.matches(document):
        raise DigestMismatch(
            "a table of zstd frames does not match its digest",
            expected=expected,
            actual=Digest.of(document, expected.algorithm),
        )
    members, table = read_frames(document, blob_size=blob_size)
    return LazyLayer(index_members(members), table)


def read_frames(document: bytes, *, blob_size: int) -> tuple[list[TarMember], FrameTable]:
    """The members and the runs of a document that need not be verified; else as `open_frames`."""
    ztoc = parse_ztoc(_expand(document), algorithms=frozenset({Algorithm.ZSTD_FRAMES}))
    if ztoc.compressed_size != blob_size:
        raise InvalidLayer(
            "a table of the zstd frames of another blob",
            expected=blob_size,
            actual=ztoc.compressed_size,
        )
    table = FrameTable(
        blob_size=ztoc.compressed_size,
        data_size=ztoc.uncompressed_size,
        digests=b"".join(bytes.fromhex(digest.hex) for digest in ztoc.span_digests),
        packed_runs=ztoc.checkpoints,
    )
    return ztoc.members, table


def _expand(document: bytes) -> bytes:
    pieces: list[bytes] = []
    size = 0
    for piece in iter_expanded(document):
        size += len(piece)
        if size > limits.ZTOC_SIZE:
            raise LimitExceeded(
                "a table of zstd frames is too large",
                limit="ZTOC_SIZE",
                allowed=limits.ZTOC_SIZE,
            )
        pieces.append(piece)
    return b"".join(pieces)
