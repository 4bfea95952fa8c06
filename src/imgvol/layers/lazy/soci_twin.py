"""The compressed twin of a zTOC: the same bytes, through zstd, beside it in the SOCI index.

SOCI keeps windows of 32 KiB as they are, and so a zTOC is a few percent of its layer. Windows that
have been trimmed are mostly zeros, and members repeat each other: compressed, a tenth is left. The
twin is one more layer of the index, of a media type and with annotations of our own, which
soci-snapshotter passes over. It names the layer, and the zTOC that it expands to.

Nobody has to believe a twin: what it expands to has the digest that the index pins for the zTOC, or
is not used. The zTOC itself is always there for those who do not know twins, or find a damaged one.
"""

from collections.abc import Iterator
from typing import Final

import zstandard

from imgvol import limits
from imgvol.errors import DigestMismatch, InvalidLayer, LimitExceeded
from imgvol.layers.zstd import ZstdDecoder
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest

MEDIA_TYPE: Final = "application/vnd.imgvol.ztoc.v1+zstd"
LAYER_DIGEST: Final = "vnd.imgvol.ztoc.layer-digest"
ZTOC_DIGEST: Final = "vnd.imgvol.ztoc.digest"

# Higher levels gain a quarter and take ten times as long: zTOCs are made as quickly as layers are
# read.
_LEVEL: Final = 9
# Nobody is asked for more memory than the zTOC takes anyway.
_WINDOW: Final = 8 * limits.MIB


def compress_ztoc(ztoc: bytes) -> bytes:
    """The twin of a zTOC: one frame, with its size and a checksum."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL, window_log=_WINDOW.bit_length() - 1, write_content_size=1, write_checksum=1
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(ztoc)


def iter_expanded(data: bytes) -> Iterator[bytes]:
    """What `compress_ztoc` was given, in pieces, of which there may be too many: count them.

    Raises:
        InvalidLayer: The data is damaged, or cut off.
        LimitExceeded: It needs too much memory.
        Unsupported: It needs a dictionary.
    """
    decoder = ZstdDecoder(window=_WINDOW)
    yield from decoder.feed(data)
    decoder.finish()


def expand_twin(twin: bytes, ztoc: Descriptor) -> bytes:
    """The zTOC that a twin stands for.

    Args:
        twin: The bytes of the twin, which need not be what anybody has said.
        ztoc: The zTOC, as the index describes it.

    Raises:
        DigestMismatch: It expands to something else.
        InvalidLayer: It is damaged.
        LimitExceeded: It expands to more than the zTOC has, or needs too much memory.
        Unsupported: It needs a dictionary.
    """
    pieces: list[bytes] = []
    size = 0
    allowed = min(ztoc.size, limits.ZTOC_SIZE)
    for piece in iter_expanded(twin):
        size += len(piece)
        if size > allowed:
            raise LimitExceeded("a compressed zTOC expands to too much", allowed=allowed)
        pieces.append(piece)
    data = b"".join(pieces)
    if size != ztoc.size:
        raise InvalidLayer("a compressed zTOC is cut off", expected=ztoc.size, actual=size)
    if not ztoc.digest.matches(data):
        raise DigestMismatch(
            "a compressed zTOC is not the one it stands for",
            expected=ztoc.digest,
            actual=Digest.of(data, ztoc.digest.algorithm),
        )
    return data
