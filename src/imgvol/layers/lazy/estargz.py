"""eStargz: a gzip blob that ends in its table of contents and a footer that says where that is.

The blob is gzip members end to end, and as a whole a tar.gz as any other. The last member is the
footer, an empty one with its message in the header's extra field; before it is the table of
contents, as the only file of a tar. Only the manifest's annotation makes it worth anything.

Or the table of contents is *external*, which the footer then says: that same tar.gz is a layer of
another image, whose tag is that of the first one with a suffix. One such image holds the tables of
contents of all layers, for all platforms.
"""

import re
from typing import Final, NamedTuple

from imgvol import limits
from imgvol.errors import InvalidLayer, LimitExceeded
from imgvol.layers.compression import Compression, open_decoder
from imgvol.layers.reserved import TOC_NAME
from imgvol.layers.tar import TarMember, TarParser
from imgvol.oci.descriptor import Descriptor
from imgvol.oci.digest import Digest
from imgvol.oci.manifest import Manifest

TOC_DIGEST: Final = "containerd.io/snapshot/stargz/toc.digest"
"""The annotation that pins the table of contents: the digest of its JSON."""

EXTERNAL_SUFFIX: Final = "-esgztoc"
"""What the tag of the image with the external tables of contents has at its end."""

# In that image: of which layer this one is the table of contents.
_LAYER_DIGEST: Final = "containerd.io/snapshot/stargz/layer.digest"

FOOTER_SIZE: Final = 51
LEGACY_FOOTER_SIZE: Final = 47
EXTERNAL_FOOTER_SIZE: Final = 46

# RFC 1952: magic, deflate, extra field, no time, unknown system; then the length of the extra field
_HEAD: Final = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff"
# An empty stored block, the last one; CRC-32 and size of nothing.
_END: Final = b"\x01\0\0\xff\xff" + bytes(8)
_OFFSET: Final = re.compile(rb"([0-9a-f]{16})STARGZ", re.DOTALL)
_OFFSET_SIZE: Final = 22
_SUBFIELD: Final = b"SG" + _OFFSET_SIZE.to_bytes(2, "little")
_EXTERNAL: Final = b"SG\x11\0STARGZEXTERNALTOC"

# Headers before the JSON, its padding and end blocks after it.
_TAR_OVERHEAD: Final = limits.MIB


class Footer(NamedTuple):
    """What a footer says.

    Attributes:
        size: Bytes of the footer itself.
        toc_offset: Where in the blob the table of contents starts; None: it is in another image.
    """

    size: int
    toc_offset: int | None


def parse_footer(tail: bytes) -> Footer | None:
    """Read the footer at the end of a blob; None when there is none."""
    for size, prefix in ((FOOTER_SIZE, _SUBFIELD), (LEGACY_FOOTER_SIZE, b"")):
        extra = _extra_field(tail[-size:], len(prefix) + _OFFSET_SIZE)
        if extra is not None and extra.startswith(prefix):
            match = _OFFSET.fullmatch(extra[len(prefix) :])
            if match:
                return Footer(size, int(match[1], 16))
    if _extra_field(tail[-EXTERNAL_FOOTER_SIZE:], len(_EXTERNAL)) == _EXTERNAL:
        return Footer(EXTERNAL_FOOTER_SIZE, None)
    return None


def format_footer(toc_offset: int) -> bytes:
    """Write the footer of a blob whose table of contents starts at an offset."""
    extra = _SUBFIELD + b"%016xSTARGZ" % toc_offset
    return _HEAD + len(extra).to_bytes(2, "little") + extra + _END


def external_layer(companion: Manifest, layer: Digest) -> Descriptor | None:
    """Which layer of a companion image is the table of contents of a layer; None: it has none."""
    wanted = str(layer)
    found = (item for item in companion.layers if item.annotations.get(_LAYER_DIGEST) == wanted)
    return next(found, None)


def _extra_field(footer: bytes, size: int) -> bytes | None:
    head = _HEAD + size.to_bytes(2, "little")
    if len(footer) != len(head) + size + len(_END):
        return None
    if not footer.startswith(head) or not footer.endswith(_END):
        return None
    return footer[len(head) : len(head) + size]


def extract_json(data: bytes) -> bytes:
    """Unpack a table of contents from its part of the blob, without its footer; or from its layer.

    Raises:
        InvalidLayer: It is no gzip, no tar, or has no table of contents.
        LimitExceeded: It is larger than limits.TOC_SIZE.
    """
    decoder = open_decoder(Compression.GZIP)
    parser = TarParser()
    content = bytearray()
    found: TarMember | None = None
    for piece in decoder.feed(data):
        content += piece
        if len(content) > limits.TOC_SIZE + _TAR_OVERHEAD:
            raise _too_large()
        members = parser.feed(piece)
        found = found or next((member for member in members if member.name == TOC_NAME), None)
        if found is not None:
            if found.payload_size > limits.TOC_SIZE:
                raise _too_large()
            end = found.payload_offset + found.payload_size
            if len(content) >= end:
                return bytes(content[found.payload_offset : end])
    raise InvalidLayer("no whole table of contents where the footer says")


def _too_large() -> LimitExceeded:
    return LimitExceeded("table of contents too large", limit="TOC_SIZE", allowed=limits.TOC_SIZE)
